"""Writes the folder of a run: ``model_root/DATASET/EXPID/YYYYmmdd-HHMMSS-seedN/``.

The files and their names are those of ``docs/experiments.md``; ``fuxictr_mm.records.reading`` reads them.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from fuxictr_mm.config import config_hash
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.files import write_beside
from fuxictr_mm.records.environment import environment
from fuxictr_mm.records.reading import CONFIG, ENVIRONMENT, METRICS, PREDICTIONS, RESULT, WEIGHTS, find_runs, read_lines
from fuxictr_mm.training.loop import Scored


class RunFolder:
    """The folder of a run that goes on; an ``Observer`` of the training loop.

    Parameters
    ----------
    path : Path
        The folder, from ``begin``.
    params : mapping
        Resolved parameters of the experiment.
    started : float
        When this process began with the run, by ``time.perf_counter()``.
    """

    def __init__(self, path: Path, params: Mapping[str, Any], started: float) -> None:
        self.path = path
        self.params = params
        self.log = path / "run.log"
        self.tensorboard = path / "tensorboard"
        self._started = started
        self._seconds_before = 0.0
        self._metrics: TextIO | None = None

    @classmethod
    def open(cls, params: Mapping[str, Any], started: float, resume: bool = False) -> RunFolder:
        """Make a folder for a run, or go on in the newest unfinished one of the same configuration.

        Raises
        ------
        ConfigError
            The folder cannot be written.
        UserError
            The disk is full.
        """
        runs = Path(params["model_root"]) / params["dataset_id"] / params["model_id"]
        if resume and (unfinished := _newest_unfinished(params)):
            return cls(unfinished, params, started)
        started_at = datetime.now()
        try:
            path = _make_folder(runs, f"{started_at:%Y%m%d-%H%M%S}-seed{params['seed']}")
        except OSError as error:
            raise ConfigError(
                f"{runs}: cannot be written ({error.strerror}); set model_root to a folder of yours"
            ) from error
        try:
            config = yaml.dump(_plain(params), Dumper=_Dumper, allow_unicode=True)
            write_beside(path / CONFIG, lambda stream: stream.write(config.encode()))
            _write_json(path / ENVIRONMENT, environment(params["gpu"], started_at))
        except UserError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return cls(path, params, started)

    @property
    def seconds(self) -> float:
        """Wall time since the run began; what a run that was killed did after its last evaluation does not count."""
        return self._seconds_before + time.perf_counter() - self._started

    def begin(self, step: int) -> None:
        """Go on after ``step`` steps: forget the evaluations beyond them, and a line that was cut off."""
        path = self.path / METRICS
        kept = [line for line in read_lines(path) if line["step"] <= step] if path.exists() else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_beside(path, lambda stream: stream.write(text.encode()))
        self._seconds_before = kept[-1].get("seconds", 0.0) if kept else 0.0
        self._metrics = path.open("a", encoding="utf-8")

    def add_training(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: metrics.jsonl holds evaluations."""

    def add_evaluation(
        self, epoch: int, step: int, training: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Append a line to metrics.jsonl, at once.

        Raises
        ------
        UserError
            The disk is full.
        """
        assert self._metrics is not None
        line = {"epoch": epoch, "step": step, "seconds": round(self.seconds, 3), **training, **metrics}
        try:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise UserError(f"{self.path / METRICS}: could not be written ({error.strerror})") from error

    def close(self) -> None:
        """End metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.close()

    def finish(self, result: Mapping[str, Any], model: Any, scored: Scored) -> None:
        """Write what a finished run leaves; result.json comes last.

        Parameters
        ----------
        result : mapping
            ``expid``, ``config_hash``, ``valid``, ``test`` and ``seconds``.
        model : BaseModel
            Its best weights are at ``model.checkpoint``.
        scored : Scored
            The validation rows.
        """
        assert scored.label is not None
        columns = {"label": scored.label.to(torch.int8), "prediction": scored.prediction.float(), "group": scored.group}
        arrays = {name: column.cpu().numpy() for name, column in columns.items() if column is not None}
        buffer = io.BytesIO()
        pq.write_table(pa.table(arrays), buffer)
        write_beside(self.path / PREDICTIONS, lambda stream: stream.write(buffer.getbuffer()))
        _link(Path(model.checkpoint), self.path / WEIGHTS)
        params = self.params
        record = {
            **result,
            "finished_at": datetime.now().isoformat(timespec="seconds"),
            "run": self.path.name,
            "model": params["model"],
            "dataset_id": params["dataset_id"],
            "seed": params["seed"],
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "valid_rows": len(arrays["label"]),
            "description": params.get("description"),
        }
        _write_json(self.path / RESULT, record)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that ``load_yaml`` would take for a number, such as 1e-3, which YAML 1.1 does not."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _represent_text)


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of plain types, as ``config_hash`` sees them."""
    return json.loads(json.dumps(params, default=str))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_beside(path, lambda stream: stream.write(json.dumps(content, indent=1).encode() + b"\n"))


def _make_folder(parent: Path, name: str) -> Path:
    """Make a new folder that no other process has made; a number is added to a name that is taken."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("there is always a next number")


def _newest_unfinished(params: Mapping[str, Any]) -> Path | None:
    wanted = config_hash(_plain(params))
    runs = find_runs(params["model_root"], dataset=params["dataset_id"], expid=params["model_id"])
    unfinished = [run for run in runs if not (run.path / RESULT).exists() and run.config]
    return next((run.path for run in unfinished if config_hash(run.config) == wanted), None)


def _link(source: Path, target: Path) -> None:
    """Make a hard link, so that weights take their room once; a copy where the disk has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as weights:
            write_beside(target, lambda stream: shutil.copyfileobj(weights, stream))
