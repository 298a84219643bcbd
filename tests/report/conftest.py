"""Folders of runs, written as training leaves them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

ROWS, USERS = 600, 150


def rows_of(strength: float, seed: int, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and users, the same for all runs, and predictions that tell the labels by ``strength``."""
    fixed = np.random.default_rng(0)
    label = (fixed.random(rows) < 0.4).astype(np.int8)
    group = fixed.integers(1, USERS + 1, rows)
    hidden = fixed.normal(size=rows)
    logit = strength * (label - 0.4) + 0.5 * hidden + 0.1 * np.random.default_rng(seed).normal(size=rows)
    return label, (1 / (1 + np.exp(-logit))).astype(np.float32), group


def auc_of(label: np.ndarray, prediction: np.ndarray) -> float:
    positive, negative = prediction[label == 1].astype(float), prediction[label == 0].astype(float)
    return float(((positive[:, None] > negative).mean() + (positive[:, None] >= negative).mean()) / 2)


def diagnosis(**changes: Any) -> dict[str, Any]:
    """A diagnosis with every section, as docs/diagnosis.md describes it."""
    bucket = {"rows": 120, "positives": 40, "rate": 0.3, "mean_prediction": 0.3, "auc": 0.71, "low": 0.6, "high": 0.8}
    lengths = [{"name": "1-2", "from": 1, "to": 2, "rows": 90, "entropy_ratio": 0.85}]
    lengths += [{"name": "3-5", "from": 3, "to": 5, "rows": 90, "entropy_ratio": 0.91}]
    lost = {"source": "item", "deviation": 0.001, "noise": 0.004, "lost": [0.02]}
    return {
        "version": 1,
        "metrics": {"auc": 0.77, "low": 0.74, "high": 0.8},
        "attention": [
            {
                "name": "attention",
                "kind": "multi_head",
                "entropy_ratio": 0.88,
                "by_length": lengths,
                "uniform_auc_lost": 0.0123,
                "uniform_noise": 0.002,
            }
        ],
        "heads": [
            {
                "attention": "attention",
                "num_heads": 2,
                "all_removed_auc_lost": 0.1,
                "all_removed_noise": 0.01,
                "heads": [
                    {"head": h, "output_share": 0.5, "removed_auc_lost": 0.02 * h, "removed_noise": 0.01}
                    for h in range(2)
                ],
            }
        ],
        "senet": [{"name": "senet", "fields": [{"field": "item_id", "mean": 0.5, "low": 0.4, "high": 0.6}]}],
        "importance": {
            "fields": [{"name": "likes_level", "kind": "field", "auc_lost": 0.0239, **lost}],
            "groups": [
                {"name": "text", "kind": "modality", "auc_lost": 0.1098, **lost},
                {"name": "image", "kind": "modality", "auc_lost": 0.0001, **lost},
            ],
        },
        "vectors": [
            {
                "column": "txt_emb",
                "width": 2,
                "effective_rank": 1.9,
                "components_90": 2,
                "kept": [{"components": 1, "kept": 0.6}, {"components": 2, "kept": 1.0}],
                "reduction": None,
            }
        ],
        "calibration": {
            "expected_calibration_error": 0.0311,
            "noise": 0.02,
            "mean_prediction": 0.31,
            "rate": 0.3,
            "slope": 0.9,
            "curve": [
                {"mean_prediction": p, "rate": p - 0.05, "low": p - 0.1, "high": p, "rows": 60} for p in (0.2, 0.6)
            ],
        },
        "history_length": [{"name": "0", **bucket}, {"name": "1-2", **bucket, "auc": 0.81}],
        "popularity": [{"name": "never shown", "cold": True, **bucket}, {"name": "1-2", "cold": False, **bucket}],
        "neighbours": [
            {
                "item_id": 7,
                "title": "a <b>bold</b> title",
                "clicks": 97,
                "columns": [{"column": "txt_emb", "neighbours": [{"item_id": 8, "title": None, "cosine": 0.98}]}],
            }
        ],
        "absent": {},
        "findings": [{"severity": "problem", "text": "the modality image does nothing", "advice": "look at it"}],
        **changes,
    }


class Written(NamedTuple):
    """A page, and what it was made of."""

    root: Path
    path: Path
    sections: list[Any]


class Runs:
    """Writes runs below a folder.

    Parameters
    ----------
    root : Path
        The ``model_root``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        expid: str,
        strength: float,
        seed: int = 1,
        *,
        dataset: str = "tiny",
        model: str = "DIN",
        stamp: str = "20260102-030405",
        settings: dict[str, Any] | None = None,
        environment: dict[str, Any] | None = None,
        finished: bool = True,
        diagnosed: dict[str, Any] | None = None,
        epochs: int = 3,
        rows: int = ROWS,
    ) -> Path:
        """Write the folder of a run."""
        folder = self.root / dataset / expid / f"{stamp}-seed{seed}"
        folder.mkdir(parents=True)
        config = {"model_id": expid, "dataset_id": dataset, "model": model, "seed": seed, **(settings or {})}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        around = {"torch": "2.13.0", "device": "cpu", "commit": "abc", "started_at": f"2026-01-02T03:04:{seed:02}"}
        (folder / "environment.json").write_text(json.dumps({**around, **(environment or {})}))
        label, prediction, group = rows_of(strength, seed, rows)
        auc = auc_of(label, prediction)
        lines = [
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "loss": 0.7 - 0.1 * epoch,
                "seconds": 2.0 * epoch,
                "rows_per_second": 1000.0 + seed,
                "AUC": auc - 0.01 * abs(epoch - 2),
            }
            for epoch in range(1, epochs + 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if diagnosed is not None:
            (folder / "diagnosis.json").write_text(json.dumps(diagnosed))
        if finished:
            table = pa.table({"label": label, "prediction": prediction, "group": group})
            pq.write_table(table, folder / "valid_predictions.parquet")
            result = {"valid": {"AUC": auc, "logloss": 0.6}, "test": None, "seconds": 6.5, "parameters": 48765}
            (folder / "result.json").write_text(json.dumps({**result, "valid_rows": len(label)}))
        return folder


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "checkpoints")


def add_three(runs: Runs) -> Runs:
    """Three experiments of three seeds: clearly best, clearly worst, and one that is not told from the best."""
    features = {"senet": True, "use_features": ["item_id", "txt_emb", "img_emb"]}
    for seed in (1, 2, 3):
        runs.add("BEST", 1.5, seed, model="MM", settings=features, diagnosed=diagnosis() if seed == 1 else None)
        runs.add("NEXT", 1.49, seed, model="MM", settings={**features, "senet": False})
        runs.add("WORST", 0.3, seed, model="MM", settings={**features, "use_features": ["item_id"]})
    return runs


@pytest.fixture
def three(runs: Runs) -> Runs:
    """Three experiments, for a test that adds to them or breaks them."""
    return add_three(runs)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The page of three experiments, for tests that read it."""
    from fuxictr_mm.report.report import report

    folder = tmp_path_factory.mktemp("report")
    runs = add_three(Runs(folder / "checkpoints"))
    return Written(runs.root, folder / "report.html", report([], runs.root, folder / "report.html"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, for all tests."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium; on Debian: apt-get install chromium")
    with _module("browser").Browser(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="session")
def factory() -> Callable[..., dict[str, Any]]:
    return diagnosis


def _module(name: str) -> ModuleType:
    # Tests are imported by their paths, without packages.
    spec = importlib.util.spec_from_file_location(f"report_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
