"""The benchmark of tables measures what it says: the kind, the distinct items, the ratio."""

import pytest
import torch

from benchmarks import tables
from fuxictr_mm.embedding_model import distinct_items
from fuxictr_mm.tables import touched_parameters


@pytest.mark.parametrize(("kind", "touched"), [("dense", 0), ("touched", 1), ("rowwise", 1)])
def test_models_have_the_kind(kind, touched):
    model = tables.make_model(kind, 500)
    found = touched_parameters(model)
    assert [tuple(p.shape) for p in found] == [(500, tables.DIM)] * touched


def test_batches_have_the_distinct_items_that_are_asked_for():
    generator = torch.Generator().manual_seed(0)
    for rows in (1000, 100_000):
        batch = tables.make_batch(rows, 64, 300, generator)
        assert len(distinct_items(batch, rows)[0]) == 300


def test_what_would_not_fit_is_left_out():
    assert tables.main(["--rows", "10000000", "--kinds", "dense", "--memory", "8"]) == [{}]


@pytest.mark.slow
def test_figures(capsys):
    options = ["--rows", "2000", "--kinds", "touched", "--batch_size", "64", "--distinct", "90"]
    (figures,) = tables.main([*options, "--steps", "1", "--repeats", "2", "--reference", "3000"])
    assert figures["peak_mb"] > figures["start_mb"] > 0
    assert 0.2 < figures["ratio"]["median"] < 5
    assert "2,000 touched" in capsys.readouterr().out
