"""Where activations are quantized: each tensor once, at its producer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from lightning_compress.foundation.boundary import Boundary
from lightning_compress.foundation.recorded_forward import Op, Tape, Value
from lightning_compress.quantization.candidates import weights
from lightning_compress.quantization.data_flow import activations, only_user, source, users
from lightning_compress.quantization.operations import (
    ADDS,
    ATTENTION,
    CELLS,
    CONVOLUTIONS,
    PRODUCTS,
    RECURRENT,
    WEIGHTED,
    keeps_values,
)
from lightning_compress.quantization.placement.backend_rules import RULES
from lightning_compress.quantization.placement.batch_norm import folds
from lightning_compress.quantization.placement.boundaries import Want, locate
from lightning_compress.quantization.placement.float_layers import float_layers
from lightning_compress.quantization.placement.sites import Placement, Site, site_name
from lightning_compress.quantization.settings import Backend

_ATTENTION = "scaled_dot_product_attention"


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
    return _Placer(tape, model, layer_bits, bits, backend, own).run()


class _Placer:
    def __init__(
        self,
        tape: Tape,
        model: nn.Module,
        layer_bits: Mapping[str, int | None],
        bits: int | None,
        backend: Backend | None,
        own: Collection[str],
    ) -> None:
        self.tape = tape
        self.own = own
        self.layer_bits = layer_bits
        self.bits = bits
        self.backend = backend
        self.rules = RULES[backend]
        self.wants: dict[Value, Want] = {}
        self.weight_sources: dict[str, list[Value]] = {}
        # Operation → weight that it reads → the activations that are multiplied by it.
        self.reads = {op: read for op in tape.ops if (read := self._read(op))}
        counts = Counter(weight for read in self.reads.values() for weight in read)
        self.shared_weights = {weight for weight, count in counts.items() if count > 1}
        names = {name for candidate in weights(model) for name in candidate.names}
        self.folds = folds(tape, model, {op: next(iter(read)) for op, read in self.reads.items()}, names)
        self.unreached: list[str] = []
        self.data = activations(tape)
        self.network = self._network(model)

    def run(self) -> Placement:
        joined = self._joined()
        self.unreached += float_layers(self.tape, self.reads, self.rules.float_kernels, self.backend)
        for op in self.tape.ops:
            read = self.reads.get(op, {})
            for weight, values in read.items():
                bits = self.layer_bits[weight]
                if bits is None:
                    continue
                for value in values:
                    self._want(value, op, bits if weight in self.own else None)
                    self.weight_sources.setdefault(weight, []).append(source(value))
                if op.name in self.rules.outputs and self.bits is not None:
                    self._want(self._tail(op.outputs[0]))
            if read or op not in self.network:
                continue
            if self.bits is not None and (op in joined or self._is_pool(op) or self._is_product(op)):
                rest = self._sum_of_convolution(op) if op in joined else None
                for value in self._data(op):
                    if value is not rest:
                        self._want(value, op)
                if op in joined or self._is_pool(op):
                    self._want(self._tail(op.outputs[0]))
            if self.bits is not None and self._is_attention(op):
                for value in self._data(op):
                    self._want(value, op)
        return self._placement()

    def _network(self, model: nn.Module) -> set[Op]:
        """What is no loss: operations that a weight is read behind, or that run in a module with parameters."""
        holders = {name for name, module in model.named_modules() if next(module.parameters(), None) is not None}
        found: set[Op] = set()
        for op in reversed(self.tape.ops):
            behind = (user for value in op.outputs for user in value.consumers)
            if op in self.reads or not holders.isdisjoint(op.modules) or any(user in found for user in behind):
                found.add(op)
        return found

    def _read(self, op: Op) -> dict[str, list[Value]]:
        """The quantized weights that an operation multiplies by, each with the activations that it multiplies."""
        if op.name not in WEIGHTED | PRODUCTS:
            return {}
        found = [name for v in op.inputs if (name := source(v).parameter) in self.layer_bits]
        data = self._data(op)
        if op.name in CELLS:
            # Input and hidden state have a weight each; the cell state of an LSTM is multiplied by none.
            return {str(name): [value] for name, value in zip(found, data, strict=False)}
        return {str(name): data for name in found}

    def _is_integer(self, op: Op) -> bool:
        """Whether an operation reads a quantized weight."""
        return any(v.parameter in self.layer_bits for v in op.inputs) or op in self.reads

    def _data(self, op: Op) -> list[Value]:
        """The activations that an operation reads, each once."""
        # States of recurrent layers and masks of attention come behind; a range cannot hold a mask's -inf.
        count = 1 if op.name in RECURRENT else 2 if op.name in CELLS else 3 if op.name in ATTENTION else None
        values = op.inputs[:count] if count else _factors(op)
        return [v for v in dict.fromkeys(values) if source(v).parameter is None and v.floating and not _is_state(v)]

    def _is_pool(self, op: Op) -> bool:
        if op.name not in self.rules.pools or not self._from_integers(op.inputs[0]):
            return False
        # A mean over the channels of a sequence is a pool as well; one over the batch or everything is not.
        return op.outputs[0].ndim >= 2

    def _is_product(self, op: Op) -> bool:
        if op.name not in self.rules.inputs or op.name not in PRODUCTS:
            return False
        if self.rules.all_products:
            factors = _factors(op)
            return len(self._data(op)) == len(set(factors)) > 0 and not self.data.isdisjoint(factors)
        return all(source(v).parameter is None and self._from_integers(v) for v in op.inputs)

    def _is_attention(self, op: Op) -> bool:
        """Whether the two products inside of a function can be quantized."""
        hooked = op.call is not None and bool(op.modules)
        return self.rules.all_products and op.name == _ATTENTION and hooked and op in self.network

    def _from_integers(self, value: Value) -> bool:
        """Whether a quantized layer made this value, through whatever keeps it on its grid or fuses."""
        seen: Value | None = value
        while seen is not None and seen.producer is not None:
            op = seen.producer
            if self._is_integer(op) or op.name in self.rules.joins or op.name in self.rules.pools:
                return True
            if not keeps_values(op) and op.name not in self.rules.fused and op.name != "batch_norm":
                return False
            seen = op.inputs[0]
        return seen is not None and seen.parameter is None

    def _joined(self) -> set[Op]:
        """Adds, concats and multiplies worth running in integers: those between integer operations.

        A residual stream that only feeds layer norms stays float, as its consumers do.
        """
        joined: set[Op] = set()
        for op in reversed(self.tape.ops):
            if op.name not in self.rules.joins or op not in self.network:
                continue
            if len(self._data(op)) != len(op.inputs) or len(op.inputs) < 2:
                continue
            feeds = any(
                consumer in joined
                or (consumer.name in self.rules.inputs and consumer in self.reads)
                or consumer.name in self.rules.pools
                for consumer in users(self._tail(op.outputs[0]))
            )
            made_by_convolution = any(
                (producer := source(self._head(value)).producer) is not None
                and producer.name in self.rules.outputs
                and producer in self.reads
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
            by_convolution = producer is not None and producer.name in CONVOLUTIONS and producer in self.reads
            if by_convolution and only_user(value) is op:
                return value
        return None

    def _tail(self, value: Value) -> Value:
        """What an integer kernel really writes: the value behind the batch norm and activation that fuse."""
        op = only_user(value)
        if op is not None and op.name == "batch_norm" and value.producer in self.folds:
            value = op.outputs[0]
            op = only_user(value)
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

    def _want(self, value: Value, consumer: Op | None = None, bits: int | None = None) -> None:
        start = source(value)
        if start.parameter is not None:
            return
        want = self.wants.setdefault(start, Want(start))
        if bits is None:
            want.common = True
        else:
            want.bits = max(want.bits, bits)
        if consumer is None:
            want.written = True
        else:
            want.consumers.setdefault(consumer, value)

    def _placement(self) -> Placement:
        located = {want.source: self._boundaries(want) for want in self.wants.values()}
        for op in self.tape.ops:
            if self.bits is not None and self._is_attention(op):
                weights = Value(serial=op.outputs[0].serial)
                self.wants[weights] = Want(weights, common=True)
                located[weights] = [Boundary(op.modules[-1], "weights", (), op.name, op.call or 0)]
        # A module that runs twice shows the same boundary for two tensors: they share a quantizer. So do tensors that a
        # kernel reads and writes with one scale.
        alike = self._of_one_grid()
        groups: list[tuple[set[Value], list[Boundary], int, bool]] = []
        for start, boundaries in located.items():
            if not boundaries:
                continue
            sources, merged = {start}, list(boundaries)
            bits, common = self.wants[start].bits, self.wants[start].common
            others = alike.get(start, set())
            for group in [g for g in groups if set(g[1]) & set(boundaries) or g[0] & others]:
                groups.remove(group)
                sources |= group[0]
                merged = list(dict.fromkeys([*group[1], *merged]))
                bits, common = max(bits, group[2]), common or group[3]
            groups.append((sources, merged, bits, common))
        groups.sort(key=lambda group: min(value.serial for value in group[0]))
        sites = tuple(Site(site_name(b[0]), tuple(b), bits or None, common) for _, b, bits, common in groups)
        site_of = {start: site.name for site, (sources, *_) in zip(sites, groups, strict=True) for start in sources}
        inputs = {w: {site_of.get(s) for s in sources} for w, sources in self.weight_sources.items()}
        return Placement(
            sites=sites,
            layer_input={w: name for w, (name, *more) in inputs.items() if name is not None and not more},
            folds={op.modules[-1]: norm for op, norm in self.folds.items()},
            unreached=tuple(dict.fromkeys(self.unreached)),
        )

    def _of_one_grid(self) -> dict[Value, set[Value]]:
        """Value → the values that share its quantizer, since a kernel takes one scale for all of them."""
        found: dict[Value, set[Value]] = {}
        for op in self.tape.ops:
            if op.name in self.rules.one_grid:
                values = {source(v) for v in (*self._data(op), self._tail(op.outputs[0]))} & self.wants.keys()
                for value in values:
                    found.setdefault(value, set()).update(values)
        return found

    def _boundaries(self, want: Want) -> list[Boundary]:
        # A layer that runs twice has one bias in integers of its input's scale: its inputs must share that scale.
        shared = [
            boundary
            for op, value in want.consumers.items()
            if not self.shared_weights.isdisjoint(self.reads.get(op, {}))
            for boundary in value.inputs
            if boundary.module == op.modules[-1]
        ]
        found, missed = locate(want, self.tape, shared)
        for op in missed:
            place = op.modules[-1] if op.modules and op.modules[-1] else "the model"
            self.unreached.append(
                f"{op.name} at {op.where} in {place}: an input passes no boundary of a module or of a function of "
                f"PyTorch, so that nothing can quantize it; wrap the operation that makes it in a module"
            )
        return found


def _factors(op: Op) -> list[Value]:
    """What an operation multiplies: not what a product is added to."""
    return op.inputs[1:] if op.name in ("addmm", "baddbmm") else op.inputs


def _is_state(value: Value) -> bool:
    # Scalars, masks and buffers have no producer and pass no boundary.
    return value.producer is None and not value.inputs
