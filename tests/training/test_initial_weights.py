"""Weights that training starts with: rows of tables by the values of vocabularies, if ids have other numbers now."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from fuxictr_mm.data.fingerprint import data_hashes
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.errors import MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.files import write_json
from fuxictr_mm.runs import vocabulary_of_weights
from fuxictr_mm.training.checkpoints import load_known_rows, save_state_dict
from fuxictr_mm.training.initial_weights import find_initial_weights, load_initial_weights, warn_of_random_weights
from fuxictr_mm.yaml_files import dump_yaml
from fuxictr_mm_serving.prepared import EXTENDS
from tests import ids
from tests.errors import raises_naming
from tests.paths import ROOT

ITEM_TABLE = "embedding_layer.embedding_layer.embedding_layers.item_id.weight"


class TwoTables(torch.nn.Module):
    """A table, a table of other ids, and a layer."""

    def __init__(self, rows, others=3, dim=2):
        super().__init__()
        self.table, self.other = torch.nn.Embedding(rows, dim), torch.nn.Embedding(others, dim)
        self.norm = torch.nn.BatchNorm1d(dim)


@pytest.mark.parametrize(
    ("rows", "known", "copied"),
    [(4, 4, 4), (6, 4, 4), (4, 2, 2), (6, 3, None), (6, 0, None), (3, 4, None)],
    ids=["same", "longer", "of the same size, some rows known", "other rows in between", "unknown", "shorter"],
)
def test_known_rows_are_copied_and_others_stay(tmp_path, rows, known, copied):
    before, model = TwoTables(4), TwoTables(rows)
    save_state_dict(before.state_dict(), tmp_path / "a.model")
    initial = {name: value.clone() for name, value in model.state_dict().items()}

    def known_rows(name, found):
        return known if name == "table.weight" else found

    if copied is None:
        with raises_naming(UserError, tmp_path / "a.model", "table.weight"):
            load_known_rows(model, tmp_path / "a.model", known_rows)
        assert all(torch.equal(value, initial[name]) for name, value in model.state_dict().items())
        return
    load_known_rows(model, tmp_path / "a.model", known_rows)
    assert torch.equal(model.table.weight[:copied], before.table.weight[:copied])
    assert torch.equal(model.table.weight[copied:], initial["table.weight"][copied:])
    assert torch.equal(model.other.weight, before.other.weight)


def without(found, late):
    """Return tables without the items from ``late`` on, in their rows, histories and item file."""
    kept = dict(found)
    for name, table in found.items():
        kept[name] = table.filter(pc.less(table["item_id"], late))
        if name != "items":
            rows = [[item for item in row if item < late] for row in kept[name]["item_seq"].to_pylist()]
            kept[name] = ids.put(kept[name], "item_seq", pa.array(rows, pa.list_(pa.int64())))
    return kept


@pytest.mark.slow
def test_rows_of_texts_are_found_by_their_values(tmp_path):
    """The later item file has another order and more items, and one of the earlier items is missing."""
    found = ids.tables()
    first = ids.write(tmp_path / "first", ids.with_ids(without(found, 800), ids.KINDS["text"]))
    backwards = {**found, "items": found["items"].take(pa.array(range(found["items"].num_rows - 1, -1, -1)))}
    second = ids.write(tmp_path / "second", ids.with_ids(backwards, ids.KINDS["text"]))
    path = tmp_path / "a.model"

    def build(folder, **settings):
        settings["feature_specs"] = [{"name": "item_id", "dropout": 0.1, "unknown": "trained"}]
        experiment = Experiment.load("X", folder, threads=1, **settings)
        dataset = experiment.load_dataset({"train": True, "valid": True})
        return experiment, dataset, experiment.build_model(dataset)

    _, old, before = build(first)
    before.unknown_item.seen[1::2] = True
    save_state_dict(before.state_dict(), path)
    old.vocabularies.save(vocabulary_of_weights(path))
    experiment, new, model = build(second, initial_weights=path)
    initial = model.state_dict()[ITEM_TABLE].clone()
    load_initial_weights(model, path, new, experiment.config.dataset.item_files)
    numbers = new.vocabularies["item_id"].encode(old.vocabularies["item_id"].values)
    table = model.state_dict()[ITEM_TABLE]
    assert torch.equal(table[numbers], before.state_dict()[ITEM_TABLE][1:])
    others = sorted(set(range(1, len(table))) - set(numbers.tolist()))
    assert len(others) > 100
    assert torch.equal(table[others], initial[others])
    # Items that training has seen stay so; new ones are unknown until it shows them.
    seen = model.unknown_item.seen
    assert torch.equal(seen[numbers], before.unknown_item.seen[1:])
    assert not seen[others].any()
    # Without the vocabularies of the weights nothing tells which row is of which item.
    vocabulary_of_weights(path).unlink()
    experiment, new, model = build(second, initial_weights=path)
    with raises_naming(UserError, "a.vocabulary", "item_id"):
        load_initial_weights(model, path, new, experiment.config.dataset.item_files)


def test_the_content_of_the_file_is_of_the_identity_of_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.model").write_bytes(b"one")
    (run / "valid_predictions.parquet").write_bytes(b"x")
    of_file, of_folder = (data_hashes({"initial_weights": str(path)}) for path in (run / "best.model", run))
    assert of_file == of_folder
    (run / "best.model").write_bytes(b"other")
    assert data_hashes({"initial_weights": str(run)}) != of_file
    assert data_hashes({"initial_weights": str(tmp_path / "none")}) == {}


@pytest.mark.parametrize("extends", [True, False])
def test_random_weights_are_warned_of_where_rows_continue_a_log(caplog, extends):
    vocabularies = Vocabularies()
    vocabularies.settings = {EXTENDS: {"item_id": ["a"]}} if extends else {}
    warn_of_random_weights(SimpleNamespace(vocabularies=vocabularies))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * extends


def test_a_run_or_an_experiment_id_stands_for_the_folder_of_its_weights(tmp_path):
    settings = {"model_root": str(tmp_path / "runs"), "record": False}
    before = Experiment.load("DIN_tiny", ROOT, **settings)
    folders = [tmp_path / "runs/tiny_mm/DIN_tiny" / f"2026010{day}-000000-seed1" for day in (1, 2, 3)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_yaml(before.config.to_dict()))
        (folder / "best.model").touch()
    for folder in folders[:2]:  # the newest one is not finished
        write_json(folder / "result.json", {"valid": {"AUC": 0.5}, "seconds": 1.0})
    for given, found in (("DIN_tiny", folders[1]), (folders[0].name, folders[0]), (folders[0].parent, folders[1])):
        experiment = Experiment.load("DIN_MM_tiny", ROOT, initial_weights=given, **settings)
        assert experiment.config.initial_weights == str(found)
        assert find_initial_weights(experiment.config) == experiment.find_weights(given) == found / "best.model"
    # Of this experiment itself, a run that ends meanwhile does not count.
    again = before.with_settings(initial_weights="DIN_tiny")
    write_json(folders[2] / "result.json", {"valid": {"AUC": 0.5}, "seconds": 1.0})
    assert again.with_settings(seed=2).config.initial_weights == str(folders[1])
    missing = Experiment.load("DIN_tiny", ROOT, initial_weights="DIN_tyni", **settings)
    with raises_naming(MissingFileError, "initial_weights", "DIN_tyni"):
        find_initial_weights(missing.config)
    with raises_naming(MissingFileError, "DIN_tyni"):
        before.find_weights("DIN_tyni")
