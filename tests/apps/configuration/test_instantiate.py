from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import OmegaConf
from torch import nn

from lightning_compress.apps.configuration.instantiate import instantiate
from lightning_compress.errors import CompressionError

MODULE = """
from typing import Literal

from lightning_compress.errors import CompressionError


class Base:
    def __init__(self, *, width: int = 1, share: float = 0.5) -> None:
        self.width, self.share = width, share


class Thing(Base):
    def __init__(self, name: str, kind: Literal["a", "b"] = "a", limit: int | None = None, **options) -> None:
        super().__init__(**options)
        self.name, self.kind, self.limit = name, kind, limit


class Refuses:
    def __init__(self, why: str = "no") -> None:
        raise CompressionError(f"Refuses.why: {why}")


class Breaks:
    def __init__(self) -> None:
        raise ZeroDivisionError("division by zero")


class Holder:
    def __init__(self, parts: list, settings: dict) -> None:
        self.parts, self.settings = parts, settings
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "things.py").write_text(MODULE)
    (tmp_path / "unimportable.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "things", raising=False)


def node(target: str, **settings: Any) -> Any:
    return OmegaConf.create({"_target_": target, **settings})


def test_nested_targets_are_built_and_interpolations_resolved() -> None:
    cfg = OmegaConf.create(
        {"width": 3, "net": {"_target_": "torch.nn.Sequential", "_args_": [node("torch.nn.Linear", in_features=2)]}}
    )
    cfg.net._args_[0].out_features = "${width}"
    net = instantiate(cfg.net, "net")
    assert isinstance(net, nn.Sequential)
    assert net(torch.zeros(1, 2)).shape == (1, 3)


def test_lists_and_mappings_arrive_as_plain_python() -> None:
    held = instantiate(node("things.Holder", parts=[1, [2]], settings={"a": {"b": 1}}), "holder")
    assert type(held.parts) is list
    assert type(held.parts[1]) is list
    assert type(held.settings["a"]) is dict


def test_settings_given_in_code_reach_the_target() -> None:
    assert instantiate(node("things.Thing", name="a"), "thing", name="b", width=4).width == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "torch.nn.Linaer"}, r"model\._target_: cannot import 'torch\.nn\.Linaer'.*Closest: Linear"),
        ({"_target_": "no_such_package.X"}, r"model\._target_: cannot import .*No module named 'no_such_package'"),
        ({"_target_": "unimportable.X"}, r"model\._target_: cannot import .*No module named 'no_such_library'"),
        ({"_target_": "torch.pi"}, r"model\._target_: expected a class or function, got 'torch\.pi'"),
        ({"_target_": 3}, r"model\._target_: expected the dotted path of a class, got 3"),
        ({"lr": 3}, r"model: expected a node with a _target_"),
        ({"_target_": "things.Base", "widht": 2}, r"model\.widht: things\.Base takes no argument .*Closest: width"),
        ({"_target_": "things.Thing", "name": "x", "widht": 2}, r"model\.widht: .*Closest: width"),
        ({"_target_": "things.Thing"}, r"model: things\.Thing needs name\. Add \+model\.name="),
        ({"_target_": "things.Base", "width": 2.5}, r"model\.width: expected an integer, got 2\.5"),
        ({"_target_": "things.Base", "width": True}, r"model\.width: expected an integer, got True"),
        ({"_target_": "things.Base", "share": "half"}, r"model\.share: expected a number, got 'half'"),
        ({"_target_": "things.Base", "share": [1]}, r"model\.share: expected a number, got \[1\]"),
        ({"_target_": "things.Thing", "name": "x", "kind": "c"}, r"model\.kind: expected one of a, b, got 'c'"),
        ({"_target_": "things.Thing", "name": "x", "limit": "y"}, r"model\.limit: expected an integer or null"),
        ({"_target_": "things.Refuses", "why": "because"}, r"^Refuses\.why: because$"),
        ({"_target_": "things.Breaks"}, r"model: things\.Breaks could not be built: ZeroDivisionError: division"),
        ({"_target_": "things.Base", "width": "${nowhere}"}, r"^model: Interpolation key 'nowhere' not found"),
    ],
)
def test_bad_nodes_are_refused_by_their_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressionError, match=message) as error:
        instantiate(OmegaConf.create(settings), "model")
    assert "\n" not in str(error.value)


def test_an_error_deep_inside_names_the_whole_key() -> None:
    cfg = node("things.Holder", parts=[node("things.Breaks")], settings={"a": node("things.Base", widht=1)})
    with pytest.raises(CompressionError, match=r"^export\.settings\.a\.widht:"):
        instantiate(cfg, "export")
    cfg.settings = {}
    with pytest.raises(CompressionError, match=r"^export\.parts\[0\]: things\.Breaks could not be built"):
        instantiate(cfg, "export")


def test_whole_numbers_serve_where_a_number_is_wanted_and_null_where_it_may() -> None:
    assert instantiate(node("things.Base", share=1), "x").share == 1
    assert instantiate(node("things.Thing", name="x", limit=None), "x").limit is None


def test_a_module_is_loaded_from_its_checkpoint(tmp_path: Path) -> None:
    trained, path = BoringModel(), tmp_path / "trained.ckpt"
    torch.save({"state_dict": trained.state_dict(), "pytorch-lightning_version": L.__version__}, path)
    target = f"{BoringModel.__module__}.BoringModel.load_from_checkpoint"
    loaded = instantiate(node(target, checkpoint_path=str(path)), "distillation.teacher")
    torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0, atol=0)
