"""The first experiments that ``fuxictr-mm prepare`` writes, with settings by the number of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fuxictr_mm.config.sizes import (
    FEW_ROWS,
    PENALTY,
    SWA_EPOCHS,
    SWA_LEARNING_RATE,
    factor_penalty_for,
    factor_table_penalty_for,
    penalty_for,
    size_for,
    updates_of,
)
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.terminal import listed

if TYPE_CHECKING:
    from fuxictr_mm.datasets.summary import Summary

#: Training rows of a user from which on the user is a feature: an embedding of fewer is not learned.
USER_ROWS = 3

#: LightFM has so many times the epochs of other models: one takes a tenth of the time, and the AUC rises for longer.
FACTOR_EPOCHS = 3

#: Dim of the factorization of user and item beside ``DIN_MM``, the setting that is worth most where users recur.
FACTOR_DIM = 17

#: The attention of DIN, a setting of no other model. Softmax gained on three of four sets.
DIN_ATTENTION: dict[str, Any] = {"attention_hidden_units": [32], "din_use_softmax": True}

#: Columns of the items are compared with fewer training rows than this: more rows gain nothing.
COMPARED_ROWS = 100_000

#: They are compared if a value has so many items on average, and at most so many columns.
ITEMS_OF_A_VALUE, MOST_COMPARED = 5, 4

#: Where embeddings tell what an item is, and so many rows are of items that training does not show, dropout of item ids
#: gains: planted worlds of ``docs/settings_measured/cold_items.md``, which measured no gain with fewer cold rows.
COLD, COLD_DROPOUT = 0.8, 0.5

#: Where negatives are sampled, a user has as many of them as positives, and nothing but the relation of target and
#: history tells one from the other, so that LightFM and the factorization of DIN_MM need the history. The relation is
#: memorised by item, and items without training rows rank last. From this fraction of them on, dropout of item ids
#: teaches the models what an unknown item is, by an embedding of its own.
SAMPLED_COLD, SAMPLED_DROPOUT = 0.05, 0.1

#: Items without embeddings are known by their ids alone: from this fraction of cold rows on, the summary advises them.
SOME_COLD = 0.2

#: Beside a classification, a standardised number: in the monitored sum, and in the loss, whose gradient at the start is
#: about four times that of a cross-entropy.
NUMBER_IN_MONITOR, NUMBER_WEIGHT = -0.1, 0.2


def users_recur(summary: Summary) -> bool:
    """Return whether users have training rows enough for the user to be a feature."""
    return summary.splits["train"].rows >= USER_ROWS * summary.users


def columns_to_compare(summary: Summary, columns: Mapping[str, str], sampled: bool = False) -> list[str]:
    """Return the columns of the items whose similarity of target and history is a feature.

    ``columns`` are the kinds of the columns of the items; ``sampled`` says whether the negatives are sampled. These
    differ from positives by whether the target goes with the history, which embeddings tell of any item. From few rows
    a model does not learn that the target is of a category that the user likes; from many it does.
    """
    embeddings = [*summary.coverage][:MOST_COMPARED] if sampled else []
    if summary.splits["train"].rows >= COMPARED_ROWS:
        return embeddings
    shared = [
        name
        for name, kind in columns.items()
        if kind in ("categorical", "sequence") and summary.vocab_sizes[name] * ITEMS_OF_A_VALUE <= summary.items
    ]
    return [*embeddings, *shared[:MOST_COMPARED]]


def din_experiments(
    rows: int, max_len: int, group: str = "user_id", labels: Mapping[str, bool] | None = None
) -> dict[str, dict[str, Any]]:
    """Return DIN and DIN_MM with settings for a number of training rows.

    ``group`` is the column that metrics group by; ``labels`` says of each label whether it is a number, by default of
    one of 0 and 1.
    """
    size, tasks = size_for(rows), _tasks(labels or {"label": False})
    attention = {"num_heads": 4, "attention_hidden_units": [32], "attention_dropout": 0.1}
    own: dict[str, dict[str, Any]] = {"DIN": dict(DIN_ATTENTION), "DIN_MM": attention}
    return {
        name: {
            "metrics": tasks["metrics"],
            "optimizer": "adam",
            "learning_rate": SWA_LEARNING_RATE[name],
            "embedding_regularizer": penalty_for(rows).first,
            "batch_size": size.batch_size,
            "epochs": size.epochs,
            # Of the average of the weights, whose first evaluations may be worse. A reduction of the learning rate in
            # between, or less patience, ends some trainings after four epochs.
            "early_stop_patience": 4,
            "reduce_lr_on_plateau": False,
            "embedding_dim": size.embedding_dim,
            "dnn_hidden_units": list(size.units),
            "net_dropout": 0.2,
            **tasks,
            "group_id": group,
            "max_len": max_len,
            **settings,
            "swa_start": updates_of(SWA_EPOCHS, rows, size.batch_size),
        }
        for name, settings in own.items()
    }


def first_experiments(
    summary: Summary,
    max_len: int,
    users: bool,
    group: str = "user_id",
    labels: Mapping[str, bool] | None = None,
    sampled: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return ``din_experiments`` for what was written; with LightFM where ``users`` are a feature.

    ``sampled`` says whether the negatives are sampled.
    """
    models = din_experiments(summary.splits["train"].rows, max_len, group, labels)
    for settings in models.values():
        settings["embedding_regularizer"] = _penalty(summary)
        if _drops_of_sampled(summary, sampled):
            settings["feature_specs"] = [{"name": ITEM_ID, "dropout": SAMPLED_DROPOUT, "unknown": "trained"}]
    settings = models["DIN_MM"]
    if users:
        settings["factor_dim"] = FACTOR_DIM
        settings["factor_table_regularizer"] = factor_table_penalty_for(summary.splits["train"].rows)
        if sampled:  # and all fields: a category of the target goes with those of the history, too
            settings["factor_history"] = True
        else:
            settings["factor_features"] = ["user_id", ITEM_ID, *summary.coverage]
    if _are_cold(summary) and summary.coverage:
        settings["feature_specs"] = [{"name": ITEM_ID, "dropout": COLD_DROPOUT}]
    if not users:
        return models
    common = {name: value for name, value in models["DIN"].items() if name not in ("swa_start", *DIN_ATTENTION)}
    factors = {
        "learning_rate": 5e-3,
        "embedding_regularizer": factor_penalty_for(summary.splits["train"].rows).first,
        "factor_regularizer": 0.02,
        "epochs": FACTOR_EPOCHS * common["epochs"],
        "embedding_dim": 17,
        "early_stop_patience": 5,  # four evaluations in a row may be worse by noise
        **({"history": True} if sampled else {}),
    }
    no_network = {"dnn_hidden_units": None, "net_dropout": None}
    # Large batches of few rows are few updates: with 4,800 rows, five in an epoch.
    larger = 1 if summary.splits["train"].rows < FEW_ROWS else 4
    models["LightFM"] = {**common, **factors, **no_network, "batch_size": larger * common["batch_size"]}
    return models


def _tasks(labels: Mapping[str, bool]) -> dict[str, Any]:
    """Return metrics, and task, loss and monitor where a label is a number."""
    classes, numbers = ["AUC", "gAUC", "logloss"], ["RMSE", "MAE"]
    if not any(labels.values()):
        return {"metrics": classes}
    if all(labels.values()):
        return {
            "task": "regression", "loss": "mse_loss", "metrics": numbers, "monitor": "RMSE", "monitor_mode": "min"
        }  # fmt: skip
    return {
        "task": ["regression" if is_number else "binary_classification" for is_number in labels.values()],
        "loss": ["mse_loss" if is_number else "binary_crossentropy" for is_number in labels.values()],
        "metrics": classes + numbers,
        "monitor": {"AUC": 1, "RMSE": NUMBER_IN_MONITOR},
        "task_weights": {name: NUMBER_WEIGHT for name, is_number in labels.items() if is_number},
    }


def explain(summary: Summary, users: bool, compared: Sequence[str] = (), sampled: bool = False) -> list[str]:
    """Return a line for each setting that follows from what the data are like, for the summary of ``prepare``.

    ``users`` says whether the user is a feature; ``compared`` are the ``columns_to_compare``; ``sampled`` says whether
    the negatives are sampled.
    """
    return [
        *_explain_factors_and_penalty(summary, users),
        *_explain_similarities(summary, compared),
        *_explain_embeddings(summary),
        *_explain_history_factors(users, sampled),
        *_explain_cold_items(summary, users, sampled),
    ]


def _explain_factors_and_penalty(summary: Summary, users: bool) -> Iterator[str]:
    rows = summary.splits["train"].rows
    if users:
        of_user = f"{rows / summary.users:.0f} training rows"
        yield f"DIN_MM has factor_dim: {FACTOR_DIM}, since users have {of_user} on average"
    if (penalty := _penalty(summary)) != PENALTY.first:
        why = (
            _number_of_rows(summary)
            if penalty == penalty_for(rows).first
            else f"items have {rows / summary.trained_items:.1f} training rows on average"
        )
        yield f"DIN and DIN_MM have embedding_regularizer: {penalty}, since {why}"


def _explain_similarities(summary: Summary, compared: Sequence[str]) -> Iterator[str]:
    embeddings = [name for name in compared if name in summary.coverage]
    for names, why in (
        (embeddings, "sampled negatives differ from positives by the history alone"),
        ([name for name in compared if name not in embeddings], _number_of_rows(summary)),
    ):
        if names:
            yield f"features of type: similarity compare target and history in {', '.join(names)}, since {why}"


def _number_of_rows(summary: Summary) -> str:
    return f"there are {summary.splits['train'].rows:,} training rows"


def _explain_embeddings(summary: Summary) -> Iterator[str]:
    for name, norms in summary.norms.items():
        if norms.setting is not None:
            key, value = norms.setting
            why = f"the median norm of its embeddings is {norms.median:.3g}"
            yield f"{name} has {key}: {value}, since {why}{', and norms differ' if key == 'scale' else ''}"
    for name, dim in summary.dims.items():
        if 0 < summary.trained_items < 2 * dim:  # a linear map of them fits the items one by one
            yield (
                f"{name} has {dim} dims, and {summary.trained_items} items have training rows: so few may be fitted "
                "one by one, which tells nothing of new items; reduce the dims (fuxictr-mm embed reduce --dim "
                f"{max(summary.trained_items // 4, 1)}), and prepare again with the reduced file"
            )


def _explain_history_factors(users: bool, sampled: bool) -> Iterator[str]:
    if users and sampled:
        yield (
            "LightFM has history: true and DIN_MM factor_history: true, since sampled negatives differ from positives "
            "by the history alone"
        )


def _explain_cold_items(summary: Summary, users: bool, sampled: bool) -> Iterator[str]:
    split, part = _newest_cold(summary)
    if _drops_of_sampled(summary, sampled):
        others = [] if _are_cold(summary) and summary.coverage else ["DIN_MM"]
        names = ["DIN", *others, *(["LightFM"] if users else [])]
        which = f"{listed(names)} {'have' if len(names) > 1 else 'has'}"
        yield (
            f"{which} dropout: {SAMPLED_DROPOUT} and unknown: trained of {ITEM_ID}, since {part:.0%} of "
            f"the {split} rows are of items that do not occur in training, and sampled negatives tell nothing of them"
        )
    if _are_cold(summary) or (part >= SOME_COLD and not summary.coverage):
        fix = f"DIN_MM has dropout: {COLD_DROPOUT} of {ITEM_ID}"
        if not summary.coverage:
            fix = (
                "their ids are not trained; encode titles or images (fuxictr-mm embed encode), and prepare the log "
                "again with --embeddings FILE"
            )
        yield f"{part:.0%} of the {split} rows are of items that do not occur in training: {fix}"


def _newest_cold(summary: Summary) -> tuple[str, float]:
    """Return the last split, and the fraction of its rows whose item is the target of no training row."""
    split = "test" if "test" in summary.splits else "valid"
    counts = summary.splits.get(split)
    return split, counts.cold / max(counts.rows, 1) if counts else 0.0


def _penalty(summary: Summary) -> float:
    return penalty_for(summary.splits["train"].rows, 0 if summary.coverage else summary.trained_items).first


def _drops_of_sampled(summary: Summary, sampled: bool) -> bool:
    return sampled and _newest_cold(summary)[1] >= SAMPLED_COLD


def _are_cold(summary: Summary) -> bool:
    return _newest_cold(summary)[1] >= COLD
