"""What stands in the pages beside commands: YAML that loads, Python that runs, links that lead somewhere."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.docs.fences import PAGES, fences
from tests.paths import ROOT, TINY

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")

YAML = [fence for page in PAGES for fence in fences(page) if fence.language == "yaml"]
PYTHON = [fence for page in PAGES for fence in fences(page) if fence.language == "python"]

#: Python that is not run, by what it holds, and why not.
NOT_RUN = {
    "interactions.csv": "reads files of the page; tests/docs/test_commands.py runs these scripts one after the other",
    "sample_submission.csv": "reads files of the page; tests/docs/test_commands.py runs these scripts",
    "flipped.npy": "takes arguments and files of the page; tests/docs/test_commands.py runs these scripts",
    "fuxictr_mm_serving": "reads an export of the page; tests/serving runs these methods",
    "torch.export.load": "reads an export of the page; tests/serving/test_export.py runs the graphs",
    "openai/clip": "reads models of the hub; tests/embeddings/encode runs the functions",
}


def name_of(fence):
    return f"{fence.page}:{fence.line}"


@pytest.mark.parametrize("page", PAGES)
def test_programs_after_make_are_in_the_path(page):
    """``make`` installs into an environment of its own: a shell that goes on has to activate it."""
    for fence in fences(page):
        lines = [line.split("#")[0].strip() for line in fence.text.splitlines()]
        if "make demo" in lines and any(line.startswith(("python", "fuxictr-mm", "pip")) for line in lines):
            assert "source .venv/bin/activate" in lines, f"{page}:{fence.line}"


@pytest.mark.slow
def test_the_model_of_the_readme_passes_mypy_as_a_file_of_the_zoo_does(tmp_path):
    (model,) = [fence.text for fence in PYTHON if fence.page == "README.md" and "class MeanPooling" in fence.text]
    (tmp_path / "MeanPooling.py").write_text(model, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", str(tmp_path / "MeanPooling.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_model_is_on_the_page_of_equations():
    text = (ROOT / "docs" / "api" / "zoo.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: (\w+)\.\1$", text, re.MULTILINE)) == sorted(
        path.stem for path in (ROOT / "model_zoo").glob("*.py")
    )


def test_every_public_layer_is_on_the_page_of_layers():
    text = (ROOT / "docs" / "api" / "layers.md").read_text(encoding="utf-8")
    imported = (ROOT / "fuxictr_mm" / "layers" / "__init__.py").read_text(encoding="utf-8")
    modules = re.findall(r"^from (fuxictr_mm\.layers\.\w+) import", imported, re.MULTILINE)
    assert set(modules) <= set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder as a reader has it, and the names that a page takes as given."""
    for name in ("model_config.yaml", "dataset_config.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_keys(values, types, where):
    """Check that every key is known and every value of its type."""
    from fuxictr_mm.checking import matches

    for key, value in values.items():
        assert key in types, f"{where}: unknown key {key}"
        assert matches(value, types[key]), f"{where}: {key} is {value!r}"


def check_features(columns, where):
    """Check entries of feature_cols as a dataset of them would be."""
    from fuxictr_mm.config import FeatureSpec, key_types

    for column in columns:
        check_keys(column, key_types(FeatureSpec), where)


def add_models(page, folder):
    """Add the models and experiments that a page shows with the names of their files in the first line."""
    for fence in fences(page):
        if named := re.match(r'(?:# (model_config\.yaml)|"""(model_zoo/\w+\.py)""")\n', fence.text):
            path = folder / (named[1] or named[2])
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n" + fence.text)


@pytest.mark.parametrize("fence", YAML, ids=name_of)
def test_yaml(fence, reader):
    """Every key is one that is known where it stands, and every value is of its type."""
    from fuxictr_mm.config import DATASET_KEYS, EXPERIMENT_KEYS, key_types, load_config
    from fuxictr_mm.tuning.tuner_file import StudySettings, read_tuner

    where = name_of(fence)
    if "<<: *" in fence.text:  # an anchor of the file that it is to be added to
        path = reader / "model_config.yaml"
        path.write_text(path.read_text(encoding="utf-8") + "\n" + fence.text, encoding="utf-8")
        for expid in re.findall(r"^(\w+):", fence.text, flags=re.M):
            load_config(reader, expid)
        return
    content = yaml.safe_load(fence.text)
    if isinstance(content, list):
        check_features(content, where)
    elif "tuner_space" in content:
        add_models(fence.page, reader)
        (reader / "tuner.yaml").write_text(fence.text, encoding="utf-8")
        read_tuner(reader / "tuner.yaml")
    elif all(isinstance(entry, dict) for entry in content.values()):
        for name, entry in content.items():
            if "feature_cols" in entry or "item_info" in entry:
                check_keys(entry, {**DATASET_KEYS, **EXPERIMENT_KEYS}, where)
                check_features(entry.get("feature_cols", []), where)
                continue
            known = yaml.safe_load((reader / "dataset_config.yaml").read_text(encoding="utf-8"))
            if entry["dataset_id"] not in known:  # one of the page, which has features of its own
                entry = {**entry, "dataset_id": "tiny_mm", "use_features": None}
            (reader / "model_config.yaml").write_text(yaml.safe_dump({name: entry}), encoding="utf-8")
            load_config(reader, name)
    else:
        check_features(content.pop("feature_cols", []), where)
        check_keys(content, {**DATASET_KEYS, **EXPERIMENT_KEYS, **key_types(StudySettings)}, where)


@pytest.mark.parametrize(
    "fence",
    [pytest.param(fence, marks=[pytest.mark.slow] if ".fit(" in fence.text else []) for fence in PYTHON],
    ids=name_of,
)
def test_python(fence, reader, monkeypatch):
    """Every piece of Python runs, given what the page has made before."""
    compile(fence.text, name_of(fence), "exec")
    if any(mark in fence.text for mark in NOT_RUN):
        return
    item_file = TINY / "item_feature.parquet"
    (reader / "item_feature.parquet").symlink_to(item_file)
    vectors = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    if "item_codes.safetensors" in fence.text:
        from fuxictr_mm.cli import main

        words = ["embed", "quantize", "text=item_feature.parquet:txt_emb_BERT", "--codes", "16", "--quiet"]
        main([*words, "--out", "item_codes.parquet", "--save", "item_codes.safetensors"])
    (reader / "page.py").write_text(fence.text.replace("dim=128", "dim=16"), encoding="utf-8")
    runpy.run_path("page.py", init_globals={"vectors": vectors})


def anchors(page):
    """Return the anchors of a page's headings, as MkDocs makes them."""
    from unicodedata import normalize

    text = re.sub(r"^( *)```.*?^\1```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.M):
        plain = normalize("NFKD", re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading)).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    """Relative links lead to files that are there, and to headings that they have."""
    text = re.sub(r"^( *)```.*?^\1```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for found in LINK.findall(text):
        target = found[0] or found[1]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page}: the link {target} leads to no file"
        if anchor and file.suffix == ".md":
            there = anchors(str(file.relative_to(ROOT)))
            assert anchor in there, f"{page}: {target}: no such heading (there are: {', '.join(sorted(there))})"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    # Without --quiet, which keeps --strict from counting the warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site" / "index.html").is_file()


def test_every_page_is_in_the_menu():
    listed = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert listed == pages
    assert all(Path(ROOT / "docs" / page).is_file() for page in listed)


def test_every_page_is_two_clicks_from_the_first_one():
    def linked_from(page):
        targets = [(found[0] or found[1]).partition("#")[0] for found in LINK.findall(page.read_text(encoding="utf-8"))]
        return {(page.parent / target).resolve() for target in targets if target.endswith(".md") and ":" not in target}

    home, docs = ROOT / "docs" / "index.md", (ROOT / "docs").resolve()
    first = linked_from(home)
    reached = {home.resolve(), *first}.union(*(linked_from(page) for page in first))
    assert sorted(str(page.relative_to(docs)) for page in set(docs.rglob("*.md")) - reached) == []
