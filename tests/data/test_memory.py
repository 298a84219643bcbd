import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.data import memory
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.memory import choose_in_memory, estimate_bytes, free_memory
from fuxictr_mm.data.schema import Feature

CPU = torch.device("cpu")


@pytest.fixture
def splits(tmp_path):
    """Of 1000, 100 and 100 rows, each 4 + 4 + 4 + 8 + 2 * 4 = 28 bytes."""
    found = {}
    for name, rows in {"train": 1000, "valid": 100, "test": 100}.items():
        histories = pa.array([[0, 1, 2]] * rows, pa.list_(pa.int64()))
        columns = {"item_id": [1] * rows, "item_seq": histories, "level": [3] * rows, "label": [0.0, 1.0] * (rows // 2)}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        features = [Feature("level", "categorical", vocab_size=9)]
        found[name] = InteractionFiles(tmp_path / f"{name}.parquet", features, torch.ones(9).bool().numpy())
    return found


def test_the_estimate_is_near_the_bytes_that_are_taken(splits):
    for files in splits.values():
        assert estimate_bytes(files) == concatenate(files.chunks()).num_bytes


@pytest.mark.parametrize(
    ("free", "resident", "held"),
    [
        (0, True, {"train", "valid", "test"}),
        (10**6, "auto", {"train", "valid", "test"}),
        (10**6, False, {"valid", "test"}),
        (50_000, "auto", {"valid", "test"}),
        (11_000, "auto", {"valid"}),
        (11_000, False, {"valid"}),
        (1000, "auto", set()),
    ],
)
def test_train_gives_way_first(splits, monkeypatch, free, resident, held):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    assert choose_in_memory(splits, resident, CPU) == held


def test_a_machine_has_some_memory_free():
    assert 2**20 < free_memory(CPU) < 2**50
