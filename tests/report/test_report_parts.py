from __future__ import annotations

import math
from io import StringIO
from typing import Any

import pytest
import torch
from reports import example_report
from rich.console import Console
from torch import nn

from lightning_compress import report
from lightning_compress.errors import CompressionError
from lightning_compress.metrics import describe
from lightning_compress.report import number_text, plots, text
from lightning_compress.report.html import html
from lightning_compress.report.markdown import markdown
from lightning_compress.report.schema import SCHEMA
from lightning_compress.report.warnings import remarks, ruin


def printed(found: dict[str, Any], width: int = 120) -> str:
    stream = StringIO()
    Console(file=stream, width=width).print(report.table(found))
    return stream.getvalue()


def test_the_table_shows_the_three_versions_side_by_side() -> None:
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(example_report()).splitlines()]
    assert ["test/acc", "98.61 %", "98.33 %", "98.33 %"] in lines
    assert ["Size", "310.6 kB", "310.6 kB", "86.1 kB"] in lines
    assert ["Compression ratio", "1×", "1×", "3.61×"] in lines
    assert ["Latency, median", "0.061 ms", "0.91 ms", "0.034 ms"] in lines
    assert ["Runtime", "ONNX Runtime, float32", "PyTorch", "ONNX Runtime, int8"] in lines


def test_weights_that_a_fit_began_with_are_not_called_dense() -> None:
    found = example_report()
    found["results"]["dense"]["source"] = "at start of fit"
    assert text.metric_change(found, "test/acc") == "−0.28 points against the start of the fit"


def test_the_curves_are_the_headline_metric_and_the_loss_with_validation_first() -> None:
    found = plots.curves(example_report())
    assert {tail: list(lines) for tail, lines in found.items()} == {"acc": ["val"], "loss": ["val", "train"]}
    steps, values = found["loss"]["train"]
    assert steps == list(range(20, 601, 20))
    assert values[0] == pytest.approx(0.04 + 1.6 * 0.99**20)


@pytest.mark.parametrize("count", [0, 1])
def test_no_curve_is_drawn_of_fewer_than_two_validations(count: int) -> None:
    found = example_report()
    found["evaluations"] = found["evaluations"][:count]
    assert not plots.curves(found)
    assert "Metric and loss over training" not in html(found)


def test_the_table_leaves_out_a_missing_version() -> None:
    found = example_report()
    found["results"]["dense"] = None
    assert "Dense" not in printed(found)


def test_the_table_refuses_half_a_report() -> None:
    found = example_report()
    del found["results"]
    with pytest.raises(CompressionError, match=r"report\.results is missing"):
        report.table(found)


def test_layers_of_a_model_fit_the_schema() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    rows = report.layers(describe(model, example_inputs=torch.zeros(1, 3, 8, 8)), packed={"0.weight": 77})
    report.check({**example_report(), "layers": rows})
    assert list(rows[0]) == list(SCHEMA["layers"][0])  # type: ignore[index]
    assert (rows[0]["bytes_dense"], rows[0]["bytes_packed"]) == (4 * 4 * 3 * 9, 77)
    assert rows[1]["bytes_packed"] == 16


def test_the_environment_fits_the_schema() -> None:
    surroundings = report.environment()
    report.check({**example_report(), "environment": surroundings})
    assert surroundings["torch"] == torch.__version__


def test_phases_follow_each_other_without_gaps() -> None:
    found = report.phases(example_report()["history"])
    assert [phase["name"] for phase in found] == ["dense", "pruning", "pruning + quantized", "pruned + quantized"]
    assert [(phase["start"], phase["end"]) for phase in found] == [(0, 60), (60, 300), (300, 360), (360, 600)]
    assert report.phases([]) == []


def test_parts_of_a_file_sum_to_the_file() -> None:
    breakdown = {f"part {i}": 10 * i for i in range(1, 9)}
    parts = plots.ranked(breakdown, 400)
    assert sum(count for _, count in parts) == 400
    assert parts[-1] == ("everything else", 400 - 80 - 70 - 60 - 50)


@pytest.mark.parametrize("dense_known", [True, False])
def test_dense_bytes_are_measured_or_summed_up(dense_known: bool) -> None:
    found = example_report()
    if not dense_known:
        found["results"]["dense"] = None
    expected = 310_552 if dense_known else sum(row["bytes_dense"] for row in found["layers"])
    assert plots.dense_bytes(found) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_600, "1.0 MB"), (None, "–")]
)
def test_sizes_are_in_thousands(count: int | None, expected: str) -> None:
    assert number_text.size(count) == expected


def test_a_change_of_nothing_has_no_sign() -> None:
    assert number_text.change("val/acc", 0.9, 0.9) == "±0.00 points"


def test_the_headline_says_what_was_gained_and_lost() -> None:
    assert text.headline(example_report()) == (
        "3.61× smaller than dense float32: 86.1 kB; test/acc 98.33 % (−0.28 points against dense); "
        "0.034 ms median latency on ONNX Runtime, int8."
    )


def test_a_difference_within_the_standard_error_is_no_measurable_one() -> None:
    found = example_report()
    found["samples"] = 360
    assert "test/acc 98.33 % (no measurable difference from dense on 360 samples)" in text.headline(found)
    error = math.sqrt((0.9861 * 0.0139 + 0.9 * 0.1) / 360)
    found["results"]["deployed"]["metrics"]["test/acc"] = 0.9
    assert error < 0.0861
    assert "(−8.61 points against dense)" in text.headline(found)


def test_a_file_that_grew_is_larger() -> None:
    found = example_report()
    found["results"]["deployed"] |= {"compression_ratio": 0.8, "bytes": 388_190}
    assert text.headline(found).startswith("1.25× larger than dense float32: 388.2 kB")


def test_nothing_is_compared_without_a_control() -> None:
    found = example_report()
    found["results"]["dense"]["metrics"] = {}
    assert "against dense" not in text.headline(found)
    assert "test/acc 98.33 %;" in text.headline(found)


def test_a_model_that_works_is_not_ruined() -> None:
    assert ruin(example_report()) == []


def test_a_collapsed_model_is_an_alarm_at_the_head_of_every_form() -> None:
    found = example_report()
    for form in ("fake_quantized", "deployed"):
        found["results"][form]["metrics"]["test/acc"] = 0.1
    (alarm,) = found["failures"] = ruin(found)
    assert alarm.startswith("The trained model has collapsed: test/acc 10.00 %, 98.61 % before.")
    assert markdown(found).splitlines()[2] == f"> **{alarm}**"
    assert f'<p class="alarm" role="alert">{alarm}</p>' in html(found)


def test_a_layer_without_weights_is_an_alarm_and_no_advice_to_cut_channels() -> None:
    found = example_report()
    found["layers"][-2] |= {"sparsity": 1.0, "dead_channels": 10}
    (alarm,) = ruin(found)
    assert "net.fc.weight" in alarm
    assert not any("pattern='channel'" in remark for remark in remarks(found))


def test_a_slower_deployed_model_is_called_slower_where_the_interval_says_so() -> None:
    found = example_report()
    assert not any("slower" in remark for remark in remarks(found))
    found["results"]["deployed"]["latency_ms"]["median"] = 0.08
    found["latency"]["ratio"] = {"median": 1.31, "low": 1.2, "high": 1.4}
    assert any("slower than the dense model: 0.080 ms against 0.061 ms" in remark for remark in remarks(found))
    found["latency"]["ratio"]["low"] = 0.9
    assert not any("slower" in remark for remark in remarks(found))


def test_patterns_that_need_hardware_are_named() -> None:
    found = example_report()
    found["layers"][0]["pattern"] = "2:4"
    assert any("pattern 2:4 give speed only on hardware" in remark for remark in remarks(found))
