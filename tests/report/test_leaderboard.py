"""Which runs are shown side by side, and what is said of their difference."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fuxictr_mm.commands.report import as_dict
from fuxictr_mm.data.fingerprint import hash_files
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.evaluation.compare import compare
from fuxictr_mm.report import drawing
from fuxictr_mm.report.comparisons import compare_experiments
from fuxictr_mm.report.experiments import gather
from fuxictr_mm.report.report import report
from fuxictr_mm.runs import find_runs
from tests.report.conftest import auc_of, rows_of
from tests.report.pages import Page, three_name, write


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time of a page; these tests look at the rest of it."""
    svg = f'<svg id="{drawing.MARK}"/>'
    monkeypatch.setattr(drawing, "draw", lambda title, caption, height, paint: drawing.Plot(title, caption, svg))


def test_intervals_and_verdicts_are_those_of_compare(written: Any) -> None:
    page = Page(written.path.read_text(encoding="utf-8"))
    compared = compare(["BEST", "NEXT", "WORST"], written.root)
    for pair in compared.pairs:
        if pair.first.name != "BEST":
            continue
        assert pair.conclusion in page.text
        low, high = (f"{-value:+.4f}".replace("-", "\u2212") for value in (pair.found.high, pair.found.low))
        assert f"{low} to {high}" in page.text
    found = find_runs(written.root)
    comparisons = compare_experiments(gather(found)[0].experiments, found)
    assert len(found) == 9
    for side in compared.sides:
        interval = comparisons.interval(side.name)
        assert interval is not None
        low, high = np.quantile(side.samples.mean(axis=0), [0.025, 0.975])
        assert interval == pytest.approx((low, high), abs=1e-12)
        assert f"{low:.4f} to {high:.4f}" in page.text
    for pair in compared.pairs:
        against = comparisons.against(pair.second.name, pair.first.name)
        assert against is not None
        assert against.found.value == pytest.approx(-pair.found.value)
        assert against.better == pair.better


def test_the_best_comes_first_with_its_lead_over_the_next(written: Any) -> None:
    sections = written.sections
    rows = sections[0].rows
    assert [row.experiment.name for row in rows] == ["BEST", "NEXT", "WORST"]
    assert [row.conclusion for row in rows] == ["best", "no significant difference", "worse"]
    assert sections[0].lead[0].startswith("BEST has the highest validation AUC: ")
    assert "AUC of BEST is higher than that of NEXT" in sections[0].lead[1]


def test_ablation_names_what_changes_against_the_base(written: Any) -> None:
    page = Page(written.path.read_text(encoding="utf-8"))
    assert "senet: True → False" in page.text
    assert "use_features: \u2212 txt_emb, \u2212 img_emb" in page.text
    sections = written.sections
    assert sections[0].ablations[0].base.name == "BEST"
    assert [key for key, _ in sections[0].differences] == ["senet", "use_features"]


def test_settings_that_differ_in_the_middle_of_a_long_text(runs: Any, tmp_path: Path) -> None:
    features = [f"feature_{number:03}" for number in range(40)]
    for name, removed in (("A", 20), ("B", 21)):
        runs.add(name, 1.0, settings={"use_features": features[:removed] + features[removed + 1 :], "same": features})
    (section,) = report([], runs.root, tmp_path / "r.html")
    ((key, (first, second)),) = section.differences
    assert key == "use_features"
    assert ("feature_021" in first, "feature_021" in second) == (True, False)


def test_environments_that_differ_are_warned_of(written: Any, runs: Any, tmp_path: Path) -> None:
    assert "Environments differ" not in written.path.read_text(encoding="utf-8")
    runs.add("A", 1.0)
    runs.add("B", 1.0, environment={"device": "H100"})
    page, _ = write(runs.root, tmp_path / "r.html")
    assert "Environments differ in device" in page.text


def test_seeds_are_grouped_and_earlier_configurations_left_out_unless_named(runs: Any, tmp_path: Path) -> None:
    runs.add("A", 1.0, 1, settings={"width": 8})
    runs.add("A", 1.0, 2, settings={"width": 16})
    runs.add("A", 1.1, 3, settings={"width": 16})
    sections = report([], runs.root, tmp_path / "r.html")
    assert [len(row.experiment.runs) for row in sections[0].rows] == [2]
    assert sections[0].notes[0].startswith("A: 1 run of other settings")
    sections = report([three_name(1), "A"], runs.root, tmp_path / "r.html")
    assert sorted(row.experiment.name for row in sections[0].rows) == ["A", f"A ({three_name(1)})"]


def test_test_metrics_are_of_one_test_file(runs: Any, tmp_path: Path) -> None:
    for name, seed, file, auc in (
        ("A", 1, "one", 0.6),
        ("A", 2, "one", 0.8),
        ("A", 3, "two", 0.9),
        ("B", 4, "two", 0.7),
    ):
        folder = runs.add(name, 1.0, seed, environment={"data": {"train_data": "x", "test_data": file}})
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "test": {"AUC": auc}}))
    (section,) = report([], runs.root, tmp_path / "r.html")
    by_name = {row.experiment.name: row.experiment for row in section.rows}
    assert len(by_name["A"].runs) == 3  # valid counts all of them
    assert by_name["A"].values("AUC", "test") == [0.9]  # the newest one's file
    assert any(note.startswith("A: ") and "2 runs of another test file" in note for note in section.notes)
    assert not any("A; B" in note for note in section.notes)
    environment = json.loads((folder / "environment.json").read_text())
    environment["data"]["test_data"] = "one"
    (folder / "environment.json").write_text(json.dumps(environment))
    (section,) = report([], runs.root, tmp_path / "r.html")
    assert any("different test files: A; B" in note for note in section.notes)
    assert not any("contents" in note for note in section.notes)
    environment["data"] |= {"train_data": "y", "valid_data": "y"}
    (folder / "environment.json").write_text(json.dumps(environment))
    (section,) = report([], runs.root, tmp_path / "r.html")
    assert any("contents: train_data (A: " in note for note in section.notes)


def test_runs_of_the_data_as_it_is_now_are_shown(runs: Any, tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    for seed, content in ((1, "a"), (2, "b")):
        file.write_text(content)
        data = {"train_data": hash_files(file)}
        runs.add("A", 1.0, seed, settings={"train_data": str(file)}, environment={"data": data})
    for content, seed in (("b", 2), ("a", 1), ("b", 2)):
        file.write_text(content)
        (section,) = report([], runs.root, tmp_path / "r.html")
        assert [[run.seed for run in row.experiment.runs] for row in section.rows] == [[seed]]
        assert "train_data" in section.notes[0]
        assert (str(file) in section.notes[0]) == (seed == 1)


def test_datasets_have_sections_of_their_own(runs: Any, tmp_path: Path) -> None:
    runs.add("A", 1.0, dataset="one")
    runs.add("B", 1.0, dataset="two")
    sections = report([], runs.root, tmp_path / "r.html")
    assert [(s.dataset_id, [r.experiment.name for r in s.rows]) for s in sections] == [("one", ["A"]), ("two", ["B"])]
    page, _ = write(runs.root, tmp_path / "r.html")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    only = report([], runs.root, tmp_path / "r.html", dataset="two")
    assert [s.dataset_id for s in only] == ["two"]


def test_one_seed_shows_nothing_however_narrow_the_interval(runs: Any, tmp_path: Path) -> None:
    runs.add("GOOD", 2.0)
    runs.add("BAD", 0.2)
    sections = report([], runs.root, tmp_path / "r.html")
    against = sections[0].rows[1].against
    assert against is not None
    assert against.found.high < 0
    assert sections[0].rows[1].conclusion == "seeds unknown"
    assert "other seeds of BAD and GOOD" in sections[0].lead[1]


def test_single_named_runs_are_judged_by_all_seeds_as_compare_does(three: Any, tmp_path: Path) -> None:
    """Only one run of each is on the page; the other seeds tell how far seeds lie apart."""
    names = [str(three.root / "tiny" / name / three_name(1)) for name in ("BEST", "WORST")]
    (section,) = report(names, three.root, tmp_path / "r.html")
    assert [len(row.experiment.runs) for row in section.rows] == [1, 1]
    (pair,) = compare(names, three.root).pairs
    against = section.rows[1].against
    assert against is not None
    assert (against.better is not None, section.rows[1].conclusion) == (pair.better is not None, "worse")
    found = against.found
    assert (-found.value, -found.high, -found.low) == (pair.found.value, pair.found.low, pair.found.high)
    shown = {"value": found.value, "low": found.low, "high": found.high, "shown": True, "sentence": against.conclusion}
    assert as_dict([section], "r.html")["datasets"][0]["experiments"][1]["difference"] == shown
    sentence = re.sub(r"(?:\S*/)?" + three_name(1), "X", pair.conclusion)
    assert sentence.split(" by ")[1] == against.conclusion.split(" by ")[1]


def test_a_best_epoch_that_was_the_last_is_noted(runs: Any) -> None:
    monitor = {"monitor": "AUC", "monitor_mode": "max"}  # the second of the epochs is the best
    for seed in (1, 2):
        runs.add("A", 1.5, seed, settings={**monitor, "epochs": 2}, epochs=2)
    runs.add("B", 1.5, 1, settings={**monitor, "epochs": 3})
    notes = "\n".join(report([], runs.root, runs.root.parent / "page.html")[0].notes)
    assert "A: the best epoch was the last allowed one, 2 in 2 of 2 runs" in notes
    assert "B: the best epoch" not in notes


def test_runs_on_several_labels_are_reported_on_one(runs: Any, tmp_path: Path) -> None:
    strengths = {"FIRST": {"click": 1.5, "like": 0.3}, "SECOND": {"click": 0.3, "like": 1.5}}
    for name, of in strengths.items():
        folder = runs.add(name, 1.0, settings={"label_col": [{"name": "click"}, {"name": "like"}]})
        columns: dict[str, Any] = {}
        valid = {"AUC": 0.5}
        for task, strength in of.items():
            label, prediction, columns["group"] = rows_of(strength, 1)
            columns |= {f"label_{task}": label, f"prediction_{task}": prediction}
            valid |= {f"{task}_logloss": 0.6, f"{task}_AUC": auc_of(label, prediction)}
        pq.write_table(pa.table(columns), folder / "valid_predictions.parquet")
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "valid": valid}))
    for task, best in (("click", "FIRST"), ("like", "SECOND")):
        (section,) = report([], runs.root, tmp_path / "page.html", label=task)
        assert section.rows[0].experiment.name == best
        assert section.metrics == [f"{task}_AUC", f"{task}_logloss"]
        assert section.rows[0].interval is not None
        assert section.rows[1].against is not None
        assert section.rows[1].against.found.value < 0
    with pytest.raises(ConfigError, match="clik"):
        report([], runs.root, tmp_path / "page.html", label="clik")
    # A run on that label alone, whose metrics have shorter names, is ranked and drawn among them.
    runs.add("ALONE", 1.0, settings={"label_col": {"name": "click"}})
    (section,) = report([], runs.root, tmp_path / "page.html", label="click")
    assert [row.experiment.name for row in section.rows] == ["FIRST", "ALONE", "SECOND"]
    assert section.metrics == ["click_AUC", "click_logloss"]
    assert None not in [row.interval for row in section.rows]
    assert [plot.title for plot in section.curves] == ["ALONE"]
