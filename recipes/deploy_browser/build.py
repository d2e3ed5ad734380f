"""Put the page, an exported model and the runtime into one folder that any web server can serve.

    python recipes/deploy_browser/build.py compressed/ site/
    python -m http.server --directory site 8000

The runtime is onnxruntime-web from the npm registry; ``npm`` must be installed. Nothing else is needed, and the page
fetches nothing from anywhere else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

RUNTIME = "onnxruntime-web@1.30.0"
PARTS = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def build(export: Path, site: Path, runtime: Path | None = None) -> None:
    """Write a site.

    Args:
        export: Folder of a ``CompressedExport`` with ``model.onnx`` and ``report.json``.
        site: Where to write; made if need be.
        runtime: A downloaded ``onnxruntime-web`` package (``.tgz``); ``None`` downloads it.

    Raises:
        SystemExit: The export is incomplete, or npm is missing.
    """
    model, report = export / "model.onnx", export / "report.json"
    missing = [path.name for path in (model, report) if not path.is_file()]
    if missing:
        raise SystemExit(f"{export}: no {' and no '.join(missing)}. Export with formats=['onnx', …] first.")
    data = json.loads(report.read_text(encoding="utf-8")).get("data", {})
    lacking = [name for name in ("image_shape", "mean", "std", "classes") if name not in data]
    if lacking:
        raise SystemExit(f"{report}: says nothing of the data's {', '.join(lacking)}, which the page needs.")
    (site / "ort").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("index.html"), site / "index.html")
    shutil.copy(model, site / "model.onnx")
    facts = {"shape": data["image_shape"], "mean": data["mean"], "std": data["std"], "classes": data["classes"]}
    (site / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(runtime or download(Path(folder))) as archive:
        for part in PARTS:
            member = archive.extractfile(f"package/dist/{part}")
            assert member is not None, part
            (site / "ort" / part).write_bytes(member.read())


def download(folder: Path) -> Path:
    """Download the runtime; npm checks it against the registry's checksum."""
    if shutil.which("npm") is None:
        raise SystemExit(f"npm is not installed; it downloads {RUNTIME}.")
    done = subprocess.run(["npm", "pack", "--silent", RUNTIME], cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"npm pack {RUNTIME} failed.")
    return folder / done.stdout.split()[-1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path, help="folder with model.onnx and report.json")
    parser.add_argument("site", type=Path, help="folder to write")
    parser.add_argument("--runtime", type=Path, help=f"the file that `npm pack {RUNTIME}` downloaded")
    arguments = parser.parse_args()
    build(arguments.export, arguments.site, arguments.runtime)
    print(f"Now: python -m http.server --directory {arguments.site} 8000")


if __name__ == "__main__":
    main()
