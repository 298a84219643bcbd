"""All sections of a diagnosis, one after the other.

Shape letters: R rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.evaluation.diagnosis import attention, calibration, importance, neighbours, senet, slices, vectors
from fuxictr_mm.evaluation.diagnosis.delong import auc_with_interval
from fuxictr_mm.evaluation.diagnosis.field_groups import all_groups, context_fields, item_fields, vector_fields
from fuxictr_mm.evaluation.diagnosis.findings import find
from fuxictr_mm.evaluation.diagnosis.probes import find_probes
from fuxictr_mm.evaluation.diagnosis.scoring import Scorer, sample
from fuxictr_mm.evaluation.diagnosis.slices import Popularity

#: Of the keys of a diagnosis and their meaning; raised where a reader of version 1 would be misled.
VERSION = 1


def diagnose(
    model: Any,
    params: Mapping[str, Any],
    table: InteractionTable,
    popularity: Popularity | None = None,
    *,
    rows: int = 20_000,
    repeats: int = 5,
    seed: int = 0,
    verbose: int = 0,
) -> dict[str, Any]:
    """Look at a trained model.

    Parameters
    ----------
    model : BaseModel
        With its trained weights; it is the same afterwards.
    params : mapping
        Of the experiment.
    table : InteractionTable
        Rows with labels, of both classes.
    popularity : Popularity, optional
        From the training rows.
    rows : int
        Where the table has more, so many are drawn at random.
    repeats : int
        Permutations of each group of fields.
    seed : int
        Of the rows and of the permutations.
    verbose : int
        0 turns the progress bar off.

    Returns
    -------
    dict
        Plain values, as described in ``docs/diagnosis.md``.

    Raises
    ------
    DataError
        The rows are of one class, or predictions are not finite.
    """
    from fuxictr_mm.training.progress import progress_bar

    started = time.perf_counter()
    items, features = model.feature_map.items, model.feature_map.features
    groups = all_groups(features, items.names)
    probes = find_probes(model)
    passes = 1 + attention.number_of_passes(probes) + importance.number_of_passes(groups, repeats)
    shown, model._verbose = model._verbose, 0
    try:
        with progress_bar(range(passes), "diagnosis", verbose) as bar:
            bar.unit = "pass"
            scorer = Scorer(model, sample(table, rows, seed), params, bar.update)
            sections, absent = _of_attention(scorer, [attention.Watched(probe) for probe in probes])
            entries = importance.measure(scorer, groups, repeats, seed)
    finally:
        model._verbose = shown
    assert scorer.base is not None
    label, prediction = scorer.label, scorer.base
    known = items.known.cpu().numpy()
    columns = {name: items[name].cpu().numpy() for name in vector_fields(features, items.names)}
    files = [params["item_info"]] if isinstance(params["item_info"], str) else list(params["item_info"])
    target = scorer.table.target.cpu().numpy()
    clicks = np.bincount(target[label == 1], minlength=items.num_items) if popularity is None else popularity.clicked
    result: dict[str, Any] = {
        "version": VERSION,
        "rows": len(label),
        "rows_in_split": len(table),
        "repeats": repeats,
        "seed": seed,
        "metrics": {
            **auc_with_interval(label, prediction),
            "logloss": _log_loss(label, prediction),
            "positives": int(label.sum()),
            "rate": float(label.mean()),
        },
        **sections,
        "importance": {
            "fields": [entry for entry in entries if entry["kind"] == "field"],
            "groups": [entry for entry in entries if entry["kind"] != "field"],
        },
        "vectors": [
            {**vectors.describe(name, column[1:][known[1:]]), "reduction": vectors.find_reduction(name, files)}
            for name, column in columns.items()
        ],
        "calibration": calibration.describe(label, prediction, seed=seed),
        "history_length": slices.by_history_length(
            label, prediction, scorer.table.history_offsets.diff().cpu().numpy()
        ),
    }
    if popularity is None:
        absent["popularity"] = "no training file to count clicks in"
    else:
        result["popularity"] = slices.by_popularity(label, prediction, target, popularity)
    if columns:
        result["neighbours"] = neighbours.describe(columns, clicks, known, files)
    else:
        del result["vectors"]
        absent["vectors"] = absent["neighbours"] = "the model reads no vector of items"
    result["absent"] = absent
    result["passes"] = scorer.passes
    result["seconds"] = time.perf_counter() - started
    result["findings"] = find(result)
    return result


def _of_attention(scorer: Scorer, watched: list[attention.Watched]) -> tuple[dict[str, Any], dict[str, str]]:
    """Score the rows as they are, watching attention and SENet; then with weights made even and heads silenced.

    Returns
    -------
    sections : dict
        ``attention``, ``heads`` and ``senet``, as far as the model has them.
    absent : dict of str to str
        Why the others are not there.
    """
    gates = senet.find_senets(scorer.model)
    with ExitStack() as stack:
        for block in [*(w.watching() for w in watched), *(g.watching() for g in gates)]:
            stack.enter_context(block)
        scorer.score_base()
    watched = [watch for watch in watched if watch.parts and watch.norms]
    sections: dict[str, Any] = {}
    absent: dict[str, str] = {}
    if watched:
        sections["attention"] = [
            {**attention.describe_entropy(watch), **attention.measure_evenly(scorer, watch.probe)} for watch in watched
        ]
        sections["heads"] = [attention.measure_heads(scorer, watch) for watch in watched]
    else:
        absent["attention"] = absent["heads"] = "the model has no attention whose weights can be read"
    features = scorer.model.feature_map.features
    context, items = context_fields(features), item_fields(features, scorer.model.feature_map.items.names)
    if described := [
        senet.describe(gate.name, gate.weights, senet.name_fields(gate.weights.shape[1], context, items))
        for gate in gates
        if gate.parts
    ]:
        sections["senet"] = described
    else:
        absent["senet"] = "the model has no SENet"
    return sections, absent


def _log_loss(label: np.ndarray, prediction: np.ndarray) -> float:
    clipped = prediction.clip(1e-15, 1 - 1e-15)
    return float(-np.where(label == 1, np.log(clipped), np.log1p(-clipped)).mean())
