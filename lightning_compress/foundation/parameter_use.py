"""Which parameters multiply activations, read from one recorded forward.

Pruning a parameter leaves multiplications out only if its zeros are zeros of a matrix product or a convolution. Hooks
on modules cannot show this for parameters that plain functions read, so a function mode follows every parameter from
operation to operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_compress.errors import CompressionError, first_line
from lightning_compress.foundation import pytree
from lightning_compress.foundation.example_inputs import call_arguments, evaluating
from lightning_compress.foundation.recorded_forward import uncompiled
from lightning_compress.foundation.shards import reshard

_CONVOLUTIONS = tuple(f"conv{transposed}{n}d" for n in (1, 2, 3) for transposed in ("", "_transpose"))
_PRODUCTS = {
    **dict.fromkeys(("linear", *_CONVOLUTIONS, "convolution"), (1,)),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm", "addmv"), (1, 2)),
    **dict.fromkeys(("matmul", "rmatmul", "mm", "bmm", "mv", "inner", "tensordot", "grouped_mm"), (0, 1)),
    "bilinear": (2,),
    "einsum": tuple(range(16)),
}
"""Operation → which of its tensors are weights; the others are activations and biases."""

_KEEPS_ZEROS = {
    *("T", "H", "mT", "mH", "data", "t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis"),
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
    *("expand_as", "broadcast_to", "repeat", "contiguous", "clone", "detach", "to", "type", "type_as", "float"),
    *("double", "half", "bfloat16", "getitem", "select", "narrow", "chunk", "split", "tensor_split", "unbind", "div"),
    *("truediv", "true_divide", "weight_norm", "abs", "neg", "tanh", "sign", "sqrt", "square", "relu", "flip", "roll"),
}
"""Operations whose result is zero where their first tensor is."""

_MULTIPLIES = frozenset({"mul", "rmul", "imul", "multiply"})
_LOOKS_UP = frozenset({"embedding", "embedding_bag", "index_select", "gather", "take_along_dim", "grid_sample"})


@dataclass
class ParameterUse:
    """What one forward did with a model's parameters, by full name.

    Attributes:
        weights: Those whose zeros are zeros of a product → the dimension that the product sums over, where it is known.
        tables: Those that are looked up in.
        computed: Those from which a weight is computed by an operation that does not keep zeros → its name.
        seen: All that any operation read.
    """

    weights: dict[str, int | None] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    computed: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)


@torch.no_grad()
def record_use(model: nn.Module, example_inputs: Any, field: str) -> ParameterUse:
    """Run a model once, in evaluation mode, and see what it does with its parameters.

    Args:
        model: The model; its state and that of the random numbers stay as they are.
        example_inputs: A tensor, or a tuple of positional or dict of keyword arguments of ``forward``.
        field: Name of the owner, for messages.

    Raises:
        CompressionError: The model does not run on these inputs.

    Example:
        >>> record_use(nn.Linear(4, 2), torch.zeros(1, 4), "demo").weights
        {'weight': 1}
    """
    first = next(model.parameters(), None)
    if first is None:
        return ParameterUse()
    device = first.device
    args, kwargs = call_arguments(
        pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_inputs)
    )
    follow = _Follow(model)
    try:
        with evaluating(model), torch.random.fork_rng(devices=[]), uncompiled(), follow:
            model(*args, **kwargs)
    except Exception as error:  # any network's own
        raise CompressionError(
            f"{field}.example_inputs: {type(model).__name__} does not run on them ({first_line(error)}). Give inputs "
            "that its forward accepts, or none: then layers are selected by their classes and names."
        ) from error
    finally:
        reshard(model.modules())
    return follow.use


@dataclass
class _Made:
    """A parameter, or a tensor made from parameters.

    Attributes:
        tensor: Kept, or another tensor could take over its identity.
        zeros: Parameters whose zeros it has.
        other: Parameters whose zeros were lost → the operation that lost them.
        dims: The parameter's dimension that each of its own is; ``None`` where that is not followed.
    """

    tensor: Tensor
    zeros: set[str]
    other: dict[str, str]
    dims: tuple[int, ...] | None = None


class _Follow(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.use = ParameterUse()
        self._model = model
        self._constants = {id(constant) for constant in model.buffers()}
        self._made: dict[int, _Made] = {}
        self._learn_parameters()

    def _learn_parameters(self) -> None:
        for name, parameter in self._model.named_parameters():
            if parameter.is_floating_point() and id(parameter) not in self._made:
                self._made[id(parameter)] = _Made(parameter, {name}, {}, tuple(range(parameter.ndim)))

    def _source(self, operand: Tensor) -> _Made | None:
        # FSDP2 puts gathered parameters in the places of the shards while a module runs.
        if isinstance(operand, nn.Parameter) and id(operand) not in self._made:
            self._learn_parameters()
        return self._made.get(id(operand))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        sources = [self._source(operand) for operand in operands]
        if any(sources):
            self._see(_name(func), operands, sources, args)
            self._carry(_name(func), operands, sources, args, result)
        return result

    def _see(self, name: str, operands: list[Tensor], sources: list[_Made | None], args: tuple[Any, ...]) -> None:
        for source in filter(None, sources):
            self.use.seen |= source.zeros
        if name in _LOOKS_UP or (name == "getitem" and _indexed_by_tensor(args)):
            for source in filter(None, sources[:1] if name != "embedding" else sources):
                self.use.tables |= source.zeros | source.other.keys()
        for position in _PRODUCTS.get(name, ()):
            factor = sources[position] if position < len(sources) else None
            if factor is not None:
                for found in factor.zeros:
                    self.use.weights.setdefault(found, _summed(name, position, operands[position], factor))
                for found, lost_by in factor.other.items():
                    self.use.computed.setdefault(found, lost_by)

    def _carry(
        self, name: str, operands: list[Tensor], sources: list[_Made | None], args: tuple[Any, ...], result: Any
    ) -> None:
        if name in _PRODUCTS:
            return
        if name in _MULTIPLIES:
            # The larger factor is the weight; the other one scales it, or is scaled data.
            largest = max(range(len(operands)), key=lambda i: operands[i].numel())
            keeps = sources[largest]
        elif name in _KEEPS_ZEROS and not (name == "getitem" and _indexed_by_tensor(args)):
            keeps = sources[0]
        else:
            keeps = None
        if keeps is None and any(
            source is None and id(operand) not in self._constants
            for operand, source in zip(operands, sources, strict=True)
        ):
            # Activations: what they bring to a later product is no weight.
            return
        zeros = set() if keeps is None else set(keeps.zeros)
        other = {} if keeps is None else dict(keeps.other)
        lost = [source for source in sources if source is not None and source is not keeps]
        for source in lost:
            other |= source.other
        for found in {found for source in lost for found in source.zeros - zeros}:
            if keeps is None or found not in other:
                other[found] = name
        dims = None
        if keeps is not None and keeps.dims is not None:
            dims = _moved(name, keeps.dims, args)
        for made in pytree.tree_leaves(result):
            if isinstance(made, Tensor) and made.is_floating_point() and id(made) not in self._made:
                self._made[id(made)] = _Made(made, zeros, other, dims)


def _summed(name: str, position: int, operand: Tensor, source: _Made) -> int | None:
    """The parameter's dimension that a product sums over."""
    if source.dims is None or len(source.dims) != operand.ndim or operand.ndim < 2:
        return None
    if name == "linear" or name in _CONVOLUTIONS:
        return source.dims[0 if "transpose" in name else 1]
    if name in ("matmul", "mm", "bmm", "addmm", "baddbmm"):
        right = position == len(_PRODUCTS[name]) - 1 + _PRODUCTS[name][0]
        return source.dims[-2 if right else -1]
    return None


def _moved(name: str, dims: tuple[int, ...], args: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Where a parameter's dimensions are after an operation; ``None`` where that is not followed."""
    if name in ("t", "T", "mT"):
        return (*dims[:-2], dims[-1], dims[-2]) if len(dims) >= 2 else dims
    if name in ("transpose", "swapaxes", "swapdims") and len(args) == 3:
        moved = list(dims)
        moved[args[1]], moved[args[2]] = dims[args[2]], dims[args[1]]
        return tuple(moved)
    same = {"contiguous", "clone", "detach", "to", "float", "half", "bfloat16", "div", "truediv", "data", *_MULTIPLIES}
    return dims if name in same else None


def _indexed_by_tensor(args: Iterable[Any]) -> bool:
    index = tuple(args)[1:]
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(index))


def _name(func: Any) -> str:
    """``torch.Tensor.mul_`` and ``__mul__`` are both ``mul``; the property ``T`` is ``T``."""
    name = str(getattr(func, "__name__", type(func).__name__))
    if name == "__get__":
        name = str(getattr(func.__self__, "__name__", name))
    return name.strip("_")
