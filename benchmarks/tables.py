"""Put the measured numbers into the README and the documentation, between ``<!-- results:NAME -->`` and its end.

    python benchmarks/tables.py             # or: make tables
    python benchmarks/tables.py --check     # exits with 1 where a table is not what the files give

``NAME`` is a file of ``benchmarks/results/``, a recipe, whose numbers are in its ``expected.json``, ``headlines``, one
number of each file, ``top_headlines``, the few that README shows, or ``recipes``, one line of each recipe.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chinese as chinese_words
from headlines import HEADLINES, Headline

from lightning_compress.foundation.atomic_write import replacing

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- results:(?P<name>[\w.-]+) -->\n).*?(<!-- /results:(?P=name) -->)", flags=re.DOTALL)
MODELS = ("dense", "fake_quantized", "deployed")


def pages() -> list[Path]:
    """Every page that may hold a table."""
    return [
        *sorted(ROOT.glob("README*.md")),
        *sorted(ROOT.glob("docs/**/*.md")),
        *sorted(ROOT.glob("recipes/*/README.md")),
    ]


def replace_marked(content: str, chinese: bool = False) -> str:
    """A page with the tables that the result files give, or a word where there is no file yet.

    Args:
        content: The page.
        chinese: Whether its tables speak Chinese.
    """
    return MARKED.sub(lambda found: f"{found[1]}{table(found['name'], chinese)}{found[3]}", content)


def table(name: str, chinese: bool = False) -> str:
    """One table with where it comes from, or a word that it was not measured yet."""
    if name in ("headlines", "top_headlines"):
        return of_headlines([one for one in HEADLINES if one.top or name == "headlines"], chinese) + "\n"
    if name == "recipes":
        return of_recipes(chinese) + "\n"
    measured = ROOT / "benchmarks" / "results" / f"{name}.json"
    recipe = ROOT / "recipes" / name / "expected.json"
    if measured.is_file():
        text = of_benchmark(json.loads(measured.read_text(encoding="utf-8")), chinese)
    elif recipe.is_file():
        text = of_recipe(name, json.loads(recipe.read_text(encoding="utf-8")), chinese)
    else:
        text = "尚未测量。" if chinese else "Not measured yet."
    return text + "\n"


def of_benchmark(found: Mapping[str, Any], chinese: bool = False) -> str:
    """A file of ``benchmarks/results/`` as Markdown."""
    columns: Mapping[str, Sequence[str]] = found["columns"]
    numeric = {key: all(isinstance(row.get(key), int | float | None) for row in found["rows"]) for key in columns}
    lines = grid(
        [_say(heading, chinese) for heading, _ in columns.values()],
        [[_say(_cell(row, key, form), chinese) for key, (_, form) in columns.items()] for row in found["rows"]],
        list(numeric.values()),
    )
    machine, versions = found["machine"], found["versions"]
    instructions = ", ".join(machine["instruction_sets"]) or "no 8-bit instructions"
    surroundings = [
        f"{machine['processor']}, {machine['cores']} cores ({instructions})",
        *([machine["gpu"]] if machine["gpu"] else []),
        _threads(found["threads"]),
        f"PyTorch {versions['torch']}",
        f"ONNX Runtime {versions['onnxruntime']}",
    ]
    seeds = [f"seed{'s' * (len(found['seeds']) > 1)} {', '.join(map(str, found['seeds']))}"] if found["seeds"] else []
    where = f"{', '.join([*seeds, *surroundings])}, {found['date']}; `{found['command']}`."
    trained = (found["seeds"] or []) if "accuracy" in columns else []
    notes = map(chinese_words.of_note, found["notes"]) if chinese else found["notes"]
    shown = [*_count_of_seeds(trained, chinese), *notes]
    return "\n".join([*lines, "", *shown, *[""] * bool(shown), *folded([*found.get("origins", []), where], chinese)])


def folded(paragraphs: Sequence[str], chinese: bool = False) -> list[str]:
    """Lines that a page shows when they are asked for."""
    summary = _say("How this was measured", chinese)
    text = [line for paragraph in paragraphs for line in (paragraph, "")]
    return [f"<details><summary>{summary}</summary>", "", *text, "</details>"]


def of_headlines(headlines: Sequence[Headline], chinese: bool = False) -> str:
    """One line of each result, with the command that it comes from."""
    folder = ROOT / "benchmarks" / "results"
    found = [(headline, line) for headline in headlines if (line := headline.found(folder)) is not None]
    rows = [
        [headline.chinese if chinese else headline.text, _say(number, chinese), how]
        for headline, (number, how) in found
    ]
    return "\n".join(grid([_say(text, chinese) for text in ("what", "measured", "how")], rows, [False] * 3))


def of_recipes(chinese: bool = False) -> str:
    """One line of each recipe that was run: its seeds as mean ± standard deviation, files by their means."""
    rows, surroundings = [], []
    for path in sorted(ROOT.glob("recipes/*/expected.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        seeds = found["seeds"]

        def smaller(file: str, seeds: Sequence[Mapping[str, Any]] = seeds) -> str:
            sizes = {name: statistics.mean(seed["bytes"][name] for seed in seeds) for name in ("dense", file)}
            return f"{sizes['dense'] / sizes[file]:.1f}"

        rows.append(
            [
                f"`{path.parent.name}`",
                str(len(seeds)),
                *(spread([seed["accuracy"][model] for seed in seeds]) for model in ("dense", "deployed")),
                spread([seed["accuracy"]["dense"] - seed["accuracy"]["deployed"] for seed in seeds]),
                smaller(found["models"]["deployed"]["file"]),
                smaller("packed"),
                found["created"][:10],
            ]
        )
        surroundings.append(_surroundings(found["environment"]))
    headings = [
        "recipe",
        "seeds",
        "dense, %",
        "deployed, %",
        "dense − deployed, points",
        "ONNX, × smaller",
        "packed, × smaller",
        "date",
    ]
    lines = grid([_say(heading, chinese) for heading in headings], rows, [False, *[True] * 6, False])
    return "\n".join([*lines, "", f"{'; '.join(dict.fromkeys(surroundings))}; `python recipes/check.py recipes/NAME`."])


def of_recipe(name: str, found: Mapping[str, Any], chinese: bool = False) -> str:
    """A recipe's ``expected.json`` as Markdown: its seeds as mean ± standard deviation."""
    seeds, environment = found["seeds"], found["environment"]
    dense = statistics.mean(seed["bytes"]["dense"] for seed in seeds)
    measures = [("test accuracy, %", "accuracy"), ("perplexity", "perplexity")]
    measures = [(heading, key) for heading, key in measures if key in seeds[0]]
    rows = []
    for model in MODELS:
        size = statistics.mean(seed["bytes"][found["models"][model]["file"]] for seed in seeds)
        latency = [seed["latency_us"][model] for seed in seeds if model in seed["latency_us"]]
        label, runtime = found["models"][model]["label"], found["models"][model]["runtime"]
        rows.append(
            [
                f"{_say(label, chinese)} ({runtime})",
                *(spread([seed[key][model] for seed in seeds]) for _, key in measures),
                f"{size / 1000:.1f}",
                f"{dense / size:.1f}",
                spread(latency, 0) if latency else "–",
            ]
        )
    if "packed" in seeds[0]["bytes"]:
        size = statistics.mean(seed["bytes"]["packed"] for seed in seeds)
        as_deployed = [_say("as deployed", chinese)] * len(measures)
        label = _say("Packed file of the same weights", chinese)
        rows.append([label, *as_deployed, f"{size / 1000:.1f}", f"{dense / size:.1f}", "–"])
    headings = ["", *(heading for heading, _ in measures), "file, kB", "times smaller", "latency at batch 1, µs"]
    lines = grid([_say(heading, chinese) for heading in headings], rows, [False, *[True] * (len(headings) - 1)])
    drop = spread([seed["accuracy"]["dense"] - seed["accuracy"]["deployed"] for seed in seeds])
    agreement = min(seed["agreement"] for seed in seeds)
    surroundings = f"{_surroundings(environment)}, {found['created'][:10]}; `python recipes/check.py recipes/{name}`"
    if chinese:
        return "\n".join(
            [
                f"{len(seeds)} 个随机种子，取最后一个 epoch；稠密对照组从相同的初始权重训练同样的轮数。"
                f"{surroundings}。",
                "",
                *lines,
                "",
                f"稠密减部署：{drop} 个百分点。部署模型与伪量化模型的预测在测试集上至少有 {agreement:.2%} 一致。",
            ]
        )
    return "\n".join(
        [
            f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}, last epoch; the dense control trained as long from the "
            f"same start. {surroundings}.",
            "",
            *lines,
            "",
            f"Dense minus deployed: {drop} points. Deployed and fake-quantized agree on at least {agreement:.2%} of "
            f"the test set. Zeros make the packed file smaller, no runtime faster; latency is what 8-bit integers give "
            f"on this processor.",
        ]
    )


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Lines of a Markdown table, columns of numbers to the right."""
    return [
        f"| {' | '.join(headings)} |".replace("|  |", "| |"),
        f"|{'|'.join('---:' if column else '---' for column in right)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation; one value stands alone."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def _cell(row: Mapping[str, Any], key: str, form: str) -> str:
    value, deviation = row.get(key), row.get(f"{key}_std")
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and not form:
        return f"{value:,d}"
    text = format(value, form) if not isinstance(value, str) else value
    return text if deviation is None else f"{text} ± {format(deviation, form)}"


def _surroundings(environment: Mapping[str, Any]) -> str:
    """Where a recipe was run."""
    return (
        f"{environment['cpu']}, {_threads(environment['threads'])}, PyTorch {environment['torch']}, ONNX Runtime "
        f"{environment['onnxruntime']}"
    )


def _count_of_seeds(seeds: Sequence[int], chinese: bool) -> list[str]:
    """How much a table stands on."""
    if not seeds:
        return []
    english = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}."
    return [f"{len(seeds)} 个随机种子。" if chinese else english]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _say(text: str, chinese: bool) -> str:
    return chinese_words.of_cell(text) if chinese else text


def rewrite(check: bool = False) -> list[str]:
    """Put the tables into every page.

    Args:
        check: Change nothing.

    Returns:
        The pages whose tables differed.
    """
    stale = []
    for page in pages():
        content = page.read_text(encoding="utf-8")
        new = replace_marked(content, chinese=".zh." in page.name)
        if new != content:
            stale.append(page.relative_to(ROOT).as_posix())
            if not check:
                with replacing(page) as temporary:
                    temporary.write_text(new, encoding="utf-8")
    return stale


def main() -> int:
    """Rewrite the pages, or say which differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a table differs")
    check = parser.parse_args().check
    stale = rewrite(check)
    print("\n".join(f"{'differs' if check else 'written'}: {page}" for page in stale) or "All tables are as measured.")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
