"""Histories of which few entries are targets are told."""

import pytest

from tests.configs import load_any_dataset as load_dataset
from tests.encoding.raw import COLUMNS, params_of, write_csv
from tests.errors import check_names


@pytest.mark.parametrize(
    ("history", "target", "words"),
    [
        ("{} {}", "{}", ["seen", "splitter"]),
        ("[{}, {}]", "{}", ["seen", "splitter"]),
        ("{}^{}", "{}.0", ["seen", "0.0%"]),
        ("{}^{}", "{}", None),
        ("a b{}^a b{}", "a b{}", None),
    ],
)
def test_histories_of_which_few_entries_are_targets_are_told(tmp_path, caplog, history, target, words):
    rows = [
        {"shop": target.format(n % 7), "seen": history.format(n % 5, n % 6), "clk": str(n % 2)} for n in range(20)
    ] + [{"shop": target.format(1), "seen": "", "clk": "1"}]
    write_csv(tmp_path / "train.csv", rows)
    columns = [
        {"name": "shop", "active": True, "dtype": "str", "type": "categorical"},
        *(column for column in COLUMNS if column["name"] == "seen"),
    ]
    params = params_of(tmp_path, columns, roles={"target": "shop", "history": "seen"})
    load_dataset(params, {"train": True}, flat=True)
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == (words is not None)
    for text in told:
        check_names(text, *words)
