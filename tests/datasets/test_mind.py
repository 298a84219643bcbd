"""Rows of MIND are those of its miniature; what is wrong in its files is named."""

import pyarrow.parquet as pq
import pytest

from fuxictr_mm.errors import DataError
from fuxictr_mm.experiment import Experiment
from tests.errors import raises_naming


def test_mind(mind, prepare, read_split, values_of):
    folder, summary, _ = prepare("mind", mind)
    hours = values_of(folder, "hour")
    rows = {
        split: [
            (row["user_id"], row["item_id"], row["item_seq"], row["label"], hours.get(row["hour"]))
            for row in read_split(folder, split)
        ]
        for split in ("train", "valid", "test")
    }
    # N9 of a history is in no news file; 14 November is the last day of the training folder.
    assert rows["train"] == [
        ("U10", "N2", ["N1", "N3"], 0, "10"),
        ("U10", "N3", ["N1", "N3"], 1, "10"),
        ("U10", "N2", ["N1", "N3"], 0, "0"),
    ]
    # An hour that training does not have; users keep apart, because metrics are by user.
    assert rows["valid"] == [("U20", "N1", [], 1, None), ("U20", "N2", [], 0, None)]
    assert rows["test"] == [("U30", "N4", ["N2"], 1, None), ("U30", "N1", ["N2"], 0, None)]
    assert summary.splits["train"].unknown_items == 1
    assert (summary.trained_items, summary.splits["test"].cold) == (2, 2)
    titles = pq.read_table(folder / "items.parquet")["item_title"].to_pylist()
    assert titles == ['PGA "Tour winners', "Über uns", "Three", "Pie"]


def test_metrics_of_mind_are_by_impression(mind, prepare, read_split):
    folder, _, expids = prepare("mind", mind)
    config = Experiment.load(expids[0], folder).config
    assert config.group_id == "impression"
    assert {"gAUC_mean", "MRR", "NDCG@5", "NDCG@10"} < set(config.metrics)
    assert [(row["user_id"], row["impression"]) for row in read_split(folder, "train")] == [
        ("U10", "1"), ("U10", "1"), ("U10", "3")
    ]  # fmt: skip


def test_mind_with_an_unlabelled_test_folder(mind, prepare, read_split):
    test = mind / "MINDlarge_test"
    test.mkdir()
    (test / "news.tsv").write_text((mind / "MINDsmall_dev" / "news.tsv").read_text())
    (test / "behaviors.tsv").write_text("7\tU10\t11/16/2019 7:00:00 AM\tN1\tN4 N2\n")
    folder, summary, expids = prepare("mind", mind)
    assert [(row["item_id"], "label" in row) for row in read_split(folder, "test")] == [("N4", False), ("N2", False)]
    assert {split: counts.rows for split, counts in summary.splits.items()} == {"train": 5, "valid": 2, "test": 2}
    assert len(Experiment.load(expids[0], folder).config.dataset.test_data) > 0


def test_mind_names_the_row_of_a_bad_time(mind, prepare):
    path = mind / "MINDsmall_dev" / "behaviors.tsv"
    path.write_text(path.read_text() + "2\tU1\t2019-11-15\tN1\tN2-0\n")
    with raises_naming(DataError, "behaviors.tsv", "2019-11-15"):
        prepare("mind", mind)


@pytest.mark.parametrize("shown", ["N1-0 N2", "N1-2"])
@pytest.mark.parametrize("kind", ["train", "dev", "test"])
def test_mind_names_the_row_of_a_missing_label(mind, prepare, kind, shown):
    folder = mind / f"MINDsmall_{kind}"
    folder.mkdir(exist_ok=True)
    for name in ("news.tsv", "behaviors.tsv"):
        path = folder / name
        path.write_text(path.read_text() if path.exists() else (mind / "MINDsmall_dev" / name).read_text())
    row = len(path.read_text().splitlines())
    path.write_text(path.read_text() + f"2\tU1\t11/15/2019 7:00:00 AM\tN1\t{shown}\n")
    with raises_naming(DataError, f"MINDsmall_{kind}", "behaviors.tsv", f"row {row}", repr(shown.split()[-1])):
        prepare("mind", mind)
