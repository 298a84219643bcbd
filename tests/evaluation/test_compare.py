"""``fuxictr-mm compare``: which runs it selects, what it refuses, and the numbers it gives."""

import csv
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.commands.compare import as_dict
from fuxictr_mm.data.fingerprint import hash_files
from fuxictr_mm.errors import DataError
from fuxictr_mm.evaluation.compare import compare, compare_groups
from fuxictr_mm.evaluation.intervals import metric_of
from fuxictr_mm.runs import find_runs
from tests.errors import raises_naming
from tests.evaluation.conftest import change_data, change_rows, change_settings

NAMES = ("DIN_tiny", "DIN_MM_none_tiny")


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, arguments)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def compared(root, *names, samples=100):
    return as_dict(compare(names or NAMES, root, samples=samples))


def test_seeds_of_an_experiment_are_grouped(runs_root, capsys):
    arguments = ["compare", *NAMES, "--root", str(runs_root), "--samples", "200"]
    main([*arguments, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report == compared(runs_root, samples=200)
    runs = find_runs(runs_root, expid="DIN_tiny")
    assert (report["rows"], report["positives"]) == (3000, 1330)
    assert report["users"] == len(np.unique(runs[0].predictions()[2]))
    by_seed = {run["seed"]: run["auc"] for run in report["sides"][0]["runs"]}
    assert by_seed == pytest.approx({run.seed: run.valid["AUC"] for run in runs})  # the newest of two runs of seed 3
    assert "3 of 4 runs" in report["notes"][0]
    (pair,) = report["pairs"]
    mean = np.mean(list(by_seed.values())) - find_runs(runs_root, expid="DIN_MM_none_tiny")[0].valid["AUC"]
    assert pair["value"] == pytest.approx(mean)
    assert pair["better"] is None  # a single run tells nothing of seeds
    main(arguments)
    text = capsys.readouterr().out
    assert all(run["run"] in text for run in report["sides"][0]["runs"])
    assert all(part in text for part in (pair["verdict"], f"{pair['value']:+.4f}", *report["notes"]))
    main([*arguments, "--format", "csv"])
    table = capsys.readouterr()
    assert all(note in table.err for note in report["notes"])
    first, second = csv.DictReader(io.StringIO(table.out))
    assert (first["experiment"], float(first["AUC"])) == (NAMES[0], pytest.approx(report["sides"][0]["auc"]))
    assert float(second[f"minus {NAMES[0]}"]) == pytest.approx(-mean)
    main([*arguments, "--quiet"])
    assert capsys.readouterr().out == ""


def test_a_comparison_is_shown_by_its_conclusions(runs_root):
    comparison = compare(NAMES, runs_root, samples=100)
    shown = repr(comparison)
    assert shown == str(comparison)
    parts = [*NAMES, *comparison.notes, comparison.pairs[0].conclusion, f"{comparison.sides[0].mean:.4f}"]
    assert all(part in shown for part in parts)
    assert "array" not in shown


def test_single_seeds_are_judged_by_the_others(copy):
    one, two = sorted(find_runs(copy, expid="DIN_tiny"), key=lambda run: run.seed)[:2]
    (pair,) = compared(copy, one.run, two.run)["pairs"]
    assert pair["seeds"]["degrees"] == 2  # seed 3, once of its two runs, is the third
    for run in find_runs(copy, expid="DIN_tiny"):
        if run.seed == 3:
            change_rows(run, prediction=lambda p: np.where(np.arange(len(p)) == 5, np.nan, p).astype("f"))
    (pair,) = compared(copy, one.run, two.run)["pairs"]
    assert (pair["seeds"], pair["better"]) == (None, None)


def test_of_several_configurations_the_newest_is_compared(copy):
    newest = find_runs(copy, expid="DIN_tiny")[0]
    change_settings(newest, learning_rate=0.001)
    report = compared(copy)
    assert [run["run"] for run in report["sides"][0]["runs"]] == [newest.run]
    assert all(part in report["notes"][0] for part in ("DIN_tiny", "settings", "1 of 4 runs"))


@pytest.mark.parametrize(
    ("data", "kept"), [({"train_data": "other"}, {2}), ({"test_data": "other"}, {1, 2, 3}), ({}, {1, 2, 3})]
)
def test_seeds_of_other_data_are_no_seeds_of_the_newest(copy, data, kept):
    """A changed test split alone is no other training."""
    for run in find_runs(copy, expid="DIN_tiny"):
        change_data(run, **{"train_data": "one", "test_data": "one"} | ({} if run.seed == 2 else data))
    runs = find_runs(copy, expid="DIN_tiny")
    second = next(run for run in runs if run.seed == 2)
    assert {run.seed for run in runs if run.config_key == second.config_key} == kept
    assert len({run.config_key for run in runs}) == (1 if len(kept) == 3 else 2)


def test_runs_of_the_data_as_it_is_now_are_taken_before_newer_ones(copy, tmp_path):
    """As after a change of the data that was undone."""
    file = tmp_path / "train.parquet"
    file.write_text("now")
    now, newest = hash_files(file), find_runs(copy, expid="DIN_tiny")[0]
    for run in find_runs(copy, expid="DIN_tiny"):
        change_data(run, train_data="other" if run == newest else now)
        change_settings(run, train_data=str(file))
    report = compared(copy)
    assert {run["run"] for run in report["sides"][0]["runs"]}.isdisjoint({newest.run})
    assert {run["seed"] for run in report["sides"][0]["runs"]} == {1, 2, 3}
    assert all(part in report["notes"][0] for part in (newest.run, "train_data", str(file)))
    assert "train_data" in report["notes"][1]
    file.write_text("later")  # than all of them
    report = compared(copy)
    assert [run["run"] for run in report["sides"][0]["runs"]] == [newest.run]


def test_experiments_of_different_files_are_compared_with_a_note(copy):
    """Rows of the same labels and groups may be of other items, and may be the same rows in another format."""
    assert not any("contents" in note for note in compared(copy)["notes"])
    for run in find_runs(copy, expid="DIN_tiny"):
        change_data(run, **{**run.data, "train_data": "other", "valid_data": "other"})
    trained, evaluated = [note for note in compared(copy)["notes"] if "contents" in note]
    for setting, note in (("train_data", trained), ("valid_data", evaluated)):
        assert all(part in note for part in (*NAMES, setting, str(run.config[setting])))


def test_users_that_are_numbered_anew_are_the_same_users(copy):
    """As by a vocabulary that counts rows of another split; two users in one are others."""
    before = compared(copy)
    for run in find_runs(copy, expid="DIN_MM_none_tiny"):
        change_rows(run, group=lambda users: users ^ 1)
    assert (compared(copy)["rows"], len(compared(copy)["pairs"])) == (before["rows"], 1)
    for run in find_runs(copy, expid="DIN_MM_none_tiny"):
        change_rows(run, group=lambda users: users // 2)
    with pytest.raises(DataError):
        compared(copy)


def test_more_than_two_are_compared_with_the_best(copy):
    """Three planted ones, from the labels with noise of different size."""
    generator = np.random.default_rng(0)
    root = copy / "tiny_mm"
    for name, noise in (("A", 2.0), ("B", 0.5), ("C", 1.0)):
        shutil.copytree(root / "DIN_tiny", root / name)
        for run in find_runs(copy):
            if run.path.parent.name == name:
                config = (run.path / "config.yaml").read_text().replace("model_id: DIN_tiny", f"model_id: {name}")
                (run.path / "config.yaml").write_text(config.replace("epochs: 1", f"epochs: {ord(name)}"))
                label = run.predictions()[0]
                change_rows(
                    run, prediction=lambda p, y=label, n=noise: (y + n * generator.normal(size=len(p))).astype("f")
                )
    report = compared(copy, "A", "B", "C")
    assert [side["name"] for side in report["sides"]] == ["B", "C", "A"]
    assert [(pair["first"], pair["second"]) for pair in report["pairs"]] == [("B", "C"), ("B", "A"), ("C", "A")]
    for pair in report["pairs"]:
        assert pair["corrected_p"] >= pair["p_value"]
        assert pair["better"] == pair["first"]


def test_examples_without_groups_are_resampled_themselves(copy):
    for run in find_runs(copy):
        change_rows(run, group=None)
    report = compared(copy)
    assert report["users"] == report["rows"] == 3000
    assert any("group_id" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("columns", "found"), [({"label": "flip"}, "row 17"), ({"group": "flip"}, "groups differ"), ({}, "99 against 3000")]
)
def test_different_examples_are_refused(columns, found, copy, capsys):
    def flip(values):
        values[17] = 1 - values[17]
        return values

    (other,) = find_runs(copy, expid="DIN_MM_none_tiny")
    path = other.path / "valid_predictions.parquet"
    change_rows(other, **dict.fromkeys(columns, flip))
    if not columns:
        pq.write_table(pq.read_table(path).slice(0, 99), path)
    error = refusal(capsys, *NAMES, "--root", copy)
    assert str(other.path) in error
    assert found in error


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["DIN_tiny"], "DIN_tiny"),
        (["DIN_tiny", "NEWEST"], "both sides"),
        (["DIN_tiny", "DIN_tiny"], "both sides"),
        (["DIN_tiny", "DIN_tinny"], "did you mean 'DIN_tiny'"),
        ([*NAMES, "--samples", "5"], "--samples is 5"),
        ([*NAMES, "--seed", "-1"], "--seed is -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, found, runs_root, capsys):
    newest = find_runs(runs_root, expid="DIN_tiny")[0].run
    arguments = [newest if argument == "NEWEST" else argument for argument in arguments]
    assert found in refusal(capsys, *arguments, "--root", runs_root)


@pytest.mark.parametrize("content", [None, "a: [", "{}", "x: {1: 2, 1: 3}"])
def test_a_broken_run_is_left_out_with_a_note(content, copy):
    """A configuration that cannot be read is not a newer one."""
    newest = find_runs(copy, expid="DIN_tiny")[0]
    (newest.path / "config.yaml").unlink()
    if content is not None:
        (newest.path / "config.yaml").write_text(content)
    report = compared(copy)
    assert len(report["sides"][0]["runs"]) == 3
    assert any(newest.run in note and "config.yaml" in note for note in report["notes"])


def test_an_experiment_without_usable_runs_is_refused(copy, capsys):
    (run,) = find_runs(copy, expid="DIN_MM_none_tiny")
    change_rows(run, prediction=lambda p: p.astype(str))
    assert str(run.path) in refusal(capsys, *NAMES, "--root", copy)
    (run.path / "environment.json").write_text("[")
    assert "environment.json" in refusal(capsys, *NAMES, "--root", copy)
    assert run.run in refusal(capsys, "DIN_tiny", run.run, "--root", copy)
    assert str(copy) in refusal(capsys, "DIN_tiny", copy, "--root", copy)


def test_configurations_with_keys_that_cannot_be_sorted_are_compared(copy):
    for run in find_runs(copy):
        (run.path / "config.yaml").write_text((run.path / "config.yaml").read_text() + "x: {1: 2, b: 3}\n")
    assert len(compared(copy)["sides"][0]["runs"]) == 3


@pytest.mark.parametrize("without", NAMES)
def test_users_are_those_of_any_run_that_knows_them(without, copy):
    for run in find_runs(copy, expid=without):
        change_rows(run, group=None)
    report = compared(copy)
    assert report["users"] == len(np.unique(find_runs(copy, expid=(set(NAMES) - {without}).pop())[0].predictions()[2]))


def test_one_click_has_no_delong_error(copy, capsys):
    for run in find_runs(copy):
        change_rows(run, label=lambda label: (np.arange(len(label)) == 7).astype(label.dtype), group=None)
    main(["compare", *NAMES, "--root", str(copy), "--samples", "100"])
    report = compared(copy)
    assert report["pairs"][0]["delong_p"] is None
    assert {run["delong_error"] for side in report["sides"] for run in side["runs"]} == {None}


def regressions(make_run, **settings):
    """Two experiments on 200 rows of 40 users: ``near`` is twice as near to the labels as ``far``."""
    generator = np.random.default_rng(0)
    label, group = generator.normal(size=200).astype("f"), np.arange(200) // 5
    error = generator.normal(size=200)
    for name, size in (("far", 1.0), ("near", 0.5)):
        make_run(name, (label, label + size * error, group), task="regression", **settings)
    return label, error


def test_regressions_are_compared_by_their_error(make_run, tmp_path, capsys):
    _, error = regressions(make_run)
    main(["compare", "far", "near", "--root", str(tmp_path / "runs"), "--json", "--samples", "200"])
    report = json.loads(capsys.readouterr().out)
    assert (report["metric"], report["positives"], report["users"]) == ("RMSE", None, 40)
    rmse = np.sqrt((error**2).mean())
    assert [side["rmse"] for side in report["sides"]] == pytest.approx([rmse, rmse / 2], rel=1e-5)
    (pair,) = report["pairs"]
    assert 0 < pair["rows_low"] < pair["value"] == pytest.approx(rmse / 2, rel=1e-5)
    assert pair["rows_p"] < 1e-4
    assert pair["verdict"].startswith("seeds unknown: these predictions of near are better")
    main(["compare", "far", "near", "--root", str(tmp_path / "runs"), "--samples", "200"])
    assert "RMSE, lower is better" in capsys.readouterr().out


def test_a_file_is_compared_with_a_regression(make_run, tmp_path):
    label, error = regressions(make_run, valid_data=tmp_path / "valid.parquet")
    data = pa.table({"user_id": np.arange(200) // 5, "row_key": np.arange(200), "label": label.astype(float)})
    pq.write_table(data, tmp_path / "valid.parquet")
    order = np.random.default_rng(1).permutation(200)
    columns = {"row_key": order, "prediction": (label + 2 * error)[order], "label": label.astype(float)[order]}
    pq.write_table(pa.table(columns), tmp_path / "theirs.parquet")
    found = compare(["near", tmp_path / "theirs.parquet"], tmp_path / "runs", samples=200)
    assert found.sides[1].mean == pytest.approx(4 * found.sides[0].mean, rel=1e-4)


def test_a_regression_and_a_classification_have_no_common_metric(make_run, tmp_path):
    generator = np.random.default_rng(0)
    rows = (np.arange(100) % 2, generator.random(100), np.arange(100) // 4)
    make_run("A", rows)
    make_run("B", rows, task="regression")
    with raises_naming(DataError, "RMSE", "AUC"):
        compare(["A", "B"], tmp_path / "runs")


def test_the_task_of_most_runs_is_compared(make_run):
    rows = (np.arange(100) % 2, np.linspace(0, 1, 100), np.arange(100) // 4)
    groups = {"A": [make_run("A", rows, task="regression")], "B": [make_run("B", rows)], "C": [make_run("C", rows)]}
    left_out = []
    found = compare_groups(groups, [], samples=200, on_problem=lambda name, *_: left_out.append(name))
    assert (left_out, found.metric, {side.name for side in found.sides}) == (["A"], "AUC", {"B", "C"})


def test_regressions_with_other_metrics_are_compared_by_one(make_run, tmp_path):
    _, error = regressions(make_run)
    for name, metrics in (("far", ["MAE"]), ("near", ["RMSE", "MAE"])):
        change_settings(find_runs(tmp_path / "runs", expid=name)[0], metrics=metrics)
    found = compare(["far", "near"], tmp_path / "runs", samples=200)
    assert found.metric == "MAE"
    mae = np.abs(error).mean()
    assert [side.mean for side in found.sides] == pytest.approx([mae, mae / 2], rel=1e-5)


def test_the_first_error_among_the_metrics_is_compared():
    assert metric_of(True, ["MAE", "RMSE"]) == "MAE"
    assert (metric_of(True, []), metric_of(False, ["MAE"])) == ("RMSE", "AUC")


def test_a_folder_without_a_last_part_is_named_as_given(copy, monkeypatch):
    folder = find_runs(copy, expid="DIN_tiny")[0].path.parent.resolve()
    other = find_runs(copy, expid="DIN_MM_none_tiny")[0].path.resolve()
    monkeypatch.chdir(folder)
    assert {side.name for side in compare([".", other], copy, samples=100).sides} == {".", other.name}
