"""What the page says, and that it says it in well-formed HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.data.fingerprint import hash_files

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fuxictr_mm.cli import main
from fuxictr_mm.commands.report import as_dict
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.evaluation.compare import compare
from fuxictr_mm.report.comparisons import compare_experiments
from fuxictr_mm.report.diagnosis_figures import SECTIONS
from fuxictr_mm.report.experiments import gather
from fuxictr_mm.report.report import report
from fuxictr_mm.runs import find_runs
from fuxictr_mm.terminal import printable
from tests.errors import raises_naming
from tests.report.conftest import auc_of, rows_of

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text inside; complains of what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.children: dict[int, list[str]] = {}
        self._open: list[tuple[str, int]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self._add(tag, attrs)
        if tag not in VOID:
            self._open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag, (opened, tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] not in ("style", "script"):
            self.words.append(data)

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._open:
            self.children.setdefault(self._open[-1][1], []).append(tag)
        self.elements.append((tag, dict(attrs)))

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def named(self, tag: str) -> list[tuple[int, dict[str, str | None]]]:
        return [(i, attributes) for i, (t, attributes) in enumerate(self.elements) if t == tag]


def write(root: Path, out: Path, *names: str, **options: Any) -> tuple[Page, str]:
    report(names, root, out, **options)
    text = out.read_text(encoding="utf-8")
    return Page(text), text


def test_every_number_is_that_of_the_records(written: Any) -> None:
    page = Page(written.path.read_text(encoding="utf-8"))
    found = find_runs(written.root)
    for name in ("BEST", "NEXT", "WORST"):
        aucs = [run.valid["AUC"] for run in found if run.expid == name]
        assert f"{np.mean(aucs):.4f}± {np.std(aucs, ddof=1):.4f}" in page.text
    assert "48,765" in page.text
    assert "1,002" in page.text  # mean speed of seeds 1 to 3
    assert "6.5" in page.text


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


def test_page_is_well_formed_and_accessible(written: Any) -> None:
    text = written.path.read_text(encoding="utf-8")
    page = Page(text)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.named("svg"):
        assert attributes["role"] == "img"
        assert attributes["aria-label"]
        assert attributes["aria-describedby"] in ids
    assert len(page.named("svg")) >= 14
    for place, _ in page.named("table"):
        assert page.children[place][0] == "caption"
    for _, attributes in page.named("th"):
        assert attributes["scope"] in ("col", "row", "rowgroup")
    for tag in ("main", "nav", "header", "footer", "h1"):
        assert len(page.named(tag)) == 1
    for _, attributes in page.elements:
        for name in ("href", "xlink:href", "aria-labelledby", "aria-describedby", "clip-path"):
            target = re.fullmatch(r"(?:url\()?#?([\w-]+)\)?", attributes.get(name) or "")
            assert target is None or target[1] in ids, (name, attributes[name])
    assert '<html lang="en">' in text
    assert 'class="skip" href="#main"' in text


def test_nothing_is_fetched_and_only_the_own_script_may_run(written: Any) -> None:
    text = written.path.read_text(encoding="utf-8")
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert not page.named("img")
    assert [a for _, a in page.named("script")] == [{}]
    policy = next(a["content"] for _, a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]


HOSTILE = "<script>alert(1)</script>&\"'$x^2$ \ue000"


def test_what_records_say_is_text(runs: Any, tmp_path: Path, factory: Callable[..., dict[str, Any]]) -> None:
    finding = {"severity": f'"><b>{HOSTILE}', "text": HOSTILE, "advice": HOSTILE}
    diagnosed = factory(findings=[finding], absent={HOSTILE: HOSTILE})
    diagnosed["importance"]["fields"][0]["name"] = HOSTILE + "\ud800\x00"
    settings = {"description": HOSTILE, f"key {HOSTILE}": [HOSTILE], "model": HOSTILE}
    runs.add("A", 1.0, settings=settings, diagnosed=diagnosed, environment={"device": HOSTILE})
    runs.add("B", 0.5, settings={"model": HOSTILE})
    folder = runs.add("C", 0.4)
    config = (
        (folder / "config.yaml").read_text().replace("model_id: C", "model_id: '</title><img src=x onerror=alert(1)>'")
    )
    (folder / "config.yaml").write_text(config)
    page, text = write(runs.root, tmp_path / "r.html", title=HOSTILE)
    assert len(page.named("script")) == 1
    assert not page.named("img")
    assert not page.named("b") or all("<script" not in str(a) for _, a in page.named("b"))
    assert "<script>alert" not in text
    assert page.text.count("<script>alert(1)</script>") > 8
    assert "</title><img" not in text


def test_broken_and_unfinished_runs_are_named_and_harm_nothing(three: Any, tmp_path: Path) -> None:
    three.add("HALF", 1.0, 5, finished=False)
    damaged = three.add("DAMAGED", 1.0, 6)
    (damaged / "result.json").write_text("{")
    lost = three.add("LOST", 1.0, 7)
    (lost / "valid_predictions.parquet").write_bytes(b"no parquet")
    (lost / "diagnosis.json").write_text("[1")
    three.add("OTHER_ROWS", 1.0, 8, rows=300)
    (three.add("NO_CURVE", 1.0, 9) / "metrics.jsonl").write_text("{}\nnonsense\n")
    (three.add("NO_CONFIG", 1.0, 10) / "config.yaml").unlink()
    (three.add("WORDS", 1.0, 11) / "config.yaml").open("a").write("x: {1: 2, b: 3}\n")
    sections = report([], three.root, tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert f"HALF, run {three_name(5)}, is left out: unfinished" in page.text
    assert f"DAMAGED, run {three_name(6)}, is left out: broken: result.json: not valid JSON" in page.text
    assert f"LOST, run {three_name(7)}, is not compared: " in page.text
    assert "diagnosis.json: not valid JSON" in page.text
    assert f"OTHER_ROWS, run {three_name(8)}, is not compared: " in page.text
    assert f"NO_CURVE, run {three_name(9)}, is left out: broken: metrics.jsonl, line 1" in page.text
    assert f"NO_CONFIG, run {three_name(10)}, is left out: broken: config.yaml: no such file" in page.text
    conclusions = {row.experiment.name: row.conclusion for row in sections[0].rows}
    assert conclusions["LOST"] == conclusions["OTHER_ROWS"] == "not compared"
    assert conclusions["WORST"] == "worse"
    assert "WORDS" in conclusions


def three_name(seed: int) -> str:
    return f"20260102-030405-seed{seed}"


def test_sections_of_a_diagnosis_may_be_missing_or_strange(
    runs: Any, tmp_path: Path, factory: Callable[..., dict[str, Any]]
) -> None:
    strange = factory(**{section: [{"name": "?"}, 3] for section in SECTIONS}, neighbours=[1, {"item_id": 7}])
    runs.add("A", 1.0, diagnosed={"version": 9, "findings": "none", "absent": [1]})
    runs.add("B", 0.9, diagnosed=strange)
    page, _ = write(runs.root, tmp_path / "r.html")
    for section in SECTIONS:
        assert f"B, diagnosis of run {three_name(1)}: section {section} cannot be read" in page.text


def test_diagnosis_is_told_in_words(written: Any) -> None:
    page = Page(written.path.read_text(encoding="utf-8"))
    assert "Problem: the modality image does nothing." in page.text
    assert "Permuting text costs most: 0.1098 AUC (± 0.0040). No more than noise: image." in page.text
    assert "Expected calibration error 0.0311" in page.text
    assert "a <b>bold</b> title" in page.text
    assert "attention: 0.880 over all rows, 0.850 for 1-2 and 0.910 for 3-5 items of history" in page.text
    assert "best AUC" in page.text
    assert "at epoch 2 of 3" in page.text


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


def test_same_records_give_the_same_page(written: Any, tmp_path: Path) -> None:
    pages = [written.path.read_text(encoding="utf-8"), write(written.root, tmp_path / "r.html")[1]]
    first, second = (re.sub(r"made \d{4}-\d\d-\d\d \d\d:\d\d", "", page) for page in pages)
    assert first == second


@pytest.mark.slow
def test_twenty_runs_stay_small(runs: Any, tmp_path: Path, factory: Callable[..., dict[str, Any]]) -> None:
    for number in range(20):
        runs.add(f"EXPERIMENT_{number}", 1.0 + number / 50, number, epochs=30, diagnosed=factory(), rows=300)
    _, text = write(runs.root, tmp_path / "r.html")
    assert len(text.encode()) < 2_000_000


@pytest.mark.parametrize(
    ("arguments", "names"),
    [({}, ["fuxictr-mm train --expid"]), ({"names": ["BSET"]}, ["'BEST'"]), ({"dataset": "tin"}, ["'tin'", "'tiny'"])],
)
def test_what_is_not_there_is_said_in_a_line(arguments: dict[str, Any], names: str, three: Any, tmp_path: Path) -> None:
    root = three.root if arguments else tmp_path / "none"
    with raises_naming(MissingFileError, *names):
        report(arguments.pop("names", []), root, tmp_path / "r.html", **arguments)
    assert not (tmp_path / "r.html").exists()


def test_only_unfinished_runs_are_no_page(runs: Any, tmp_path: Path) -> None:
    runs.add("A", 1.0, finished=False)
    with raises_naming(MissingFileError, "unfinished", "fuxictr-mm train"):
        report([], runs.root, tmp_path / "r.html")


def test_missing_packages_are_named(three: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with raises_naming(ConfigError, "fuxictr-mm[report]"):
        report([], three.root, tmp_path / "r.html")


def test_command_prints_the_path_or_json_or_nothing(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.add("BEST", 1.5)
    runs.add("WORST", 0.3)
    out = str(tmp_path / "r.html")
    main(["report", "--root", str(runs.root), "--out", out])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"page: {out}")
    main(["report", "BEST", "--root", str(runs.root), "--out", out, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["page"] == out
    assert [e["verdict"] for e in document["datasets"][0]["experiments"]] == ["best"]
    main(["report", "BEST", "--root", str(runs.root), "--out", out, "--quiet"])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--root", str(runs.root), "--out", str(tmp_path)])
    assert stopped.value.code == 2


def test_document_can_be_json(written: Any) -> None:
    json.dumps(as_dict(written.sections, "r.html"), allow_nan=False)


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


def test_the_first_sentences_say_why(written: Any) -> None:
    (section,) = written.sections
    lost = section.rows[0].experiment.mean("AUC") - section.rows[2].experiment.mean("AUC")
    assert [reason.text for reason in section.reasons] == [
        f"Without txt_emb, img_emb (WORST) it loses {lost:.3f}",
        "Of the inputs of BEST, permuting text costs most, 0.110",
    ]
    text = written.path.read_text(encoding="utf-8")
    assert "(WORST) it loses" in text
    assert '(<a href="#d1-ablation">ablation</a>)' in text
    assert '(<a href="#d1-diagnosis">diagnosis</a>)' in text
    assert as_dict(written.sections, "r.html")["datasets"][0]["summary"][2].startswith("Without txt_emb, img_emb")


def test_a_number_is_not_read_into_the_next(written: Any) -> None:
    page = Page(written.path.read_text(encoding="utf-8"))
    assert re.search(r"mean of 3 seeds\), 95 % interval 0\.\d{4} to 0\.\d{4}\.", page.text)
    assert not re.search(r"95 % [01\u2212-]", page.text)


def test_turned_writing_directions_are_left_out() -> None:
    assert printable("a\u202eb\u2066c\u2069") == "a b c "


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"item_id,likes\n1,2\n", b"\xff\xfe"])
def test_what_is_no_page_is_not_overwritten(content: bytes, three: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "train.parquet"
    out.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--root", str(three.root), "--out", str(out)])
    assert stopped.value.code == 2
    assert str(out) in capsys.readouterr().err
    assert out.read_bytes() == content


def test_an_older_page_is_replaced(runs: Any, tmp_path: Path) -> None:
    runs.add("A", 1.0)
    out = tmp_path / "r.html"
    out.write_text("\n<!DOCTYPE html><p>old")
    main(["report", "--root", str(runs.root), "--out", str(out), "--quiet"])
    assert "old" not in out.read_text()


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
