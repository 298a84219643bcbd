"""The tuner file, the search space, and the sampling of its points.

A point has a value of each tuned setting. The point of trial n depends on the seed and n, for ``tpe`` also on the
results of the other trials; it differs from all points sampled before.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveInt

from fuxictr_mm.checking import Settings, describe, matches, model_schema
from fuxictr_mm.config import (
    DATASET_KEYS,
    DEFAULTS,
    EXPERIMENT_KEYS,
    PATH_KEYS,
    Number,
    load_dataset_config,
    load_model_config,
)
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.tuning.runner import FOLLOWED_KEYS
from fuxictr_mm.yaml_files import load_yaml

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


class RangeSettings(Settings):
    """A range of a tuner YAML, such as ``{low: 1.e-4, high: 1.e-2, log: True}``."""

    low: Number = Field(description="Least value.")
    high: Number = Field(description="Largest value.")
    log: bool = Field(False, description="Sample the logarithm of the value uniformly.")
    step: Number | None = Field(None, description="Distance between neighbouring values.")


WARMUP = 1  # evaluations of every trial with pruning: True


TRIES = 20  # samples of a sampler that repeats known points, before random ones are taken


RANDOM_TRIES = 200  # random samples before the remaining points are enumerated


Point: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Parameters
    ----------
    low, high : float
        Ends.
    step : float, optional
        Distance between two values; None: 1 for integers, continuous otherwise.
    log : bool
        Sampled uniformly in the logarithm.
    whole : bool
        Integers only.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False  # the name under which studies store it

    @property
    def size(self) -> float:
        """Number of values."""
        step = self.step or (1 if self.whole else 0)
        return round((self.high - self.low) / step) + 1 if step else math.inf

    def values(self) -> list[float]:
        """Return all values of a range that has finitely many."""
        step = self.step or 1
        return [self.low + step * index for index in range(int(self.size))]


Space: TypeAlias = "dict[str, list[Any] | Range]"


def read_range(settings: Mapping[str, Any], annotation: Any, where: str) -> Range:
    """Return the range that a mapping of a tuner YAML describes.

    Parameters
    ----------
    settings : mapping
        ``low``, ``high``, and perhaps ``log`` or ``step``.
    annotation : Any
        Type of the setting. Integer ends make a range of integers, unless the setting takes fractions.
    where : str
        Prefix of the message.

    Raises
    ------
    ConfigError
        A key is unknown or missing, or the range is empty.
    """
    given = RangeSettings.read(settings, where)
    for key in ("low", "high"):
        if not math.isfinite(settings[key]):
            raise ConfigError(f"{where}: {key} is {settings[key]}, expected a finite number")
        if not matches(settings[key], annotation):
            raise ConfigError(f"{where}: {key} is {settings[key]}, but the setting takes {describe(annotation)}")
    low, high, step, log = given.low, given.high, given.step, given.log
    if low >= high:
        raise ConfigError(f"{where}: low is {low} and high is {high}, expected low below high")
    if log and low <= 0:
        raise ConfigError(f"{where}: low is {low}, expected a number above 0 with log: True")
    if step is not None:
        if log:
            raise ConfigError(f"{where}: step and log exclude each other; keep one of them")
        if step <= 0:
            raise ConfigError(f"{where}: step is {step}, expected a number above 0")
        steps = (high - low) / step
        if not math.isclose(steps, round(steps), rel_tol=1e-9) or round(steps) < 1:
            raise ConfigError(f"{where}: {high} is not reached from {low} by steps of {step}; change high or step")
    takes_fractions = annotation is not Any and (matches(0.5, annotation) or matches(1.5, annotation))
    numbers = [number for number in (low, high, step) if number is not None]
    whole = not takes_fractions and all(isinstance(number, int) for number in numbers)
    if step is not None and not whole and not matches(low + step, annotation):
        raise ConfigError(f"{where}: step is {step}, but the setting takes {describe(annotation)}")
    return Range(low, high, step, log, whole)


def number_of_points(space: Space) -> float:
    """Return the number of different points of a space."""
    return math.prod(values.size if isinstance(values, Range) else len(values) for values in space.values())


def check_points(space: Space) -> list[Point]:
    """Return a few points in which every value of every list, and both ends of every range, occur."""
    columns = {key: [values.low, values.high] if isinstance(values, Range) else values for key, values in space.items()}
    length = max((len(values) for values in columns.values()), default=1)
    return [{key: values[row % len(values)] for key, values in columns.items()} for row in range(length)]


def point_key(point: Point) -> str:
    """Return a text that identifies a point."""
    return json.dumps(point, sort_keys=True, default=str)


class Dimensions:
    """Optuna distributions of a space, for the settings with more than one value."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._choices = {
            key: _choices(values) for key, values in space.items() if isinstance(values, list) and len(values) > 1
        }
        self.distributions = {
            key: _distribution(values, self._choices.get(key))
            for key, values in space.items()
            if isinstance(values, Range) or len(values) > 1
        }

    def point(self, sampled: Mapping[str, Any]) -> Point:
        """Return the point of Optuna's values, including settings with a single value."""
        point: Point = {}
        for key, values in self._space.items():
            if isinstance(values, Range):
                point[key] = sampled[key]
            else:
                point[key] = values[self._choices[key].index(sampled[key])] if key in sampled else values[0]
        return point

    def sampled(self, point: Point) -> dict[str, Any]:
        """Return Optuna's values of a point."""
        result: dict[str, Any] = {}
        for key in self.distributions:
            values = self._space[key]
            if isinstance(values, Range):
                result[key] = point[key]
            else:
                keys = [point_key({key: value}) for value in values]
                result[key] = self._choices[key][keys.index(point_key({key: point[key]}))]
        return result


def _choices(values: list[Any]) -> list[Any]:
    """Return the choices of a list as Optuna takes them: distinct by ``==``, and no lists."""
    simple = all(value is None or isinstance(value, bool | int | float | str) for value in values)
    return values if simple and len(set(values)) == len(values) else [json.dumps(v, sort_keys=True) for v in values]


def _distribution(values: list[Any] | Range, choices: list[Any] | None) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(choices or [])
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(values.low, values.high, log=values.log, step=values.step)


class Sampler:
    """Samples the points of a study.

    Parameters
    ----------
    space : dict
        Values to try.
    search : {"random", "tpe"}
        Sampler.
    seed : int
        Of the study.
    """

    def __init__(self, space: Space, search: str, seed: int) -> None:
        self.dimensions = Dimensions(space)
        self._space = space
        self._search = search
        self._seed = seed
        self._random: list[Point] = []  # points of trials 0, 1, ...

    def sample(self, study: Study, trial: FrozenTrial, others: Collection[Point]) -> Point:
        """Return the point of a trial.

        Parameters
        ----------
        study : Study
            Just loaded, so that its trials are current.
        trial : FrozenTrial
            The trial, without values yet.
        others : collection of dict
            Points of the other trials; ``random`` does not need them, because it can repeat them by their numbers.
        """
        if self._search == "random":
            used = {point_key(point) for point in self._random}
            while len(self._random) <= trial.number:
                point = self._sample_random(study, trial, len(self._random), used)
                self._random.append(point)
                used.add(point_key(point))
            return self._random[trial.number]
        from optuna.samplers import TPESampler

        used = {point_key(point) for point in others}
        for attempt in range(TRIES):
            sampler = TPESampler(seed=self._derived_seed(trial.number, attempt))
            point = self._sample(sampler, study, trial)
            if point_key(point) not in used:
                return point
        return self._sample_random(study, trial, trial.number, used)

    def _sample_random(self, study: Study, trial: FrozenTrial, number: int, used: Collection[str]) -> Point:
        from optuna.samplers import RandomSampler

        sampler = RandomSampler(seed=self._derived_seed(number))
        for _ in range(RANDOM_TRIES):
            point = self._sample(sampler, study, trial)
            if point_key(point) not in used:
                return point
        # Few points of a finite space are left: take the first by hash.
        columns = [values.values() if isinstance(values, Range) else values for values in self._space.values()]
        points = (dict(zip(self._space, values, strict=True)) for values in itertools.product(*columns))
        left = [point for point in points if point_key(point) not in used]
        return min(left, key=lambda point: hashlib.sha256(f"{self._seed} {point_key(point)}".encode()).digest())

    def _sample(self, sampler: BaseSampler, study: Study, trial: FrozenTrial) -> Point:
        relative = sampler.infer_relative_search_space(study, trial)
        sampled = sampler.sample_relative(study, trial, relative)
        for key, distribution in self.dimensions.distributions.items():
            if key not in sampled:
                sampled[key] = sampler.sample_independent(study, trial, key, distribution)
        return self.dimensions.point(sampled)

    def _derived_seed(self, *numbers: int) -> int:
        text = " ".join(map(str, (self._seed, *numbers)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


SEARCHES = ("grid", "random", "tpe")


BASE_KEYS = ("base_config", "base_expid", "dataset_id", "model_config", "dataset_config", "tuner_space", "search")


class StudySettings(Settings):
    """Keys of a tuner YAML for ``search: random`` and ``tpe``."""

    trials: PositiveInt = Field(description="Number of trials.")
    seed: NonNegativeInt = Field(0, description="Seed of the sampler.")
    pruning: bool | dict[str, Any] = Field(False, description="Stop trials below the median, see `Pruning`.")
    study: str | None = Field(None, description="Name of the study and of its folder; that of the file if missing.")
    storage: str | None = Field(None, description="Database URL; SQLite in the folder if missing.")


class Pruning(Settings):
    """The mapping that ``pruning`` may be."""

    warmup: NonNegativeInt = Field(WARMUP, description="Evaluations that every trial gets.")
    epochs: NonNegativeInt | None = Field(
        None, description="Epochs that every trial gets; a third of its `epochs` if neither this nor `warmup` is given."
    )


@dataclass(frozen=True)
class Tuner:
    """A checked tuner YAML.

    Parameters
    ----------
    path : Path
        The YAML.
    name : str
        First part of the experiment ids.
    model, dataset : dict
        Settings of the base experiment and of its dataset.
    dataset_id : str
        Dataset of the base experiment.
    space : dict
        Values to try of each tuned setting: a list, or a range.
    search : {"grid", "random", "tpe"}
        Search method.
    trials : int
        Number of trials; not used by a grid.
    seed : int
        Seed of the sampler.
    warmup : int or None
        Evaluations before a trial may be pruned; None: no pruning.
    warm_epochs : int or None
        Epochs before a trial may be pruned; None: a third of its epochs.
    study : str
        Name of the study and of its folder.
    storage : str or None
        Database URL; None: SQLite in the folder.
    first : dict, optional
        The point of the first trial, in place of a sampled one.
    """

    path: Path
    name: str
    model: dict[str, Any]
    dataset_id: str
    dataset: dict[str, Any]
    space: Space
    search: Literal["grid", "random", "tpe"] = "grid"
    trials: int = 0
    seed: int = 0
    warmup: int | None = None
    warm_epochs: int | None = None
    study: str = ""
    storage: str | None = None
    first: Point | None = None

    @property
    def folder(self) -> Path:
        """The configuration folder of the trials."""
        return self.path.with_name(self.study) if self.search != "grid" else self.path.with_suffix("")

    @property
    def dataset_keys(self) -> set[str]:
        """The tuned settings that belong to the dataset, not to the experiment."""
        return {key for key in self.space if _belongs_to_dataset(key, self.model, self.dataset)}

    def setting(self, key: str) -> Any:
        """Return a setting of the base experiment, its default if it has none."""
        return {**DEFAULTS, **self.model, **self.dataset}.get(key)


def read_tuner(tuner_yaml: Path, model_zoo: Path | None = None) -> Tuner:
    """Read and check a tuner YAML.

    Parameters
    ----------
    tuner_yaml : Path
        Holds ``base_expid`` and ``tuner_space``, and the base: ``base_config`` (a folder, by default that of the file)
        or ``model_config`` and ``dataset_config`` inline. ``dataset_id`` replaces that of the experiment. ``search``
        and the keys of a study define the search.
    model_zoo : Path, optional
        A folder of model files to search first.

    Raises
    ------
    ConfigError, MissingFileError
        A key is unknown or its value wrong, a list is empty or repeats a value, a list-valued setting is given as a
        flat list, or a range is invalid.
    """
    tuner_yaml = Path(tuner_yaml)
    if tuner_yaml.suffix != ".yaml":
        raise ConfigError(f"{tuner_yaml}: expected a tuner file that ends in .yaml; give it with --config")
    tuner = _with_dataset_config(load_yaml(tuner_yaml))
    known = (*BASE_KEYS, *StudySettings.model_fields)
    for key in tuner:
        if key not in known:
            raise ConfigError(f"{tuner_yaml}: unknown key '{key}'{nearest(key, known)}")
    for key in ("base_expid", "tuner_space"):
        if not tuner.get(key):
            raise ConfigError(f"{tuner_yaml}: {key} is missing; see run_param_tuner.py --help")
    settings = _read_study(tuner_yaml, tuner)
    model, dataset_id, dataset = _read_base(tuner_yaml, tuner)
    name = str(tuner["base_expid"])
    if model.get("dataset_id") == "TBD":
        name = f"{model['model']}_{dataset_id}"
    space = _read_space(tuner_yaml, tuner["tuner_space"], settings["search"], model, dataset, model_zoo)
    result = Tuner(tuner_yaml, name, model, dataset_id, dataset, space, **settings)
    _check_monitor(result)
    return result


def _with_dataset_config(tuner: dict[str, Any]) -> dict[str, Any]:
    """Move the entry of the dataset, which some files have at the top level, to ``dataset_config``."""
    dataset_id = tuner.get("dataset_id")
    if not isinstance(dataset_id, str) or "dataset_config" in tuner or not isinstance(tuner.get(dataset_id), dict):
        return tuner
    rest = {key: value for key, value in tuner.items() if key != dataset_id}
    return {**rest, "dataset_config": {dataset_id: tuner[dataset_id]}}


def _read_study(tuner_yaml: Path, tuner: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``search`` and, unless it is a grid, the settings of the study."""
    search = tuner.get("search", "grid")
    if search not in SEARCHES:
        listing = ", ".join(SEARCHES)
        raise ConfigError(f"{tuner_yaml}: search is {search!r}, expected one of {listing}{nearest(search, SEARCHES)}")
    given = {key: tuner[key] for key in StudySettings.model_fields if key in tuner}
    if search == "grid":
        if given:
            key = next(iter(given))
            raise ConfigError(f"{tuner_yaml}: {key} has no effect with search: grid; leave it out, or set search: tpe")
        return {"search": search}
    if "trials" not in given:
        raise ConfigError(
            f"{tuner_yaml}: trials is missing; search: {search} needs the number of trials, such as trials: 50"
        )
    settings = StudySettings.read(given, str(tuner_yaml))
    study = settings.study or tuner_yaml.stem
    if not re.fullmatch(r"\w[\w.-]*", study):
        raise ConfigError(f"{tuner_yaml}: study is '{study}', expected letters, digits, '_', '-': it names a folder")
    return {
        "search": search,
        "trials": settings.trials,
        "seed": settings.seed,
        **_read_pruning(tuner_yaml, settings.pruning),
        "study": study,
        "storage": settings.storage,
    }


def _read_pruning(tuner_yaml: Path, pruning: bool | dict[str, Any]) -> dict[str, int | None]:
    """Return ``warmup`` and ``warm_epochs`` of the tuner."""
    if pruning is False:
        return {"warmup": None}
    given = {} if pruning is True else pruning
    found = Pruning.read(given, f"{tuner_yaml}: pruning")
    epochs = 0 if found.epochs is None and "warmup" in given else found.epochs
    return {"warmup": found.warmup, "warm_epochs": epochs}


def _check_monitor(tuner: Tuner) -> None:
    """Refuse a study whose trials do not all have the same monitored metric."""
    if tuner.search == "grid":
        return
    for key in ("monitor", "monitor_mode", "metrics"):
        if key in tuner.space:
            raise ConfigError(
                f"{tuner.path}: tuner_space: {key}: the trials would not be comparable; set it in the base experiment"
            )
    monitor, metrics = tuner.setting("monitor"), tuner.setting("metrics")
    for name in [monitor] if isinstance(monitor, str) else monitor:
        if name not in metrics:
            raise ConfigError(
                f"{tuner.path}: the monitor {name} is not one of the metrics {metrics}; add it to metrics"
            )
    if tuner.warmup is not None and tuner.setting("record") is False:
        raise ConfigError(
            f"{tuner.path}: pruning reads the folders of the runs; remove record: False from the base experiment"
        )


def _read_base(tuner_yaml: Path, tuner: Mapping[str, Any]) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return settings of the base experiment, the dataset's id and the dataset's settings."""
    base_folder = Path(tuner.get("base_config") or tuner_yaml.parent)
    if not base_folder.is_dir():
        base_folder = tuner_yaml.parent / base_folder
    name = tuner["base_expid"]
    if "model_config" in tuner:
        entries = _mapping(tuner_yaml, "model_config", tuner["model_config"])
        entry = _mapping(tuner_yaml, f"model_config: {name}", _entry(tuner_yaml, "base_expid", name, entries))
        model = {**(entries.get("Base") or {}), **entry}
    elif not base_folder.is_dir():
        raise ConfigError(f"{tuner_yaml}: base_config: {base_folder}: no such folder; it holds model_config.yaml")
    else:
        model = load_model_config(base_folder, name)
    if not isinstance(model.get("model"), str):
        raise ConfigError(f"{tuner_yaml}: {name}: model is {model.get('model')!r}, expected the name of a model")
    dataset_id = tuner.get("dataset_id", model.get("dataset_id"))
    if not isinstance(dataset_id, str) or dataset_id == "TBD":
        raise ConfigError(f"{tuner_yaml}: dataset_id is {dataset_id!r}, expected a dataset id; write dataset_id: X")
    if "dataset_config" in tuner:
        entries = _mapping(tuner_yaml, "dataset_config", tuner["dataset_config"])
        dataset = _mapping(tuner_yaml, dataset_id, _entry(tuner_yaml, "dataset_id", dataset_id, entries))
        origin = tuner_yaml.parent
    else:
        dataset = load_dataset_config(base_folder, dataset_id)
        origin = base_folder
    # The experiments are written to another folder, from which relative paths would not be found.
    return model, dataset_id, with_found_paths(dataset, origin)


def _mapping(tuner_yaml: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{tuner_yaml}: {where} is {value!r}, expected a mapping of settings")
    return value


def _entry(tuner_yaml: Path, key: str, name: str, entries: Mapping[str, Any]) -> Any:
    if name not in entries:
        listing = ", ".join(str(known) for known in entries)
        raise ConfigError(f"{tuner_yaml}: {key}: there is no '{name}'{nearest(name, entries)} (there are: {listing})")
    return entries[name]


def with_found_paths(dataset: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a dataset's entry whose paths are found from anywhere, those relative to its folder included."""
    found = {key: _from_folder(dataset[key], folder) for key in (*PATH_KEYS, "data_root") if dataset.get(key)}
    return {**dataset, **found}


def _from_folder(paths: str | list[str], folder: Path) -> str | list[str]:
    if isinstance(paths, list):
        return [str(_from_folder(path, folder)) for path in paths]
    path = Path(paths)
    if path.is_absolute() or path.exists() or not (folder / path).exists():
        return paths
    return str((folder / path).resolve())


def _belongs_to_dataset(key: str, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> bool:
    # The dataset's settings take precedence over the experiment's.
    return key in dataset or (key in DATASET_KEYS and key not in EXPERIMENT_KEYS and key not in model)


def _read_space(
    tuner_yaml: Path,
    space: Any,
    search: str,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    model_zoo: Path | None,
) -> Space:
    """Return the values to try of each tuned key."""
    space = _mapping(tuner_yaml, "tuner_space", space)
    base = {**model, **dataset}
    schema: dict[str, Any] = {**DATASET_KEYS, **EXPERIMENT_KEYS}
    models = space.get("model", model["model"])
    for name in models if isinstance(models, list) else [models]:
        own = model_schema(load_model_class(name, model_zoo))
        schema.update({key: kind for key, kind in own.items() if kind is not Any or key not in schema})
    found: Space = {}
    for key, values in space.items():
        where = f"{tuner_yaml}: tuner_space: {key}"
        annotation = schema.get(key, Any)
        if key in FOLLOWED_KEYS:
            raise ConfigError(f"{where}: cannot be tuned; write one tuner file for each {key}")
        if key not in base and key not in schema:
            known = {**base, **schema}
            raise ConfigError(
                f"{where}: neither the base experiment, its dataset nor its model has it{nearest(key, known)}"
            )
        if isinstance(values, dict) and (
            set(values) & {*RangeSettings.model_fields} or not matches(values, annotation)
        ):
            found[key] = read_range(values, annotation, where)
            if search == "grid":
                raise ConfigError(f"{where}: {values} is a range; for search: grid write a list, or search: tpe")
        elif isinstance(values, list):
            _check_list(where, values, base.get(key), annotation)
            found[key] = values
        else:
            found[key] = [values]
    return found


def _check_list(where: str, values: list[Any], base_value: Any, annotation: Any) -> None:
    if not values:
        raise ConfigError(f"{where}: an empty list; expected at least one value")
    if _is_flat_list(values, base_value, annotation):
        raise ConfigError(f"{where}: {values} is one value that is a list; for a grid of one write [{values}]")
    texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: {twice} is given twice; keep one of them")


def _is_flat_list(values: list[Any], base_value: Any, annotation: Any) -> bool:
    """Whether a list is one value of a list-valued setting rather than a grid of values."""
    if annotation is not Any:
        if all(matches(value, annotation) for value in values):
            return False
        if matches(values, annotation):
            return True
    return isinstance(base_value, list) and not all(value is None or isinstance(value, list) for value in values)
