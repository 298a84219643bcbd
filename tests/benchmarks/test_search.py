"""The benchmark of searches runs: exact search finds all, and both sides of the comparison train the same batch."""

import math

import pytest

from benchmarks import search

ITEMS = "data/tiny_mm/item_emb.parquet:item_emb_d16_v3"
CODES = "data/tiny_mm_derived/item_codes_pq.parquet:codes_pq_text"
CATEGORIES = "data/tiny_mm_derived/item_codes_vq.parquet:codes_vq_text"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run with options; returns the cells of each row below the header."""

    def rows(*options):
        monkeypatch.setattr("sys.argv", ["search", *options])
        search.main()
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]

    return rows


def test_recall(run):
    sizes = ["--lengths", "50", "--rows", "4", "--top_k", "5", "50"]
    header, *rows = run("--items", ITEMS, "--codes", CODES, "--categories", CATEGORIES, *sizes)
    assert len({len(row) for row in (header, *rows)}) == 1
    found = {row[0]: [float(cell) for cell in row[1:3]] for row in rows}
    assert found["exact"] == [1.0, 1.0]
    assert all(full == 1.0 for name, (_, full) in found.items() if name != "newest of the category")
    assert 0 < found["32 hash bits"][0] <= found["256 hash bits"][0] <= 1


@pytest.mark.slow
def test_speed(run, monkeypatch):
    monkeypatch.setattr(search, "ITEMS", 500)
    _, *rows = run("--what", "speed", "--lengths", "60", "--rows", "4", "--repeats", "1")
    assert [row[0] for row in rows] == 2 * list(search.PADDED)
    assert all(math.isfinite(float(cell)) for row in rows for cell in row[1:])


def test_candidates(run, monkeypatch):
    monkeypatch.setattr(search, "ITEMS", 500)
    sizes = ["--lengths", "60", "--candidates", "4", "--repeats", "1", "--models", "ETA"]
    _, *rows = run("--what", "candidates", *sizes)
    assert [row[:3] for row in rows] == [["ETA", "60", "18"], ["ETA", "60", "60"]]
    assert all(math.isfinite(float(cell)) for row in rows for cell in row[3:])


def test_memory(run, monkeypatch):
    monkeypatch.setattr(search, "ITEMS", 500)
    sizes = ["--lengths", "60", "--rows", "4", "--repeats", "1", "--models", "TWIN", "DIN"]
    _, *rows = run("--what", "memory", *sizes)
    assert [row[:3] for row in rows] == [[name, "60", str(n)] for name in ("TWIN", "DIN") for n in (6, 18, 60)]
    assert all(float(cell) >= 0 for row in rows for cell in row[3:] if row[0] == "TWIN" or cell)
