"""A copy of data/tiny_mm that can be damaged, and one with a planted fault of each kind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from tests.paths import TINY

FILES = ("train", "valid", "test", "item_info", "item_feature", "item_emb")


class Copy:
    """Tables as lists of columns, to be changed in place and written."""

    def __init__(self) -> None:
        tables = {name: pq.read_table(TINY / f"{name}.parquet") for name in FILES}
        self.schemas = {name: _ragged(table.schema) for name, table in tables.items()}
        self.tables = {name: table.to_pydict() for name, table in tables.items()}

    def __getitem__(self, name: str) -> dict[str, list[Any]]:
        return self.tables[name]

    def append(self, name: str, source: dict[str, list[Any]], row: int, **changes: Any) -> int:
        """Append a row of a table to another with changes; return its number."""
        for column, values in self.tables[name].items():
            values.append(changes[column] if column in changes else source[column][row])
        return len(values) - 1

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, columns in self.tables.items():
            arrays = [pa.array(columns[f.name], f.type) for f in self.schemas[name]]
            pq.write_table(pa.Table.from_arrays(arrays, schema=self.schemas[name]), folder / f"{name}.parquet")
        return folder


def _ragged(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [
            pa.field(f.name, pa.list_(f.type.value_type) if pa.types.is_fixed_size_list(f.type) else f.type)
            for f in schema
        ]
    )


@pytest.fixture(scope="session")
def make_copy():
    """Give a fresh copy of the data in memory."""
    return Copy


@pytest.fixture
def copy(make_copy) -> Copy:
    """A copy of tiny_mm."""
    return make_copy()


TEXT, IMAGE = "txt_emb_BERT", "img_emb_CLIPRN50"
TITLES = {
    10: ("empty-title", ""),
    11: ("empty-title", "  \t "),
    12: ("empty-title", "N/A"),
    13: ("mojibake", "the dogâ€™s dinner in the kitchen"),
    14: ("json-title", '{"translation": "Two cats in a kitchen"}'),
    15: ("json-title", '{"translation": "Two cats on a ta'),
    16: ("json-title", '```json\n["Two dogs"]\n```'),
    17: ("assistant-title", "Here is the translation: a bird at the window"),
    18: ("assistant-title", "As an AI language model, I cannot translate this."),
    19: ("foreign-title", "我的猫在厨房里"),
    20: ("foreign-title", "le petit chat noir qui dort sous la table"),
    23: ("markup-title", "Two <b>cats</b> &amp; a dog"),
    24: ("escape-title", r"Two caf\u00e9s\nin a kitchen"),
    25: ("url-title", "Two cats https://example.org/watch?v=1"),
    26: ("repeated-word-title", "cat cat cat cat cat cat cat cat"),
    27: ("lost-character", "Two ca\ufffds"),
}


def plant_titles(copy):
    titles = copy["item_feature"]["item_title"]
    for row, (check, title) in TITLES.items():
        titles[row] = title
        yield f"title {row}", (check, "item_feature", "item_title", row, row + 1)
    titles[21] = titles[22].upper() + "!"
    yield "title in capitals", ("duplicate-title", "item_feature", "item_title", 21, 22)


def plant_vectors(copy):
    text, image = (copy["item_feature"][name] for name in (TEXT, IMAGE))

    def vector(check, row):
        return check, "item_feature", TEXT, row, row + 1

    text[30] = [0.0] * 32
    yield "zero vector", vector("zero-vector", 30)
    text[31][4] = float("nan")
    yield "NaN", vector("nonfinite-vector", 31)
    text[32][0] = float("inf")
    yield "infinity", vector("nonfinite-vector", 32)
    text[33] = [1000 * v for v in text[33]]
    yield "long vector", vector("norm-outlier", 33)
    text[34] = [1e-4 * v for v in text[34]]
    yield "short vector", vector("norm-outlier", 34)
    text[35] = text[35][:-1]
    yield "narrow vector", vector("vector-width", 35)
    text[41] = list(text[36])
    yield "equal vector", vector("duplicate-vector", 41)
    text[43] = [1.001 * v + 1e-4 for v in text[42]]
    yield "nearly equal vector", vector("near-duplicate-vector", 43)
    rng = np.random.default_rng(0)
    length = np.linalg.norm(image[50])
    stray = rng.standard_normal(48)
    image[50] = (stray * length / np.linalg.norm(stray)).tolist()
    yield "image of another kind", ("modalities-disagree", "item_feature", IMAGE, 50, 51)
    for row in copy["item_emb"]["item_emb_d16_v1"][1:]:
        row[3] = 0.5
    yield "constant number", ("constant-column", "item_emb", "item_emb_d16_v1[3]", None, None)


def plant_items(copy):
    info, emb = copy["item_info"], copy["item_emb"]
    again = copy.append("item_info", info, 5)
    yield "item twice", ("duplicate-item", "item_info", "item_id", again, 5)
    negative = copy.append("item_info", info, 6, item_id=-7)
    yield "negative item id", ("bad-item-id", "item_info", "item_id", negative, None)
    info["item_emb_d16"][0][2] = 1.0
    yield "padding that is no zero", ("padding-row", "item_info", "item_emb_d16", 0, 0)
    tags = info["item_tags"]
    for row, tag in ((20, -5), (21, 2**31), (22, None)):
        tags[row][-1] = tag
        yield f"tag {tag}", ("bad-item-value", "item_info", "item_tags", row, row)
    for row, tag in ((23, 10**9), (24, 10**9), (25, 99_999)):
        tags[row][-2] = tag
        yield f"tag {tag} of item {row}", ("item-value-outlier", "item_info", "item_tags", row, row)
    levels = copy["item_feature"]["likes_level"]
    levels[60], levels[61], levels[62] = 99_999, -1, None
    yield "level of an item beyond", ("item-value-outlier", "item_feature", "likes_level", 60, 61)
    yield "negative level of an item", ("bad-item-value", "item_feature", "likes_level", 61, 62)
    yield "null level of an item", ("bad-item-value", "item_feature", "likes_level", 62, 63)
    beyond = copy.append("item_info", info, 30, item_id=10**9, item_emb_d16=info["item_emb_d16"][30][::-1])
    yield "item id beyond", ("far-item-id", "item_info", "item_id", beyond, 10**9)
    large = copy.append("item_info", info, 31, item_id=2**31, item_emb_d16=info["item_emb_d16"][31][::-1])
    yield "its row in no other file", ("partial-item", "item_feature", "item_id", None, 10**9)
    yield "item id that is too large", ("bad-item-id", "item_info", "item_id", large, None)
    for values in emb.values():
        del values[700]
    yield "item without a row", ("partial-item", "item_emb", "item_id", None, 700)


def plant_interactions(copy):
    train, valid, test = copy["train"], copy["valid"], copy["test"]

    def fault(check, column, row, split="train", user=True):
        return check, split, column, row, copy[split]["user_id"][row] if user else None

    train["item_id"][100] = 5000
    yield "unknown target", fault("unknown-target", "item_id", 100)
    train["item_id"][108] = 0
    yield "padding as target", fault("unknown-target", "item_id", 108)
    train["item_seq"][101][-1] = 6000
    yield "unknown item in a history", fault("unknown-history", "item_seq", 101)
    test["item_seq"][7][-1] = 6001
    yield "unknown item in a history of test", fault("unknown-history", "item_seq", 7, "test")
    train["label"][102] = 2
    yield "label 2", fault("bad-label", "label", 102)
    train["label"][109] = None
    yield "no label", fault("bad-label", "label", 109)
    train["user_id"][103] = None
    yield "no user", fault("bad-user-id", "user_id", 103, user=False)
    train["item_seq"][104] = [0] * 15 + [387, 0, 259, 628, 179]
    train["item_id"][104] = 3
    yield "padding inside", fault("inner-padding", "item_seq", 104)
    clicks = [row for row in range(300, 900) if train["label"][row] == 1 and train["item_seq"][row][-1]]
    for row in clicks[:25]:
        train["item_seq"][row][-1] = train["item_id"][row]
        yield f"target in its history, row {row}", fault("target-in-history", "item_seq", row)
    train["likes_level"][107] = -1
    yield "negative level", fault("bad-context", "likes_level", 107)
    train["views_level"][110] = train["views_level"][111] = 99_999
    for row in (110, 111):
        yield f"level beyond, row {row}", fault("context-outlier", "views_level", row)
    train["item_seq"][112] = None
    yield "null history", fault("null-history", "item_seq", 112)
    train["item_seq"][113][-2:] = [None, train["item_seq"][113][-1]]
    yield "null in a history", fault("unknown-history", "item_seq", 113)
    test["views_level"][:] = [10] * len(test["views_level"])
    yield "levels of test", ("context-drift", "test", "views_level", None, None)

    clicked = {u: i for u, i, y in zip(valid["user_id"], valid["item_id"], valid["label"], strict=True) if y == 1}
    before = set(zip(train["user_id"], train["item_id"], strict=True))
    clicked = {user: item for user, item in clicked.items() if (user, item) not in before}
    rows = {user: row for row, user in reversed(list(enumerate(train["user_id"]))) if row >= 1000 and user in clicked}
    for row in sorted(rows.values())[:20]:
        train["item_seq"][row][-1] = clicked[train["user_id"][row]]
        yield f"click of valid in train, row {row}", fault("future-click", "item_seq", row)

    for source in range(20):
        contradicting = copy.append("valid", valid, source, label=1 - valid["label"][source])
    yield "contradicting rows", fault("contradictory-row", "label", contradicting, "valid")
    for source in range(100, 120):
        equal = copy.append("test", test, source)
    yield "equal rows", fault("duplicate-row", "item_id", equal, "test")
    for source in range(1000, 1060):
        shared = copy.append("train", {**test, "label": [0] * 3000}, source)
    yield "rows of test in train", fault("shared-row", "item_id", shared)


PLANTERS = (plant_titles, plant_vectors, plant_items, plant_interactions)


@pytest.fixture(scope="session")
def planted(make_copy, tmp_path_factory):
    """Folder, faults by name, and what the command says of it as JSON (with a cleaned copy beside)."""
    copy = make_copy()
    faults = {name: fault for planter in PLANTERS for name, fault in planter(copy)}
    folder = copy.write(tmp_path_factory.mktemp("planted") / "data")
    report, cleaned = folder.parent / "report.json", folder.parent / "cleaned"
    with pytest.raises(SystemExit) as ended:
        main(["check-data", str(folder), "--report", str(report), "--clean", str(cleaned), "--quiet"])
    assert ended.value.code == 1
    return folder, faults, json.loads(report.read_text(encoding="utf-8"))
