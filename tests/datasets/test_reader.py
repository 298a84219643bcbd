"""Every reader against a plain reading of its miniature."""

import csv
import errno
import importlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.datasets.reader import list_readers
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.yaml_files import load_yaml
from tests.errors import raises_naming

READERS = ("amazon-electronics", "kuairand", "longctr", "microlens", "mind", "taobao-mm")


@pytest.fixture
def source(request):
    """Give the miniature of a reader by its name."""
    return lambda name: request.getfixturevalue(name.replace("-", "_"))


def test_every_reader_has_a_miniature():
    assert tuple(list_readers()) == tuple(sorted([*READERS, "log"]))  # which test_log.py tests


@pytest.mark.parametrize("name", READERS)
def test_what_is_prepared_trains(name, source, prepare, tmp_path):
    folder, summary, expids = prepare(name, source(name))
    for expid in expids:
        settings = {"epochs": 1, "batch_size": 64, "record": False, "model_root": str(tmp_path / "runs"), "verbose": 0}
        run = Experiment.load(expid, folder, **settings).fit()
        assert 0 <= run.metrics["valid"]["AUC"] <= 1
    rows = sum(len(pq.read_table(folder / split)) for split in summary.splits)
    assert rows == sum(split.rows for split in summary.splits.values())


@pytest.mark.parametrize("name", READERS)
def test_another_start_continues_and_gives_the_same_rows(name, source, prepare, monkeypatch):
    path = source(name)
    whole, summary, _ = prepare(name, path)
    module = importlib.import_module(f"fuxictr_mm.datasets.{name.replace('-', '_')}")
    for size in ("CHUNK_ROWS", "CHUNK_USERS", "CHUNK_IMPRESSIONS", "BLOCK_BYTES"):
        if hasattr(module, size):
            monkeypatch.setattr(
                module, size, {"CHUNK_ROWS": 19, "CHUNK_USERS": 4, "CHUNK_IMPRESSIONS": 1, "BLOCK_BYTES": 4096}[size]
            )
    written = Writer._write_chunk
    calls = []

    def killed(self, number, chunk):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(number)
        return written(self, number, chunk)

    monkeypatch.setattr(Writer, "_write_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(name, path, folder="again")
    monkeypatch.setattr(Writer, "_write_chunk", written)
    again, summary_again, _ = prepare(name, path, folder="again")
    if name == "microlens":  # negatives are sampled by range of users
        for split in ("valid", "test"):
            summary_again.splits[split].cold = summary.splits[split].cold
    assert summary_again == summary
    for split in summary.splits:
        assert len(list((again / split).iterdir())) >= len(list((whole / split).iterdir()))
        rows = [pq.read_table(folder / split).to_pylist() for folder in (whole, again)]
        if name == "microlens":
            rows = [[row for row in part if row["label"] == 1] for part in rows]
        assert sorted(rows[0], key=str) == sorted(rows[1], key=str)
    others = [file.relative_to(whole) for file in whole.glob("*.parquet")]
    assert all((whole / file).read_bytes() == (again / file).read_bytes() for file in others)
    assert not (again / ".scratch").exists()


@pytest.mark.parametrize("name", READERS)
def test_missing_files_are_named(name, prepare, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MissingFileError, match=str(empty)):
        prepare(name, empty)


#: Last interactions of a user that are in later splits.
UNSEEN = {"train": 2, "valid": 1, "test": 0}


def test_microlens(microlens, prepare, read_split, values_of):
    folder, summary, _ = prepare("microlens", microlens, max_len=3)
    with (microlens / "MicroLens-100k_pairs.csv").open() as stream:
        events = [tuple(int(row[key]) for key in ("user", "timestamp", "item")) for row in csv.DictReader(stream)]
    liked: dict[int, list[int]] = {}
    for user, _, item in sorted(events):
        liked.setdefault(user, []).append(item)
    expected = {"train": [], "valid": [], "test": []}
    for user, items in liked.items():
        for place, item in enumerate(items):
            left = len(items) - place
            split = "train" if len(items) < 3 or left > 2 else ("test", "valid")[left - 1]
            expected[split].append((user, item, items[:place][-3:]))
    for split, wanted in expected.items():
        rows = read_split(folder, split)
        found = [(row["user_id"], row["item_id"], row["item_seq"]) for row in rows if row["label"] == 1]
        assert sorted(found) == sorted(wanted)
        assert len(rows) == 2 * len(wanted)
        clicked = {user: items[: len(items) - UNSEEN[split] * (len(items) > 2)] for user, items in liked.items()}
        sampled = [(row["user_id"], row["item_id"]) for row in rows if row["label"] == 0]
        assert all(item not in clicked[user] for user, item in sampled)
        assert {item for _, item in sampled} <= {item for _, item, _ in wanted}
    table = pq.read_table(folder / "items.parquet").to_pylist()
    assert table[0]["item_title"] == 'Wow, a "title" ☃ 1'
    likes = values_of(folder, "likes_level")
    assert likes[table[1]["likes_level"]] == "3"  # 100 likes
    assert table[39]["likes_level"] == 0  # the item that the counts lack
    values = np.load(next(microlens.rglob("*image_features*.npy")))
    assert np.array_equal(np.stack(pq.read_table(folder / "image_emb.parquet")["image_emb"].to_numpy()), values)
    assert summary.coverage == {"text_emb": 1.0, "image_emb": 1.0}


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
    assert summary.splits["test"].cold == 2
    titles = pq.read_table(folder / "items.parquet")["item_title"].to_pylist()
    assert titles == ['PGA "Tour winners', "Über uns", "Three", "Pie"]


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


def test_kuairand(kuairand, prepare, read_split, values_of):
    folder, summary, _ = prepare("kuairand", kuairand, max_len=4)
    log = []
    for path in sorted(kuairand.rglob("log_standard_*.csv")):
        with path.open() as stream:
            log += [{k: int(v) for k, v in row.items()} for row in csv.DictReader(stream)]
    # 23 days of 20 rows: 3 days are a tenth, 5 days a fifth of the rows.
    tabs = values_of(folder, "tab")
    for split, days in (("train", range(8, 26)), ("valid", range(26, 28)), ("test", range(28, 31))):
        expected = []
        for row in log:
            if row["date"] % 100 in days:
                earlier = [
                    (other["time_ms"], other["video_id"])
                    for other in log
                    if other["user_id"] == row["user_id"] and other["time_ms"] < row["time_ms"] and other["is_click"]
                ]
                # Clicks of one moment have no order.
                times = sorted(time for time, _ in earlier)[-4:]
                expected.append((row["user_id"], row["video_id"], row["is_click"], row["is_like"], row["tab"], times))
        rows = read_split(folder, split)
        clicked: dict[tuple[int, int], list[int]] = {}
        for other in log:
            if other["is_click"]:
                clicked.setdefault((other["user_id"], other["video_id"]), []).append(other["time_ms"])
        assert len(rows) == len(expected)
        found = sorted((r["user_id"], r["item_id"], r["is_click"], r["is_like"], int(tabs[r["tab"]])) for r in rows)
        assert found == sorted(row[:5] for row in expected)
        lengths = sorted((r["user_id"], len(r["item_seq"])) for r in rows)
        assert lengths == sorted((row[0], len(row[5])) for row in expected)
        assert all(clicked.get((row["user_id"], item)) for row in rows for item in row["item_seq"])
    items = pq.read_table(folder / "items.parquet").to_pylist()
    tags = values_of(folder, "tag")
    assert [[tags[tag] for tag in item["tag"]] for item in items[:3]] == [["12", "65"], ["3"], []]
    assert values_of(folder, "fans_user_num_range") == {1: "[100,1k)"}
    assert pq.read_schema(folder / "train" / "part-00000.parquet").names[-8:-7] == ["is_click"]
    assert summary.users == 12


def test_taobao_mm(taobao_mm, prepare, read_split):
    folder, summary, _ = prepare("taobao-mm", taobao_mm, max_len=5)
    items = set(pq.read_table(folder / "items.parquet")["source_id"].to_pylist())
    found = {split: read_split(folder, split) for split in summary.splits}
    for split in ("train", "test"):
        users = {row["129_1"]: row for row in pq.read_table(taobao_mm / f"{split}_user_features.parquet").to_pylist()}
        samples = pq.read_table(taobao_mm / f"{split}_samples.parquet").to_pylist()
        expected = {"train": [], "valid": [], "test": []}
        for row in samples:
            history = [item for item in users[row["129_1"]]["150_2_180"] if item in items][-5:]
            part = "valid" if split == "train" and row["129_1"] % 100 == 0 else split
            expected[part].append((row["129_1"], row["205"], history, row["label_0"][1]))
        for part, wanted in expected.items():
            if part == split or (split == "train" and part == "valid"):
                rows = [(row["user_id"], row["item_id"], row["item_seq"], row["label"]) for row in found[part]]
                assert sorted(rows, key=str) == sorted(wanted, key=str)
    stored = pq.read_table(folder / "scl_emb.parquet")
    original = pq.read_table(taobao_mm / "scl_embedding_int8_p90.parquet")["205_c"].to_pylist()
    assert stored["scl_emb"].to_pylist() == original
    assert str(stored.schema.field("scl_emb").type.value_type) == "int8"
    assert summary.coverage == {"scl_emb": 20 / 30}
    assert sum(split.unknown_items for split in summary.splits.values()) > 0


@pytest.mark.parametrize("form", ["{name}-{part:05d}-of-00012.parquet", "{name}/part-{part}.parquet"])
def test_taobao_shards_are_read_as_one_file(taobao_mm, prepare, read_split, form):
    folder, summary, _ = prepare("taobao-mm", taobao_mm, max_len=5)
    expected = {split: read_split(folder, split) for split in summary.splits}
    vectors = pq.read_table(folder / "scl_emb.parquet")
    for path in list(taobao_mm.glob("*.parquet")):
        table = pq.read_table(path)
        for part in range(12):
            file = taobao_mm / form.format(name=path.stem, part=part)
            file.parent.mkdir(exist_ok=True)
            start, stop = (len(table) * n // 12 for n in (part, part + 1))
            pq.write_table(table.slice(start, stop - start), file)
        path.unlink()
    other, summary, _ = prepare("taobao-mm", taobao_mm, folder="other", max_len=5)
    assert {split: read_split(other, split) for split in summary.splits} == expected
    assert pq.read_table(other / "scl_emb.parquet").equals(vectors)
    pq.write_table(table, taobao_mm / f"{path.stem}.parquet")
    with raises_naming(ConfigError, f"{path.stem}.parquet"):
        prepare("taobao-mm", taobao_mm, folder="again")


def test_longctr(longctr, prepare, read_split, values_of):
    folder, _, _ = prepare("longctr", longctr, max_len=4)
    sequences = pq.read_table(longctr / "user_info.parquet")["full_item_seq"].to_pylist()
    for split in ("train", "valid", "test"):
        expected = [
            (row["user_index"], row["item_index"], sequences[row["user_index"]][: row["seq_len"]][-4:], row["is_click"])
            for row in pq.read_table(longctr / f"{split}.parquet").to_pylist()
        ]
        rows = read_split(folder, split)
        assert [(r["user_id"], r["item_id"], r["item_seq"], r["is_click"]) for r in rows] == expected
    items = pq.read_table(folder / "items.parquet").to_pylist()
    info = pq.read_table(longctr / "item_info.parquet").to_pylist()[1:]
    code, topic = values_of(folder, "item_code"), values_of(folder, "topics")
    assert [code[item["item_code"]] for item in items] == [row["item_id"] for row in info]
    assert [[topic[t] for t in item["topics"]] for item in items] == [[t for t in row["topics"] if t] for row in info]
    entry = load_yaml(folder / "dataset_config.yaml")[folder.name]
    types = {feature["name"]: feature["type"] for feature in entry["feature_cols"]}
    assert types["item_id"] == "meta"
    assert types["image_emb_dim64"] == "embedding"
    # A value that training does not have is unknown.
    known = set(values_of(folder, "device_type").values())
    devices = pq.read_table(folder / "test")["device_type"].to_pylist()
    raw = pq.read_table(longctr / "test.parquet")["device_type"].to_pylist()
    assert [device == 0 for device in devices] == [value not in known for value in raw]


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


def test_another_source_or_option_is_refused(microlens, prepare):
    prepare("microlens", microlens)
    with pytest.raises(ConfigError, match="max_len"):
        prepare("microlens", microlens, max_len=7)
    path = microlens / "MicroLens-100k_likes_and_views.txt"
    path.write_text(path.read_text() + "40\t1\t1\n")
    with pytest.raises(ConfigError, match="files"):
        prepare("microlens", microlens)


def test_a_folder_of_others_is_left_alone(microlens, prepare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        prepare("microlens", microlens)


def test_an_item_twice_is_refused(kuairand, prepare):
    path = next(kuairand.rglob("video_features_basic_pure.csv"))
    path.write_text(path.read_text() + "3,1,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,98,4,\n")
    with pytest.raises(DataError, match="3 occurs"):
        prepare("kuairand", kuairand)


def test_kuairand_names_the_log_and_the_value_that_cannot_be_read(kuairand, prepare):
    path = next(kuairand.rglob("log_standard_4_22*.csv"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1].replace(lines[-1].split(",")[1], "video", 1)]) + "\n")
    with raises_naming(DataError, path.name, "video"):
        prepare("kuairand", kuairand)


@pytest.mark.parametrize("name", READERS)
def test_users_of_all_splits_are_apart(name, source, prepare, read_split):
    folder, summary, _ = prepare(name, source(name))
    users = {split: {row["user_id"] for row in read_split(folder, split)} for split in summary.splits}
    assert all(users.values())
    assert not any(None in known for known in users.values())


@pytest.mark.parametrize("name", READERS)
def test_two_datasets_in_one_folder_are_refused(name, source, prepare, tmp_path):
    path = source(name)
    both = tmp_path / "both"
    for folder in ("one", "two"):
        shutil.copytree(path, both / folder)
    with raises_naming(ConfigError, str(both)):
        prepare(name, both)


def test_hidden_copies_are_no_second_dataset(microlens, prepare):
    (microlens / "__MACOSX").mkdir()
    (microlens / "__MACOSX" / "._MicroLens-100k_pairs.csv").write_bytes(bytes(8))
    assert prepare("microlens", microlens)[1].splits["train"].rows


def test_events_of_another_source_are_not_used_again(kuairand, prepare, tmp_path):
    stale = tmp_path / "out" / ".scratch" / "users"
    stale.mkdir(parents=True)
    (stale / "bucket-0000.parquet").write_bytes(b"of another source")
    _, summary, _ = prepare("kuairand", kuairand)
    assert sum(split.rows for split in summary.splits.values()) == 460


def test_tabs_are_those_of_training(kuairand, prepare, read_split, values_of):
    path = next(kuairand.rglob("log_standard_4_22*.csv"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ",14"]) + "\n")
    folder, _, _ = prepare("kuairand", kuairand)
    assert set(values_of(folder, "tab").values()) == {"0", "1", "2"}
    assert 0 in {row["tab"] for row in read_split(folder, "test")}


def test_an_item_without_an_id_is_refused(mind, prepare):
    path = mind / "MINDsmall_train" / "news.tsv"
    path.write_text("\tsports\tgolf\tNone\tText\thttps://x\t[]\t[]\n" + path.read_text())
    with raises_naming(DataError, str(mind), "item 0"):
        prepare("mind", mind)


def test_longctr_names_embeddings_of_several_lengths(longctr, prepare):
    path = longctr / "item_info.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("image_emb_dim64")
    values = table[column].to_pylist()
    values[4] = None
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array([values])[0].values), path)
    assert prepare("longctr", longctr)[1].coverage == {"image_emb_dim64": 18 / 19}
    values[5] = values[5][:2]
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array([values])[0].values), path)
    with raises_naming(DataError, "item_info.parquet", "image_emb_dim64"):
        prepare("longctr", longctr, folder="other")


def test_taobao_users_without_features_are_said_and_twice_refused(taobao_mm, prepare, caplog):
    path = taobao_mm / "test_user_features.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with caplog.at_level("WARNING"):
        _, summary, _ = prepare("taobao-mm", taobao_mm)
    assert summary.splits["test"].rows + summary.splits["test"].left_out == 3
    assert "3 samples" in caplog.text
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
    with raises_naming(DataError, "test_user_features.parquet", "-20"):
        prepare("taobao-mm", taobao_mm, folder="other")


@pytest.mark.parametrize("damage", ["text", "lengths", "columns"])
def test_rows_that_cannot_be_read_are_no_traceback(amazon_electronics, prepare, damage):
    path = amazon_electronics / "train.csv"
    text = path.read_text()
    line = {"text": "1,7,none,1,2,1", "lengths": "1,7,2,1,2^3,1"}.get(damage)
    path.write_text(text + f"{line}\n" if line else text.replace("cate_history", "history", 1))
    with raises_naming(DataError, str(amazon_electronics)):
        prepare("amazon-electronics", amazon_electronics)


def test_a_full_disk_is_said_and_another_start_goes_on(microlens, prepare, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "_write_chunk", full)
        with raises_naming(UserError, "No space left"):
            prepare("microlens", microlens)
    assert prepare("microlens", microlens)[1].splits["train"].rows > 0
