"""Predictions with planted differences, and runs that are changed."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.files import write_json
from fuxictr_mm.runs import Predictions, read_run
from fuxictr_mm.yaml_files import dump_yaml


@pytest.fixture
def copy(runs_root, tmp_path):
    """The runs, safe to change."""
    shutil.copytree(runs_root, tmp_path / "runs")
    return tmp_path / "runs"


def change_rows(run, split="valid", **columns):
    """Change columns of a run's predictions by functions of their values; None leaves a column out."""
    path = run.path / f"{split}_predictions.parquet"
    table = pq.read_table(path)
    for name, change in columns.items():
        if change is None:
            table = table.drop_columns([name])
        else:
            values = pa.array(change(table[name].to_numpy().copy()))
            table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, path)


def change_settings(run, **settings):
    (run.path / "config.yaml").write_text(dump_yaml({**run.config, **settings}))


def change_data(run, **data):
    """Let a run have been of these contents of its files, by setting."""
    path = run.path / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": data}))


class World:
    """Validation rows of users whose clicks follow a true score, and runs that see it through noise of their own."""

    def __init__(self, seed, rows, users):
        self.generator = np.random.default_rng(seed)
        self.user = np.unique(self.generator.integers(users, size=rows), return_inverse=True)[1]
        self.truth = self.generator.normal(size=rows) + self.generator.normal(size=users)[self.user]
        chance = 1 / (1 + np.exp(1 - self.truth))
        self.label = (self.generator.random(rows) < chance).astype(np.int8)
        #: What every model sees: the truth through an error that they share.
        self.seen = self.truth + 0.5 * self.generator.normal(size=rows)

    def model(self, noise):
        """Return what makes runs of one configuration: its own error on each row, and how noisy its scores are."""
        fixed = noise * self.generator.normal(size=len(self.truth))

        def run(seed_noise=0.25):
            # A seed goes astray as a whole, by a random part of what is noise, and on each row.
            share = 1 + 0.05 * self.generator.normal()
            astray = seed_noise * self.generator.normal(size=len(self.truth))
            return (self.seen + share * fixed + astray).astype(np.float32)

        return run


@pytest.fixture(scope="session")
def world():
    return World


@pytest.fixture
def make_run(tmp_path):
    """Write the folder of a finished run with given predictions, below ``runs``; returns the run."""

    def make(expid, valid, test=None, metrics=("AUC",), **settings):
        folder = tmp_path / "runs" / "made" / expid / "20260101-000000-seed1"
        folder.mkdir(parents=True, exist_ok=True)
        shared = {"model_id": expid, "dataset_id": "made", "model": "A", "label_col": {"name": "label"}}
        (folder / "config.yaml").write_text(dump_yaml(shared | {k: str(v) for k, v in settings.items()}))
        for split, (label, prediction, group) in (("valid", valid), ("test", test or (None, None, None))):
            if label is not None:
                rows = Predictions(label, prediction.astype("f"), group)
                rows.write(folder / f"{split}_predictions.parquet")
        write_json(folder / "environment.json", {})
        result = {"valid": dict.fromkeys(metrics, 0.5), "test": None, "seconds": 1.0, "valid_rows": len(valid[0])}
        write_json(folder / "result.json", result)
        return read_run(folder)

    return make
