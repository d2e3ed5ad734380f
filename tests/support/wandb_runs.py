"""Reads an offline W&B run's own file: a LevelDB log of protobuf records."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patience import HANG_SECONDS
from wandb.proto import wandb_internal_pb2 as pb

_BLOCK = 32_768
_FULL, _LAST = 1, 4


@dataclass
class OfflineRun:
    """What one run's file holds."""

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    alerts: list[Any] = field(default_factory=list)
    directory: Path = Path()
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of every row that has the key."""
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]

    def table(self, key: str) -> dict[str, Any]:
        """The table that a history row points to."""
        path = next(row[f"{key}/path"] for row in self.history if f"{key}/path" in row)
        return json.loads((self.directory / "files" / path).read_text())


def read_runs(directory: Path) -> list[OfflineRun]:
    return [_read(file) for file in sorted(Path(directory).glob("wandb/offline-run-*/*.wandb"))]


def _read(file: Path) -> OfflineRun:
    run = OfflineRun(directory=file.parent)
    for record in _finished(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary.update(_values(record.summary.update))
        elif kind == "config":
            run.config.update(_values(record.config.update))
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "run":
            run.name, run.group, run.tags = record.run.display_name, record.run.run_group, list(record.run.tags)
        elif kind == "alert":
            run.alerts.append(record.alert)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            run.artifacts.append(record.request.log_artifact.artifact)
    return run


def _finished(file: Path) -> list[Any]:
    """All records of a finished run: ``wandb.finish()`` returns a moment before the last one is in the file."""
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        records = []
        for data in _records(file.read_bytes()):
            record = pb.Record()
            record.ParseFromString(data)
            records.append(record)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline, f"{file} has no end: call wandb.finish() before reading it"
        time.sleep(0.02)


def _values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(log: bytes) -> Iterator[bytes]:
    place, parts = 7, []
    while place + 7 <= len(log):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", log[place : place + 7])
        parts.append(log[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
