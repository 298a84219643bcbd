"""Cross-validation: an experiment trained once for each fold, and its out-of-fold predictions.

Shape letters: R rows of train and valid together.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from fuxictr_mm.config import Fold
from fuxictr_mm.data.folds import fold_of_rows
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.evaluation.combine import averaged
from fuxictr_mm.evaluation.ensemble import check_is_free, combined_run, read_test_predictions
from fuxictr_mm.runs import Predictions, Run
from fuxictr_mm.tuning.seeds import Processes, train_side_by_side

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment


def train_folds(
    experiment: Experiment, count: int, processes: Processes, by: Literal["user", "row", "time"] = "user"
) -> tuple[list[Run], Run]:
    """Train an experiment once for each of ``count`` folds of its training and validation rows.

    The folds are the experiments ``EXPID_fold1``, ``EXPID_fold2`` ... All rows of a user are held out together
    (``group_id`` names the user), rows at random, or blocks of rows in the order of the files, each after the rows it
    is trained on.

    Return their runs, and ``EXPID_folds``, saved like an ensemble: its validation predictions are out-of-fold, for
    every row that a fold holds out, in the order of train and valid; its test predictions the average over the folds.

    Raises
    ------
    ConfigError
        The folds cannot be built, or ``record`` is False.
    UserError
        A fold failed; the others have been trained.
    """
    started = time.perf_counter()
    config = experiment.config
    if count < 2:
        raise ConfigError(f"--folds is {count}, expected 2 or more")
    if len(config.dataset.label_names) > 1 or config.task != "binary_classification":
        raise ConfigError(
            f"{config.expid}: --folds needs one binary label, because out-of-fold predictions are probabilities"
        )
    paths = replace(experiment.paths, expid=f"{config.expid}_folds")
    check_is_free(paths)
    folds = [Fold(number=number + 1, of=count, by=by) for number in range(count)]
    dataset = experiment.load_dataset({"train": True, "valid": True})
    both = [dataset.splits[split].labels_and_groups() for split in ("train", "valid")]
    label = torch.cat([labels for labels, _ in both]).numpy()
    group = None if both[0][1] is None else torch.cat([groups for _, groups in both if groups is not None]).numpy()
    held_out = fold_of_rows(group, len(label), folds[0])
    variants = {
        f"fold{fold.number}": (experiment.of_fold(fold), ("--fold", f"{fold.number}/{count}", "--fold_by", by))
        for fold in folds
    }
    runs = train_side_by_side(variants, experiment, processes, "fold")
    predictions = np.zeros(len(label), dtype=np.float32)
    for number, run in enumerate(runs):
        found_label, found, _ = run.predictions()
        if found_label is None or not np.array_equal(found_label, label[held_out == number]):
            raise UserError(f"{run.path}: its validation rows are not those of fold {number + 1}; train the fold again")
        predictions[held_out == number] = found
    rows = held_out >= 0
    valid = Predictions(label[rows], predictions[rows], None if group is None else group[rows])
    members = read_test_predictions(runs, config.gpu)
    test = averaged(members, "logit") if members else None
    description = f"out-of-fold predictions, {count} folds by {by}"
    combined = combined_run(runs, paths, description, "logit", valid, test, started)
    return runs, combined
