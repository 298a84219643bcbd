"""Models are found by name, one file at a time."""

import copy
import json
import pickle
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from fuxictr_mm import registry
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.registry import code_hash, describe_error, list_models, load_model_class, search_folders, source_of
from tests.errors import check_names, raises_naming
from tests.paths import ROOT


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """An empty working directory with a model zoo; models imported from it are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_zoo").mkdir()
    yield tmp_path / "model_zoo"
    for name in set(sys.modules) - before:
        if name.startswith("fuxictr_mm.model_zoo."):
            del sys.modules[name]


def drop(folder, name, body="pass", before=""):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(f"{before}\nclass {name}:\n    '''{folder.name}'''\n    {body}\n")


def refused(name, *arguments):
    with pytest.raises(ConfigError) as caught:
        load_model_class(name, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_dropped_file_is_found_and_alone_imported(zoo):
    drop(zoo, "Dropped")
    drop(zoo, "NotAskedFor", before="raise SystemError('imported')")
    assert load_model_class("Dropped").__name__ == "Dropped"
    assert load_model_class("Dropped") is load_model_class("Dropped")
    assert "fuxictr_mm.model_zoo.NotAskedFor" not in sys.modules
    assert {"Dropped", "NotAskedFor", "DIN", "DIN_MM"} <= set(list_models())


@pytest.mark.parametrize("given", ["Model/src", "Model", "."])
def test_the_folder_of_a_checkout_of_fuxictr_may_be_any_above_the_file(tmp_path, given):
    (tmp_path / "Model").mkdir()
    drop(tmp_path / "Model" / "src", "Model")
    assert list_models(tmp_path / given)["Model"] == tmp_path / "Model" / "src" / "Model.py"


def test_the_folder_of_longctr_holds_a_folder_for_each_model(tmp_path):
    drop(tmp_path / "Model", "Model")
    drop(tmp_path / "Model", "NotAModel")
    found = list_models(tmp_path)
    assert found["Model"] == tmp_path / "Model" / "Model.py"
    assert "NotAModel" not in found


def test_scripts_beside_the_models_are_not_shown_as_models(zoo):
    drop(zoo, "Dropped")
    (zoo / "run_expid.py").write_text("print('not a model')\n")
    (zoo / "Renamed.py").write_text("from fuxictr_mm.model import DNNModel\n\nRenamed = DNNModel\n")
    assert {"Dropped", "Renamed", "DIN"} <= set(registry.models())
    assert "run_expid" not in registry.models()
    assert "run_expid" not in refused("Missing")


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ("import no_such_package_here", ["'no_such_package_here'", "line 1"]),
        ("x = 1\n\ny = x / 0", ["ZeroDivisionError", "line 3"]),
        ("def f(:\n    pass", ["SyntaxError", "line 1"]),
    ],
)
def test_a_broken_file_breaks_only_itself(zoo, before, found):
    drop(zoo, "Broken", before=before)
    drop(zoo, "Whole")
    load_model_class("Whole")
    load_model_class("DIN")
    check_names(refused("Broken"), zoo / "Broken.py", *found)
    assert "fuxictr_mm.model_zoo.Broken" not in sys.modules
    drop(zoo, "Broken", body="mended = True")
    assert load_model_class("Broken").mended


def test_an_edited_file_is_imported_again(zoo):
    """As in a notebook; of the same size, in the same second, so that Python's saved code would be taken."""
    drop(zoo, "Edited", body="value = 1")
    first = load_model_class("Edited")
    before, kept = code_hash(first), first()
    drop(zoo, "Edited", body="value = 2")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(load_model_class, ["Edited"] * 8))
    (second,) = found
    assert (second.value, kept.value, copy.deepcopy(kept).value) == (2, 1, 1)
    assert code_hash(second) != before == code_hash(first)
    assert pickle.dumps(second())
    (zoo / "Edited.py").write_text('"""A docstring."""\n# a comment\n' + (zoo / "Edited.py").read_text())
    assert load_model_class("Edited") is second
    drop(zoo, "Edited", before="x = 1 / 0")
    check_names(refused("Edited"), zoo / "Edited.py", "ZeroDivisionError")
    assert pickle.dumps(second())


def test_an_edited_file_beside_a_model_is_imported_again(zoo, monkeypatch):
    monkeypatch.syspath_prepend(zoo)
    (zoo / "inner_of_edited.py").write_text("VALUE = 1\n")
    (zoo / "outer_of_edited.py").write_text("from inner_of_edited import VALUE\n")
    drop(zoo, "Edited", before="import outer_of_edited", body="value = outer_of_edited.VALUE")
    first = load_model_class("Edited")
    (zoo / "inner_of_edited.py").write_text("VALUE = 20\n")
    assert (load_model_class("Edited").value, first.value) == (20, 1)
    for name in ("inner_of_edited", "outer_of_edited"):
        del sys.modules[name]


def test_a_file_beside_a_model_that_cannot_be_parsed_is_left_alone(zoo):
    (zoo / "old_of_model.py").write_text("print 'as in Python 2'\n")
    drop(zoo, "Lazy", before="try:\n    import old_of_model\nexcept Exception:\n    pass")
    found = load_model_class("Lazy")
    before = code_hash(found)
    (zoo / "old_of_model.py").write_text("print 'as in Python 2 too'\n")
    assert code_hash(load_model_class("Lazy")) != before


@pytest.mark.parametrize("wrong", ["1 +", "x = 1 / 0"])
def test_an_edit_that_cannot_be_imported_forgets_nothing(zoo, monkeypatch, wrong):
    monkeypatch.syspath_prepend(zoo)
    (zoo / "part_of_model.py").write_text("VALUE = 1\n")
    drop(zoo, "Broken", before="import part_of_model", body="value = part_of_model.VALUE")
    load_model_class("Broken")
    module = sys.modules["part_of_model"]
    (zoo / "part_of_model.py").write_text("VALUE = 20\n")
    drop(zoo, "Broken", before=f"import part_of_model\n{wrong}")
    refused("Broken")
    assert sys.modules.pop("part_of_model") is module


def test_a_thread_waits_for_the_whole_module(zoo):
    drop(zoo, "Slow", before="import time; time.sleep(0.2)")
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(load_model_class, ["Slow"] * 2))) == 1


def test_an_unknown_name(zoo):
    drop(zoo, "Dropped")
    drop(zoo, "not-a-name")
    said = refused("Droped")
    check_names(said, "'Droped'", "'Dropped'")
    assert all(f"{name}," in said for name in ("BST", "DIN", "DIN_MM", "Dropped"))
    assert "not-a-name" not in said
    for name in ("../model_zoo/Dropped", "Dropped.py", "", "_hidden"):
        check_names(refused(name), repr(name))


def test_a_published_name_with_a_suffix_has_a_hint(zoo):
    with raises_naming(ConfigError, "'QIN_variety_v9'", "'QIN'"):
        load_model_class("QIN_variety_v9")


def test_a_file_without_its_class(zoo):
    (zoo / "Named.py").write_text("from pathlib import Path\nclass Name: pass\nNamedToo = 3\n")
    check_names(refused("Named"), "model_zoo/Named.py", "'Named'", "'Name'")
    (zoo / "Value.py").write_text("Value = 3\n")
    check_names(refused("Value"), "model_zoo/Value.py", "'Value'")


def test_a_class_of_a_package(zoo, monkeypatch):
    (zoo.parent / "some_package_of_mine.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(zoo.parent)
    assert load_model_class("some_package_of_mine:Mine").__name__ == "Mine"
    check_names(refused("some_package_of_mine:Mne"), "'Mne'", "'Mine'")
    for name in ("no_such_package_here:X", ":X", "some_package_of_mine:"):
        check_names(refused(name), name.split(":")[0])


def test_entry_points(zoo, monkeypatch):
    (zoo.parent / "declaring_package.py").write_text("class Declared: pass\nclass Dropped: package = True\n")
    monkeypatch.syspath_prepend(zoo.parent)
    declared = [
        EntryPoint(name, f"declaring_package:{name}", registry.ENTRY_POINTS) for name in ("Declared", "Dropped")
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: declared if group == registry.ENTRY_POINTS else [])
    drop(zoo, "Dropped")
    assert load_model_class("Declared").__module__ == "declaring_package"
    assert not hasattr(load_model_class("Dropped"), "package")
    assert list_models()["Declared"] == "declaring_package:Declared"


def test_entry_points_are_read_only_for_what_no_file_defines(zoo, monkeypatch):
    drop(zoo, "Here")
    monkeypatch.setattr(registry, "entry_points", None)
    assert load_model_class("Here").__name__ == "Here"
    with pytest.raises(TypeError):
        load_model_class("Elsewhere")


def test_the_folder_given_comes_first(zoo, tmp_path):
    drop(zoo, "Twice")
    drop(tmp_path / "mine", "Twice")
    assert load_model_class("Twice").__doc__ == "model_zoo"
    assert load_model_class("Twice", tmp_path / "mine").__doc__ == "mine"
    assert load_model_class("Twice").__doc__ == "model_zoo"
    assert search_folders("model_zoo") == search_folders()
    with raises_naming(MissingFileError, "--model_zoo", tmp_path / "nowhere"):
        load_model_class("Twice", tmp_path / "nowhere")


@pytest.mark.parametrize("place", ["Plain/src", "Plain/Plain_torch/src", "multitask/Plain/src"])
def test_a_model_of_a_checkout_of_fuxictr(zoo, place):
    folder = zoo / place
    folder.mkdir(parents=True)
    drop(folder, "Plain")
    other = zoo / "Plain" / "Plain_tf" / "src"
    other.mkdir(parents=True)
    drop(other, "TensorPlain")
    assert {"Plain"} <= list_models().keys()
    assert "TensorPlain" not in list_models()
    assert load_model_class("Plain").__doc__ == "src"


def test_the_stray_package_of_fuxictr_is_never_used(zoo, monkeypatch):
    before = {name for name in sys.modules if name.split(".")[0] == "model_zoo"}
    drop(zoo, "Dropped")
    load_model_class("Dropped")
    load_model_class("DIN")
    assert {name for name in sys.modules if name.split(".")[0] == "model_zoo"} == before
    # An installed fuxictr_mm lies beside that stray folder.
    installed = zoo.parent / "site-packages"
    drop(installed, "x")
    drop(installed / "model_zoo", "Stray")
    monkeypatch.setattr(registry, "__file__", str(installed / "fuxictr_mm/registry.py"))
    assert "Stray" not in list_models()


def test_a_class_says_where_it_is_from():
    found = load_model_class("DIN")
    assert found.__module__ == "fuxictr_mm.model_zoo.DIN"
    assert Path(sys.modules[found.__module__].__file__).samefile(ROOT / "model_zoo/DIN.py")


def test_an_error_in_a_module_of_python_is_named_by_the_line_that_calls_it():
    with pytest.raises(ValueError, match="Expecting") as caught:
        json.loads("{")
    check_names(describe_error(caught.value), f"{Path(__file__)}, line")


@pytest.mark.parametrize(
    ("file", "is_author"), [("fuxictr_mm/model_zoo/X.py", True), ("fuxictr_mm/model.py", False), ("torch/x.py", False)]
)
def test_a_packaged_model_is_a_file_of_an_author(tmp_path, monkeypatch, file, is_author):
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "site-packages/fuxictr_mm/registry.py"))
    path = tmp_path / "site-packages" / file
    path.parent.mkdir(parents=True)
    path.write_text("def fail():\n    raise KeyError\n")
    with pytest.raises(KeyError) as caught:
        runpy.run_path(str(path))["fail"]()
    assert (f" in {path}, line 2" in describe_error(caught.value)) == is_author


def test_the_place_of_a_method_is_in_the_file_of_its_author():
    class Mine(MultimodalModel):
        @torch.no_grad()
        def logits(self, batch):
            return batch

    line = Mine.logits.__wrapped__.__code__.co_firstlineno
    assert source_of(Mine, "logits") == f"{__file__}, line {line}"
    assert source_of(Mine, "__init__") == f"{__file__}, line {line - 1}"
