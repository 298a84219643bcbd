"""The command on clean, damaged and missing data: what it prints and how it ends."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.checks import CHECKS
from fuxictr_mm.cli import main

FAST = ["--skip", "foreign-title", "modalities-disagree", "near-duplicate-vector"]


@pytest.fixture
def folder(make_copy, tmp_path):
    tiny = Path(__file__).parents[2] / "data" / "tiny_mm"
    return shutil.copytree(tiny, tmp_path / "data")


def run(*arguments):
    try:
        main(["check-data", *map(str, arguments)])
    except SystemExit as ended:
        return ended.code
    return 0


def test_clean_data_has_no_findings_but_infos(folder, tmp_path, capsys):
    assert run(folder, "--report", tmp_path / "r.json", "--clean", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "0 errors, 0 warnings" in printed
    assert "not checked: test_labelled.parquet" in printed
    answer = json.loads((tmp_path / "r.json").read_text())
    assert answer["counts"]["error"] == answer["counts"]["warning"] == 0
    assert answer["cleaned"]["actions"] == []
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such folder"),
        (["DIR", "--only", "mojibak"], "there is no check 'mojibak'; did you mean 'mojibake'?"),
        (["DIR", "--only", "mojibake", "--skip", "mojibake", "unreadable"], "leave no check to run"),
        (["DIR", "--title-column", "name"], "no item file has a column 'name'"),
        (["DIR", "--text-column", "txt"], "no item file has vectors of both"),
        (["DIR", "--language", "xx"], "'xx' is no language code"),
        (["DIR", "--max-examples", "-1"], "expected 0 or more"),
        (["DIR", "--clean", "DIR"], "is there already"),
        (["DIR", "--report", "DIR"], "is a folder"),
    ],
)
def test_errors_of_the_user_are_one_line(folder, capsys, arguments, message):
    assert run(*[str(folder) if a == "DIR" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_help_ends_with_an_example(capsys):
    assert run("--help") == 0
    assert capsys.readouterr().out.endswith("--clean data/MicroLens_1M_clean\n")


def test_empty_folder(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert "holds none of train.parquet" in capsys.readouterr().err


def test_truncated_file_is_a_finding_and_is_not_copied(folder, tmp_path, capsys):
    path = folder / "item_info.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    assert run(folder, *FAST, "--clean", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "unreadable" in printed
    assert "item_info.parquet: not copied" in printed
    assert not (tmp_path / "out" / "item_info.parquet").exists()


def test_an_unreadable_file_is_found_whatever_else_is_asked(folder, capsys):
    (folder / "train.parquet").write_bytes(b"no parquet")
    assert run(folder, "--only", "label-drift") == 1
    assert "cannot be read as Parquet" in capsys.readouterr().out


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(["train", "item_feature", "valid"]), share=st.floats(0, 1), flip=st.booleans())
def test_damaged_bytes_never_end_in_a_traceback(tmp_path_factory, name, share, flip):
    tiny = Path(__file__).parents[2] / "data" / "tiny_mm"
    folder = tmp_path_factory.mktemp("damaged")
    for file in (name, "item_info"):
        shutil.copy(tiny / f"{file}.parquet", folder)
    path = folder / f"{name}.parquet"
    data = bytearray(path.read_bytes())
    place = int(share * (len(data) - 1))
    if flip:
        data[place : place + 16] = b"\xff" * len(data[place : place + 16])
    else:
        del data[place:]
    path.write_bytes(bytes(data))
    skipped = {"foreign-title", "modalities-disagree"}
    report, _ = check_folder(folder, set(CHECKS) - skipped)
    assert all("\n" not in finding.found for finding in report.findings())


@pytest.mark.parametrize("file", ["train", "valid", "test", "item_info", "item_feature", "item_emb"])
@pytest.mark.parametrize("damage", ["text", "dropped", "no rows", "null type"])
def test_columns_of_wrong_types_missing_columns_and_empty_files(folder, file, damage):
    path = folder / f"{file}.parquet"
    table = pq.read_table(path)
    column = {"item_feature": "item_title"}.get(file, "item_id")
    place = table.schema.get_field_index(column)
    if damage == "text":
        table = table.set_column(place, column, pa.array(["7"] * len(table)))
    elif damage == "null type":
        table = table.set_column(place, column, pa.nulls(len(table)))
    elif damage == "dropped":
        table = table.drop_columns([column])
    else:
        table = table.slice(0, 0)
    pq.write_table(table, path)
    report, _ = check_folder(folder, set(CHECKS) - {"foreign-title", "modalities-disagree", "near-duplicate-vector"})
    found = {(f.check, f.file) for f in report.findings() if f.severity != "info"}
    expected = {"text": "column-type", "null type": "column-type", "dropped": "missing-column", "no rows": "empty-file"}
    if column == "item_title" and damage in ("text", "dropped"):
        return  # titles of one text; titles may lack
    assert (expected[damage], path.name) in found


def test_columns_of_one_name(folder):
    table = pq.read_table(folder / "valid.parquet")
    pq.write_table(table.append_column("label", table["label"]), folder / "valid.parquet")
    report, _ = check_folder(folder, ["unreadable", "bad-label"])
    (finding,) = report.findings()
    assert "several columns are named label" in finding.found


def test_half_precision_large_lists_and_nulls_are_read(folder, copy, tmp_path):
    feature = pq.read_table(folder / "item_feature.parquet")
    vectors = [np.array(v, dtype=np.float16) for v in feature["txt_emb_BERT"].to_pylist()]
    halves = [*vectors[:-1], None]
    column = pa.array(halves, pa.large_list(pa.float16()))
    place = feature.schema.get_field_index("txt_emb_BERT")
    pq.write_table(feature.set_column(place, "txt_emb_BERT", column), folder / "item_feature.parquet")
    valid = copy["valid"]
    valid["item_seq"][5] = []
    copy.write(tmp_path / "lists")
    shutil.copy(tmp_path / "lists" / "valid.parquet", folder)
    report, _ = check_folder(folder, set(CHECKS) - {"foreign-title"})
    (finding,) = [f for f in report.findings() if f.severity != "info"]
    assert (finding.check, finding.rows.tolist(), finding.ids.tolist()) == ("vector-width", [999], [1000])


def test_the_document_names_every_check_with_its_severity():
    text = (Path(__file__).parents[2] / "docs" / "check_data.md").read_text(encoding="utf-8")
    for name, check in CHECKS.items():
        assert f"| `{name}` | {check.severity} |" in text, name


@pytest.mark.parametrize("options", [["--json"], ["--json", "--quiet"]])
def test_json_is_one_document_and_that_of_the_report(options, folder, tmp_path, capsys):
    (folder / "train.parquet").write_bytes(b"no parquet")
    arguments = ["--only", "label-drift", "--clean", tmp_path / "out", "--report", tmp_path / "r.json"]
    assert run(folder, *arguments, *options) == 1
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((tmp_path / "r.json").read_text())
    assert json.loads(printed)["counts"]["error"] == 1


def test_quiet_prints_nothing_and_ends_with_the_same_code(folder, tmp_path, capsys):
    (folder / "train.parquet").write_bytes(b"no parquet")
    assert run(folder, "--only", "label-drift", "--clean", tmp_path / "out", "--quiet") == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    assert (tmp_path / "out").is_dir()
