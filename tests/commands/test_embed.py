import json
import logging
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main


@pytest.fixture
def features(tmp_path):
    random = np.random.default_rng(0)
    columns = {name: random.normal(size=(40, width)).tolist() for name, width in (("txt", 6), ("img", 8))}
    path = tmp_path / "features.parquet"
    pq.write_table(pa.table({"item_id": np.arange(1, 41), **columns}), path)
    return path


def run(*arguments):
    main(["embed", *map(str, arguments)])


@pytest.mark.parametrize("stage", ["encode", "reduce", "quantize", "align", "pretrain"])
def test_help_of_a_stage_ends_with_an_example_and_has_the_shared_options(stage, capsys):
    with pytest.raises(SystemExit) as ended:
        run(stage, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"\nexamples:\n  fuxictr-mm embed {stage} " in shown
    assert shown.splitlines()[-1].lstrip().startswith("--")
    for option in ("--json ", "--quiet ", "--overwrite "):
        assert option in shown
    options = re.findall(r"(?m)^  (--\S+)", shown)
    assert not [option for option in options if "_" in option]


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("reduce --dim 4", "strategies"),
        ("quantize --codes 4 --levels 2", "codes_rq_text"),
        ("align --dim 4 --steps 1 --hidden 0", "columns"),
    ],
)
def test_json_is_one_document_and_quiet_prints_nothing(stage, key, features, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # those of other tests write to streams that are closed
    if stage.startswith("quantize"):
        pytest.importorskip("faiss")
    ids = np.arange(1, 41)
    near = pa.table({"item_id": ids, "neighbors": (ids % 40 + 1)[:, None].tolist(), "scores": [[1.0]] * 40})
    pq.write_table(near, tmp_path / "near.parquet")
    more = ["--neighbors", tmp_path / "near.parquet"] if stage.startswith("align") else []
    for option in ("--json", "--quiet"):
        name, *options = stage.split()
        run(name, f"text={features}:txt", *options, *more, "--out", tmp_path / f"{option}.parquet", option)
        shown = capsys.readouterr()
        assert shown.err == ""
        if option == "--quiet":
            assert shown.out == ""
        else:
            assert key in json.loads(shown.out)


def test_the_stages_help_names_every_method(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        run("--help")
    assert "VQ, RQ, PQ, OPQ, VQ-VAE" in capsys.readouterr().out


def test_reduce_prints_the_report_and_the_lines_to_paste(features, tmp_path, capsys):
    report = tmp_path / "report.json"
    names = [f"text={features}:txt", f"image={features}:img"]
    run("reduce", *names, "--dim", 4, "--out", tmp_path / "e.parquet", "--report", report)
    shown = capsys.readouterr().out
    assert "item_emb_v3  PCA(text, image)        4" in shown
    assert "item_emb_v4  PCA(text) + PCA(image)  2 + 2" in shown
    assert "- {name: item_emb_v4, active: False, dtype: float, type: embedding, source: item, pretrain_dim: 4}" in shown
    kept = [s["kept"] for s in json.loads(report.read_text())["strategies"]]
    assert all(0 < share < 1 for share in kept)
    reducer = tmp_path / "e.reducer.safetensors"
    new = tmp_path / "new.parquet"
    table = pq.read_table(features).slice(0, 30)
    pq.write_table(table.set_column(1, "txt", pa.array([[0.0] * 6] * 2 + table["txt"].to_pylist()[2:])), new)
    run("reduce", f"text={new}:txt", f"image={new}:img", "--apply", reducer, "--out", tmp_path / "new_e.parquet")
    shown = capsys.readouterr().out
    assert shown.startswith(f"30 items reduced by {reducer}\n  2 ")
    assert "40 items of the fit" in shown
    assert "modality" not in shown  # nothing that reads as a report of the new items
    run("reduce", *names, "--apply", reducer, "--out", tmp_path / "again.parquet", "--quiet")
    assert capsys.readouterr().out == ""
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(tmp_path / "e.parquet"))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["{f}:txt"], "e.parquet"),
        (["{f}:tx", "--overwrite"], "'txt'"),
        (["{f}", "--overwrite"], "NAME=FILE:COLUMN"),
        (["{f}:txt", "--dim", "7", "--overwrite"], "7 components of 'txt'"),
        (["{f}:txt", "--apply", "x", "--dim", "3"], "--dim"),
        (["{f}:txt", "--apply", "{f}", "--overwrite"], "features.parquet"),
        (["{f}:txt", "--memory", "-1", "--overwrite"], "--memory is -1"),
        (["{f}:txt", "--memory", "0", "--overwrite"], "--memory is 0"),
        (["{f}:txt", "--prefix", "", "--overwrite"], "prefix ''"),
        (["{f}:txt", "--prefix", "a/b", "--overwrite"], "prefix 'a/b'"),
        (["{f}:txt", "--strategies", "v3", "--overwrite"], "'v3'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(features, tmp_path, capsys, arguments, value):
    (tmp_path / "e.parquet").write_text("old")
    filled = [argument.format(f=features) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        run("reduce", *filled, "--out", tmp_path / "e.parquet", "--quiet")
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert value in shown
    assert shown.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet", "features.parquet"]
    assert (tmp_path / "e.parquet").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["reduc"], "did you mean 'reduce'"),
        (["reduce", "t=a:b", "--out", "x", "--dimm", "4"], "did you mean '--dim'"),
        (["quantize", "t=a:b", "--out", "x", "--method", "rqq"], "did you mean 'rq'"),
        (["align", "t=a:b", "--out", "x", "--step", "many"], "'many'"),
        (["encode", "--model", "m"], "--out"),
    ],
)
def test_what_is_mistyped_is_one_line(arguments, value, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert value in shown
    assert shown.count("\n") == 1


def test_item_files_of_another_encoding(tmp_path, monkeypatch):
    from fuxictr_mm.commands.embed import encode
    from fuxictr_mm.embeddings.encode import EncodeReport
    from fuxictr_mm.embeddings.item_files import read_ids
    from fuxictr_mm.embeddings.texts import ItemTexts, default_template

    path, found = tmp_path / "items.csv", {}
    path.write_bytes("sku,title,größe\nä1,Käse,2\nb2,Öl,3\n".encode("cp1252"))

    def encode_texts(path, out, options, template):
        template = default_template(path, options.encoding)
        items = options.numbering.items.values.to_pylist()
        read = ItemTexts(path, template, options.numbering, options.encoding)
        found["texts"] = dict(zip(items, next(read.chunks(9)), strict=True))
        assert read_ids(path, options.numbering, options.encoding).tolist() == [1, 2]
        return EncodeReport(str(out), "v", 1, 2, {})

    monkeypatch.setattr(encode, "encode_texts", encode_texts)
    given = ("encode", "--texts", path, "--model", "x/y", "--out", tmp_path / "out.parquet", "--roles", "target=sku")
    run(*given, "--quiet", "--encoding", "cp1252")
    assert found["texts"] == {"ä1": "Käse", "b2": "Öl"}
    with pytest.raises(SystemExit) as ended:
        run(*given, "--quiet", "--encoding", "cp-none")
    assert ended.value.code == 2
