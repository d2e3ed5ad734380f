"""Trees of tensors in arguments and results: PyTorch's own pytree functions, named in this one place.

PyTorch keeps them in a module with an underscore; ``torch.export`` and the exporters built on it use the same
registry, so a class registered there (``torch.export.register_dataclass``) is a node here as well.
"""

from __future__ import annotations

from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

__all__ = ["tree_flatten", "tree_leaves", "tree_map", "tree_map_only", "tree_unflatten"]
