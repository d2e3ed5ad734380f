"""Step time of quantization-aware training by other libraries over that of float training, beside ours.

    python benchmarks/quantization_peers.py --write
    python benchmarks/quantization_peers.py --peers modelopt --networks resnet20 --rounds 30 --cache ~/peers

Each library gets a virtual environment of its own under the cache, with the torch of this one, made on the first run
(about 1 GB each). Its float and its quantized steps alternate in short blocks in one process, and the ratio is the
median over the blocks' ratios. Each takes its own default recipe for 8-bit weights and activations. A library that
cannot be installed or does not run is named with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = {"modelopt": "nvidia-modelopt==0.47.0", "torchao": "torchao==0.18.0", "nncf": "nncf==3.4.0"}
# What a library imports and does not name.
MISSING = {"modelopt": ["requests", "huggingface_hub"], "nncf": ["ninja"]}
OURS = ("ours, ranges observed", "ours, ranges frozen", "ours, ranges learned")
BATCHES = {"resnet20": 128, "encoder": 32}


def build(network: str) -> Any:
    """The benchmark's network, from this checkout's files alone: peers' environments do not have this package."""
    if network == "resnet20":
        return _file("resnet").ResNet(3, 10, depth=20)
    return _file("transformer").TransformerEncoder(3, 32, 10, patch=4, dim=256, depth=4, heads=4, expansion=4)


def _file(name: str) -> ModuleType:
    # The package itself imports nothing before it is asked to, so that a file can take its error class from there.
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    path = ROOT / "lightning_compress" / "models" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_modelopt(model: Any, x: Any) -> Any:
    """NVIDIA ModelOpt: ranges are calibrated once and frozen, and no residual add is quantized."""
    import modelopt.torch.quantization as mtq

    return mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda m: m(x))


def with_torchao(model: Any, x: Any) -> Any:
    """torchao PT2E with the x86 quantizer."""
    import torch
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    exported = torch.export.export(model, (x,)).module()
    return move_exported_model_to_train(prepare_qat_pt2e(exported, quantizer))


def with_nncf(model: Any, x: Any) -> Any:
    """NNCF: the quantized model of its post-training call, trained on."""
    import nncf

    return nncf.quantize(model.eval(), nncf.Dataset([x[:32]])).train()


def ours(ranges: str) -> Callable[[Any, Any], Any]:
    def prepare(model: Any, x: Any) -> Any:
        from lightning_compress import quantization

        method = "learned" if ranges == "learned" else "minmax"
        quantization.prepare(model, range=method, example_inputs=x[:2])
        found = quantization.find(model)
        if found is not None and ranges == "frozen":
            model.train()(x)
            found.frozen = True
        return model

    return prepare


PREPARE: dict[str, Callable[[Any, Any], Any]] = {
    "modelopt": with_modelopt,
    "torchao": with_torchao,
    "nncf": with_nncf,
    **{name: ours(name.rpartition(" ")[2]) for name in OURS},
}


def measure(peer: str, network: str, rounds: int, threads: int) -> dict[str, float]:
    """Float and quantized steps of one library, in blocks of two by turns."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, y = torch.randn(BATCHES[network], 3, 32, 32), torch.randint(0, 10, (BATCHES[network],))
    models = {"float": build(network).train(), "quantized": PREPARE[peer](build(network).train(), x)}
    steps = {}
    for name, model in models.items():
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def step(model: Any = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        steps[name] = step
    times: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(rounds + 2):
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(2):
                step()
            # The first two blocks warm up.
            if block > 1:
                times[name].append((time.perf_counter() - begin) / 2 * 1e3)
    ratio = statistics.median(q / f for q, f in zip(times["quantized"], times["float"], strict=True))
    return {"float_ms": statistics.median(times["float"]), "ms": statistics.median(times["quantized"]), "ratio": ratio}


def interpreter(peer: str, cache: Path) -> Path:
    """Python of the library's environment, made if it is not there yet."""
    import torch

    folder = cache / REQUIREMENTS[peer].replace("==", "-")
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        torch_itself = f"torch=={torch.__version__.partition('+')[0]}"
        for requirements in ([torch_itself], [REQUIREMENTS[peer], *MISSING.get(peer, [])]):
            install = [str(python), "-m", "pip", "install", "--quiet", *requirements]
            subprocess.run(install, check=True, capture_output=True, text=True)
        done.touch()
    return python


def row(peer: str, network: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one library in a process of its own."""
    try:
        python = Path(sys.executable) if peer in OURS else interpreter(peer, options.cache)
        command = [str(python), __file__, "--measure", peer, "--networks", network]
        command += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
        # Some compile kernels on their first run, with their environment's ninja, and would give up after a minute.
        environment = {
            **os.environ,
            "PYTHONWARNINGS": "ignore",
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "TORCH_EXTENSIONS_DIR": str(options.cache / "extensions"),
            "NNCF_EXTENSION_LOAD_TIMEOUT": "0",
        }
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        return {"reason": (raised or lines or [f"exit code {error.returncode}"])[-1]}
    except OSError as error:
        return {"reason": str(error)}
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def write(found: dict[str, dict[str, dict[str, Any]]], options: argparse.Namespace) -> None:
    # Peers' environments, in which this file runs too, have nothing that it needs.
    import results

    results.write(
        "quantization_peers",
        [
            {"network": network, "batch": BATCHES[network], "library": REQUIREMENTS.get(peer, peer), **numbers}
            for network, rows in found.items()
            for peer, numbers in rows.items()
        ],
        columns={
            "network": "network",
            "batch": "batch",
            "library": "library",
            "ratio": ("quantized step ÷ its float step", ".2f"),
            "ms": ("step, ms", ".1f"),
            "float_ms": ("float step, ms", ".1f"),
        },
        seeds=[0],
        threads=options.threads,
        versions=dict(REQUIREMENTS[peer].split("==") for peer in options.peers if peer in REQUIREMENTS),
        notes=[
            "Each library with its default recipe for 8 bits, in a process of its own; blocks of two steps alternate.",
            *(
                f"{network}, {peer}: not measured, {numbers['reason']}."
                for network, rows in found.items()
                for peer, numbers in rows.items()
                if "reason" in numbers
            ),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*OURS, *REQUIREMENTS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names)
    parser.add_argument("--networks", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lightning_compress" / "peers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/quantization_peers.json")
    parser.add_argument("--measure", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.networks[0], options.rounds, options.threads)))
        return
    found = {network: {peer: row(peer, network, options) for peer in options.peers} for network in options.networks}
    if options.write:
        write(found, options)
    if options.json:
        print(json.dumps({"threads": options.threads, "results": found}, indent=1))
        return
    for network, rows in found.items():
        print(f"{network}, batch {BATCHES[network]}, {options.threads} threads: quantized step over float step")
        for peer, numbers in rows.items():
            name = f"  {REQUIREMENTS.get(peer, peer):26}"
            if "reason" in numbers:
                print(f"{name}not measured: {numbers['reason']}")
            else:
                print(f"{name}{numbers['ratio']:6.2f}   {numbers['ms']:8.1f} ms, float {numbers['float_ms']:.1f} ms")


if __name__ == "__main__":
    main()
