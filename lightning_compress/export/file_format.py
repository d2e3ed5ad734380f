"""What the rest of the package knows of a file format: one class for each, in the room of the format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_compress.export.activations import Activations
    from lightning_compress.export.integer_share import IntegerShare


@dataclass(frozen=True)
class OpenFile:
    """A file in its runtime.

    Attributes:
        run: Called like the module that was written; gives the file's outputs in order.
        runtime: What runs it, for reports.
        prepare: Called like the module; gives a function that runs the file on these inputs, for timing.
    """

    run: Callable[..., list[Tensor]]
    runtime: str
    prepare: Callable[..., Callable[[], Any]]


class FileFormat:
    """A format that an export writes.

    Attributes:
        name: Its name in ``formats``.
        file: Name of its file in the directory of an export.
        beside: Name of its second file, if it has two.
        package: The package that runs it, where an extra of the same name as the format brings it.
        imported: Name under which that package is imported; by default the format's.
        dense: What its latency is compared with: the dense model's ONNX file, a dense file of its own, or the dense
            model in PyTorch.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    beside: ClassVar[str | None] = None
    package: ClassVar[str | None] = None
    imported: ClassVar[str | None] = None
    dense: ClassVar[Literal["onnx", "own", "pytorch"]] = "pytorch"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all its files."""
        return (self.file,) if self.beside is None else (self.file, self.beside)

    def breakdown(self, path: Path, written: Any) -> dict[str, int]:
        """What the bytes of its files hold: part → bytes; by default each file is a part.

        Args:
            path: The file.
            written: What writing it gave.
        """
        return {name: path.with_name(name).stat().st_size for name in self.files}

    def refuse(self, model: nn.Module) -> None:
        """Refuse a model that the format cannot hold and that can be traced all the same.

        Raises:
            CompressionError: The format cannot hold it.
        """

    def run_notes(self, path: Path) -> list[str]:
        """What a reader should know of how the file runs on this processor."""
        return []

    def activations(
        self, path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
    ) -> Activations | None:
        """The activations in the file at every quantizer, for one call; ``None`` where they cannot be looked at."""
        return None

    def integer_share(
        self, path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
    ) -> IntegerShare | None:
        """How much of the file's arithmetic its runtime does in integers; ``None`` where that is not known."""
        return None


class GraphFormat(FileFormat, ABC):
    """A format that holds a graph, for which the network is traced with the inputs of one call.

    Attributes:
        settings: The keyword settings that ``write`` takes, of ``dynamic_batch``, ``dynamic_axes``, ``input_names``,
            ``output_names``, ``metadata`` and ``litert``. One without ``dynamic_batch`` is written for one sample a
            call.
    """

    settings: ClassVar[frozenset[str]] = frozenset()

    @property
    def fixed_batch(self) -> bool:
        """Whether a file takes one sample a call, whatever the network allows."""
        return "dynamic_batch" not in self.settings

    @abstractmethod
    def write(self, model: nn.Module, example_inputs: Any, path: Path, **settings: Any) -> Any:
        """Write a model.

        Returns:
            What was written; with ``batch`` (samples of one call where their number is fixed) and ``left_out``
            (classes of results that are not in the file), unless its batch is fixed anyway.

        Raises:
            CompressionError: It cannot be written.
        """

    @abstractmethod
    def open(self, path: Path, forward: Callable[..., Any], threads: int) -> OpenFile:
        """Load a file in its runtime.

        Raises:
            CompressionError: It cannot be loaded.
        """

    def write_notes(self, written: Any) -> list[str]:
        """What a reader should know of a file that was written."""
        return []


class WeightsFormat(FileFormat, ABC):
    """A format that holds all tensors of the module and no graph: PyTorch runs it, loaded into the module's class."""

    @abstractmethod
    def write(self, model: nn.Module, path: Path) -> Any:
        """Write a module.

        Raises:
            CompressionError: It cannot be written.
        """

    @abstractmethod
    def load(self, path: Path, model: nn.Module) -> nn.Module:
        """Load a file into a module of the same architecture, in place.

        Raises:
            CompressionError: The file cannot be read, or is of another model.
        """


def one_by_one(model: Callable[..., list[Tensor]], runtime: str) -> OpenFile:
    """A file whose calls need no preparation."""
    return OpenFile(model, runtime, lambda *args, **kwargs: lambda: model(*args, **kwargs))


def pytorch_name() -> str:
    """The eager runtime, for reports."""
    threads = torch.get_num_threads()
    return f"PyTorch {torch.__version__} eager, CPU, {threads} thread{'s' if threads > 1 else ''}"
