"""An export is written where it scores as its model does, and only there."""

import json

import numpy as np
import pytest

from fuxictr_mm.errors import UserError
from fuxictr_mm.serving import export as module
from fuxictr_mm.serving import parity as parity_module
from fuxictr_mm.serving.export import export
from fuxictr_mm_serving import Export
from tests.errors import raises_naming

pytest.importorskip("onnxscript")


@pytest.mark.slow
def test_an_export_that_differs_is_not_written(weights_of, tmp_path, monkeypatch):
    experiment, weights = weights_of("DIN_MM_tiny")
    predict = module._predict

    def shifted(*arguments, **options):
        return predict(*arguments, **options) + 2e-5

    monkeypatch.setattr(module, "_predict", shifted)
    with pytest.raises(UserError, match="2e-05"):
        export(experiment, tmp_path / "out", weights=weights)
    assert list(tmp_path.iterdir()) == []


#: Differences of few scores, and of all, as those of the model itself.
FEW, ALL = np.array([1.0] + [0.001] * 99), np.ones(100)


@pytest.mark.parametrize(
    ("found", "own", "limit"),
    [
        (5e-6 * ALL, ALL, 1e-5),
        (3e-5 * FEW, 1e-5 * FEW, 4e-5),
        (3e-5 * ALL, 1e-5 * ALL, 4e-5),
        (3e-5 * ALL, 1e-5 * FEW, None),
        (1e-4 * ALL, 2e-4 * FEW, None),  # all scores are wrong by less than the model rounds a few
        (9e-5 * FEW, 1e-5 * FEW, None),
        (0.5 * FEW, FEW, None),
        (float("nan") * FEW, 1e-5 * FEW, None),
    ],
)
def test_rounding_errors_of_the_model_are_tolerated(found, own, limit):
    def check(rounding):
        return parity_module.check("DIN_MM_tiny", [np.zeros(9), found], 1e-5, rounding)

    if limit is None:
        with raises_naming(UserError, "DIN_MM_tiny", "--tolerance"):
            check(lambda: own)
    else:
        assert check(lambda: own) == pytest.approx(limit)
    if not found.max() <= 1e-5:
        with raises_naming(UserError, "1e-05"):
            check(None)


@pytest.mark.slow
def test_weights_that_are_not_trained_export_as_exactly_as_they_score(weights_of, tmp_path, monkeypatch):
    experiment, weights = weights_of("QIN_tiny")
    parity = export(experiment, tmp_path / "out", weights=weights)
    assert 1e-5 < parity["largest_difference"] <= parity["tolerance"] <= 1e-3
    predict = module._predict
    monkeypatch.setattr(module, "_predict", lambda *a, **options: predict(*a, **options) + 1e-4)
    with raises_naming(UserError, "--tolerance"):  # below the tolerance of before, but of all scores
        export(experiment, tmp_path / "wrong", weights=weights)


def test_folded_graphs_are_compared_with_the_model(weights_of, export_copy, monkeypatch):
    """What the export's rows and folded graphs have in common is no difference between these.

    Validation rows with more history items than a server takes are compared as well.
    """
    path = export_copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"longest_history": 1}))
    experiment, weights = weights_of("DIN_MM_tiny")
    dataset = experiment.load_dataset({"valid": True}, weights)
    model = experiment.build_model(dataset)
    model.load_weights(weights)
    expected = module._predict(experiment, model.eval(), dataset)
    score = Export.score_candidates

    def shifted(self, *arguments):
        found, known = score(self, *arguments)
        return found + np.float32(0.01), known

    monkeypatch.setattr(Export, "score_candidates", shifted)
    parity = parity_module.compare(experiment, export_copy, None, expected + 0.04, dataset, 0.1, None)
    assert parity["largest_difference"] == pytest.approx(0.04, abs=1e-5)
    assert parity["largest_difference_folded"] == pytest.approx(0.03, abs=1e-5)

    def shifted_others(self, *arguments):
        found, known = score(self, *arguments)
        return np.append(found[:-1], found[-1] + np.float32(0.02)), known

    # Also the other candidates of a row.
    monkeypatch.setattr(Export, "score_candidates", shifted_others)
    for given in (model, None):  # None: from the graph of rows
        parity = parity_module.compare(experiment, export_copy, None, expected, dataset, 0.1, None, model=given)
        assert parity["largest_difference_folded"] == pytest.approx(0.02, abs=1e-5)
    monkeypatch.setattr(Export, "score_candidates", score)
    rows = Export.score_rows
    monkeypatch.setattr(Export, "score_rows", lambda *a, **options: rows(*a, **options) * np.float32("nan"))
    for auc_loss in (None, 0.1):
        with raises_naming(UserError, "finite"):
            parity_module.compare(experiment, export_copy, None, expected, dataset, 0.1, None, auc_loss)


def test_rows_with_the_longest_histories_are_compared(weights_of, export_copy, monkeypatch):
    """They are, wherever they stand in the file: the differences of 8-bit weights are larger for them."""
    experiment, weights = weights_of("DIN_MM_tiny")
    dataset = experiment.load_dataset({"valid": True}, weights)
    exported = Export(export_copy)
    lengths: list[int] = []
    read, state_of = parity_module.read_part, Export.user_state

    def count(self, context, history):
        state = state_of(self, context, history)
        lengths.append(int(state["length"]))
        return state

    columns = read(parity_module.split(str(experiment.config.dataset.valid_data), 10**6)[0], exported.columns, 10**6)
    expected = np.concatenate([exported.score_rows(part) for part in columns])
    monkeypatch.setattr(parity_module, "read_part", lambda *arguments, **options: read(*arguments, 50, **options))
    monkeypatch.setattr(Export, "user_state", count)
    monkeypatch.setattr(parity_module, "FOLD_ROWS", 15)
    parity_module.compare(experiment, export_copy, None, expected, dataset, 1e-5, None)
    assert len(lengths) == 15
    assert sorted(lengths)[-10:] == [exported.items.max_len] * 10


def test_the_loss_of_auc():
    check = parity_module.check_auc
    both = {"model": {"click": 0.7, "like": 0.8}, "export": {"click": 0.71, "like": 0.79}}
    check("X", [both, {"model": 0.7, "export": 0.695, "rows": 1000}], 0.011)
    for found in (both, {"model": 0.7, "export": 0.69}, {"model": None, "export": None}):
        with raises_naming(UserError, "--auc-loss"):
            check("X", [found], 0.009)


def test_the_loss_of_auc_is_for_other_precisions(weights_of, tmp_path):
    experiment, weights = weights_of("DIN_MM_tiny")
    for options in ({}, {"precision": "fp16", "tolerance": 0.1}):
        with raises_naming(UserError, "--auc-loss"):
            export(experiment, tmp_path / "out", weights=weights, auc_loss=0.01, **options)
