"""Hydra config groups of lightning-compress, installed as ``lightning_compress.conf``."""
