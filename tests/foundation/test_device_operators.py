"""Which tensors the operators of accelerators serve, and on which device they launch."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_compress.foundation import device_operators
from lightning_compress.foundation.device_operators import on_device_of_arguments, served


class OnSecondDevice(torch.Tensor):
    """Says that it lies on the second GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 1)


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[Any] = []

    @contextmanager
    def device(where: torch.device) -> Any:
        current.append(where)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    launch = on_device_of_arguments(lambda *_: list(current))
    there, here = torch.zeros(2).as_subclass(OnSecondDevice), torch.zeros(2)
    assert launch([there], 1.0, None) == [torch.device("cuda", 1)]
    assert launch(here, 1.0) == []


def test_transforms_of_functions_are_served_by_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_operators, "_has_triton", lambda: True)
    monkeypatch.setattr(device_operators, "type", lambda _: torch.Tensor, raising=False)

    def there() -> Any:
        return SimpleNamespace(
            device=torch.device("cuda"),
            dtype=torch.float32,
            layout=torch.strided,
            numel=lambda: 2,
            __class__=torch.Tensor,
        )

    assert served(there())
    found: list[bool] = []
    torch.func.grad(lambda x: (found.append(served(there())), x.sum())[1])(torch.ones(2))
    assert found == [False]
