"""How steps call a network: with labels, by its parts, with a batch size that Python reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_compress import CompressedExport, CompressionError, QuantizationAwareTraining

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Tagger(L.LightningModule):
    """Computes its loss in forward where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.embed(tokens).view(len(tokens), -1, 8).mean(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self(**batch)["loss"]

    def validation_step(self, batch: Any, _: int) -> None:
        outputs = self(**batch)
        self.log("val/loss", outputs["loss"])
        self.log("val/acc", (outputs["logits"].argmax(1) == batch["labels"]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class ByParts(Tagger):
    """Its steps call layers, never a module around them."""

    def loss(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.head(self.embed(batch["tokens"]).mean(1)), batch["labels"])

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val/loss", self.loss(batch))


def fit(network: L.LightningModule, folder: Path, **settings: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    samples = [{"tokens": torch.randint(0, 9, (5,), generator=generator), "labels": i % 3} for i in range(14)]
    loader = DataLoader(samples, 4)
    callbacks = [QuantizationAwareTraining(), CompressedExport(folder, latency=False, **settings)]
    L.Trainer(max_epochs=1, callbacks=callbacks, **QUIET).fit(network, loader, loader)
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("example", [None, (torch.zeros(2, 5, dtype=torch.long),)])
def test_labels_are_left_out_and_agreement_is_measured(example: Any, tmp_path: Path) -> None:
    report = fit(
        Tagger(), tmp_path, formats=["onnx"], example_inputs=example, input_names=["ids"], output_names=["scores"]
    )
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    assert [(item.name, item.shape) for item in session.get_inputs()] == [("ids", [1, 5])]
    assert [item.name for item in session.get_outputs()] == ["scores"]
    # 14 samples in batches of 4, though the file takes one at a time.
    assert report["samples"] == 14
    assert report["agreement"] > 0.9
    deployed, trained = (report["results"][form]["metrics"] for form in ("deployed", "fake_quantized"))
    assert (set(deployed), set(trained)) == ({"val/acc"}, {"val/acc", "val/loss"})
    assert deployed["val/acc"] == pytest.approx(trained["val/acc"], abs=0.1)
    notes = " ".join(report["notes"])
    assert "leaves out labels" in notes
    assert "model.onnx takes 1 sample a call" in notes


def test_a_packed_file_needs_no_single_call(tmp_path: Path) -> None:
    report = fit(ByParts(), tmp_path, formats=["packed"])
    assert report["failures"] == []
    deployed, trained = (report["results"][form]["metrics"]["val/loss"] for form in ("deployed", "fake_quantized"))
    assert deployed == pytest.approx(trained, rel=1e-5)


def test_a_graph_of_parts_is_refused_with_a_part_that_can_be_traced(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"\(embed, head\).*give module='embed'.*The format 'packed'"):
        fit(ByParts(), tmp_path / "a", formats=["onnx"])
    fit(ByParts(), tmp_path / "b", formats=["onnx"], module="embed", verify=False)
    assert (tmp_path / "b" / "model.onnx").is_file()
