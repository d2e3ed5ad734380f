"""Finds attention heads in arbitrary code: which rows make each head and which columns read it.

One forward is run in which every linear layer gives, in place of its outputs, the numbers of its output channels.
Where two of them meet in attention the numbers that arrive say which rows make which head; the attention's result is
replaced by the number of the head, and the linear layer that these arrive at reads the heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_compress.foundation import pytree
from lightning_compress.pruning.channels.group import ChannelGroup, Part
from lightning_compress.pruning.channels.narrow_attention import Gathered
from lightning_compress.pruning.channels.trial_forward import outputs

_FIRST = 1000.0
"""The first channel's number; attention weights, which are at most 1, cannot be taken for it."""

_PRODUCTS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)


@dataclass(eq=False)
class HeadGroup(ChannelGroup):
    """The heads of one attention layer; a channel of this group is a head, or several that share keys and values.

    Attributes:
        owner: Module inside which the attention is computed.
        multihead: Whether that is an ``nn.MultiheadAttention``.
    """

    owner: str = ""
    multihead: bool = False


@dataclass
class _Attention:
    """Attention seen in the forward.

    Attributes:
        rows: For each head the numbers of the channels that make it, of queries, keys and values.
        readers: Linear layer that reads the heads → for each of its columns the head.
    """

    rows: list[list[int]]
    readers: dict[str, list[int]] = field(default_factory=dict)


def find_heads(model: nn.Module, example_inputs: Any) -> tuple[list[HeadGroup], dict[str, str]]:
    """Find the heads of every attention layer with more than one.

    Served are ``nn.MultiheadAttention``, and attention by ``scaled_dot_product_attention`` or by two matrix products
    between linear layers, with one projection for queries, keys and values or several, rotary positions, and keys and
    values that heads share.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, or a tuple of positional or dict of keyword arguments of ``forward``.

    Returns:
        The groups, and the name of every attention whose heads cannot be followed with the reason.
    """
    groups: list[HeadGroup] = []
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.num_heads > 1:
            if type(module) is not nn.MultiheadAttention or module.bias_k is not None or module.add_zero_attn:
                skipped[f"{name} (heads)"] = "it is a subclass, or has added keys, so its heads cannot be told apart"
            else:
                groups.append(_multihead(name, module))
    if not any(type(module) is nn.Linear for module in model.modules()):
        return groups, skipped
    try:
        attentions, lost, names = _trace(model, example_inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        skipped["(heads)"] = f"the model does not run with numbered channels: {error}".splitlines()[0]
        return groups, skipped
    for count, attention in enumerate(attentions):
        group = _group(model, attention, names)
        if group is None:
            skipped[f"attention {count} (heads)"] = "its heads are normed or mixed before a linear layer reads them"
        else:
            groups.append(group)
    if lost:
        skipped["attention (heads)"] = (
            f"in {lost} attention layers queries, keys or values are changed between the linear layer and attention"
        )
    return groups, skipped


def _multihead(name: str, module: nn.MultiheadAttention) -> HeadGroup:
    heads, width = module.num_heads, module.embed_dim
    head = torch.arange(width) // module.head_dim
    prefix = f"{name}." if name else ""
    produced = []
    if module.in_proj_weight is not None:
        weight = module.get_parameter("in_proj_weight")
        produced.append(Part(f"{prefix}in_proj_weight", weight, 0, torch.arange(3 * width), head.repeat(3)))
    else:
        for key in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            produced.append(Part(f"{prefix}{key}", module.get_parameter(key), 0, torch.arange(width), head))
    read = [Part(f"{prefix}out_proj.weight", module.get_parameter("out_proj.weight"), 1, torch.arange(width), head)]
    mask = torch.ones(heads, dtype=torch.bool)
    return HeadGroup(f"{name} (heads)", mask, produced, read, owner=name, multihead=True)


def _group(model: nn.Module, attention: _Attention, names: Sequence[tuple[str, int]]) -> HeadGroup | None:
    if not attention.readers:
        return None
    rows: dict[str, list[tuple[int, int]]] = {}
    for head, numbers in enumerate(attention.rows):
        for number in numbers:
            name, row = names[number]
            rows.setdefault(name, []).append((row, head))
    produced = [_part(model, name, 0, sorted(pairs)) for name, pairs in rows.items()]
    read = [_part(model, name, 1, list(enumerate(columns))) for name, columns in attention.readers.items()]
    owner = _common([*rows, *attention.readers])
    mask = torch.ones(len(attention.rows), dtype=torch.bool)
    return HeadGroup(f"{next(iter(attention.readers))} (heads)", mask, produced, read, owner=owner)


def _part(model: nn.Module, name: str, dim: int, pairs: Sequence[tuple[int, int]]) -> Part:
    index, head = (torch.tensor(column, dtype=torch.long) for column in zip(*pairs, strict=True))
    weight = cast(nn.Parameter, model.get_submodule(name).weight)
    return Part(f"{name}.weight" if name else "weight", weight, dim, index, head)


def _common(names: Sequence[str]) -> str:
    """The innermost module around all of these."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _trace(model: nn.Module, example_inputs: Any) -> tuple[list[_Attention], int, list[tuple[str, int]]]:
    """Run the numbered forward.

    Returns:
        The attention layers, how many more could not be followed, and the layer and row of each number.
    """
    numbered = copy.deepcopy(model).float()
    inputs = pytree.tree_map(
        lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, example_inputs
    )
    watcher = _Watcher()
    handles: list[Any] = []
    for name, module in numbered.named_modules():
        if isinstance(module, nn.Linear) and not isinstance(module, Gathered) and module.out_features > 0:
            handles += watcher.watch(name, module)
    try:
        with watcher:
            outputs(numbered, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return watcher.attentions, watcher.lost, watcher.names


class _Watcher(TorchFunctionMode):
    """Numbers channels, and follows the numbers through attention."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[tuple[str, int]] = []
        self.attentions: list[_Attention] = []
        self.lost = 0
        self._keys: Tensor | None = None
        self._queries: Tensor | None = None
        self._heads: list[tuple[_Attention, int]] = []

    def watch(self, name: str, module: nn.Linear) -> Iterator[Any]:
        """Hooks for a linear layer: read the heads that arrive, and give out channel numbers."""
        first = len(self.names)
        self.names += [(name, row) for row in range(module.out_features)]

        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._read(name, args[0])

        def after(_: nn.Module, __: object, output: Tensor) -> Tensor:
            return (_FIRST + first + torch.arange(output.shape[-1], device=output.device)).float().expand_as(output)

        yield module.register_forward_pre_hook(before)
        yield module.register_forward_hook(after)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            tensors = [*args[:3], *(kwargs[key] for key in ("query", "key", "value")[len(args) :] if key in kwargs)]
            query, key, value = (self._numbers(x) for x in tensors)
            return self._attend(query, key, value, result)
        if func in _PRODUCTS and len(args) == 2 and min(x.dim() for x in args) > 2:
            return self._product(args[0], args[1], result)
        return result

    def _product(self, left: Tensor, right: Tensor, result: Tensor) -> Tensor:
        query, key = self._numbers(left), self._numbers(right.transpose(-1, -2))
        if query is not None and key is not None:
            self._queries, self._keys = query, key
            return result
        value = self._numbers(right)
        if value is None or self._keys is None:
            return result
        queries, keys, self._queries, self._keys = self._queries, self._keys, None, None
        return self._attend(queries, keys, value, result)

    def _numbers(self, tensor: Tensor) -> Tensor | None:
        """Channel numbers of ``[..., length, width]`` at the first position: ``[slices, width]``, or ``None``."""
        if tensor.dim() < 3 or not tensor.is_floating_point():
            return None
        first = tensor.flatten(0, -3)[:, 0, :] - 0.0
        # Attention by hand may have scaled queries or keys, both by its fourth root or one by its root.
        for scale in (1.0, tensor.shape[-1] ** 0.5, tensor.shape[-1] ** 0.25):
            numbers = (first * scale).round()
            near = bool(((first * scale - numbers).abs() < 0.25).all())
            if near and numbers.numel() and numbers.min() >= _FIRST and numbers.max() < _FIRST + len(self.names):
                return (numbers - _FIRST).long()
        return None

    def _attend(self, query: Tensor | None, key: Tensor | None, value: Tensor | None, result: Tensor) -> Tensor:
        if query is None or key is None or value is None:
            self.lost += 1
            return result
        slices = len(query)
        key, value = (x.repeat_interleave(max(1, slices // len(x)), dim=0) for x in (key, value))
        kinds, head = torch.unique(value, dim=0, return_inverse=True)
        made = [torch.cat([x[head == h].flatten() for x in (query, key, value)]) for h in range(len(kinds))]
        rows = [numbers.unique().tolist() for numbers in made]
        if len(rows) < 2 or len(head) != slices or sum(map(len, rows)) != len({n for row in rows for n in row}):
            # One head, or rows that several heads share: nothing can go by itself.
            return result
        attention = next((seen for seen in self.attentions if seen.rows == rows), None)
        if attention is None:
            attention = _Attention(rows)
            self.attentions.append(attention)
        first = len(self._heads)
        self._heads += [(attention, h) for h in range(len(rows))]
        numbers = -(_FIRST + first + head.to(result)).reshape(*result.shape[:-2], 1, 1)
        return numbers.expand_as(result)

    def _read(self, name: str, tensor: Tensor) -> None:
        numbers = -tensor.reshape(-1, tensor.shape[-1])[0] - _FIRST
        if numbers.min() < 0 or numbers.max() >= len(self._heads) or not bool((numbers == numbers.round()).all()):
            return
        found = [self._heads[int(number)] for number in numbers]
        if all(attention is found[0][0] for attention, _ in found):
            found[0][0].readers[name] = [head for _, head in found]


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Collect the arguments with which a module is called inside the ``with`` block."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
