"""Folds of the training and validation rows: each is held out once.

Shape letters: R rows of train and valid together, in this order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fuxictr_mm.config import Fold
from fuxictr_mm.data.dataset import Dataset
from fuxictr_mm.data.groups import number_users
from fuxictr_mm.data.interactions import InteractionTable, concatenate
from fuxictr_mm.data.loaders import take_rows
from fuxictr_mm.errors import ConfigError

#: Of the random folds; the same for every experiment, so that their predictions are of the same rows.
SEED = 0


def with_fold(dataset: Dataset, fold: Fold) -> Dataset:
    """Return a dataset whose rows of train and valid are split again: one fold is valid, the others are train."""
    tables = [dataset.splits[split] for split in ("train", "valid")]
    if not all(isinstance(table, InteractionTable) for table in tables):
        raise ConfigError("fold: train or valid is streamed from disk, expected it in memory; set resident: True")
    table = concatenate([table for table in tables if isinstance(table, InteractionTable)])
    held_out = fold_of_rows(None if table.group is None else table.group.numpy(), len(table), fold)
    # Of rows in the order of time, a fold is validated on what comes after its training rows.
    trained = held_out < fold.number - 1 if fold.by == "time" else held_out != fold.number - 1
    rows = {"train": np.flatnonzero(trained), "valid": np.flatnonzero(held_out == fold.number - 1)}
    splits = {
        split: take_rows(table, torch.from_numpy(chosen), f"{split} rows of the fold") for split, chosen in rows.items()
    }
    summaries = {split: replace(dataset.summaries[split], num_rows=len(part)) for split, part in splits.items()}
    files = {split: file for split, file in dataset.files.items() if split not in splits}  # of other rows than these
    summaries = {**dataset.summaries, **summaries}
    return replace(dataset, splits={**dataset.splits, **splits}, summaries=summaries, files=files)


def fold_of_rows(group: np.ndarray | None, rows: int, fold: Fold) -> np.ndarray:
    """Return the fold ``(R,)`` in which each row is held out, from 0; -1 for a row that is never held out.

    ``group`` ``(R,)`` has the user of each row; a row without one counts as a separate user.
    """
    if fold.by == "time":
        # K + 1 blocks, the first of which is only trained on.
        found, available = np.arange(rows) * (fold.of + 1) // max(rows, 1) - 1, rows - 1
    else:
        if fold.by == "user" and group is None:
            raise ConfigError("fold: by: user needs a user column, but group_id is not set; set group_id, or by: row")
        unit = number_users(group if fold.by == "user" else None, rows)
        available = int(unit.max()) + 1
        found = (np.random.default_rng(SEED).permutation(available) % fold.of)[unit]
    if available < fold.of:
        raise ConfigError(f"fold: {fold.of} folds of {available} {fold.by}s, expected {fold.of} or more")
    return found
