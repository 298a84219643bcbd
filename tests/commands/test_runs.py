"""The list of runs: order, filters, JSON, and what is broken."""

import csv
import io
import json

import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.runs import find_runs
from tests.errors import check_names, exits_naming


def show(capsys, *arguments):
    main(["runs", *map(str, arguments)])
    return capsys.readouterr().out


def test_newest_first(runs_root, capsys):
    lines = show(capsys, "--root", runs_root).splitlines()
    columns = ["valid AUC", "valid gAUC", "valid logloss", "test AUC"]
    assert [lines[0].index(name) for name in ("run", "experiment", "dataset", *columns, "seconds", "state")] == sorted(
        lines[0].index(name) for name in ("run", "experiment", "dataset", *columns, "seconds", "state")
    )
    assert [line.split()[0] for line in lines[1:]] == [run.run for run in find_runs(runs_root)]
    newest = find_runs(runs_root)[0]
    assert f"{newest.valid['AUC']:.4f}" in lines[1]
    assert lines[1].endswith("finished")


def test_a_table_in_another_form_has_the_same_runs(runs_root, capsys):
    rows = list(csv.DictReader(io.StringIO(show(capsys, "--root", runs_root, "--format", "csv"))))
    found = {run.run: run.valid["AUC"] for run in find_runs(runs_root)}
    assert {row["run"]: float(row["valid AUC"]) for row in rows} == found
    with exits_naming(capsys, "--format", "--json"):
        main(["runs", "--root", str(runs_root), "--format", "latex", "--json"])


def test_best_and_filters(runs_root, capsys):
    found = json.loads(show(capsys, "--root", runs_root, "--best", "AUC", "--json"))
    aucs = [run["valid"]["AUC"] for run in found]
    assert aucs == sorted(aucs, reverse=True)
    found = json.loads(show(capsys, "--root", runs_root, "--best", "logloss", "--last", 2, "--json"))
    assert len(found) == 2
    assert found[0]["valid"]["logloss"] == min(run.valid["logloss"] for run in find_runs(runs_root))
    assert {run["expid"] for run in json.loads(show(capsys, "--root", runs_root, "--model", "DIN", "--json"))} == {
        "DIN_tiny"
    }
    assert len(show(capsys, "--root", runs_root, "--dataset", "tiny_mm", "--expid", "DIN_tiny").splitlines()) == 5
    check_names(show(capsys, "--root", runs_root, "--expid", "DIN_tyny"), "--expid DIN_tyny", "'DIN_tiny'")
    assert json.loads(show(capsys, "--root", runs_root, "--expid", "DIN_tyny", "--json")) == []


def test_unfinished_and_broken_runs_stay_in_the_list(tmp_path, capsys):
    check_names(show(capsys, "--root", tmp_path), tmp_path)
    (tmp_path / "d" / "X" / "20260102-030405-seed7").mkdir(parents=True)
    (tmp_path / "d" / "X" / "notes").mkdir()
    unfinished = tmp_path / "d" / "X" / "20260102-030406-seed8"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("{model: M, seed: 8, model_id: X, dataset_id: d}")
    (unfinished / "environment.json").write_text("{}")
    lines = show(capsys, "--root", tmp_path).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["20260102-030406-seed8", "X", "d", "8", "unfinished"]
    assert lines[2].startswith("20260102-030405-seed7  X")
    assert "config.yaml" in lines[2]
    assert "none of the 2 runs" in show(capsys, "--root", tmp_path, "--finished")
    assert [run["seconds"] for run in json.loads(show(capsys, "--root", tmp_path, "--json"))] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--root", "nowhere"], ["nowhere", "--root"]),
        (["--last", "0"], ["--last is 0"]),
        (["--best", "AUc"], ["--best", "'AUc'", "'AUC'", "AUC, gAUC, logloss"]),
    ],
)
def test_bad_arguments(arguments, names, runs_root, capsys):
    with exits_naming(capsys, *names):
        main(["runs", *(["--root", str(runs_root)] if "--root" not in arguments else []), *arguments])


def test_json_has_null_for_what_is_no_number(tmp_path, capsys):
    folder = tmp_path / "d" / "X" / "20260102-030406-seed8"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{model: M, seed: 8, model_id: X, dataset_id: d}")
    (folder / "environment.json").write_text("{}")
    (folder / "result.json").write_text('{"valid": {"AUC": NaN}, "test": null, "seconds": 1, "parameters": NaN}')
    text = show(capsys, "--root", tmp_path, "--json")
    assert "NaN" not in text
    (run,) = json.loads(text)
    assert (run["valid"], run["parameters"]) == ({"AUC": None}, None)
