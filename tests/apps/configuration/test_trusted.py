"""What a stranger's config may name before the user has said that it is trusted."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import nn

from lightning_compress.apps.configuration.saved_config import run_config
from lightning_compress.apps.configuration.trusted import refuse_untrusted
from lightning_compress.apps.verify.verify import verify_run
from lightning_compress.cli.main import main
from lightning_compress.errors import CompressionError
from lightning_compress.export import save_packed


class Own(nn.Linear):
    """Of a process that has imported it."""


def judged(**groups: Any) -> None:
    refuse_untrusted(OmegaConf.create(groups), ("data", "model"), Path("the run"), "verify")


@pytest.mark.parametrize(
    "target",
    [
        "torch.load", "numpy.load", "os.system", "builtins.eval", "lightning_compress.export.load_packed",
        "lightning_compress.models.Classifier.load_from_checkpoint", "torch.nn.init.zeros_", "torch.nn.functional.relu",
        # Imported always, and write or download what they are told to.
        "lightning.pytorch.callbacks.OnExceptionCheckpoint", "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning_compress.callbacks.CompressedExport", "lightning_compress.callbacks.CompressedCheckpoint",
        "torchmetrics.text.BERTScore", "torchmetrics.multimodal.CLIPScore", "torch.jit.ScriptModule",
        "torch.fx.GraphModule", "torch.distributed.nn.RemoteModule",
        "torch.hub.load", "subprocess.Popen", "no.such.module", "", 5, None, "torch.nn", "antigravity.fly",
    ],
)  # fmt: skip
def test_anything_but_known_classes_is_refused_and_not_imported(target: Any) -> None:
    import sys

    with pytest.raises(CompressionError, match=r"model\.net\[0\]\._target_ of the run .*--trust"):
        judged(model={"_target_": "torch.nn.Sequential", "net": [{"_target_": target}]})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "target",
    [
        "lightning_compress.models.Classifier", "lightning_compress.data.Digits", "torch.nn.Linear", "torch.optim.Adam",
        "torch.nn.modules.loss.MSELoss", f"{__name__}.Own", "lightning_compress.callbacks.QuantizationAwareTraining",
        "torchmetrics.classification.MulticlassAccuracy",
    ],
)  # fmt: skip
def test_known_classes_and_those_of_this_process_are_built(target: str) -> None:
    judged(model={"_target_": target}, data={"_target_": "lightning_compress.data.Digits"})


def test_a_node_behind_an_interpolation_is_seen() -> None:
    with pytest.raises(CompressionError, match="--trust"):
        judged(model="${evil}", evil={"_target_": "os.system"})
    with pytest.raises(CompressionError, match="--trust"):
        judged(model={"_target_": "${evil}"}, evil="os.system")
    with pytest.raises(CompressionError, match="cannot be read"):
        judged(model={"_target_": "${missing}"})


def test_what_was_checked_is_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    # The seed that a run sets between check and building would choose the other class.
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    chosen = "${kinds[${oc.env:PL_GLOBAL_SEED,0}]}"
    cfg = OmegaConf.create({"model": {"_target_": chosen}, "kinds": ["torch.nn.Identity", "os.system"]})
    refuse_untrusted(cfg, ("data", "model"), Path("the run"), "verify")
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert cfg.model._target_ == "torch.nn.Identity"
    cfg = OmegaConf.create(
        {"model": {"_target_": "torch.nn.Identity", "net": "\\${evil}"}, "evil": {"_target_": "a.b"}}
    )
    with pytest.raises(CompressionError, match="escaped interpolation"):
        refuse_untrusted(cfg, ("data", "model"), Path("the run"), "verify")


def test_no_class_that_the_overrides_of_a_run_name_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("planted.py").write_text("import os\nos.mkdir('owned')\nclass X: pass\n")
    folder = tmp_path / "run" / ".hydra"
    folder.mkdir(parents=True)
    for key in ("trainer", "model.net", "logger.csv"):
        (folder / "hydra.yaml").write_text(f"hydra: {{overrides: {{task: ['+{key}._target_=planted.X']}}}}\n")
        cfg = OmegaConf.create({"model": {"_target_": "torch.nn.Identity"}})
        OmegaConf.update(cfg, f"{key}._target_", "planted.X", force_add=True)
        OmegaConf.save(cfg, folder / "config.yaml")
        refused = pytest.raises(CompressionError, match="--trust") if key == "model.net" else contextlib.nullcontext()
        with refused, run_config(folder.parent, []):
            pass
        assert not Path("owned").exists()
    with run_config(folder.parent, [], trust=True):
        assert Path("owned").exists()


@pytest.mark.parametrize("name", ["config.yaml", "hydra.yaml"])
def test_a_config_that_never_ends_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / ".hydra"
    folder.mkdir()
    for file in ("config.yaml", "hydra.yaml"):
        (folder / file).write_text("{}\n")
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30))]
    (folder / name).write_text("\n".join(lines))
    with pytest.raises(CompressionError, match="has aliases"), run_config(tmp_path, []):
        pass
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CompressionError, match="is no regular file"), run_config(tmp_path, []):
        pass


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("place", ["of the file", "one above", "further up"])
def test_a_planted_config_runs_nothing(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "shared" / "downloads" / "model" / "model.packed"
    save_packed(nn.Linear(3, 2), path)
    folder = path.parents[["of the file", "one above", "further up"].index(place)] / ".hydra"
    folder.mkdir()
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    (folder / "hydra.yaml").write_text("hydra: {overrides: {task: [model._target_=this.module]}}\n")
    (folder / "config.yaml").write_text(
        "data: {_target_: torch.load, f: evil.pkl, weights_only: false}\n"
        "model: {_target_: torch.nn.Linear, in_features: 3, out_features: 2}\n"
    )
    with pytest.raises(CompressionError, match="directory of a run" if place == "further up" else "--trust"):
        verify_run(path)
    assert main(["bench", str(path)]) == 2
    assert not Path("owned").exists()


@pytest.mark.parametrize("content", ["[", "- a\n- b\n", "a: ${", "!!python/object/apply:os.system [ls]"])
def test_a_config_that_cannot_be_read_is_one_error(content: str, tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(content)
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {}\n")
    with pytest.raises(CompressionError), run_config(tmp_path, []):
        pass
