"""What the autopilot measures of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.config import DatasetConfig, ExperimentConfig
from fuxictr_mm.config.columns import split_entries
from fuxictr_mm.data.arrow_types import numbers
from fuxictr_mm.data.decoding import list_entries
from fuxictr_mm.data.labels import decode_label
from fuxictr_mm.data.numbering import extended_in
from fuxictr_mm.data.parquet import count_rows, metadata_of, part_files, read_chunks, read_rows, schema_of
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.diagnosis.importance import MODALITIES, modality_of
from fuxictr_mm.encoding.fuxictr import as_integers
from fuxictr_mm.errors import ConfigError, DataError

#: Rows that the length of histories is measured on.
MEASURED_ROWS = 20_000

#: Items that the dim of an embedding is measured on; some may have none.
MEASURED_ITEMS = 100

#: Negatives were sampled if so many of the users, of at least so many, have the same number of them for each positive
#: row. Where labels are independent, a user has it with a chance of at most a half, so that 40 of 50 users do not. Of
#: sampled ones some users may lack a negative that was found to be a positive.
SAMPLED_USERS, LEAST_USERS = 0.8, 50


@dataclass(frozen=True)
class Facts:
    """Statistics by which models and settings are selected."""

    rows: dict[str, int]  #: By split.
    items: int  #: Rows of the first item file; without one, ``trained_items``.
    trained_items: int  #: Items that are the target of a training row.
    history_mean: float  #: Mean length of the histories.
    cold: dict[str, float]  #: Fraction of the targets of a split without a training row.
    embeddings: dict[str, str]  #: The narrowest embedding column of each modality.
    group: str | None = None  #: The column of users, if the validation rows have it.
    has_gauc: bool = True  #: Whether gAUC is defined: a user of the validation rows has both classes.
    negatives: int = 0  #: Negatives that were sampled for each positive row; 0: all rows were logged.
    continues: bool = False  #: Whether the training rows continue an earlier log (prepare log --extend).

    def sentence(self) -> str:
        """Return the facts in a sentence."""
        rows = ", ".join(f"{count:,} {split}" for split, count in self.rows.items())
        cold = ", ".join(f"{share:.1%} of {split}" for split, share in self.cold.items())
        named = [column if column == of else f"{column} ({of})" for of, column in self.embeddings.items()]
        vectors = ", ".join(named) or "none"
        sampled = f" sampled negatives: {self.negatives} for each positive;" if self.negatives else ""
        return (
            f"Data: {rows} rows; {self.items:,} items; histories of {self.history_mean:.1f} items on average; "
            f"cold targets: {cold or 'unknown'};{sampled} embeddings: {vectors}."
        )


def look(dataset: DatasetConfig) -> Facts:
    """Measure a dataset, column by column.

    Raises
    ------
    UserError
        A file or a column is missing or damaged.
    """
    files = dataset.item_files
    paths = _paths(dataset)
    for split in ("train", "valid"):
        if split not in paths:
            raise ConfigError(f"the dataset has no {split}_data; autopilot trains on train and selects by valid")
    target, history = dataset.roles.target, dataset.roles.history
    shown = {split: _column(path, target) for split, path in paths.items()}
    trained = pl.Series(shown["train"]).n_unique()
    lengths: list[np.ndarray] = []
    for row, batch in read_rows(paths["train"], [history]):
        entries, offsets = list_entries(batch.column(history), f"{paths['train']}: {history}")
        if pa.types.is_integer(entries.type):  # padded with 0
            offsets = np.concatenate([[0], np.cumsum(numbers(entries.fill_null(0)) != 0)])[offsets]
        lengths.append(np.diff(offsets))
        if row + batch.num_rows >= MEASURED_ROWS:
            break
    user, label = dataset.roles.user, dataset.require_one_label("autopilot")
    of_users = {
        split: _count_by_user(paths[split], user, label)
        for split in ("train", "valid")
        if user in schema_of(part_files(paths[split])[0]).names
    }
    return Facts(
        rows={split: len(ids) for split, ids in shown.items()},
        items=count_rows(files[0]) if files else trained,
        trained_items=trained,
        history_mean=float(np.concatenate(lengths).mean()),
        cold={
            split: float(1 - np.isin(ids, shown["train"]).mean()) for split, ids in shown.items() if split != "train"
        },
        embeddings=_embeddings(dataset, files),
        group=user if "valid" in of_users else None,
        has_gauc="valid" in of_users and bool((of_users["valid"] > 0).all(axis=1).any()),
        negatives=_negatives(of_users["train"]) if "train" in of_users else 0,
        continues=bool(extended_in(metadata_of(part_files(paths["train"])[0]))),
    )


def usable(config: ExperimentConfig) -> DatasetConfig:
    """Return the dataset of an experiment, encoded if it has no item files.

    Raises
    ------
    UserError
        The autopilot does not take it: it has no items or several labels, or its label is a number.
    """
    dataset = config.dataset
    has_roles = {"target", "history"} <= dataset.roles.model_fields_set
    if not dataset.feature_cols or not (dataset.item_files or has_roles):
        raise ConfigError(
            f"autopilot: dataset {config.dataset_id} has no item_info or feature_cols; its models need items: set "
            "their files, or the columns of target and history, roles: {target: COLUMN, history: COLUMN}"
        )
    label = dataset.require_one_label("autopilot")
    if not dataset.item_files:
        dataset = encoded(config)
    for split, path in _paths(dataset).items():
        if split == "test":  # labels of test rows are optional
            continue
        for row, batch in read_rows(path, [label]):
            try:
                decode_label(batch.column(0), f"autopilot: {path}: {label}", row, binary=True)
            except DataError as error:
                raise DataError(f"{error}; for a label of numbers train an experiment, task: regression") from error
    return dataset


def encoded(config: ExperimentConfig) -> DatasetConfig:
    """Return the dataset of an experiment without item files with the encoded files, which its trials read as well.

    Raises
    ------
    UserError
        A file or a column is missing or damaged.
    """
    dataset = config.dataset
    paths = _paths(dataset)
    needs_labels = {split: split != "test" for split in paths}
    read, _ = as_integers(config, paths, needs_labels, Vocabularies())
    return dataset.model_copy(update={f"{split}_data": read.dataset.path_of(split) for split in paths})


def _paths(dataset: DatasetConfig) -> dict[str, str]:
    """Return the files of the splits that the dataset has."""
    return {split: path for split in ("train", "valid", "test") if (path := dataset.path_of(split))}


def _column(path: str, name: str) -> np.ndarray:
    """Return a column of integers or texts of all part files."""
    chunks = [batch.column(0) for _, batch in read_rows(path, [name])]
    if not chunks:
        raise DataError(f"{path}: no rows, expected at least one")
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])


def _count_by_user(path: str, user: str, label: str) -> np.ndarray:
    """Return the number of negative and of positive rows of each user, ``(U, 2)``."""
    counts = []
    for row, batch in read_rows(path, [user, label]):
        positive = decode_label(batch.column(1), f"{path}: {label}", row, binary=True)
        columns = {"user": batch.column(0), "negative": 1 - positive, "positive": positive}
        counts.append(_sum_by_user(pa.table(columns)))
    counted = _sum_by_user(pa.concat_tables(counts, promote_options="permissive"))
    return np.stack([counted["negative"].to_numpy(), counted["positive"].to_numpy()], axis=1)


def _sum_by_user(table: pa.Table) -> pa.Table:
    known = table.filter(pc.is_valid(table["user"]))
    summed = known.group_by("user").aggregate([("negative", "sum"), ("positive", "sum")])
    return summed.rename_columns({"negative_sum": "negative", "positive_sum": "positive"})


def _negatives(of_users: np.ndarray) -> int:
    """Return how many negatives were sampled for each positive row; 0 where nearly all rows were logged.

    Users click on different fractions of what they are shown. Where nearly all have the same number of negatives for
    each positive, these were sampled, whichever program has done so; or the rows are lists of one length, of which the
    user has chosen one. Negatives are not recognised if they were given to users at random, or if the rows were split
    into train, valid and test at random.

    Parameters
    ----------
    of_users : ndarray
        ``(U, 2)`` numbers of negative and of positive rows of each user.
    """
    negative, positive = of_users.sum(axis=0)
    each = round(negative / positive) if positive else 0
    alike = of_users[:, 0] == each * of_users[:, 1]
    return each if each and len(alike) >= LEAST_USERS and alike.mean() >= SAMPLED_USERS else 0


def _embeddings(dataset: DatasetConfig, item_files: Sequence[str]) -> dict[str, str]:
    """Return the narrowest embedding column, of 8 dims or more, of text and of image.

    Unless both are known, columns whose names tell neither count as well, each under its own name.
    """
    names = [str(c.name) for c in split_entries(dataset.feature_cols or ()) if c.type == "embedding"]
    found: dict[str, tuple[int, str]] = {}
    for file in [file for path in item_files for file in part_files(path)]:
        for name in sorted(set(names) & set(schema_of(file).names)):
            modality = modality_of(name, "embedding") or name
            _, first = next(read_chunks(file, [name], max_rows=MEASURED_ITEMS), (0, None))
            if first is None:  # an empty part
                continue
            dim = max(len(value or ()) for value in first.column(0).to_pylist())
            if dim >= 8:
                found[modality] = min(found.get(modality, (dim, name)), (dim, name))
    wanted = MODALITIES if MODALITIES.keys() <= found.keys() else found
    return {modality: found[modality][1] for modality in sorted(wanted)}
