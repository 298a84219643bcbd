"""Rows of AmazonElectronics_x1 are those of a plain reading of its miniature."""

import csv

import pytest

from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


def test_amazon_electronics(amazon_electronics, prepare, read_split):
    folder, _, _ = prepare("amazon-electronics", amazon_electronics)
    for split, file in (("train", "train"), ("valid", "train"), ("test", "test")):
        with (amazon_electronics / f"{file}.csv").open() as stream:
            expected = [
                (int(r["item_id"]), [int(i) for i in r["item_history"].split("^") if i], float(r["label"]))
                for r in csv.DictReader(stream)
                if split == "test" or (int(r["user_id"]) % 10 == 0) == (split == "valid")
            ]
        assert [(r["item_id"], r["item_seq"], r["label"]) for r in read_split(folder, split)] == expected


@pytest.mark.parametrize("damage", ["text", "lengths", "columns"])
def test_rows_that_cannot_be_read_are_no_traceback(amazon_electronics, prepare, damage):
    path = amazon_electronics / "train.csv"
    text = path.read_text()
    line = {"text": "1,7,none,1,2,1", "lengths": "1,7,2,1,2^3,1"}.get(damage)
    path.write_text(text + f"{line}\n" if line else text.replace("cate_history", "history", 1))
    with raises_naming(DataError, str(amazon_electronics)):
        prepare("amazon-electronics", amazon_electronics)
