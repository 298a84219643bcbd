"""The command on clean, damaged and missing data: what it prints and how it ends."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.check_data import title_faults
from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.checks import CHECKS
from fuxictr_mm.check_data.clean import clean_folder
from fuxictr_mm.cli import main
from tests.arrow import write_partitions

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
    answer = json.loads((tmp_path / "r.json").read_text())
    assert answer["counts"]["error"] == answer["counts"]["warning"] == 0
    assert answer["cleaned"]["actions"] == []
    assert answer["not_checked"] == ["test_labelled.parquet"]
    for name, fraction in answer["measures"]["without_history"].items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{name}: ")]
        cold = answer["measures"]["cold_fraction"].get(name)
        assert f"{fraction:.1%}" in line
        assert cold is None or f"{cold:.1%}" in line
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["EMPTY"], "train.parquet"),
        (["DIR", "--only", "mojibak"], "'mojibake'"),
        (["DIR", "--only", "mojibake", "--skip", "mojibake", "unreadable"], "--skip"),
        (["DIR", "--title-column", "name"], "'name'"),
        (["DIR", "--text-column", "txt"], "--text-column"),
        (["DIR", "--language", "xx"], "'xx'"),
        (["DIR", "--max-examples", "-1"], "-1"),
        (["DIR", "--clean", "DIR"], "--clean"),
        (["DIR", "--clean", "DIR/below"], "--clean"),
        (["DIR", "--report", "DIR"], "DIR"),
    ],
)
def test_errors_of_the_user_are_one_line(folder, tmp_path, capsys, arguments, named):
    (tmp_path / "empty").mkdir()
    assert run(*[a.replace("DIR", str(folder)).replace("EMPTY", str(tmp_path / "empty")) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert named.replace("DIR", str(folder)) in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_truncated_file_is_a_finding_and_is_not_copied(folder, tmp_path, capsys):
    path = folder / "item_info.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    assert run(folder, *FAST, "--clean", tmp_path / "out", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert ("unreadable", path.name) in {(f["check"], f["file"]) for f in answer["findings"]}
    assert {a["done"] for a in answer["cleaned"]["actions"] if a["file"] == path.name} == {"not copied"}
    assert not (tmp_path / "out" / "item_info.parquet").exists()


def test_an_unreadable_file_is_found_whatever_else_is_asked(folder, capsys):
    (folder / "train.parquet").write_bytes(b"no parquet")
    assert run(folder, "--only", "label-drift", "--json") == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["check"], finding["file"]) == ("unreadable", "train.parquet")


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


def test_the_share_of_cold_targets_is_always_given(folder, capsys):
    run(folder, "--json")
    expected = json.loads(capsys.readouterr().out)["measures"]["cold_fraction"]
    assert list(expected) == ["valid", "test"]
    assert run(folder, "--only", "mojibake", "--json") == 0
    assert json.loads(capsys.readouterr().out)["measures"]["cold_fraction"] == expected
    run(folder, "--only", "mojibake")
    assert f"valid: {expected['valid']:.1%} of the targets without a training row" in capsys.readouterr().out


def test_part_files_and_hive_partitions_are_checked_as_one_file(folder, tmp_path):
    parts = tmp_path / "parts"
    for split in ("train", "valid", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        users, items = table["user_id"].to_numpy() % 40, table["item_id"].to_numpy().copy()
        items[[5, 77]] = 999_999
        columns = {name: table[name] for name in table.column_names} | {"user_id": users, "item_id": items}
        pq.write_table(write_partitions(pa.table(columns), "user_id", parts / split), folder / f"{split}.parquet")
    for name in ("item_info", "item_emb"):
        table = pq.read_table(folder / f"{name}.parquet")
        (parts / name).mkdir()
        for part, rows in enumerate((slice(0, 400), slice(400, 400), slice(400, None))):
            pq.write_table(table[rows], parts / name / f"part-{part}.parquet")
    for name in ("item_feature", "test_labelled"):
        (folder / f"{name}.parquet").unlink()
    one = check_folder(folder)[0]
    several, layout = check_folder(parts)
    assert one.measures == several.measures
    findings = [json.dumps([finding.to_dict() for finding in report.findings()]) for report in (one, several)]
    assert findings[0].replace(".parquet", "") == findings[1]
    assert "unknown-target" in {finding.check for finding in several.findings()}
    clean_folder(layout, several, tmp_path / "clean")
    cleaned, rows = pq.read_table(tmp_path / "clean" / "train.parquet"), pq.read_table(folder / "train.parquet")
    assert set(cleaned["user_id"].to_pylist()) == set(range(40))
    assert cleaned.num_rows == rows.num_rows - 2


def test_checks_of_titles_are_left_out_without_their_libraries(folder, capsys, caplog, monkeypatch):
    """Of a base install; a check that is asked for by name is an error."""
    monkeypatch.setitem(sys.modules, "ftfy", None)
    monkeypatch.setattr("fuxictr_mm.check_data.titles._is_installed", lambda library: library != "ftfy")
    monkeypatch.setattr("fuxictr_mm.check_data.title_faults._decoded", title_faults._decoded.__wrapped__)
    titles_of = pq.read_table(folder / "item_feature.parquet")
    column = titles_of.schema.get_field_index("item_title")
    broken = pa.array(["", *titles_of["item_title"].to_pylist()[1:]])
    pq.write_table(titles_of.set_column(column, "item_title", broken), folder / "item_feature.parquet")
    assert run(folder, "--json", *FAST) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in answer["findings"] if finding["severity"] == "warning"] == ["empty-title"]
    left_out = [f"item_feature.parquet: item_title ({name})" for name in ("mojibake", "lost-character")]
    assert answer["not_checked"] == ["test_labelled.parquet", *left_out]
    (record,) = caplog.records
    assert "fuxictr-mm[quality]" in record.getMessage()
    assert run(folder, "--only", "mojibake", "--quiet") == 2
