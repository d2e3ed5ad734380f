"""The packed format, see FORMAT.md."""

from lightning_compress.export.packed.save_load import PackedFile, load_packed, save_packed

__all__ = ["PackedFile", "load_packed", "save_packed"]
