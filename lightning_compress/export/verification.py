"""Verification: run a written file and the model that it was written from on the same data."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_compress.errors import CompressionError
from lightning_compress.export.file_format import GraphFormat, WeightsFormat, pytorch_name
from lightning_compress.export.formats import format_of
from lightning_compress.export.signatures import restored
from lightning_compress.foundation.nested import tensors
from lightning_compress.foundation.output_difference import differences
from lightning_compress.quantization import strip

_TARGETS = ("target", "targets", "label", "labels", "y")

Metrics = Metric | MetricCollection | Mapping[str, Metric]


@dataclass
class Comparison:
    """How far a file's outputs are from the model's, over all batches so far.

    Attributes:
        samples: Samples compared.
        max_abs: Largest absolute difference of any output.
        agreeing: Predictions with the same top class.
        predictions: Predictions compared; 0 where outputs are not class scores.
    """

    samples: int = 0
    max_abs: float = 0.0
    agreeing: int = 0
    predictions: int = 0
    _sum: float = field(default=0.0, repr=False)
    _count: int = field(default=0, repr=False)

    @property
    def mean_abs(self) -> float:
        """Mean absolute difference over all elements."""
        return self._sum / max(1, self._count)

    @property
    def agreement(self) -> float | None:
        """Share of predictions with the same top class; ``None`` where outputs are not class scores."""
        return self.agreeing / self.predictions if self.predictions else None

    def update(self, outputs: Any, reference: Any, targets: Iterable[Tensor] = ()) -> None:
        """Compare one batch.

        Args:
            outputs: What the file gave, in the structure of ``reference``.
            reference: What the model gave.
            targets: Integer tensors among which the classes are; they tell which dimension holds scores.

        Raises:
            CompressionError: The file gave outputs of another shape or kind of numbers, or other values that are not
                finite.

        Example:
            >>> comparison = Comparison()
            >>> scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
            >>> comparison.update(scores.flip(0), scores, [torch.tensor([1, 0])])
            >>> comparison.max_abs, comparison.agreement
            (1.0, 0.0)
        """
        pairs = [
            (ours.detach().cpu(), theirs.detach().cpu())
            for (_, ours), (_, theirs) in zip(tensors(outputs), tensors(reference), strict=True)
        ]
        for ours, theirs in pairs:
            if ours.shape != theirs.shape:
                raise CompressionError(
                    f"The written file gives an output of shape {list(ours.shape)} where the model gives "
                    f"{list(theirs.shape)}: something that depends on the batch was fixed when it was exported."
                )
            kinds = [(value.is_floating_point(), value.is_complex()) for value in (ours, theirs)]
            if kinds[0] != kinds[1]:
                raise CompressionError(
                    f"The written file gives an output of {ours.dtype} where the model gives {theirs.dtype}."
                )
            difference = differences(ours, theirs)
            if not bool(difference.isfinite().all()):
                raise CompressionError(
                    "The written file gives infinite or undefined values where the model does not, or the reverse."
                )
            if difference.numel():
                self.max_abs = max(self.max_abs, float(difference.max()))
            self._sum += float(difference.sum())
            self._count += difference.numel()
        scored = [pair for pair in pairs if pair[1].is_floating_point()]
        if not scored:
            return
        # A single number, as a loss, counts no samples.
        scores, theirs = next((pair for pair in scored if pair[1].ndim), scored[0])
        self.samples += scores.shape[0] if scores.ndim else 1
        axis = class_axis(theirs.shape, targets)
        if axis is not None:
            same = scores.argmax(axis) == theirs.argmax(axis)
            self.agreeing += int(same.sum())
            self.predictions += same.numel()


def class_axis(shape: Sequence[int], targets: Iterable[Tensor]) -> int | None:
    """The dimension that holds class scores: the one that a tensor of integer targets lacks.

    Example:
        >>> class_axis((8, 10), [torch.zeros(8, dtype=torch.int64)])
        1
        >>> class_axis((8, 10), [torch.zeros(8, 10)]) is None
        True
    """
    for target in targets:
        if target.is_floating_point() or target.is_complex():
            continue
        for axis in range(1, len(shape)):
            if tuple(target.shape) == (*shape[:axis], *shape[axis + 1 :]) and shape[axis] > 1:
                return axis
    return None


@dataclass(frozen=True)
class Verification:
    """What running a written file on data showed.

    Attributes:
        path: The file.
        runtime: What ran it.
        samples: Samples that it was run on.
        agreement: Share of predictions with the same top class as the model's; ``None`` where outputs are not class
            scores.
        max_abs_difference: Largest absolute difference from the model's outputs.
        mean_abs_difference: Mean absolute difference.
        metrics: ``"deployed"``, ``"fake_quantized"`` (the model as it was given) and, if given, ``"dense"``: each
            metric's name → value.
    """

    path: Path
    runtime: str
    samples: int
    agreement: float | None
    max_abs_difference: float
    mean_abs_difference: float
    metrics: dict[str, dict[str, float]]


def verify(
    path: str | os.PathLike[str],
    model: nn.Module,
    dataloader: Iterable[Any],
    metrics: Metrics,
    *,
    dense: nn.Module | None = None,
    threads: int = 1,
) -> Verification:
    """Run a written file and the model that it was written from on the same data.

    Args:
        path: An ``.onnx`` file, run by ONNX Runtime on the CPU, an ``.xml`` file, run by OpenVINO, a ``.pt2`` file, run
            by PyTorch, a ``.pte`` file, run by ExecuTorch, or else ``model.safetensors`` in the compressed-tensors
            format or a packed file, loaded into a copy of ``model``.
        model: The model as it was exported, fake-quantized. It is not changed; it runs on the CPU in eval mode.
        dataloader: Batches ``(inputs..., targets)``, or dicts whose targets are under ``target(s)``, ``label(s)`` or
            ``y`` and whose other entries are keyword arguments of the model.
        metrics: A torchmetrics metric, a collection, or name → metric, of the model's output and the targets. They
            are not changed.
        dense: The model before compression, to be measured on the same data.
        threads: Threads of ONNX Runtime.

    Raises:
        CompressionError: The file cannot be loaded or run, gives outputs of another shape, or the dataloader is empty.

    Example:
        >>> import tempfile
        >>> from torchmetrics import MeanSquaredError
        >>> from lightning_compress.export import save_packed
        >>> net, target = nn.Linear(2, 1), Path(tempfile.mkdtemp()) / "net.packed"
        >>> _ = save_packed(net, target)
        >>> verify(target, net, [(torch.zeros(4, 2), torch.zeros(4, 1))], MeanSquaredError()).max_abs_difference
        0.0
    """
    path = Path(path)
    model = copy.deepcopy(model).cpu().eval()
    forms: dict[str, Callable[..., Any]] = {"fake_quantized": model}
    deployed, runtime = deployed_form(path, model, threads=threads)
    if dense is not None:
        forms["dense"] = copy.deepcopy(dense).cpu().eval()
    measured = {name: _collection(metrics) for name in ("deployed", *forms)}
    comparison = Comparison()
    with torch.no_grad():
        for batch in dataloader:
            args, kwargs, target = split_batch(batch)
            outputs = {name: form(*args, **kwargs) for name, form in forms.items()}
            outputs["deployed"] = deployed(outputs["fake_quantized"], *args, **kwargs)
            comparison.update(outputs["deployed"], outputs["fake_quantized"], [target])
            for name, output in outputs.items():
                measured[name].update(_prediction(output), target)
    if not comparison.samples:
        raise CompressionError(f"verify: there is no data to run {path} on: the dataloader is empty.")
    return Verification(
        path=path,
        runtime=runtime,
        samples=comparison.samples,
        agreement=comparison.agreement,
        max_abs_difference=comparison.max_abs,
        mean_abs_difference=comparison.mean_abs,
        metrics={name: _values(collection) for name, collection in measured.items()},
    )


def deployed_form(path: Path, model: nn.Module, *, threads: int = 1) -> tuple[Callable[..., Any], str]:
    """Load a written file in its runtime.

    Args:
        path: The file.
        model: The model that it was written from; its forward names the inputs, and its class takes packed weights.
        threads: Threads of ONNX Runtime.

    Returns:
        A function of (the model's own output, the call's arguments) that gives the file's outputs in the structure
        of the model's, and the runtime's name.
    """
    kind = format_of(path)
    if isinstance(kind, WeightsFormat):
        loaded = kind.load(path, strip(copy.deepcopy(model))).cpu().eval()
        return (lambda like, *args, **kwargs: loaded(*args, **kwargs)), pytorch_name()
    assert isinstance(kind, GraphFormat)
    file = kind.open(path, model.forward, threads)
    return (lambda like, *args, **kwargs: restored(file.run(*args, **kwargs), like)), file.runtime


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """Split a batch into positional arguments, keyword arguments and targets.

    Raises:
        CompressionError: The batch has another form.

    Example:
        >>> args, kwargs, target = split_batch({"x": torch.ones(2), "label": torch.zeros(2)})
        >>> args, list(kwargs), target
        ((), ['x'], tensor([0., 0.]))
    """
    if isinstance(batch, Mapping):
        named = [key for key in batch if key in _TARGETS]
        if len(named) != 1:
            raise CompressionError.field(
                "verify.dataloader",
                expected=f"dicts with one of {', '.join(_TARGETS)} as targets",
                got=sorted(map(str, batch)),
                fix="Give an iterable that yields (inputs, targets).",
            )
        return (), {key: value for key, value in batch.items() if key != named[0]}, batch[named[0]]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return tuple(batch[:-1]), {}, batch[-1]
    raise CompressionError.field(
        "verify.dataloader", expected="batches (inputs, targets) or dicts", got=type(batch).__name__
    )


def _collection(metrics: Metrics) -> MetricCollection:
    if isinstance(metrics, MetricCollection):
        collection = metrics.clone()
    elif isinstance(metrics, Metric):
        collection = MetricCollection([metrics.clone()])
    else:
        collection = MetricCollection({name: metric.clone() for name, metric in metrics.items()})
    collection.reset()
    return collection.cpu()


def _values(collection: MetricCollection) -> dict[str, float]:
    return {name: float(value) for name, value in collection.compute().items()}


def _prediction(output: Any) -> Any:
    """The scores of outputs that come in a structure, as transformers models give them."""
    return output["logits"] if isinstance(output, Mapping) and "logits" in output else output
