"""The table counts what is there."""

import re

import torch

from benchmarks import model_table
from fuxictr_mm.errors import ConfigError
from tests.errors import raises_naming
from tests.paths import ROOT


def test_a_row_per_experiment(build, capsys):
    options = ["--config", str(ROOT), "--expid", "DIN_tiny", "MIND_tiny", "--steps", "1", "--repeats", "1"]
    model_table.main([*options, "--batch_size", "64"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["experiment", "---", "DIN_tiny", "MIND_tiny"]
    for expid, total, embeddings, speed in rows[2:]:
        model, _ = build(expid)
        assert total == model_table.in_millions(sum(p.numel() for p in model.parameters()))
        assert embeddings == model_table.in_millions(sum(p.numel() for p in model.embedding_layer.parameters()))
        assert re.fullmatch(r"[\d,]+", speed)


def test_every_model_of_the_zoo_has_a_row():
    found = model_table.default_experiments(str(ROOT))
    assert sorted(found) == sorted(f"{path.stem}_MicroLens" for path in (ROOT / "model_zoo").glob("*.py"))


def test_a_file_smaller_than_a_batch():
    with raises_naming(ConfigError, "8 rows", "--batch_size"):
        next(model_table.full_batches([torch.zeros(3)], 8))
