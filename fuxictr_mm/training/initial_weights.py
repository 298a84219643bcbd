"""Initial weights: those of an earlier run, with which training starts (setting ``initial_weights``).

Embedding tables may have more rows than in the file: ids that were numbered since. That the others have the same
numbers is known of two kinds of data. Vocabularies that a run builds begin with those of its initial weights; and files
of ``fuxictr-mm prepare log --extend`` have the digests of the numberings that theirs begin with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.dataset import Dataset
from fuxictr_mm.data.numbering import extended_by
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.errors import ConfigError, MissingFileError, UserError
from fuxictr_mm.fuxictr_imports import FeatureEmbeddingDict
from fuxictr_mm.runs import RunPaths, file_of_weights, vocabulary_of_weights, weights_of
from fuxictr_mm.training.checkpoints import load_known_rows, saved_settings
from fuxictr_mm_serving.prepared import EXTENDS, NUMBERING

logger = logging.getLogger(__name__)


def with_run_of_weights(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration with the folder of a run where ``initial_weights`` is its name or an experiment id."""
    given = config.initial_weights
    if given is None or file_of_weights(Path(given)).is_file():
        return config
    try:
        weights = weights_of(given, config.model_root)
    except MissingFileError:
        return config  # which is an error only where the weights are read
    except ConfigError as error:
        raise ConfigError(f"initial_weights: {error}") from None
    return ExperimentConfig.from_dict({**config.to_dict(), "initial_weights": str(weights.parent)})


def find_initial_weights(config: ExperimentConfig) -> Path | None:
    """Return the file of the weights that training starts from, None where they are random.

    Raises
    ------
    MissingFileError, ConfigError
        It does not exist, or is the file that training writes.
    """
    if config.initial_weights is None:
        return None
    try:
        path = weights_of(config.initial_weights, config.model_root)
    except MissingFileError as error:
        raise MissingFileError(f"initial_weights: {error}") from None
    paths = RunPaths.of(config)
    if path.resolve() == paths.weights.resolve():
        raise ConfigError(
            f"initial_weights: {path}: this run would replace the file; give the folder of the run that wrote it, "
            f"below {paths.runs}, or a copy"
        )
    return path


def load_initial_weights(model: Any, path: Path, dataset: Dataset, item_files: str | Sequence[str]) -> None:
    """Read weights into a model whose tables may be longer; the further rows keep their initial values.

    Raises
    ------
    UserError
        They are of another model or of other features, or ids were numbered in another order.
    """
    saved = saved_settings(path)
    theirs, ours = (saved[1] if saved else {}).get("model"), (getattr(model, "settings", None) or {}).get("model")
    if theirs is not None and ours is not None and theirs != ours:
        raise UserError(
            f"initial_weights: {path}: weights of {theirs} ({saved and saved[0]}), expected those of {ours}"
        )
    numberings = _Numberings(path, dataset, item_files)
    columns = _columns_of_tables(model)
    new: dict[str, int] = {}
    own = model.state_dict()

    def known_rows(name: str, rows: int) -> int:
        column = columns.get(name)
        if column is None:
            return rows if rows == len(own[name]) else 0
        known = numberings.known_rows(column)
        if known is None:
            known = rows if rows == len(own[name]) or numberings.is_same(column) else 0
        new[column] = len(own[name]) - min(known, rows)
        return min(known, rows)

    try:
        load_known_rows(model, path, known_rows)
    except UserError as error:
        if numberings.path.is_file():
            raise
        # Without it, no table is known to begin with the same ids.
        raise UserError(f"{error}; for longer tables, keep {numberings.path.name} beside the weights") from None
    grown = ", ".join(f"{count} of {column}" for column, count in sorted(new.items()) if count)
    logger.info(f"Initial weights: {path}; rows of tables that are new: {grown or 'none'}")


def warn_of_random_weights(dataset: Dataset) -> None:
    """Warn where rows that continue another log, often few, are trained on alone."""
    if EXTENDS in dataset.vocabularies.settings:
        logger.warning(
            "The training rows continue an earlier log (prepare log --extend), but training starts with random "
            "weights; give those of the earlier run: --initial_weights"
        )


class _Numberings:
    """How ids were numbered for weights, and how they are numbered now.

    Raises
    ------
    UserError
        Texts or numbers are converted in another way than for the weights.
    """

    def __init__(self, path: Path, dataset: Dataset, item_files: str | Sequence[str]) -> None:
        self._weights, self.path, self.now = path, vocabulary_of_weights(path), dataset.vocabularies
        self.before = Vocabularies.load(self.path)
        row_files = [pair for files in dataset.files.values() for pair in files.metadata.items()]
        self.extended = extended_by(item_files, row_files)
        for key, setting in self.now.settings.items():
            found = self.before.settings.get(key)
            if key in (NUMBERING, EXTENDS) or found == setting:
                continue
            is_mapping = isinstance(found, Mapping) and isinstance(setting, Mapping)
            names = [name for name in setting if found.get(name) != setting[name]] if is_mapping else [key]  # type: ignore[union-attr]
            if names:
                raise UserError(
                    f"initial_weights: {self.path}: '{names[0]}' was converted in another way for these weights ({key} "
                    "differ); continue with the data and settings that they were trained with"
                )

    def known_rows(self, column: str) -> int | None:
        """Return how many rows of a table of a column have the same ids; None where no numbering is known to differ."""
        before, now = self.before.get(column), self.now.get(column)
        if before is not None or now is not None:
            if before is None or now is None or not now.values.slice(0, len(before)).equals(before.values):
                raise self._error(column, "expected them as for these weights, and new ones after them")
            return len(before) + 1
        digest, present = self._digest(self.before, column), self._digest(self.now, column)
        if digest is None or present is None or digest == present:
            return None
        if (size := self.extended.get(column, {}).get(digest)) is not None:
            return size + 1
        raise self._error(
            column,
            "prepare the new log with fuxictr-mm prepare log --like DIR --extend, where DIR is the folder that these "
            f"weights were trained on{self._trained_on()}",
        )

    def is_same(self, column: str) -> bool:
        """Whether a column is known to be numbered as before, so that a longer table has more unused rows."""
        digest = self._digest(self.before, column)
        return digest is not None and digest == self._digest(self.now, column)

    def _digest(self, vocabularies: Vocabularies, column: str) -> str | None:
        found: Mapping[str, str] = vocabularies.settings.get(NUMBERING, {})
        return found.get(column)

    def _trained_on(self) -> str:
        """Return that folder, if it is known."""
        saved = saved_settings(self._weights)
        rows = str((saved[1] if saved else {}).get("train_data") or "")
        return f" ({Path(rows).parent})" if rows else ""

    def _error(self, column: str, expected: str) -> UserError:
        return UserError(f"initial_weights: {self.path}: '{column}' has other numbers now; {expected}")


def _columns_of_tables(model: nn.Module) -> dict[str, str]:
    """Return the parameters and buffers with a row per id, each with the column of these ids."""
    found: dict[str, str] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, FeatureEmbeddingDict):
            continue
        for name, table in module.embedding_layers.items():
            spec = module._feature_map.features[name]
            if spec["type"] in ("categorical", "sequence") and hasattr(table, "num_embeddings"):
                found[f"{prefix}.embedding_layers.{name}.weight"] = spec.get("share_embedding") or name
    for name in getattr(model, "item_vectors", ()):
        found[f"item_vectors.{name}.weight"] = ITEM_ID
    if getattr(model, "unknown_item", None) is not None:
        found["unknown_item.seen"] = ITEM_ID
    return found | dict.fromkeys(getattr(model, "per_item_buffers", ()), ITEM_ID)
