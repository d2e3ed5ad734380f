"""How steps call a network: with labels, by its parts, with a batch size that Python reads, with sizes that differ."""

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
    assert report["failures"] == []
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
    report = fit(ByParts(), tmp_path / "b", formats=["onnx"], module="embed", verify=False)
    assert report["failures"] == []
    assert (tmp_path / "b" / "model.onnx").is_file()


class OfAnyLength(Tagger):
    """Takes batches that are padded to their longest sample."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(tokens) * mask[:, :, None]
        return self.head(embedded.sum(1) / mask.sum(1, keepdim=True))

    def loss(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self(batch["tokens"], batch["mask"]), batch["labels"])

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val/loss", self.loss(batch))


class OfOneLength(OfAnyLength):
    """Computes with the length as a number."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens, mask) + float(tokens.shape[1] > 3)


def padded(lengths: list[int]) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "tokens": torch.randint(0, 9, (4, length), generator=generator),
            "mask": torch.ones(4, length),
            "labels": torch.arange(4) % 3,
        }
        for length in lengths
    ]


def fit_padded(network: L.LightningModule, folder: Path, formats: list[str], lengths: list[int]) -> dict[str, Any]:
    callbacks = [QuantizationAwareTraining(), CompressedExport(folder, formats, latency=False)]
    trainer = L.Trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=callbacks, **QUIET)
    trainer.fit(network, *(DataLoader(padded(each), batch_size=None) for each in ([5, 5], lengths)))
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("lengths", [[5, 8, 3], [7, 7]])
def test_sizes_that_differ_between_calls_are_free_in_graphs(lengths: list[int], tmp_path: Path) -> None:
    report = fit_padded(OfAnyLength(), tmp_path, ["onnx", "torch_export"], lengths)
    assert report["failures"] == []
    assert {item["format"] for item in report["artifacts"]} == {"onnx", "torch_export"}
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    assert [item.shape for item in session.get_inputs()] == [["batch", "tokens_1"], ["batch", "tokens_1"]]
    (scores,) = session.run(None, {"tokens": [[1] * 11] * 2, "mask": torch.ones(2, 11).numpy()})
    assert scores.shape == (2, 3)


def test_sizes_that_do_not_differ_stay_as_they_are(tmp_path: Path) -> None:
    fit_padded(OfAnyLength(), tmp_path, ["onnx"], [5, 5])
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    assert [item.shape for item in session.get_inputs()] == [["batch", 5], ["batch", 5]]


def test_a_network_that_reads_a_size_as_a_number_keeps_it(tmp_path: Path) -> None:
    report = fit_padded(OfOneLength(), tmp_path, ["onnx"], [5, 8])
    shapes = [item.shape for item in ort.InferenceSession(str(tmp_path / "model.onnx")).get_inputs()]
    assert shapes == [["batch", 5], ["batch", 5]]
    assert "model.onnx takes one size alone of dimension 1 of tokens" in " ".join(report["notes"])
    assert [failure.partition(":")[0] for failure in report["failures"]] == ["model.onnx was written and not verified"]


class OfGraphs(L.LightningModule):
    """Sums over the neighbours of each node: nodes and edges are of no common number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        messages = self.first(nodes)[edges[0]]
        return self.second(F.relu(torch.zeros(nodes.shape[0], 16).index_add(0, edges[1], messages)))

    def loss(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self(*batch[:2]), batch[2])

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_graphs_of_other_numbers_of_nodes_and_edges_run_in_the_file(tmp_path: Path) -> None:
    def graphs(*sizes: tuple[int, int]) -> DataLoader[Any]:
        found = [(torch.randn(n, 6), torch.randint(0, n, (2, e)), torch.randint(0, 2, (n,))) for n, e in sizes]
        return DataLoader(found, batch_size=None)

    callbacks = [QuantizationAwareTraining(), CompressedExport(tmp_path, latency=False)]
    trainer = L.Trainer(max_epochs=1, callbacks=callbacks, **QUIET)
    trainer.fit(OfGraphs(), graphs((10, 24), (12, 30)), graphs((9, 20), (5, 14)))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == []
    assert report["samples"] == 14
    assert report["max_abs_difference"] < 0.1


class Sampling(Tagger):
    """Draws its scores, in evaluation, too."""

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        found = super().forward(tokens, labels)
        return {**found, "logits": torch.normal(found["logits"], 1.0)}


def test_a_packed_file_of_a_network_that_draws_is_compared_with_equal_draws(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"draws random numbers.*formats=\['packed'\], or on_error='warn'"):
        fit(Sampling(), tmp_path / "a", formats=["onnx"])
    report = fit(Sampling(), tmp_path / "b", formats=["packed"])
    assert report["max_abs_difference"] < 1e-5
    with pytest.warns(UserWarning, match="goes on without onnx"):
        report = fit(Sampling(), tmp_path / "c", formats=["onnx", "packed"], on_error="warn")
    assert [item["format"] for item in report["artifacts"]] == ["packed"]
