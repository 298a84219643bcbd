"""Ids of any kind: every stage computes the same, and writes the ids of the files."""

import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.config import Roles
from fuxictr_mm.embeddings.encode import ImageFiles, ItemTexts
from fuxictr_mm.embeddings.image_names import ImageNames
from fuxictr_mm.embeddings.numbering import find_numbering
from fuxictr_mm.embeddings.swing import Neighbors
from tests import ids as world
from tests.errors import exits_naming
from tests.paths import TINY

KINDS = [kind for kind in world.KINDS if kind != "sparse"]  # which stays as it is
ROLES = ["--roles", "target=article", "history=clicked", "user=uid"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same items and clicks with ids 1 to N, and with others: a folder each."""
    root = tmp_path_factory.mktemp("ids")
    item = pq.read_table(TINY / "item_feature.parquet").slice(0, 300)
    train = pq.read_table(TINY / "train.parquet")
    rows = [[i for i in row if 0 < i <= 300] for row in train["item_seq"].to_pylist()]
    train = world.put(train, "item_seq", pa.array(rows, pa.list_(pa.int64())))
    train = train.filter(pa.array(train["item_id"].to_numpy() <= 300))
    tables = {"items": item, "train": train}
    found = {"dense": root / "dense"}
    write(found["dense"], tables)
    for kind in KINDS:
        changed = world.with_ids(tables, world.KINDS[kind])
        users = pa.array([f"u{user:05}" for user in train["user_id"].to_pylist()])
        changed["train"] = world.put(changed["train"], "user_id", users)
        found[kind] = root / kind
        write(found[kind], world.renamed(changed, world.NAMES))
    return found


def write(folder, tables):
    folder.mkdir()
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=70)


def run(folder, stage, *words):
    """Run a stage on text and image embeddings; ``{}`` stands for the folder."""
    sources = [
        f"{name}={folder}/items.parquet:{column}" for name, column in (("t", "txt_emb_BERT"), ("i", "img_emb_CLIPRN50"))
    ]
    names = [] if folder.name == "dense" else list(ROLES)
    names += ["--ids", "vocabulary"] if folder.name == "from_zero" else []
    main(["embed", stage, *sources, *(word.format(folder) for word in words), *names, "--quiet"])
    return pq.read_table(folder / "out.parquet")


STAGES = {
    "reduce": ["--out", "{}/out.parquet", "--dim", "4", "--overwrite"],
    "quantize": ["--out", "{}/out.parquet", "--method", "rq", "--codes", "8", "--overwrite"],
    "neighbors": ["--out", "{}/out.parquet", "--method", "vq", "--codes", "8", "--neighbors", "3", "--overwrite"],
    "align": [
        *["--out", "{}/out.parquet", "--train", "{}/train.parquet", "--neighbors", "{}/near.parquet", "--overwrite"],
        *["--dim", "8", "--steps", "5", "--evaluate-every", "5"],
    ],
    "pretrain": [
        *["--out", "{}/out.parquet", "--train", "{}/train.parquet", "--save", "{}/unit.safetensors", "--overwrite"],
        *["--dim", "8", "--steps", "5", "--evaluate-every", "5"],
    ],
}


#: All kinds of ids by the quickest stage; the others have the same readers and writer.
CASES = [
    *(("reduce", kind) for kind in KINDS),
    ("quantize", "text"),
    ("neighbors", "uuid"),
    ("align", "uint64"),
    ("pretrain", "uuid"),
]


@pytest.mark.parametrize(("stage", "kind"), CASES)
def test_a_stage_computes_the_same_and_writes_the_ids(folders, stage, kind):
    if stage in ("quantize", "neighbors"):
        pytest.importorskip("faiss")
    words = STAGES[stage]
    command = "quantize" if stage == "neighbors" else stage
    expected, found = run(folders["dense"], command, *words), run(folders[kind], command, *words)
    ids = world.KINDS[kind]
    assert found["article"].to_pylist() == ids.slice(1, 300).to_pylist()
    assert expected["item_id"].to_pylist() == list(range(301))
    for name in expected.column_names[1:]:
        theirs = expected[name].slice(1).to_pylist()
        if name.startswith("neighbors"):
            theirs = [[ids[number].as_py() for number in row] for row in theirs]
        assert found[name].to_pylist() == theirs, name
    if stage == "pretrain":
        again = ["--out", "{}/again.parquet", "--apply", "{}/unit.safetensors", "--overwrite"]
        run(folders[kind], "pretrain", *again)
        assert pq.read_table(folders[kind] / "again.parquet").equals(found)
    if stage == "align":
        near, ours = (pq.read_table(folders[name] / "near.parquet") for name in ("dense", kind))
        assert ours["article"].to_pylist() == [ids[number].as_py() for number in near["item_id"].to_pylist()]
        assert ours["neighbors"].to_pylist() == [[ids[n].as_py() for n in row] for row in near["neighbors"].to_pylist()]
        again = [*words[:2], "--neighbors", "{}/near.parquet", *words[6:]]
        assert run(folders[kind], "align", *again).equals(found)


def test_files_of_h5_hold_integers_only(folders, tmp_path):
    pytest.importorskip("h5py")
    with pytest.raises(SystemExit) as stopped:
        run(folders["text"], "reduce", "--out", str(tmp_path / "x.parquet"), "--dim", "4", "--h5", str(tmp_path / "x"))
    assert stopped.value.code == 2
    assert not list(tmp_path.iterdir())


def test_texts_and_images_are_found_by_the_ids_of_the_files(tmp_path):
    ids = ["B07", "a-1", "C3"]
    table = {"asin": ids, "title": ["Heat", None, "Solaris"]}
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    with zipfile.ZipFile(tmp_path / "covers.zip", "w") as archive:
        for name in ("C3.jpg", "x/a-1.PNG", "other.jpg", "B07.txt"):
            archive.writestr(name, b"x")
    how = find_numbering([tmp_path / "items.parquet"], Roles(target="asin"))
    texts = ItemTexts(tmp_path / "items.parquet", "{title}", how)
    assert (texts.ids.tolist(), list(texts.chunks(9))) == ([1, 2, 3], [["Heat", None, "Solaris"]])
    with ImageFiles(tmp_path / "covers.zip", numbering=how) as images:
        assert sorted(images.ids.tolist()) == [2, 3]
        assert sorted(images.others) == ["B07.txt", "other.jpg"]
    assert how.ids(np.array([3, 0])).to_pylist() == ["C3", None]


def test_an_image_named_by_a_large_integer(tmp_path):
    pq.write_table(pa.table({"item_id": pa.array([2**63 + 5, 7], pa.uint64())}), tmp_path / "items.parquet")
    with zipfile.ZipFile(tmp_path / "covers.zip", "w") as archive:
        archive.writestr(f"{2**63 + 5}.jpg", b"x")
        archive.writestr("-7.jpg", b"x")
    how = find_numbering([tmp_path / "items.parquet"], Roles())
    with ImageFiles(tmp_path / "covers.zip", numbering=how) as images:
        assert images.ids.tolist() == [1]
        assert images.others == ["-7.jpg"]


def test_encoding_writes_and_reports_the_ids(tmp_path, capsys):
    pytest.importorskip("transformers")
    from tests.docs.models import save_text_model

    save_text_model(tmp_path / "model")
    titles = ["red fox", None, "heat"]
    pq.write_table(pa.table({"asin": ["B07", "A1", "C3"], "item_title": titles}), tmp_path / "items.parquet")
    words = ["--texts", str(tmp_path / "items.parquet"), "--model", str(tmp_path / "model"), "--column", "v"]
    main(["embed", "encode", *words, "--out", str(tmp_path / "out.parquet"), "--roles", "target=asin", "--json"])
    assert list(json.loads(capsys.readouterr().out)["missing"]) == ["A1"]
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["asin"].to_pylist() == ["B07", "A1", "C3"]
    assert out["txt_missing"].to_pylist() == [False, True, False]
    assert [bool(np.any(row)) for row in out["v"].to_pylist()] == [True, False, True]


def test_messages_of_an_encoding_name_the_id(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fuxictr_mm.embeddings.encode.require_extra", lambda *modules: None)
    monkeypatch.setattr("fuxictr_mm.embeddings.encode.TextEncoder", NoEncoder)
    pq.write_table(pa.table({"asin": ["B07", "A1"], "item_title": [None, "heat"]}), tmp_path / "items.parquet")
    words = ["--texts", str(tmp_path / "items.parquet"), "--model", "m", "--column", "v", "--roles", "target=asin"]
    with exits_naming(capsys, "asin A1"):
        main(["embed", "encode", *words, "--out", str(tmp_path / "out.parquet")])
    with exits_naming(capsys, "asin B07"):
        words += ["--template", "{empty}"]
        pq.write_table(pa.table({"asin": ["B07"], "empty": pa.array([None], pa.string())}), tmp_path / "items.parquet")
        main(["embed", "encode", *words, "--out", str(tmp_path / "none.parquet")])


class NoEncoder:
    """An encoder whose embeddings are not finite."""

    dim, prompt, settings = 2, "", {}

    def __init__(self, model):
        pass

    def encode(self, texts, advance):
        return np.full((len(texts), 2), np.nan, dtype=np.float32)


def test_neighbors_that_are_in_no_item_file_are_left_out(tmp_path):
    table = {"item_id": ["B07", "A1"], "neighbors": [["A1", "C3"], ["B07", "D4"]], "scores": [[2.0, 1.0], [1.0, 2.0]]}
    pq.write_table(pa.table(table), tmp_path / "near.parquet")
    near = Neighbors.read(tmp_path / "near.parquet", find_numbering([tmp_path / "near.parquet"], Roles()))
    assert near.items.tolist() == [1, 1, 2, 2]
    assert near.neighbors.tolist() == [2, 0, 0, 1]  # 0 is no item


def test_small_integers_stay_as_they_are():
    assert find_numbering([TINY / "item_info.parquet"], Roles()).items is None
    assert find_numbering(["nowhere"], Roles()).items is None


@pytest.mark.parametrize(
    ("ending", "ids", "expected"),
    [
        ("csv", "7,30", [7, 30]),
        ("csv", "007,5", [1, 2]),
        ("csv", f"{2**63},5", [1, 2]),
        ("tsv", "007,B1", [1, 2]),
        ("jsonl", "7,30", [7, 30]),
        ("jsonl", "007,B1", [1, 2]),
    ],
)
def test_items_of_text_files_are_numbered_as_those_of_parquet(tmp_path, ending, ids, expected):
    values, path = ids.split(","), tmp_path / f"items.{ending}"
    if ending == "jsonl":
        quote = json.dumps if "B1" in values else str
        path.write_text("".join(f'{{"asin": {quote(v)}, "title": "a, {v}", "cover": "{v}.gif"}}\n' for v in values))
    else:
        sep = "," if ending == "csv" else "\t"
        lines = [["asin", "title", "cover"], *([v, f'"a, {v}"', f"{v}.gif"] for v in values)]
        path.write_text("".join(sep.join(line) + "\n" for line in lines))
    how = find_numbering([path], Roles(target="asin"))
    texts = ItemTexts(path, "{title}", how)
    assert (texts.ids.tolist(), list(texts.chunks(9))) == (expected, [[f"a, {v}" for v in values]])
    names = ImageNames(path, "cover", how)
    assert names.ids.tolist() == expected
    assert names.items == {f"{v}.gif": [number] for v, number in zip(values, expected, strict=True)}
