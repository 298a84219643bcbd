"""The command: what it groups, what it refuses, what it prints."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.evaluation.compare import as_dict, compare
from fuxictr_mm.runs import find_runs


def show(capsys, *arguments):
    main(["compare", *map(str, arguments)])
    return capsys.readouterr().out


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, arguments)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def copy(runs_root, tmp_path):
    """The runs, safe to change."""
    shutil.copytree(runs_root, tmp_path / "runs")
    return tmp_path / "runs"


def test_quiet_prints_nothing_and_json_all_the_same(runs_root, capsys):
    arguments = ["DIN_tiny", "DIN_MM_none_tiny", "--root", runs_root, "--samples", 100, "--quiet"]
    assert show(capsys, *arguments) == ""
    assert json.loads(show(capsys, *arguments, "--json"))["users"] > 0


def change_rows(run, **columns):
    table = pq.read_table(run.path / "valid_predictions.parquet")
    for name, change in columns.items():
        if change is None:
            table = table.drop_columns([name])
        else:
            table = table.set_column(
                table.column_names.index(name), name, pa.array(change(table[name].to_numpy().copy()))
            )
    pq.write_table(table, run.path / "valid_predictions.parquet")


def test_seeds_of_an_experiment_are_grouped(runs_root, capsys):
    text = show(capsys, "DIN_tiny", "DIN_MM_none_tiny", "--root", runs_root, "--samples", 200)
    users = len(np.unique(find_runs(runs_root)[0].predictions()[2]))
    assert f"3,000 validation rows of {users:,} users, 1,330 positive" in text
    assert "DIN_tiny, mean of 3" in text
    assert "Note: DIN_tiny: of runs with the same seed the newest is compared (3 of 4 runs)." in text
    assert re.search(r"no difference shown: .* other seeds of DIN_MM_none_tiny", text)
    report = json.loads(show(capsys, "DIN_tiny", "DIN_MM_none_tiny", "--root", runs_root, "--samples", 200, "--json"))
    assert report == as_dict(compare(["DIN_tiny", "DIN_MM_none_tiny"], runs_root, samples=200))
    by_seed = {run["seed"]: run["auc"] for run in report["sides"][0]["runs"]}
    assert by_seed == pytest.approx({run.seed: run.valid["AUC"] for run in find_runs(runs_root, expid="DIN_tiny")})
    (pair,) = report["pairs"]
    mean = np.mean(list(by_seed.values())) - find_runs(runs_root, expid="DIN_MM_none_tiny")[0].valid["AUC"]
    assert pair["value"] == pytest.approx(mean)
    assert pair["better"] is None


def test_single_seeds_are_judged_by_the_others(copy, capsys):
    one, two = sorted(find_runs(copy, expid="DIN_tiny"), key=lambda run: run.seed)[:2]
    arguments = (one.run, two.run, "--root", copy, "--samples", 200)
    report = json.loads(show(capsys, *arguments, "--json"))
    assert report["pairs"][0]["seeds"]["degrees"] == 2  # seed 3, once of its two runs, is the third
    assert report["pairs"][0]["verdict"].endswith("(two seeds of one configuration)")
    for run in find_runs(copy, expid="DIN_tiny"):
        if run.seed == 3:
            shutil.rmtree(run.path)
    report = json.loads(show(capsys, *arguments, "--json"))
    assert report["pairs"][0]["seeds"] is None
    assert report["pairs"][0]["verdict"].startswith("no difference shown")


def test_of_several_configurations_the_newest_is_taken(copy, train, capsys):
    train(copy, seed=4, learning_rate=0.001)
    text = show(capsys, "DIN_tiny", "DIN_MM_none_tiny", "--root", copy, "--samples", 200)
    assert re.search(
        r"Note: DIN_tiny: its 5 runs are of 2 configurations; 1 of the newest, begun at 20\S+, is compared", text
    )
    assert "mean of" not in text


def test_more_than_two_are_compared_with_the_best(copy, capsys):
    """Three planted ones: B is the truth, A is C shuffled in part."""
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
    text = show(capsys, "A", "B", "C", "--root", copy, "--samples", 200)
    verdicts = [line for line in text.splitlines() if " is better than " in line]
    assert [line.split(" by ")[0] for line in verdicts] == ["B is better than C", "B is better than A"]
    assert "p is corrected for all 3 pairs (Holm)" in text
    report = json.loads(show(capsys, "A", "B", "C", "--root", copy, "--samples", 200, "--json"))
    assert [side["name"] for side in report["sides"]] == ["B", "C", "A"]
    for pair in report["pairs"]:
        assert pair["corrected_p"] >= pair["p_value"]
        assert pair["better"] == pair["first"]


def test_rows_without_groups_are_resampled_themselves(copy, capsys):
    for run in find_runs(copy):
        change_rows(run, group=None)
    text = show(capsys, "DIN_tiny", "DIN_MM_none_tiny", "--root", copy, "--samples", 200)
    assert "Note: the runs have no group_id, so rows are resampled instead of users" in text
    assert "3,000 validation rows, 1,330 positive" in text


def test_different_rows_are_refused(copy, capsys):
    def flip(values):
        values[17] = 1 - values[17]
        return values

    other = find_runs(copy, expid="DIN_MM_none_tiny")[0]
    names = ("DIN_tiny", "DIN_MM_none_tiny", "--root", copy)
    original = (other.path / "valid_predictions.parquet").read_bytes()
    for change, message in (
        ({"label": flip}, "labels differ, first in row 17"),
        ({"group": flip}, "groups differ, first in row 17"),
    ):
        (other.path / "valid_predictions.parquet").write_bytes(original)
        change_rows(other, **change)
        assert f"were validated on different rows: {message}; compare runs" in refusal(capsys, *names)
    pq.write_table(
        pq.read_table(other.path / "valid_predictions.parquet").slice(0, 99), other.path / "valid_predictions.parquet"
    )
    assert "were validated on different rows: 99 against 3000;" in refusal(capsys, *names)


def test_bad_arguments(runs_root, capsys):
    root = ("--root", runs_root)
    newest = find_runs(runs_root, expid="DIN_tiny")[0]
    assert "'DIN_tiny' alone; give two or more" in refusal(capsys, "DIN_tiny", *root)
    assert f"the run {newest.run} is on both sides, of DIN_tiny and of" in refusal(
        capsys, "DIN_tiny", newest.run, *root
    )
    assert "did you mean 'DIN_tiny'?" in refusal(capsys, "DIN_tiny", "DIN_tinny", *root)
    assert "--samples is 5, expected 100 or more" in refusal(capsys, "a", "b", "--samples", 5)
    assert "--seed is -1, expected 0 or more" in refusal(capsys, "a", "b", "--seed", -1)


@pytest.mark.parametrize("content", [None, "a: [", "{}", "x: {1: 2, 1: 3}"])
def test_a_lost_configuration_is_no_newer_one(content, copy, capsys):
    """The newest run's configuration cannot be read: the others are compared, and a note says so."""
    newest = find_runs(copy, expid="DIN_tiny")[0]
    (newest.path / "config.yaml").unlink()
    if content is not None:
        (newest.path / "config.yaml").write_text(content)
    text = show(capsys, "DIN_tiny", "DIN_MM_none_tiny", "--root", copy, "--samples", 100)
    assert "DIN_tiny, mean of 3" in text
    assert f"Note: DIN_tiny, run {newest.run}, is left out: broken: config.yaml" in text
    assert "configurations" not in text


def test_an_experiment_of_broken_runs_is_refused(copy, capsys):
    (run,) = find_runs(copy, expid="DIN_MM_none_tiny")
    (run.path / "environment.json").write_text("[")
    message = f"DIN_MM_none_tiny, run {run.run}, is left out: broken: environment.json: not valid JSON"
    assert message in refusal(capsys, "DIN_tiny", "DIN_MM_none_tiny", "--root", copy)
    assert f"{run.run}, is left out: broken" in refusal(capsys, "DIN_tiny", run.run, "--root", copy)


def test_damaged_folders_are_a_message(copy, capsys):
    names = ("DIN_tiny", "DIN_MM_none_tiny", "--root", copy, "--samples", 100)
    for run in find_runs(copy):
        (run.path / "config.yaml").write_text((run.path / "config.yaml").read_text() + "x: {1: 2, b: 3}\n")
    assert "DIN_tiny, mean of 3" in show(capsys, *names)
    (run,) = find_runs(copy, expid="DIN_MM_none_tiny")
    change_rows(run, prediction=lambda p: p.astype(str))
    assert "predictions are object, expected numbers; train it again" in refusal(capsys, *names)
    assert "a folder without runs" in refusal(capsys, "DIN_tiny", copy, "--root", copy)


def test_other_seeds_that_are_not_finite_do_not_count(copy, capsys):
    one, two = sorted(find_runs(copy, expid="DIN_tiny"), key=lambda run: run.seed)[:2]
    for run in find_runs(copy, expid="DIN_tiny"):
        if run.seed == 3:
            change_rows(run, prediction=lambda p: np.where(np.arange(len(p)) == 5, np.nan, p).astype("f"))
    report = json.loads(show(capsys, one.run, two.run, "--root", copy, "--samples", 200, "--json"))
    assert report["pairs"][0]["seeds"] is None
