"""Other names and other ids: the same findings, with names and ids of the files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.cli import main
from fuxictr_mm.config import Roles
from fuxictr_mm.errors import ConfigError
from tests import ids as world
from tests.errors import raises_naming

ROLES = Roles(target="article", history="clicked", user="uid")


def write(folder, found):
    folder.mkdir()
    for name, table in found.items():
        pq.write_table(table, folder / f"{'item_info' if name == 'items' else name}.parquet")
    return folder


def planted():
    """A world with one fault of several kinds: rows of train, valid and items."""
    found = world.tables(200)
    target = found["train"]["item_id"].to_pylist()
    histories = found["train"]["item_seq"].to_pylist()
    target[7] = 1001  # no item file has it
    histories[8] = [1001, *histories[8]]
    histories[9] = [*histories[9], target[9]]
    histories[10] = None
    found["train"] = world.put(found["train"], "item_id", pa.array(target))
    found["train"] = world.put(found["train"], "item_seq", pa.array(histories, pa.list_(pa.int64())))
    found["items"] = pa.concat_tables([found["items"], found["items"].slice(4, 1)])
    return found


def with_ids(found, ids):
    """As ``world.with_ids``, with null histories."""
    null = found["train"]["item_seq"].is_null().combine_chunks()
    filled = world.put(
        found["train"], "item_seq", pa.array([row or [] for row in found["train"]["item_seq"].to_pylist()])
    )
    changed = world.with_ids({**found, "train": filled}, ids)
    rows = changed["train"]["item_seq"].combine_chunks().to_pylist()
    kind = changed["train"]["item_seq"].type
    rows = [None if missing.as_py() else row for row, missing in zip(rows, null, strict=True)]
    return {**changed, "train": world.put(changed["train"], "item_seq", pa.array(rows, kind))}


UNKNOWN = {"text": "gone", "uuid": bytes(16), "uint64": 2**63 - 1, "negative": -1, "sparse": 5, "from_zero": 1001}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The report of the planted world with the ids 1 to N."""
    return check_folder(write(tmp_path_factory.mktemp("dense") / "d", planted()))[0]


@pytest.mark.parametrize("kind", list(world.KINDS))
def test_the_same_is_found_with_names_and_ids_of_the_files(tmp_path, kind, expected):
    found = planted()
    table = world.KINDS[kind]
    ids = pa.concat_arrays([table, pa.array([UNKNOWN[kind]], table.type)])
    changed = world.renamed(with_ids(found, ids), world.NAMES)
    setting = "vocabulary" if kind == "sparse" else "auto"
    report, _ = check_folder(write(tmp_path / "other", changed), roles=ROLES, ids=setting)
    names = {**world.NAMES, "": ""}

    def summary(findings, column):
        keys = ("check", "severity", "file", "count")
        return sorted(
            [*(getattr(f, k) for k in keys), column(f.column), f.rows["row"].to_list()]
            for f in findings
            if f.rows.height
        )

    theirs = summary(report.findings(), lambda name: name)
    assert theirs == summary(expected.findings(), lambda name: names.get(name, name))
    by_check = {finding.check: finding for finding in report.findings()}
    value = UNKNOWN[kind].hex() if kind == "uuid" else UNKNOWN[kind]
    assert by_check["unknown-target"].rows["value"].to_list() == [value]
    assert by_check["unknown-history"].rows["value"].to_list() == [value]
    assert by_check["unknown-target"].rows.columns[1] == "uid"
    twice = by_check["duplicate-item"].rows["article"].to_list()
    assert twice == [table[5].as_py().hex() if kind == "uuid" else table[5].as_py()]


def test_text_users_and_times_are_read_as_training_reads_them(tmp_path):
    found = world.tables()
    expected, _ = check_folder(write(tmp_path / "dense", found))
    for name in ("train", "valid", "test"):
        users = pa.array([f"u{user}" for user in found[name]["user_id"].to_pylist()])
        found[name] = world.put(found[name], "user_id", users).append_column("ts", found[name]["item_id"])
    report, _ = check_folder(write(tmp_path / "texts", found), roles=Roles(time="ts"))
    assert [(f.check, f.column, f.count) for f in report.findings()] == [
        (f.check, f.column, f.count) for f in expected.findings()
    ]
    shared = next(f for f in report.findings() if f.check == "shared-row")
    assert all(user.startswith("u") for user in shared.rows["user_id"])
    drifted, _ = check_folder(tmp_path / "texts")
    assert "ts" in {f.column for f in drifted.findings()} | {c for m in drifted.measures["psi"].values() for c in m}


def test_a_cleaned_copy_keeps_types_and_ids(tmp_path, capsys):
    changed = world.renamed(
        with_ids(planted(), pa.concat_arrays([world.KINDS["text"], pa.array(["gone"])])), world.NAMES
    )
    changed["train"] = world.put(changed["train"], "label", changed["train"]["label"].cast(pa.decimal128(38, 0)))
    folder = write(tmp_path / "d", changed)
    words = ["--roles", "target=article", "history=clicked", "user=uid", "--clean", str(tmp_path / "clean"), "--json"]
    with pytest.raises(SystemExit, match=r"^1$"):  # the folder has errors
        main(["check-data", str(folder), *words, "--quiet"])
    checks = {action["check"] for action in json.loads(capsys.readouterr().out)["cleaned"]["actions"]}
    assert {"unknown-target", "unknown-history", "null-history", "duplicate-item"} <= checks
    before, after = (pq.read_table(path / "train.parquet") for path in (folder, tmp_path / "clean"))
    assert after.schema == before.schema
    assert "gone" not in after["article"].to_pylist()
    assert not any("gone" in row for row in after["clicked"].to_pylist())
    assert set(after["article"].to_pylist()) <= set(changed["items"]["article"].to_pylist())
    report, _ = check_folder(tmp_path / "clean", roles=ROLES)
    assert not {f.check for f in report.findings()} & {"unknown-target", "unknown-history", "duplicate-item"}


@pytest.mark.parametrize("ids", ["vocabulary", "auto"])
def test_a_copy_without_padding_cannot_be_padded(tmp_path, ids):
    folder = write(tmp_path / "d", world.with_ids(world.tables(200), world.KINDS["from_zero"]))
    with pytest.raises(SystemExit) as stopped:
        main(["check-data", str(folder), "--ids", ids, "--clean", str(tmp_path / "clean"), "--quiet"])
    assert stopped.value.code == 2
    assert not (tmp_path / "clean").exists()


@pytest.mark.parametrize(("features", "padded"), [(False, 0), (True, 8)])
def test_zero_without_features_or_where_it_pads_is_no_item(tmp_path, features, padded):
    found = world.with_ids(world.tables(200), pa.array(range(world.ITEMS + 1)), padded=padded)
    first = found["items"].slice(0, 1)
    columns = [first[n] if features else pa.nulls(1, first[n].type) for n in first.column_names[1:]]
    zero = pa.table([pa.array([0], first["item_id"].type), *columns], schema=first.schema)
    found["items"] = pa.concat_tables([zero, found["items"]])
    report, layout = check_folder(write(tmp_path / "d", found))
    assert layout.translation.items is None
    assert any(f.check == "padding-row" for f in report.findings()) == features


def test_histories_that_cannot_be_read_are_no_sign_that_zero_is_padding(tmp_path):
    found = world.with_ids(world.tables(200), world.KINDS["from_zero"])
    for name in ("train", "valid", "test"):
        texts = pa.array([" ".join(map(str, row)) for row in found[name]["item_seq"].to_pylist()])
        found[name] = world.put(found[name], "item_seq", texts)
    report, _ = check_folder(write(tmp_path / "d", found))
    errors = {(f.check, f.file, f.column) for f in report.findings() if f.severity == "error"}
    assert errors == {("column-type", f"{name}.parquet", "item_seq") for name in ("train", "valid", "test")}


def test_a_few_ids_that_are_wrong_are_found(tmp_path):
    found = world.tables(200)
    ids = np.arange(1, world.ITEMS + 1)
    ids[3] = -7
    found["items"] = world.put(found["items"], "item_id", pa.array(ids))
    report, layout = check_folder(write(tmp_path / "d", found))
    assert layout.translation.items is None
    bad = next(f for f in report.findings() if f.check == "bad-item-id")
    assert bad.rows["value"].to_list() == [-7]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["target"], ["target"]),
        (["targt=x"], ["'targt'"]),
        (["target=x", "history=x"], ["history", "'x'", "target"]),
        (["target=user_id"], ["user", "'user_id'", "target"]),
        (["user=a", "user=b"], ["user=b", "a"]),
    ],
)
def test_roles_that_cannot_be(words, named):
    with raises_naming(ConfigError, "--roles", *named):
        Roles.parse(words)


@pytest.mark.parametrize("words", [["histories=carted,bought"], ["histories=carted", "histories=bought"]])
def test_several_histories_are_one_role(words):
    assert Roles.parse(["target=asin", *words]).histories == ["carted", "bought"]


@pytest.mark.parametrize("kind", ["", "text"])
def test_further_histories_are_checked_as_the_first(tmp_path, kind):
    found = world.tables(200)
    carted = {name: found[name]["item_seq"].to_pylist() for name in ("train", "valid")}
    carted["train"][5], carted["train"][6] = [*carted["train"][5], 1001], None
    carted["valid"][7] = [1, 0, 2]
    ids = pa.array(range(1002))
    if kind:
        table = world.KINDS[kind]
        ids = pa.concat_arrays([table, pa.array([UNKNOWN[kind]], table.type)])
        found = world.with_ids(found, ids)
    for name, rows in carted.items():
        lists = [None if row is None else ids.take(pa.array(row, pa.int64())).to_pylist() for row in rows]
        found[name] = found[name].append_column("carted", pa.array(lists, pa.list_(ids.type)))
    found["train"] = found["train"].append_column("bought", pa.array(["a b"] * len(found["train"])))
    found["valid"] = found["valid"].append_column("bought", found["valid"]["item_seq"])
    roles, setting = Roles(histories=["carted", "bought"]), "vocabulary" if kind else "auto"
    report, _ = check_folder(write(tmp_path / "d", found), roles=roles, ids=setting)
    further = {
        (f.check, f.file, f.column): f.rows["row"].to_list() if f.rows.height else None
        for f in report.findings()
        if f.column in ("carted", "bought")
    }
    assert further == {
        ("unknown-history", "train.parquet", "carted"): [5],
        ("null-history", "train.parquet", "carted"): [6],
        ("inner-padding", "valid.parquet", "carted"): [7],
        ("missing-column", "test.parquet", "carted"): None,
        ("missing-column", "test.parquet", "bought"): None,
        ("column-type", "train.parquet", "bought"): None,
    }


def test_texts_name_items_by_their_ids_and_titles_stay(tmp_path):
    found = planted()
    found["train"] = pa.concat_tables([found["train"], found["train"].slice(20, 30)])
    histories = found["train"]["item_seq"].to_pylist()
    histories[11] = [3, 0, 4]
    found["train"] = world.put(found["train"], "item_seq", pa.array(histories, pa.list_(pa.int64())))
    count = len(found["items"])
    titles = [f"Lamp of room {row}" for row in range(count)]
    titles[2], titles[3] = "A <b>lamp</b> (item 7)", "A <b>lamp</b> (item 99999999999999999999)"
    titles[4], titles[5] = "The same lamp", "the SAME lamp"
    vectors = np.random.default_rng(0).normal(size=(count, 20))
    vectors[8], vectors[9] = vectors[6], vectors[7] * 1.001
    found["items"] = found["items"].append_column("item_title", pa.array(titles)).append_column(
        "emb", pa.array(vectors.tolist(), pa.list_(pa.float32()))
    )  # fmt: skip
    table = pa.concat_arrays([world.KINDS["text"], pa.array(["gone"])])
    found = with_ids(found, table)
    ids, shown = found["items"]["item_id"].to_pylist(), found["train"]["item_id"].to_pylist()
    report, _ = check_folder(write(tmp_path / "d", found))
    values = {f.check: dict(f.rows.select("row", "value").iter_rows()) for f in report.findings() if f.rows.height}
    assert list(values["markup-title"].values()) == titles[2:4]
    assert ids[6] in values["duplicate-vector"][8]
    assert ids[7] in values["near-duplicate-vector"][9]
    assert all(ids[row] in values["duplicate-title"][4] for row in (4, 5))
    assert values["duplicate-row"][200] == f"equals row 20 (item {shown[20]})"
    assert values["inner-padding"][11] == str([table[3].as_py(), table[4].as_py()])


@pytest.mark.parametrize("column", ["user_id", "other price"])
def test_a_column_without_a_role_keeps_its_name(tmp_path, column):
    found = world.renamed(world.tables(200), world.NAMES)
    expected, _ = check_folder(write(tmp_path / "d", found), roles=ROLES)
    for name in ("train", "valid", "test"):
        found[name] = found[name].append_column(column, pa.nulls(len(found[name]), pa.int64()))
    report, _ = check_folder(write(tmp_path / "other", found), roles=ROLES)
    assert {(f.check, f.column) for f in report.findings()} - {(f.check, f.column) for f in expected.findings()} == {
        ("bad-context", column)
    }


def test_a_column_named_as_one_without_a_role_keeps_its_name(tmp_path):
    found = world.tables(200)
    for name in ("train", "valid", "test"):
        found[name] = found[name].append_column("other label", pa.nulls(len(found[name]), pa.int64()))
    report, _ = check_folder(write(tmp_path / "d", found))
    assert "other label" in {f.column for f in report.findings() if f.check == "bad-context"}


def test_a_damaged_file_of_text_ids_is_a_finding(tmp_path):
    folder = write(tmp_path / "d", with_ids(world.tables(200), world.KINDS["text"]))
    content = bytearray((folder / "train.parquet").read_bytes())
    content[100:2000] = bytes(1900)
    (folder / "train.parquet").write_bytes(content)
    report, _ = check_folder(folder)
    assert {(f.check, f.file) for f in report.findings() if f.severity == "error"} == {("unreadable", "train.parquet")}
