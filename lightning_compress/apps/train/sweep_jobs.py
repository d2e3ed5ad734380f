"""Jobs of a sweep: what is finished is not run again, a failure is noted, the dense control is trained once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_compress.apps.regular_file import regular_text
from lightning_compress.errors import CompressionError

if TYPE_CHECKING:
    from lightning_compress.apps.train.outcome import Outcome

log = logging.getLogger(__name__)

JOB_FILE = "job.json"
REFUSED_FILE = "refused.json"
"""Notes a job whose directory holds another one's result; only until the next sweep in the same directory."""
SHARED = "shared"
"""Directory under the sweep's for what its jobs share: dense controls."""

_FORMAT = 1
_LONGEST = 120
_LONGEST_TAG = 64
"""Of W&B, in characters."""
_SAME_IN_A_SWEEP = ("sweep", "name", "logger", "experiment", "data.root", "data.download", "optimized_metric")
# What changes neither the trained weights nor what is measured. A dense control that is given does change the latter.
_INDIFFERENT = ("name", "logger", "optimized_metric", "ckpt_path", "dense_ckpt_path")
_INDIFFERENT_TRAINER = ("enable_progress_bar", "enable_model_summary", "log_every_n_steps")
# What the dense control depends on.
_DENSE = ("data", "input", "model", "trainer", "callbacks", "seed", "threads")


def short(name: str) -> str:
    """A directory's name that file systems take, from one of any length; still another one for another name.

    In configs it is ``${compress_short:...}``. A slash, as in a path, would make directories within directories.

    Example:
        >>> short("seed=0,data.root=/my/data")
        'seed=0,data.root=_my_data'
        >>> len(short("x" * 500))
        120
    """
    plain = name.replace("/", "_")
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    if len(plain.encode()) <= _LONGEST:
        return plain
    return plain.encode()[: _LONGEST - len(digest) - 1].decode(errors="ignore") + "~" + digest


# Hydra makes the callback below, which imports this, before it looks at a job's directory: here and in a worker.
OmegaConf.register_new_resolver("compress_short", short, replace=True)


class LastSweep(Callback):
    """Remembers the directory of the sweep that ran last in this process, whatever launched its jobs.

    Attributes:
        directory: The sweep's directory; ``None`` before the first.
    """

    directory: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take the directory from Hydra's own settings; make it, since a study may be kept in it.

        What an earlier sweep refused there is forgotten.
        """
        LastSweep.directory = Path(config.hydra.sweep.dir)
        LastSweep.directory.mkdir(parents=True, exist_ok=True)
        for path in LastSweep.directory.rglob(REFUSED_FILE):
            path.unlink()


def run(
    cfg: DictConfig, output_dir: str | Path, sweep_dir: str | Path, overrides: Sequence[str] = ()
) -> Outcome | None:
    """Do one job of a sweep, unless it is done.

    Args:
        cfg: The composed config.
        output_dir: The job's directory.
        sweep_dir: The sweep's directory.
        overrides: The job's overrides.

    Returns:
        The result, also of an earlier run; ``None`` if the job failed, which is then noted in ``job.json``, or if its
        directory holds the result of another config, which is then noted next to that one's ``job.json``.
    """
    from lightning_compress.apps.train import job as train
    from lightning_compress.apps.train.outcome import RESULT_FILE

    output = Path(output_dir)
    record = {
        "format": _FORMAT,
        "config_hash": config_hash(cfg, output),
        "overrides": list(overrides),
        "started": _now(),
    }
    before = read_job(output)
    same = before is not None and before.get("config_hash") == record["config_hash"]
    if same and (output / RESULT_FILE).is_file():
        log.info("Finished already: %s", output)
        outcome = _finished(output, cfg.get("optimized_metric"))
        if before is not None and before.get("status") != "finished":
            # It was stopped between the two files.
            _write(output / JOB_FILE, {**record, "status": "finished", "ended": _now()})
        return outcome
    if (output / RESULT_FILE).exists():
        error = CompressionError.field(
            "hydra.sweep.dir",
            expected="jobs of equal names to have equal configs",
            got=str(output),
            fix="It holds the result of another config. Move it away, or choose another directory.",
        )
        log.error("This job is refused; the sweep goes on. %s", error)
        # The other record stays, since its result does.
        _write(output / REFUSED_FILE, {**record, "status": "refused", "ended": _now(), "error": _line(error)})
        return None
    stopped = output / "checkpoints" / "interrupted.ckpt"
    name_runs(cfg, Path(sweep_dir).name, overrides)
    try:
        _write(output / JOB_FILE, {**record, "status": "running"})
        if cfg.get("dense_baseline") and not cfg.get("dense_checkpoint"):
            cfg.dense_checkpoint = str(dense_control(cfg, output, Path(sweep_dir), overrides))
        if same and stopped.is_file() and not cfg.get("ckpt_path"):
            cfg.ckpt_path = str(stopped)
        outcome = train.run(cfg, output, overrides)
    except Exception as error:
        # Whatever went wrong in this job, out of memory included, the next one may well succeed.
        expected = isinstance(error, CompressionError)
        log.error("This job failed; the sweep goes on. %s", _line(error), exc_info=None if expected else error)
        stopped.unlink(missing_ok=True)
        _write(output / JOB_FILE, {**record, "status": "failed", "ended": _now(), "error": _line(error)})
        return None
    _write(output / JOB_FILE, {**record, "status": "finished", "ended": _now()})
    return outcome


def name_runs(cfg: DictConfig, sweep: str, overrides: Sequence[str]) -> None:
    """Let the runs of a sweep be told apart in W&B: the group is the sweep, name and tags are the job's overrides.

    What the config says of group, name and tags is kept.

    Args:
        cfg: The composed config; changed in place.
        sweep: The sweep's name.
        overrides: The job's overrides.

    Example:
        >>> cfg = OmegaConf.create({"name": "a", "logger": {"wandb": {"name": "a", "group": None, "tags": []}}})
        >>> name_runs(cfg, "grid", ["sweep=grid", "quantization=w8a8", "seed=1"])
        >>> cfg.logger.wandb
        {'name': 'quantization=w8a8, seed=1', 'group': 'grid', 'tags': ['quantization=w8a8', 'seed=1']}
    """
    node = OmegaConf.select(cfg, "logger.wandb")
    if not node:
        return
    own = [text for text in overrides if text.lstrip("+~").partition("=")[0] not in _SAME_IN_A_SWEEP]
    with open_dict(node):
        node.group = node.get("group") or sweep
        node.tags = [*(node.get("tags") or []), *(text[:_LONGEST_TAG] for text in own)]
        if own and node.get("name") in (None, cfg.get("name")):
            node.name = ", ".join(own)


def dense_control(cfg: DictConfig, output: Path, sweep_dir: Path, overrides: Sequence[str] = ()) -> Path:
    """Checkpoint of the dense control, trained by the first job that needs it.

    Jobs that differ only in how they compress have the same control. A lock lets one of several processes train it
    while the others wait; the lock of a killed process opens by itself.

    Args:
        cfg: The composed config.
        output: The job's directory.
        sweep_dir: The sweep's directory.
        overrides: The job's overrides, for the command that resumes.
    """
    from filelock import FileLock

    from lightning_compress.apps.train import job as train
    from lightning_compress.foundation.atomic_write import replacing

    folder = sweep_dir / SHARED / f"dense-{dense_hash(cfg, output)[:16]}"
    checkpoint, done = folder / "dense" / "dense.ckpt", folder / "done.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not done.is_file():
            metrics, seconds = train.run_dense(cfg, folder, overrides)
            with replacing(done) as path:
                path.write_text(json.dumps({"metrics": metrics, "seconds": seconds}, indent=2) + "\n", encoding="utf-8")
    return checkpoint.resolve()


def config_hash(cfg: DictConfig, output: Path) -> str:
    """SHA-256 of everything in a config that can change a job's result.

    Example:
        >>> one, other = ({"seed": 0, "name": name, "dir": f"out/{name}/x"} for name in "ab")
        >>> config_hash(OmegaConf.create(one), Path("out/a")) == config_hash(OmegaConf.create(other), Path("out/b"))
        True
        >>> config_hash(OmegaConf.create({"seed": 1}), Path("a")) == config_hash(OmegaConf.create({}), Path("a"))
        False
    """
    plain = _plain(cfg, output)
    return _digest({key: value for key, value in plain.items() if key not in _INDIFFERENT})


def dense_hash(cfg: DictConfig, output: Path) -> str:
    """SHA-256 of what a config says of its dense control."""
    plain = _plain(cfg, output)
    return _digest({key: plain.get(key) for key in _DENSE})


def read_job(folder: Path, file: str = JOB_FILE) -> dict[str, Any] | None:
    """What a job has noted of itself; ``None`` where there is no such file that can be read."""
    try:
        content = json.loads(regular_text(folder / file))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_jobs(sweep_dir: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep: ``name``, ``status``, ``error``, ``overrides``, and what ``failures`` a finished one has.

    One that was refused stands instead of the one whose result its directory holds.
    """
    from lightning_compress.apps.train.outcome import RESULT_FILE

    found = []
    for folder in sorted({path.parent for file in (JOB_FILE, REFUSED_FILE) for path in sweep_dir.rglob(file)}):
        job = read_job(folder, REFUSED_FILE) or read_job(folder) or {"status": "unreadable"}
        has_result = job.get("status") != "refused" and (folder / RESULT_FILE).is_file()
        failures = (read_job(folder, RESULT_FILE) or {}).get("failures") if has_result else []
        found.append(
            {
                "name": folder.relative_to(sweep_dir).as_posix(),
                "status": job.get("status"),
                "error": job.get("error"),
                "overrides": job.get("overrides", []),
                "failures": failures if isinstance(failures, list) else ["its result.json cannot be read"],
            }
        )
    return found


def _plain(cfg: DictConfig, output: Path) -> dict[str, Any]:
    """The resolved config without traces of where the job lies and what it shows meanwhile."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    found: dict[str, Any] = _without(plain, str(output))
    if isinstance(trainer := found.get("trainer"), dict):
        found["trainer"] = {key: value for key, value in trainer.items() if key not in _INDIFFERENT_TRAINER}
    return found


def _without(value: Any, text: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, text) for item in value]
    return value.replace(text, "") if isinstance(value, str) else value


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def _finished(output: Path, wanted: Any) -> Outcome:
    from lightning_compress.apps.train.outcome import RESULT_FILE, Outcome

    try:
        content = read_job(output, RESULT_FILE) or {}
        outcome = Outcome(**{**content, "failures": tuple(content["failures"]), "objective": None})
    except (KeyError, TypeError) as error:
        raise CompressionError(f"{output / RESULT_FILE}: damaged. Remove it, and the job runs again.") from error
    return outcome.with_objective(
        wanted if wanted is None or isinstance(wanted, str) else [str(name) for name in wanted]
    )


def _write(file: Path, record: Mapping[str, Any]) -> None:
    from lightning_compress.foundation.atomic_write import replacing

    with replacing(file) as path:
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return text if isinstance(error, CompressionError) else f"{kind}: {text}" if text else kind
