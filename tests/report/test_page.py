"""What the page says, and that it says it in well-formed HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fuxictr_mm.cli import main
from fuxictr_mm.commands.report import as_dict
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.report.diagnosis_figures import SECTIONS
from fuxictr_mm.report.report import report
from fuxictr_mm.runs import find_runs
from fuxictr_mm.terminal import printable
from tests.errors import raises_naming
from tests.report.pages import Page, three_name, write


def test_every_number_is_that_of_the_records(written: Any) -> None:
    page = Page(written.path.read_text(encoding="utf-8"))
    found = find_runs(written.root)
    for name in ("BEST", "NEXT", "WORST"):
        aucs = [run.valid["AUC"] for run in found if run.expid == name]
        assert f"{np.mean(aucs):.4f}± {np.std(aucs, ddof=1):.4f}" in page.text
    assert "48,765" in page.text
    assert "1,002" in page.text  # mean speed of seeds 1 to 3
    assert "6.5" in page.text


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
