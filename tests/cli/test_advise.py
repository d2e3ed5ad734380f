from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lightning_compress.cli.advise import parse_operations
from lightning_compress.cli.main import main
from lightning_compress.errors import CompressionError

OWN = """
import lightning as L, torch
from torch import nn

class Own(L.LightningModule):
    def __init__(self, hidden, lr=0.1):
        super().__init__()
        self.hidden, self.lr = hidden, lr

    def configure_model(self):
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return {"loss": loss}

    def test_step(self, batch, batch_idx):
        self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ByHand(Own):
    automatic_optimization = property(lambda self: False, lambda self, value: None)
"""
MODEL = (
    "model=custom",
    "model._target_=advised_module.Own",
    "+model.hidden=32",
    "trainer.accelerator=cpu",
    "threads=1",
)
FEW = ("--sparsities", "0,0.8", "--bits", "2,8", "--batches", "2")


@pytest.fixture(autouse=True)
def _advised_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that was trained elsewhere, in the working directory."""
    (tmp_path / "advised_module.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "advised_module", raising=False)
    layers = {"net.1": torch.nn.Linear(64, 32), "net.3": torch.nn.Linear(32, 10)}
    state = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "trained.ckpt")


def advised(capsys: pytest.CaptureFixture[str], *given: str, code: int = 0) -> dict[str, Any]:
    """What ``advise --json`` prints."""
    capsys.readouterr()
    assert main(["advise", "--json", "--checkpoint", "trained.ckpt", *FEW, *given, *MODEL]) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_users_module_is_planned_and_the_printed_command_trains_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    result = advised(capsys, "--max-size", "1.8KB", "trainer.max_epochs=3")
    assert result["plan"]["packed_bytes"] <= 1_800
    assert len(result["layers"]) == 2
    assert all(len(layer["options"]) == 4 for layer in result["layers"])
    assert main([*result["command"][:1], "--json", *result["command"][1:]]) == 0
    trained = json.loads(capsys.readouterr().out)
    report = json.loads(Path(trained["output_dir"], "compressed", "report.json").read_text())
    rows = {row["name"]: row for row in report["layers"]}
    for layer in result["layers"]:
        reached, chosen = rows[layer["name"]], layer["chosen"]
        assert reached["sparsity_target"] == chosen["sparsity"]
        assert reached["weight_bits"] == chosen["bits"]
    packed = next(item["bytes"] for item in report["artifacts"] if item["file"] == "model.packed")
    assert packed == pytest.approx(result["plan"]["packed_bytes"], rel=0.1), "small files differ most"


def test_the_experiment_holds_choices_settings_and_the_weights_to_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = advised(
        capsys, "--max-size", "2KB", "--output", "mine/experiment/small.yaml", "pruning=uniform", "pruning.every=7",
        "export=none", "~trainer.precision",
    )  # fmt: skip
    text = Path("mine/experiment/small.yaml").read_text()
    written = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(written, dict)
    assert {"override /model": "custom"} in written["defaults"]
    assert {"override /export": "none"} in written["defaults"]
    assert written["model"] == {"_target_": "advised_module.Own", "hidden": 32}
    assert written["init_checkpoint"] == written["dense_checkpoint"] == str(tmp_path / "trained.ckpt")
    assert written["pruning"]["every"] == 7
    assert set(written["pruning"]["overrides"]) == set(written["quantization"]["overrides"]) == {
        "net.1.weight", "net.3.weight",
    }  # fmt: skip
    # What a file cannot say stays with the command, which stands in the file, too.
    assert result["command"][-1] == "~trainer.precision"
    assert shlex.join(["lightning-compress", *result["command"]]) in text


def test_pruning_or_quantization_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    bits_alone = advised(capsys, "--max-size", "3KB", "pruning=none")
    assert {option["sparsity"] for layer in bits_alone["layers"] for option in layer["options"]} == {0.0}
    zeros_alone = advised(capsys, "--max-size", "6KB", "quantization=none")
    assert {option["bits"] for layer in zeros_alone["layers"] for option in layer["options"]} == {None}
    assert zeros_alone["plan"]["packed_bytes"] <= 6_000
    assert zeros_alone["plan"]["estimated_bytes"] == pytest.approx(zeros_alone["plan"]["packed_bytes"], rel=0.1)


def test_the_hessian_gives_other_costs_for_the_same_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    loss = advised(capsys, "--max-bops", "3%", "--criterion", "loss")
    hessian = advised(capsys, "--max-bops", "3%", "--criterion", "hessian", "--probes", "4")
    for one, other in zip(loss["layers"], hessian["layers"], strict=True):
        assert one["trace"] is None
        weight = other["trace"]["value"] / other["numel"] / 2
        for a, b in zip(one["options"], other["options"], strict=True):
            assert (a["bytes"], a["loss"], a["distance"]) == (b["bytes"], b["loss"], b["distance"])
            assert b["cost"] == pytest.approx(max(0.0, weight) * b["distance"])
    assert hessian["plan"]["bit_operations"] <= 0.03 * hessian["dense_bit_operations"]


def test_a_budget_out_of_reach_ends_with_1_and_says_what_is_in_reach(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = advised(capsys, "--max-size", "100B", code=1)
    assert (result["plan"], result["output"]) == (None, None)
    assert result["least"]["size"] > 100
    assert not (tmp_path / "plans").exists()
    assert main(["advise", "--checkpoint", "trained.ckpt", *FEW, "--max-size", "100B", *MODEL]) == 1
    printed = capsys.readouterr().out
    assert f"within reach has {result['least']['size']:,} bytes; 100 were asked for" in printed


def test_without_json_layers_losses_and_the_command_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--max-size", "1.8KB", "--max-bops", "5%", "--picture", "s.svg", "trainer.max_epochs=3"]
    assert main(["advise", "--checkpoint", "trained.ckpt", *FEW, *given, *MODEL]) == 0
    printed = capsys.readouterr().out
    for part in ("net.1.weight", "expected rise", "Packed as it is:", "with all layers compressed together", "Gap to",
                 "the same for all layers", "--config-dir"):  # fmt: skip
        assert part in printed
    assert Path("s.svg").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "advise: no budget is given. Add --max-size"),
        (("--max-size", "5"), "--output: expected"),
        (("--max-size", "10 stones"), "--max-size: expected a size"),
        (("--max-bops", "few"), "--max-bops: expected a share"),
        (("--max-size", "2KB", "--bits", "1,8"), "--bits: expected integers from 2 to 8"),
        (("--max-size", "2KB", "--sparsities", "50"), r"--sparsities: expected shares in \[0, 1\)"),
        (("--max-size", "2KB", "--bits", "low"), "--bits: expected numbers with commas"),
        (("--max-size", "2KB", "--batches", "0"), "--batches: expected at least 1"),
        (("--max-size", "2KB", "--checkpoint", "none.ckpt"), "--checkpoint: expected a checkpoint file"),
        (("--max-size", "2KB", "--max-siz", "3KB"), "there is no option --max-siz"),
        (("--max-size", "2KB", "+model.hidden=16"), "--checkpoint: 'net.1.weight' has shape"),
        (("--max-size", "2KB", "model._target_=advised_module.ByHand"), "ByHand optimizes by hand"),
        (("--max-size", "2KB", "pruning.pattern=2:4", "pruning.final_sparsity=0.5"), "advise can choose"),
    ],
)
def test_wrong_use_ends_with_2_and_one_paragraph(
    capsys: pytest.CaptureFixture[str], given: tuple[str, ...], message: str
) -> None:
    output = ("--output", "plan.yaml") if "--output" in message else ()
    keys = {text.split("=")[0] for text in given}
    model = [text for text in MODEL if text.split("=")[0] not in keys]
    assert main(["advise", "--checkpoint", "trained.ckpt", *FEW[:0], *output, *given, *model]) == 2
    error = capsys.readouterr().err
    assert pytest.approx(1) == len(error.strip().splitlines())
    with pytest.raises(CompressionError, match=message):
        raise CompressionError(error)


def test_bit_operations_are_a_share_or_a_number() -> None:
    assert parse_operations("6.25 %") == (0.0625, True)
    assert parse_operations("300k") == (300_000.0, False)


def test_a_misspelt_setting_is_answered_without_loading_torch() -> None:
    code = (
        "import sys\nfrom lightning_compress.cli.main import main\n"
        "assert main(['advise', '--checkpoint', 'x', '--max-size', '1KB', 'model=mpl']) == 2\n"
        "print([name for name in ('torch', 'lightning', 'scipy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
    assert "Closest: mlp" in answer.stderr


def test_for_a_device_it_says_whether_the_weights_fit_and_how_to_make_its_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(*given: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["advise", "--json", "--checkpoint", "trained.ckpt", *given, *MODEL]) == code
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    found = answer("--device", "cortex_m4")
    assert (found["weights"], found["max_size"]) == (64 * 32 + 32 + 32 * 10 + 10, 512_000)
    command = shlex.split(found["command"])
    assert command[:4] == ["lightning-compress", "calibrate", "--checkpoint", "trained.ckpt"]
    assert {"quantization.backend=litert", "export.formats=[litert]", "+model.hidden=32"} <= set(command)
    assert answer("--device", "cortex_m4", "--max-size", "1KB", code=1)["command"] is None
    assert main(["advise", "--checkpoint", "trained.ckpt", "--device", "cortex_m5", *MODEL]) == 2
    assert "Closest: cortex_m" in capsys.readouterr().err
