"""Keys of an experiment, and the configuration of an experiment: its keys, its dataset's and its model's, checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from fuxictr_mm.checking import (
    Settings,
    SettingsError,
    check_call,
    unknown_key,
    validate,
)
from fuxictr_mm.config.columns import Columns, problems_of_entries
from fuxictr_mm.config.dataset import NO_EFFECT, DatasetConfig, label_names
from fuxictr_mm.config.entries import load_dataset_config, load_model_config, resolve_entry
from fuxictr_mm.config.features import FeatureSpec
from fuxictr_mm.config.fingerprints import config_hash
from fuxictr_mm.config.model import ModelSettings, per_label
from fuxictr_mm.config.signature import check_signature
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.files import StrPath

logger = logging.getLogger(__name__)


class Fold(Settings):
    """A part of the rows of train and valid that is held out."""

    example: ClassVar[str] = "{number: 1, of: 5, by: user}"

    number: PositiveInt = Field(description="Which fold, from 1.")
    of: int = Field(ge=2, description="How many folds there are.")
    by: Literal["user", "row", "time"] = Field(
        "user",
        description="What is held out: all rows of a user (of `group_id`), rows at random, or, in the order of the "
        "files, a block of rows that follows those of training.",
    )

    @field_validator("of")
    @classmethod
    def _check_number(cls, of: int, info: ValidationInfo) -> int:
        if info.data.get("number", 1) > of:
            raise ConfigError(f"fold: number is {info.data['number']}, expected 1 to {of}")
        return of


class ExperimentConfig(ModelSettings):
    """Settings of an experiment: those of ``model_config.yaml``, with its dataset and the settings of its model."""

    expid: str = Field(description="Experiment id, the name of the entry.")
    dataset: DatasetConfig = Field(description="Settings of the dataset.")
    model_settings: dict[str, Any] = Field({}, description="Settings of the model alone, see `check_model`.")

    description: str | None = Field(
        None, description="One line about the experiment, for `fuxictr-mm list experiments`."
    )
    model: str = Field(description="Name of the model, or `package.module:Class`.")
    dataset_id: str = Field(description="Name of an entry of `dataset_config.yaml`.")
    batch_size: PositiveInt = Field(2048, description="Examples per batch.")
    epochs: PositiveInt = Field(10, description="Maximum number of passes over the training split.")
    shuffle: bool = Field(True, description="Shuffle the training split before every epoch.")
    seed: int = Field(2025, ge=0, lt=2**32, description="Seed of initialisation, shuffling and dropout.")
    resident: bool | Literal["auto"] = Field(
        "auto", description="Keep the splits in memory (True), stream them (False), or choose by their size (auto)."
    )
    buffer_rows: PositiveInt = Field(1_000_000, description="Examples in the shuffle buffer of a streamed split.")
    streams: PositiveInt | None = Field(
        None,
        description="Number of virtual streams of the training split, a multiple of the number of processes; null: "
        "none for one process, 24 (or the next multiple of their number) for several.",
    )
    fold: Fold | None = Field(
        None, description="The fold of the rows of train and valid that this run holds out; set by `--folds`."
    )
    batch_view: Literal["jagged", "challenge", "flat"] | None = Field(
        None, description="Batch format; null: that of the model's class."
    )
    group_id: str | None = Field(None, description="Column whose values are the groups of metrics such as gAUC.")
    use_features: Sequence[str] | None = Field(None, description="Names of the features to use; null: all active ones.")
    feature_specs: Sequence[FeatureSpec] | None = Field(
        None, description="Changes to the dataset's features for this experiment, by name."
    )
    gpu: int = Field(-1, description="Index of the GPU, -1 for the CPU; set by `--gpu`.")
    keep_memory: bool = Field(True, description="Keep freed memory for later batches (CPU only).")
    threads: PositiveInt | Literal["auto"] = Field(
        "auto", description="Number of torch threads on the CPU; auto: chosen by the size of the model and the batch."
    )
    tensorboard: bool | None = Field(
        None, description="Write TensorBoard logs; null: only if TensorBoard is installed."
    )
    initial_weights: str | None = Field(
        None,
        description="Weights that training starts from: a file, the name or folder of a run, or an experiment id (its "
        "newest run); set by `--initial_weights`. See "
        "[Later logs](your_data/later_logs.md#continue-training).",
    )
    record: bool = Field(True, description="Write the folder of the run.")
    checkpoint_minutes: float = Field(
        5.0, gt=0, description="Minutes between two training checkpoints; every evaluation also writes one."
    )
    checkpoint_steps: PositiveInt | None = Field(
        None, description="Batches between two training checkpoints; null: only `checkpoint_minutes` applies."
    )
    checkpoint_keep: PositiveInt = Field(1, description="Number of newest training checkpoints that are kept.")
    checkpoint_in_background: bool = Field(
        False, description="Write training checkpoints during training, from a copy of the weights in memory."
    )
    num_workers: int = Field(0, description=NO_EFFECT)
    pickle_feature_encoder: bool = Field(True, description=NO_EFFECT)
    debug_mode: bool = Field(False, description=NO_EFFECT)
    feature_config: Any = Field(None, description=NO_EFFECT)

    @field_validator("group_id", mode="before")
    @classmethod
    def _take_only_group(cls, columns: Any) -> Any:
        """Take the column of a list of one; FuxiCTR's files may name several."""
        if not isinstance(columns, list):
            return columns
        if len(columns) == 1:
            return columns[0]
        raise ConfigError(
            f"group_id is {columns}, but groups are taken from one column; name one (group_id: user_id), or add a "
            "column that combines them"
        )

    @field_validator("initial_weights", mode="before")
    @classmethod
    def _take_path(cls, path: Any) -> Any:
        return os.fspath(path) if isinstance(path, os.PathLike) else path

    @field_validator("model_settings")
    @classmethod
    def _check_initializers(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for key in ("initializer", "embedding_initializer"):
            if key in settings:
                check_call(str(settings[key]), key, (r"nn\.init\.\w+_", r"torch\.nn\.init\.\w+_", r"partial"))
        return settings

    @classmethod
    def load(
        cls,
        folder: StrPath,
        expid: str,
        data_root: StrPath | None = None,
        overrides: Mapping[str, Any] | None = None,
        find_model: Callable[[str], type] | None = None,
        check_model: Callable[[type, Mapping[str, Any]], Mapping[str, str]] | None = None,
    ) -> ExperimentConfig:
        """Read and check an experiment.

        Parameters
        ----------
        folder : path
            Holds ``model_config`` and ``dataset_config``, each a file ``.yaml`` or a folder of such files.
        expid : str
            Experiment id.
        data_root : path, optional
            Replaces the dataset's ``data_root`` in its paths.
        overrides : mapping, optional
            Values that take precedence over those of the files.
        find_model : callable, optional
            Returns the class of a model by its name; the model's own settings are then checked as well.
        check_model : callable, optional
            Returns further problems of the class and of the flat settings that are valid by themselves, one
            sentence per key.

        Returns
        -------
        ExperimentConfig
            ``Base``, experiment and dataset merged, the later ones taking precedence. Paths are absolute or relative
            to the working directory; relative ones that do not exist there are looked up from ``folder``.

        Raises
        ------
        ConfigError, MissingFileError
            A file or an entry does not exist, or settings are invalid; one line lists all problems.
        """
        folder = Path(folder)
        if folder.is_file():
            raise ConfigError(
                f"{folder}: a file; expected the folder that holds model_config.yaml "
                f"(a tuner file is for fuxictr-mm tune --config {quote(str(folder))})"
            )
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: no such folder; expected the folder that holds model_config.yaml")
        experiment = load_model_config(folder, expid)
        experiment["dataset_id"] = (overrides or {}).get("dataset_id", experiment["dataset_id"])
        where = f"dataset {experiment['dataset_id']}"
        known = {*DATASET_KEYS, *SHARED_KEYS}
        dataset, problems = dict[str, Any](), dict[str, str]()
        try:
            dataset = load_dataset_config(folder, experiment["dataset_id"])
        except ConfigError as error:
            problems["dataset_id"] = str(error)
        problems |= {f"dataset.{key}": f"{where}: {unknown_key(key, known)}" for key in dataset if key not in known}
        values = {**experiment, **{k: v for k, v in dataset.items() if k in known and k != "description"}}
        _warn_of_ignored(f"{folder}: {expid}", experiment, dataset, overrides or {})
        problems |= resolve_entry(values, folder, data_root, where)
        values.update(overrides or {})
        values.pop("model_id", None)
        config, found = cls._check(expid, values)
        if "dataset_id" in problems:  # the others of the dataset follow from it
            found = {key: sentence for key, sentence in found.items() if key not in DATASET_KEYS}
        problems = {**found, **problems}
        if find_model is not None and "model" not in problems:
            try:
                model_class = find_model(values["model"])
                problems |= check_signature(model_class, values, COMMON_KEYS, problems)[0]
                if check_model is not None and "dataset_id" not in problems:
                    right = {k: v for k, v in {**DEFAULTS, **values}.items() if k not in problems}
                    problems = {**check_model(model_class, right), **problems}
            except ConfigError as error:
                problems["model"] = str(error)
        if config is None or problems:
            raise SettingsError(expid if folder == Path() else f"{folder}: {expid}", problems)
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExperimentConfig:
        """Check the flat settings of an experiment, as ``to_dict`` returns them and a run's ``config.yaml`` holds them.

        Raises
        ------
        ConfigError
            Settings are invalid; one line lists all problems.
        """
        expid = str(values.get("model_id", "experiment"))
        config, problems = cls._check(expid, {k: v for k, v in values.items() if k != "model_id"})
        if config is None:
            raise SettingsError(expid, problems)
        return config

    @classmethod
    def _check(cls, expid: str, values: Mapping[str, Any]) -> tuple[ExperimentConfig | None, dict[str, str]]:
        """Check flat settings, except those of the model alone."""
        where = f"dataset {values.get('dataset_id')}: "
        dataset, problems = validate(DatasetConfig, {k: v for k, v in values.items() if k in DATASET_KEYS}, where)
        rest = {
            "expid": expid,
            # Replaced below; the experiment is checked even if its dataset is wrong.
            "dataset": dataset or DatasetConfig.model_construct(),
            "model_settings": {k: v for k, v in values.items() if k not in DATASET_KEYS and k not in EXPERIMENT_KEYS},
        }
        config, more = validate(cls, {**{k: v for k, v in values.items() if k in EXPERIMENT_KEYS}, **rest})
        problems |= more
        problems |= problems_of_entries(values)
        if values.get("label_col") and "label_col" not in problems:
            right = {k: v for k, v in values.items() if k in ModelSettings.model_fields and k not in problems}
            try:
                ModelSettings.model_construct(**right).check_labels(label_names(values))
            except ConfigError as error:
                problems["labels"] = str(error)
        return None if problems else config, problems

    def check_model(self, model_class: type) -> list[str]:
        """Check the settings against the annotated signature of a model.

        Returns
        -------
        list of str
            Keys that could not be checked, to warn of: a FuxiCTR model may read any key from its ``**kwargs``.

        Raises
        ------
        ConfigError
            A key that neither the library nor the model has, a value that does not fit its annotation, or an
            annotation that cannot be checked; all in one line.
        """
        problems, doubts = check_signature(model_class, self.to_dict(), COMMON_KEYS, {})
        if problems:
            raise SettingsError(self.expid, problems)
        return doubts

    def to_dict(self) -> dict[str, Any]:
        """Return the settings flat and of plain types, as they were given, with the defaults that decide a result."""
        own = self.model_dump(exclude_unset=True, exclude={"expid", "dataset", "model_settings"})
        dataset = self.dataset.model_dump(exclude_unset=True)
        return {**DEFAULTS, **own, **dataset, **self.model_settings, "model_id": self.expid}

    @property
    def tasks(self) -> dict[str, str]:
        """The task of each label by its name, ``binary_classification`` or ``regression``."""
        labels = self.dataset.label_names
        return dict(zip(labels, per_label(self.task, len(labels)), strict=False))

    @property
    def columns(self) -> Columns:
        """The columns: the features of the dataset, with the changes of ``feature_specs``."""
        dataset, specs, use = self.dataset, self.feature_specs or (), self.use_features or ()
        return Columns(dataset.feature_cols or (), specs, use, dataset.roles, dataset.item_info, self.dataset_id)

    def with_dataset(self, **settings: Any) -> ExperimentConfig:
        """Return the configuration with other settings of the dataset, which are not checked."""
        return self.model_copy(update={"dataset": self.dataset.model_copy(update=settings)})

    def require_split(self, split: str) -> str:
        """Return the path of a split.

        Raises
        ------
        ConfigError
            The dataset does not have this split.
        """
        path = self.dataset.path_of(split)
        if not path:
            raise ConfigError(f"dataset {self.dataset_id}: {split}_data is missing; name the split's file")
        return path

    def model_arguments(self) -> dict[str, Any]:
        """Return the keywords for the constructor of the model, flat, as FuxiCTR passes them."""
        return {k: v for k, v in self.to_dict().items() if k != "model"}

    def fingerprint(self, paths: bool = True) -> str:
        """Return a hash of all that decides a result, which leaves out the device and what is printed.

        Parameters
        ----------
        paths : bool
            False: the same wherever the files are, and for every seed.
        """
        return config_hash(self.to_dict(), with_paths=paths)


def key_types(cls: type[Settings], *without: str) -> dict[str, Any]:
    """Return the annotated type of every key."""
    return {name: field.rebuild_annotation() for name, field in cls.model_fields.items() if name not in without}


#: Keys of an entry of dataset_config.yaml with their types.
DATASET_KEYS = key_types(DatasetConfig, "description")

#: Keys of an entry of model_config.yaml, except those of the model alone, with their types.
EXPERIMENT_KEYS = key_types(ExperimentConfig, "expid", "dataset", "model_settings")

#: Keys of every model.
COMMON_KEYS = {*DATASET_KEYS, *EXPERIMENT_KEYS, "model_id"}

#: Keys of an experiment that an entry of dataset_config.yaml may hold too.
SHARED_KEYS = ("description", "resident", "buffer_rows")

#: What a configuration holds even if its file does not; another key here would change every fingerprint.
DEFAULTS: dict[str, Any] = {
    name: ExperimentConfig.model_fields[name].default
    for name in (
        "model_root", "task", "loss", "optimizer", "learning_rate", "metrics", "monitor", "monitor_mode", "batch_size",
        "epochs", "shuffle", "seed", "max_len", "resident", "buffer_rows", "verbose", "group_id", "use_features",
        "feature_specs",
    )
}  # fmt: skip


def load_config(folder: StrPath, expid: str, *, data_root: StrPath | None = None) -> dict[str, Any]:
    """Return the flat settings of an experiment, see ``ExperimentConfig.load``."""
    return ExperimentConfig.load(folder, expid, data_root).to_dict()


def _warn_of_ignored(
    where: str, experiment: Mapping[str, Any], dataset: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Warn of settings of the files that an experiment has, but that its dataset replaces by others."""
    for key in [key for key in DATASET_KEYS if key in dataset and key in experiment]:
        if key not in (*SHARED_KEYS, *overrides) and experiment[key] != dataset[key]:
            logger.warning(
                f"{where}: {key}: no effect, because dataset {experiment['dataset_id']} sets it too, to "
                f"{dataset[key]!r}; change it there, or add a dataset"
            )
