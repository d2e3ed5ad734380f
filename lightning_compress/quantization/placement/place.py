"""Where activations are quantized: each tensor once, at its producer, where a module's boundary reaches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_compress.foundation.nested import Key
from lightning_compress.foundation.recorded_forward import Boundary, Op, Tape, Value
from lightning_compress.quantization.candidates import activations, joins, weights
from lightning_compress.quantization.operations import ADDS, ATTENTION, CONVOLUTIONS, RECURRENT, TRANSPARENT, WEIGHTED
from lightning_compress.quantization.placement.backend_rules import RULES, Rules
from lightning_compress.quantization.settings import Backend

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Site:
    """One activation quantizer.

    Attributes:
        name: Its name, made from its first boundary.
        boundaries: The module boundaries at which it acts; more than one where no single one is before every user.
        bits: Bit width where the model's bits of activations do not decide it: the most that a layer with bits of
            its own asks for; ``None`` if there is none.
        common: Whether the model's bits count, too.
    """

    name: str
    boundaries: tuple[Boundary, ...]
    bits: int | None = None
    common: bool = True

    @property
    def places(self) -> dict[tuple[str, str], list[tuple[Key, ...]]]:
        """Module and side → the paths at which the tensor passes there."""
        found: dict[tuple[str, str], list[tuple[Key, ...]]] = {}
        for boundary in self.boundaries:
            found.setdefault((boundary.module, boundary.side), []).append(boundary.path)
        return found

    def width(self, common: int | None) -> int:
        """Bits of the quantizer, given the model's bits of activations."""
        return max(self.bits or 0, (common or 0) if self.common else 0)


@dataclass(frozen=True)
class Placement:
    """All activation quantizers of a model, and what they rest on.

    Attributes:
        sites: The quantizers, in the order in which their tensors are made.
        layer_input: Weight's full name → name of the site that quantizes its layer's input.
        folds: Name of a layer → name of the batch norm that alone uses its output.
        unreached: What stays float although the backend could run it in integers, a line each with the reason.
    """

    sites: tuple[Site, ...] = ()
    layer_input: Mapping[str, str] = field(default_factory=dict)
    folds: Mapping[str, str] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As primitives, for checkpoints."""
        return {
            "sites": [
                {
                    "name": site.name,
                    "bits": site.bits,
                    "common": site.common,
                    "boundaries": [[b.module, b.side, list(b.path)] for b in site.boundaries],
                }
                for site in self.sites
            ],
            "layer_input": dict(self.layer_input),
            "folds": dict(self.folds),
            "unreached": list(self.unreached),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Placement:
        """The inverse of ``as_dict``."""
        return cls(
            sites=tuple(
                Site(
                    site["name"],
                    tuple(Boundary(module, side, tuple(path)) for module, side, path in site["boundaries"]),
                    site["bits"],
                    site["common"],
                )
                for site in state["sites"]
            ),
            layer_input=dict(state["layer_input"]),
            folds=dict(state["folds"]),
            unreached=tuple(state["unreached"]),
        )


def place(
    tape: Tape,
    model: nn.Module,
    *,
    layer_bits: Mapping[str, int | None],
    bits: int | None,
    backend: Backend | None,
    own: Collection[str] = (),
) -> Placement:
    """Decide where activations are quantized.

    Args:
        tape: A recorded forward of ``model``.
        model: The model.
        layer_bits: Weight's full name → bits of its layer's input (``None`` leaves it float), for the layers
            that are quantized.
        bits: Bits of tensors that no weight reads (inputs of adds, concats, pools and products).
        backend: Runtime whose rules apply.
        own: Weights whose layer's bits are not the model's.
    """
    return _Placer(tape, model, layer_bits, bits, RULES[backend], own).run()


@dataclass(eq=False)
class _Want:
    """A tensor that some operation wants quantized; ``consumers`` maps operations to the value they read."""

    source: Value
    bits: int = 0
    common: bool = False
    consumers: dict[Op, Value] = field(default_factory=dict)


class _Placer:
    def __init__(
        self,
        tape: Tape,
        model: nn.Module,
        layer_bits: Mapping[str, int | None],
        bits: int | None,
        rules: Rules,
        own: Collection[str],
    ) -> None:
        self.tape = tape
        self.own = own
        self.layer_weights = {name for candidate in weights(model) for name in candidate.names}
        self.modules = dict(model.named_modules())
        self.layer_bits = layer_bits
        self.bits = bits
        self.rules = rules
        self.wants: dict[Value, _Want] = {}
        self.weight_sources: dict[str, list[Value]] = {}
        reads = Counter(self._weight(op) for op in tape.ops if op.name in WEIGHTED)
        self.shared_weights = {weight for weight, count in reads.items() if weight and count > 1}
        self.folds: dict[str, str] = {}
        self.unreached: list[str] = []
        self.data = activations(tape)

    def run(self) -> Placement:
        joined = self._joined()
        for op in self.tape.ops:
            weight = self._weight(op)
            if op.name in WEIGHTED:
                if weight is None:
                    self._report_functional(op)
                    continue
                self._fold(op, weight)
                bits = self.layer_bits[weight]
                if bits is None:
                    continue
                for value in self._data(op):
                    self._want(value, op, bits if weight in self.own else None)
                    self.weight_sources.setdefault(weight, []).append(_source(value))
                if op.name in self.rules.outputs and self.bits is not None:
                    self._want(self._tail(op.outputs[0]))
            elif self.bits is not None and (op in joined or self._is_pool(op) or self._is_product(op)):
                rest = self._sum_of_convolution(op) if op in joined else None
                for value in self._data(op):
                    if value is not rest:
                        self._want(value, op)
                if op in joined or self._is_pool(op):
                    self._want(self._tail(op.outputs[0]))
        return self._placement()

    def _report_functional(self, op: Op) -> None:
        """Name the parameters that a function reads where no module runs."""
        for name in dict.fromkeys(v.parameter for v in op.inputs[1:2]):
            if name is not None and not op.modules:
                self.unreached.append(
                    f"{name}: read by {op.name} at {op.where}, outside of every module's forward, so that nothing can "
                    f"quantize it; call it in the forward of a module"
                )

    def _weight(self, op: Op) -> str | None:
        """The quantized weight that an operation reads."""
        return next((v.parameter for v in op.inputs if v.parameter in self.layer_bits), None)

    def _data(self, op: Op) -> list[Value]:
        """The activations that an operation reads, each once."""
        # States of recurrent layers and masks of attention come behind; a range cannot hold a mask's -inf.
        count = 1 if op.name in RECURRENT else 3 if op.name in ATTENTION else None
        values = op.inputs[:count]
        return [v for v in dict.fromkeys(values) if v.parameter is None and v.floating and not self._is_state(v, op)]

    def _is_state(self, value: Value, op: Op) -> bool:
        # Scalars, masks and buffers have no producer and pass no boundary.
        return value.producer is None and not value.inputs

    def _is_pool(self, op: Op) -> bool:
        if op.name not in self.rules.pools or not self._from_integers(op.inputs[0]):
            return False
        # A mean over the channels of a sequence is a pool as well; one over the batch or everything is not.
        return op.outputs[0].ndim >= 2

    def _is_product(self, op: Op) -> bool:
        return (
            op.name in self.rules.inputs
            and op.name not in WEIGHTED
            and all(v.parameter is None and self._from_integers(v) for v in op.inputs)
        )

    def _from_integers(self, value: Value) -> bool:
        """Whether a quantized layer made this value, through whatever keeps it on its grid or fuses."""
        seen: Value | None = value
        while seen is not None and seen.producer is not None:
            op = seen.producer
            if self._weight(op) is not None or op.name in self.rules.joins or op.name in self.rules.pools:
                return True
            if op.name not in TRANSPARENT and op.name not in self.rules.fused and op.name != "batch_norm":
                return False
            seen = op.inputs[0]
        return seen is not None and seen.parameter is None

    def _joined(self) -> set[Op]:
        """Adds, concats and multiplies worth running in integers: those between integer operations.

        A residual stream that only feeds layer norms stays float, as its consumers do.
        """
        joined: set[Op] = set()
        for op in reversed(self.tape.ops):
            if op.name not in self.rules.joins or len(self._data(op)) != len(op.inputs) or len(op.inputs) < 2:
                continue
            feeds = any(
                consumer in joined
                or (consumer.name in self.rules.inputs and self._weight(consumer) is not None)
                or consumer.name in self.rules.pools
                for consumer in self._users(self._tail(op.outputs[0]))
            )
            made_by_convolution = any(
                (producer := _source(self._head(value)).producer) is not None
                and producer.name in self.rules.outputs
                and self._weight(producer) is not None
                for value in op.inputs
            )
            if feeds or made_by_convolution:
                joined.add(op)
        return joined

    def _sum_of_convolution(self, op: Op) -> Value | None:
        """The summand that a convolution makes for this add alone, where the runtime adds before it rounds."""
        summands = self._data(op)
        if not self.rules.sums_in_convolutions or op.name not in ADDS or len(summands) != 2:
            return None
        for value in reversed(summands):
            producer = value.producer
            if producer is not None and producer.name == "batch_norm":
                producer = producer.inputs[0].producer
            by_convolution = producer is not None and producer.name in CONVOLUTIONS and self._weight(producer)
            if by_convolution and _only_user(value) is op:
                return value
        return None

    def _users(self, value: Value) -> list[Op]:
        """Operations that read a value, also behind transparent ones."""
        found: list[Op] = []
        for op in value.consumers:
            if op.name in TRANSPARENT:
                found += [user for output in op.outputs for user in self._users(output)]
            else:
                found.append(op)
        return found

    def _tail(self, value: Value) -> Value:
        """What an integer kernel really writes: the value behind the batch norm and activation that fuse."""
        op = _only_user(value)
        if op is not None and op.name == "batch_norm":
            value = op.outputs[0]
            op = _only_user(value)
        if op is not None and op.name in self.rules.fused and len(op.outputs) == 1:
            value = op.outputs[0]
        return value

    def _head(self, value: Value) -> Value:
        """The inverse of ``_tail``."""
        while value.producer is not None and (
            value.producer.name == "batch_norm" or value.producer.name in self.rules.fused
        ):
            value = value.producer.inputs[0]
        return value

    def _fold(self, op: Op, weight: str) -> None:
        layer = weight.rpartition(".")[0]
        # A parent that has the weight of a layer under a name of its own is no layer.
        if not {weight, layer} <= self.layer_weights or layer not in op.modules[-1:]:
            return
        readers = [(user, value) for value in op.inputs if value.parameter == weight for user in value.consumers]
        if any(reader is not op and joins(reader, value, self.data) for reader, value in readers):
            return  # Others read the weight, without this norm.
        norm_op = _only_user(op.outputs[0])
        if norm_op is None or norm_op.name != "batch_norm" or not norm_op.modules:
            return
        # Output channels of a transposed convolution in groups are no dimension of its weight.
        if isinstance(self.modules[layer], _ConvTransposeNd) and self.modules[layer].groups != 1:
            return
        norm = norm_op.modules[-1]
        if Boundary(norm, "output", ()) not in norm_op.outputs[0].outputs:
            return  # Its module does more than the norm.
        if any(boundary.module in norm_op.modules for boundary in op.outputs[0].outputs):
            return  # A module around both hands out what the layer makes, too.
        module = self.modules[norm]
        once = self.tape.calls.get(layer, 0) == 1 and self.tape.calls.get(norm, 0) == 1
        if once and isinstance(module, _NORMS) and module.track_running_stats:
            self.folds[layer] = norm

    def _want(self, value: Value, consumer: Op | None = None, bits: int | None = None) -> None:
        source = _source(value)
        if source.parameter is not None:
            return
        want = self.wants.setdefault(source, _Want(source))
        if bits is None:
            want.common = True
        else:
            want.bits = max(want.bits, bits)
        if consumer is not None:
            want.consumers.setdefault(consumer, value)

    def _placement(self) -> Placement:
        located = {want.source: self._boundaries(want) for want in self.wants.values()}
        # A module that runs twice shows the same boundary for two tensors: they share a quantizer.
        groups: list[tuple[set[Value], list[Boundary], int, bool]] = []
        for source, boundaries in located.items():
            if not boundaries:
                continue
            sources, merged = {source}, list(boundaries)
            bits, common = self.wants[source].bits, self.wants[source].common
            for group in [g for g in groups if set(g[1]) & set(boundaries)]:
                groups.remove(group)
                sources |= group[0]
                merged = list(dict.fromkeys([*group[1], *merged]))
                bits, common = max(bits, group[2]), common or group[3]
            groups.append((sources, merged, bits, common))
        groups.sort(key=lambda group: min(value.serial for value in group[0]))
        sites = tuple(Site(_site_name(b[0]), tuple(b), bits or None, common) for _, b, bits, common in groups)
        site_of = {source: site.name for site, (sources, *_) in zip(sites, groups, strict=True) for source in sources}
        inputs = {w: {site_of.get(s) for s in sources} for w, sources in self.weight_sources.items()}
        return Placement(
            sites=sites,
            layer_input={w: name for w, (name, *more) in inputs.items() if name is not None and not more},
            folds=self.folds,
            unreached=tuple(dict.fromkeys(self.unreached)),
        )

    def _boundaries(self, want: _Want) -> list[Boundary]:
        """The fewest boundaries that every user of the tensor lies behind.

        The result of a module that runs once is best. A module that runs twice (one ``ReLU`` for a whole block) would
        make two tensors share a range, so boundaries of modules that run once come before its own.
        """
        # A layer that runs twice has one bias in integers of its input's scale: its inputs must share that scale.
        shared = [
            boundary
            for op, value in want.consumers.items()
            if self._weight(op) in self.shared_weights
            for boundary in value.inputs
            if boundary.module == op.modules[-1]
        ]
        if shared:
            return list(dict.fromkeys(shared))
        outputs = [b for b in want.source.outputs if b.module] or want.source.outputs[:1]
        once = [b for b in outputs if self.tape.calls[b.module] == 1]
        if once:
            return [once[0]]
        chosen, missed = self._cover(want, lambda b: self.tape.calls[b.module] == 1)
        if missed and outputs:
            return [outputs[0]]
        if missed:
            chosen, missed = self._cover(want, lambda b: True)
        for op in missed:
            place = op.modules[-1] if op.modules and op.modules[-1] else "the model"
            self.unreached.append(
                f"{op.name} at {op.where} in {place}: an input passes no module's boundary, so nothing can quantize "
                f"it; wrap the operation that makes it in a module"
            )
        return chosen or outputs[:1]

    def _cover(self, want: _Want, allowed: Callable[[Boundary], bool]) -> tuple[list[Boundary], list[Op]]:
        """Choose allowed boundaries until every user lies behind one; returns them and the users left over."""
        chosen: list[Boundary] = []
        missed = dict(want.consumers)
        while missed:
            # A tensor that is several arguments of a module passes at all of them.
            covered: dict[tuple[Boundary, ...], list[Op]] = {}
            for op, value in missed.items():
                together: dict[tuple[str, str], list[Boundary]] = {}
                for boundary in filter(allowed, dict.fromkeys(_reaching(op, value, want.source))):
                    together.setdefault((boundary.module, boundary.side), []).append(boundary)
                for boundaries in together.values():
                    covered.setdefault(tuple(boundaries), []).append(op)
            if not covered:
                break
            # The root comes last, as a training step may call a child directly; then the innermost.
            best = max(covered, key=lambda b: (bool(b[0].module), len(covered[b]), -len(b), b[0].module.count(".")))
            chosen += best
            for op in covered[best]:
                del missed[op]
        return chosen, list(missed)


def _only_user(value: Value) -> Op | None:
    return value.consumers[0] if len(value.consumers) == 1 else None


def _source(value: Value) -> Value:
    """The value that transparent operations were given, behind a cast from integers."""
    while (
        value.producer is not None
        and value.producer.name in TRANSPARENT
        and value.producer.inputs
        and value.producer.inputs[0].floating
    ):
        value = value.producer.inputs[0]
    return value


def _reaching(op: Op, value: Value, source: Value) -> list[Boundary]:
    """Boundaries on the way from a source, through transparent operations, to an operation."""
    found: list[Boundary] = []
    while True:
        found += [b for b in value.outputs if b.module]
        found += [b for b in value.inputs if b.module in op.modules]
        if value is source or value.producer is None:
            return found
        value = value.producer.inputs[0]


def _site_name(boundary: Boundary) -> str:
    path = "".join(f"[{key}]" for key in boundary.path)
    return f"{boundary.module or 'model'}:{boundary.side}{path if boundary.side == 'input' or path else ''}"
