"""Faults planted in a copy of tiny_mm: each is found, with its row and column; cleaning mends what it says it mends."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.checks import CHECKS, LEFT
from fuxictr_mm.cli import main

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
    train["item_seq"][105][-1] = train["item_id"][105]
    yield "target in its history", fault("target-in-history", "item_seq", 105)
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
    row = next(r for r in range(200, 16000) if train["user_id"][r] in clicked)
    train["item_seq"][row][-1] = clicked[train["user_id"][row]]
    yield "click of valid in train", fault("future-click", "item_seq", row)

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


@pytest.fixture(scope="module")
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


def test_at_least_thirty_faults_of_distinct_kinds_are_planted(planted):
    _, faults, _ = planted
    assert len(faults) >= 30
    assert len({check for check, *_ in faults.values()}) >= 24


def test_every_planted_fault_is_found_with_row_and_column(planted):
    _, faults, answer = planted
    missed = {}
    for name, (check, file, column, row, key) in faults.items():
        hits = [
            f
            for f in answer["findings"]
            if (f["check"], f["file"], f["column"]) == (check, f"{file}.parquet", column) and f["severity"] != "info"
        ]
        places = {(r["row"], r.get("item_id", r.get("user_id"))) for f in hits for r in f["rows"]}
        if not hits or ((row, key) != (None, None) and (row, key) not in places):
            missed[name] = (check, row, key, places)
    assert not missed


def test_nothing_else_is_found(planted):
    _, faults, answer = planted
    planted_checks = {(check, f"{file}.parquet", column) for check, file, column, *_ in faults.values()}
    found = {(f["check"], f["file"], f["column"]) for f in answer["findings"] if f["severity"] != "info"}
    assert found == planted_checks


def test_single_rows_are_named_and_no_others(planted):
    _, faults, answer = planted
    for check in ("mojibake", "foreign-title", "norm-outlier", "modalities-disagree", "target-in-history", "bad-label"):
        wanted = sorted(row for c, _, _, row, _ in faults.values() if c == check)
        assert [r["row"] for f in answer["findings"] if f["check"] == check for r in f["rows"]] == wanted


def test_cleaned_copy_has_none_of_the_faults_that_cleaning_mends(planted):
    folder, _, _ = planted
    report, _ = check_folder(folder.parent / "cleaned")
    left = {f.check for f in report.findings() if f.severity != "info" and f.file != "test.parquet"}
    assert all(CHECKS[check].mended == LEFT for check in left - {"empty-title"})
    assert not report.has_errors


def test_cleaned_copy_keeps_schema_order_and_the_rows_of_test(planted):
    folder, _, answer = planted
    for path in folder.glob("*.parquet"):
        old, new = pq.read_table(path), pq.read_table(folder.parent / "cleaned" / path.name)
        assert new.schema == old.schema
        dropping = {
            r["row"]
            for f in answer["findings"]
            for r in f["rows"]
            if f["file"] == path.name and f["severity"] != "info" and "dropped" in CHECKS[f["check"]].mended
            if path.name != "test.parquet"
        }
        kept = [r for r in range(old.num_rows) if r not in dropping]
        assert new.num_rows == len(kept)
        key = "item_id"
        assert new[key].to_pylist() == old[key].take(kept).to_pylist()
    assert pq.read_table(folder.parent / "cleaned" / "test.parquet").num_rows == 3020


def test_cleaned_values(planted):
    folder, _, answer = planted
    cleaned = folder.parent / "cleaned"
    items = pq.read_table(cleaned / "item_feature.parquet").to_pydict()
    titles = [items["item_title"][row] for row in range(12, 20)]
    assert titles == [
        "",
        "the dog’s dinner in the kitchen",  # noqa: RUF001
        "Two cats in a kitchen",
        "Two cats on a ta",
        "Two dogs",
        "a bird at the window",
        "",
        "我的猫在厨房里",
    ]
    assert [items["item_title"][row] for row in range(23, 28)] == [
        "Two cats & a dog",
        "Two cafés in a kitchen",
        "Two cats",
        "cat",
        "Two ca\ufffds",
    ]
    assert [items["likes_level"][row] for row in (60, 61, 62)] == [0, 0, 0]
    info, old_info = (pq.read_table(f / "item_info.parquet")["item_tags"].to_pylist() for f in (cleaned, folder))
    for row in range(20, 23):
        assert info[row] == [0, *old_info[row][:-1]]
    for row in range(23, 26):
        assert info[row] == [0, *old_info[row][:-2], old_info[row][-1]]
    for row in (31, 32, 35):
        assert items[TEXT][row] == [0.0] * 32
    lengths = np.linalg.norm(np.array(items[TEXT]), axis=1)
    assert lengths[33] == pytest.approx(np.median(lengths), rel=0.02)
    old = pq.read_table(folder / "item_feature.parquet").to_pydict()
    assert items[TEXT][36:] == old[TEXT][36:]
    assert pq.read_table(cleaned / "item_info.parquet")["item_emb_d16"][0].as_py() == [0.0] * 16

    train = pq.read_table(cleaned / "train.parquet").to_pydict()
    before = pq.read_table(folder / "train.parquet").to_pydict()
    gone = {
        r["row"]
        for f in answer["findings"]
        for r in f["rows"]
        if f["file"] == "train.parquet" and f["severity"] != "info" and "dropped" in CHECKS[f["check"]].mended
    }
    assert {100, 102, 103, 107, 108, 109, 110, 111} <= gone
    place = {row: new for new, row in enumerate(r for r in range(len(before["item_id"])) if r not in gone)}
    assert train["item_seq"][place[104]] == [0] * 16 + [387, 259, 628, 179]
    assert train["item_seq"][place[112]] == [0] * 20
    assert train["item_seq"][place[113]] == [0, *before["item_seq"][113][:-2], before["item_seq"][113][-1]]
    for row in (101, 105):
        assert train["item_seq"][place[row]] == [0, *before["item_seq"][row][:-1]]
    assert {a["check"] for a in answer["cleaned"]["actions"]} == {
        f["check"] for f in answer["findings"] if f["severity"] != "info"
    }
