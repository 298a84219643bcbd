"""``fuxictr-mm autopilot``: from a dataset to a submission within a time budget.

Models are compared with a few trials each, TPE tunes the best of them, the best configuration is trained with several
seeds, and the trials and seeds that are best together are averaged. Every choice is made on the validation rows.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, MissingFileError, UserError

#: The target's name in models, whatever its column is called.
ITEM_ID = "item_id"

if TYPE_CHECKING:
    from fuxictr_mm.config import DatasetConfig, ExperimentConfig
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.runs import Run
    from fuxictr_mm.tuning import TrialResult

#: What is tried of most models, in the form of ``tuner_space``, and where they begin: the point of the first trial.
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "embedding_regularizer": {"low": 1e-6, "high": 1e-3, "log": True},
    "net_dropout": {"low": 0.0, "high": 0.4},
}
FIRST: dict[str, Any] = {"learning_rate": 1e-3, "embedding_regularizer": 2e-4, "net_dropout": 0.2}

#: Fraction of cold targets among the rows to score from which on dropout of item ids is tried, and its values.
COLD, ID_DROPOUT = 0.01, (0.0, 0.1, 0.3)


@dataclass(frozen=True)
class Candidate:
    """A model that may be tried, and how (``docs/choosing_settings.md`` has what the settings are worth).

    Parameters
    ----------
    why : str
        Why it is tried.
    settings : dict
        Its own settings.
    space, first : dict
        What is tried, and the point of the first trial.
    units : tuple of str
        Settings that take the hidden units.
    batch_factor : int
        What the batch size for data of its size is multiplied by.
    least_history : float
        The shortest mean history that it is tried for.
    of_users : bool
        Whether it is tried only where the user is a feature, with and without the features besides user, item and
        embeddings.
    has_factors : bool
        Whether a factorization beside it (``factor_dim``) is tried where the user is a feature.
    """

    why: str
    settings: dict[str, Any]
    space: dict[str, Any] = field(default_factory=lambda: SPACE)
    first: dict[str, Any] = field(default_factory=lambda: FIRST)
    units: tuple[str, ...] = ("dnn_hidden_units",)
    batch_factor: int = 1
    least_history: float = 0
    of_users: bool = False
    has_factors: bool = False


MODELS: dict[str, Candidate] = {
    "LightFM": Candidate(
        "user and item as sums of their features: quick, and its errors differ from those of the others",
        {"early_stop_patience": 3},
        {
            "learning_rate": {"low": 2e-3, "high": 2e-2, "log": True},
            "factor_regularizer": {"low": 3e-3, "high": 1e-1, "log": True},
            "embedding_dim": [9, 17, 33],
            "history": [False, True],
        },
        {"learning_rate": 5e-3, "factor_regularizer": 0.02, "embedding_dim": 17, "history": False},
        units=(),
        batch_factor=4,
        of_users=True,
    ),
    "DIN_MM": Candidate(
        "target attention, SENet and cross network over ids, text and image",
        {"num_heads": 4, "attention_hidden_units": [32], "din_use_softmax": True, "attention_dropout": 0.1,
         "batch_norm": False},
        {**SPACE, "interest": ["din", "multi_head"], "cross": [None, "v2"], "label_smoothing": [0.0, 0.1],
         "ema": [None, 0.999]},
        {**FIRST, "interest": "din", "cross": None, "label_smoothing": 0.0, "ema": None},
        has_factors=True,
    ),
    "QIN": Candidate(
        "products of all fields of user, target and interest, layer by layer",
        {"num_layers": 2, "num_row": 2, "batch_norm": False},
        {**SPACE, "num_layers": [1, 2, 3]},
        {**FIRST, "embedding_regularizer": 1e-3, "num_layers": 2},
        units=(),
    ),
    "DIN": Candidate("the challenge's baseline", {"batch_norm": True}),
    "Transformer_DCN": Candidate(
        "a transformer over histories of some length",
        {"first_k_cols": 4, "transformer_layers": 1},
        first={**FIRST, "learning_rate": 5e-4},
        units=("dcn_hidden_units", "mlp_hidden_units"),
        least_history=5,
    ),
}  # fmt: skip

#: Settings by the number of training rows: those of the first bound that is larger.
SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (1e5, {"batch_size": 256, "epochs": 20, "embedding_dim": 32, "units": [128, 64]}),
    (1e6, {"batch_size": 1024, "epochs": 8, "embedding_dim": 32, "units": [128, 64]}),
    (math.inf, {"batch_size": 4096, "epochs": 4, "embedding_dim": 64, "units": [256, 128]}),
)

#: What is tried of the dim of a factorization; the first is that of the first trial.
FACTOR_DIMS = (17, 33, 0)

#: Computed features that are added to the dataset's: the length of the history, and its similarity to the target.
LENGTH, SIMILARITY = "autopilot_length", "autopilot_similarity"
STATISTICS = ["mean", "max", "newest_5"]

#: Trials of each model before the best goes on alone.
FIRST_TRIALS = 3

#: Trials of models that take less than a quarter of the time of the slowest.
QUICK_TRIALS = 20

#: Parts of the budget: for comparing models, for that and tuning quick ones, for that and tuning the best; the rest is
#: for seeds.
COMPARING, QUICK, SEARCHING = 0.3, 0.5, 0.8

#: Most trials of a model, and seeds of a configuration.
MOST_TRIALS, MOST_SEEDS = 100, 3

#: Experiments whose runs are averaged: the best of all, and the best of each model.
BEST_MEMBERS, BEST_OF_EACH = 16, 4

#: Rows that the length of histories is measured on.
SAMPLED_ROWS = 20_000

_UNITS_OF_TIME = {"s": 1, "m": 60, "h": 3600, "": 60}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm autopilot``."""
    add_examples(
        parser,
        "fuxictr-mm autopilot --dataset_id tiny_mm --budget 20m",
        "fuxictr-mm autopilot --dataset_id MicroLens_1M_x1 --budget 8h --gpu 0",
    )
    parser.add_argument("--dataset_id", required=True, metavar="ID", help="dataset in dataset_config.yaml")
    parser.add_argument("--budget", type=_seconds, default=1800, metavar="TIME", help="such as 45m or 8h (30m)")
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of the configuration (default: this one)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes at once (one a core; on a GPU 1)")
    parser.add_argument("--data_root", type=Path, metavar="DIR", help="replaces the dataset's data_root")
    parser.add_argument("--model_zoo", type=Path, metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--task", default="Task2", choices=("Task1", "Task2", "Task1&2"), help="column of the scores")
    parser.add_argument(
        "--out", type=Path, default=Path("autopilot"), metavar="DIR", help="folder to write (autopilot)"
    )
    add_output_options(parser)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 45m or 8h")
    return float(found[1]) * _UNITS_OF_TIME[found[2]]


def main_from_args(args: argparse.Namespace) -> None:
    """Run or continue, print what was found."""
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs is {args.jobs}, expected 1 or more")
    found = _Autopilot(args).run()
    show(args, asdict(found), "\n".join([*found.told, f"page: {found.page}"]))


@dataclass
class Outcome:
    """What an autopilot has reached.

    Parameters
    ----------
    name : str
        Experiment id of the ensemble, or of the single run.
    valid, test : dict of str to float
        Its metrics.
    submission : str or None
        The submission; None without test rows.
    page : str
        The report.
    told : list of str
        What was tried, and why.
    """

    name: str
    valid: dict[str, float]
    test: dict[str, float]
    submission: str | None
    page: str
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """What decides which models are tried, and with which settings.

    Parameters
    ----------
    rows : dict of str to int
        By split.
    items : int
        Rows of the first item file; without one, items that training rows show.
    history_mean, history_high : float
        Mean length of the histories, and their 95 % quantile.
    cold : dict of str to float
        Fraction of the targets of a split without a training row.
    embeddings : dict of str to str
        The narrowest embedding column of each modality.
    """

    rows: dict[str, int]
    items: int
    history_mean: float
    history_high: float
    cold: dict[str, float]
    embeddings: dict[str, str]

    def sentence(self) -> str:
        """Return the facts in a sentence."""
        rows = ", ".join(f"{count:,} {split}" for split, count in self.rows.items())
        cold = ", ".join(f"{share:.1%} of {split}" for split, share in self.cold.items())
        vectors = ", ".join(f"{column} ({modality})" for modality, column in self.embeddings.items()) or "none"
        return (
            f"Data: {rows} rows; {self.items:,} items; histories of {self.history_mean:.1f} items on average; "
            f"cold targets: {cold or 'unknown'}; embeddings: {vectors}."
        )


def look(dataset: DatasetConfig) -> Facts:
    """Measure a dataset, column by column.

    Raises
    ------
    UserError
        A file or a column is missing or damaged.
    """
    import pyarrow as pa

    from fuxictr_mm.data.parquet import count_rows, lists, numbers, read_rows

    items = dataset.item_files
    paths = {split: getattr(dataset, f"{split}_data") for split in ("train", "valid", "test")}
    paths = {split: path for split, path in paths.items() if path}
    for split in ("train", "valid"):
        if split not in paths:
            raise ConfigError(f"the dataset has no {split}_data; autopilot trains on train and chooses by valid")
    target, history = dataset.roles.target, dataset.roles.history
    shown = {split: _column(path, target) for split, path in paths.items()}
    lengths: list[np.ndarray] = []
    for row, batch in read_rows(paths["train"], [history]):
        array = batch.column(history)
        if pa.types.is_integer(array.type.value_type):  # padded with 0
            values, offsets = lists(array, history, row)
            kept = np.concatenate([[0], np.cumsum(values != 0)])
            lengths.append(kept[offsets[1:]] - kept[offsets[:-1]])
        else:
            lengths.append(numbers(array.value_lengths().fill_null(0)))
        if row + batch.num_rows >= SAMPLED_ROWS:
            break
    length = np.concatenate(lengths)
    return Facts(
        rows={split: len(ids) for split, ids in shown.items()},
        items=count_rows(items[0]) if items else len(np.unique(shown["train"])),
        history_mean=float(length.mean()),
        history_high=float(np.quantile(length, 0.95)),
        cold={
            split: float(1 - np.isin(ids, shown["train"]).mean()) for split, ids in shown.items() if split != "train"
        },
        embeddings=_embeddings(dataset, items),
    )


def encoded(config: ExperimentConfig) -> DatasetConfig:
    """Return the dataset of an experiment without item files with the encoded files, which its trials read as well.

    Raises
    ------
    UserError
        A file or a column is missing or damaged.
    """
    from fuxictr_mm.data.vocabulary import Vocabularies
    from fuxictr_mm.encoding.fuxictr import as_integers

    dataset = config.dataset
    paths = {split: getattr(dataset, f"{split}_data") for split in ("train", "valid", "test")}
    paths = {split: path for split, path in paths.items() if path}
    needs_labels = {split: split != "test" for split in paths}
    read, _ = as_integers(config.to_dict(), paths, needs_labels, Vocabularies())
    return dataset.model_copy(update={f"{split}_data": read[f"{split}_data"] for split in paths})


def _column(path: str, name: str) -> np.ndarray:
    """Return a column of integers or texts of all part files."""
    from fuxictr_mm.data.parquet import read_rows

    chunks = [batch.column(0) for _, batch in read_rows(path, [name])]
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])


def _embeddings(dataset: DatasetConfig, item_files: Sequence[str]) -> dict[str, str]:
    """Return the narrowest embedding column, of 8 dims or more, of text and of image."""
    from fuxictr_mm.data.parquet import part_files, read_chunks, schema_of
    from fuxictr_mm.diagnosis.importance import modality_of

    names = [
        n
        for c in dataset.feature_cols or ()
        if c.type == "embedding"
        for n in ([c.name] if isinstance(c.name, str) else c.name)
    ]
    found: dict[str, tuple[int, str]] = {}
    for file in [file for path in item_files for file in part_files(path)]:
        for name in set(names) & set(schema_of(file).names):
            modality = modality_of(name, "embedding")
            if modality not in ("text", "image"):
                continue
            _, first = next(read_chunks(file, [name], max_rows=2), (0, None))
            if first is None:  # an empty part
                continue
            dim = len(first.column(0)[first.num_rows - 1].as_py() or ())
            if dim >= 8:
                found[modality] = min(found.get(modality, (dim, name)), (dim, name))
    return {modality: name for modality, (_, name) in sorted(found.items())}


def computed_features(dataset: DatasetConfig, facts: Facts) -> list[dict[str, Any]]:
    """Return entries of features that are computed from target and history: its length, and its similarities to it.

    A dataset without item files, whose columns are encoded, has none.
    """
    if not dataset.item_files:
        return []
    names, _ = _names(dataset)
    stored = [n for n in names if names[n] == "embedding"] or list(facts.embeddings.values())
    entries: list[dict[str, Any]] = [{"name": LENGTH, "active": False, "type": "length"}]
    for number, name in enumerate(dict.fromkeys([*stored[:1], *facts.embeddings.values()])):
        entry = {"name": f"{SIMILARITY}_{number}", "active": False, "type": "similarity", "of": name}
        entries.append({**entry, "statistics": STATISTICS})
    return entries


def features_to_try(dataset: DatasetConfig, facts: Facts) -> list[list[str]]:
    """Return lists of features: the active ones, those with an embedding each of text and image, and both with more.

    The first list is that of the first trial: the active features, with what is computed from their embeddings.
    """
    names, active = _names(dataset)
    others = [n for n in active if names[n] != "embedding"]
    choices = [active]
    if facts.embeddings and set(facts.embeddings.values()) - set(active):
        choices.append([*others, *facts.embeddings.values()])
    if not dataset.item_files:
        return choices
    similar = {entry["of"]: entry["name"] for entry in computed_features(dataset, facts) if "of" in entry}
    more = [[*choice, LENGTH, *(similar[n] for n in choice if n in similar)] for choice in choices]
    return [*more, *choices]


def _names(dataset: DatasetConfig) -> tuple[dict[str, str], list[str]]:
    """Return the type of every feature that is not meta, and the names of the active ones."""
    types: dict[str, str] = {}
    active: list[str] = []
    for column in dataset.feature_cols or ():
        for name in [column.name] if isinstance(column.name, str) else column.name:
            if column.type != "meta":
                types[name] = str(column.type)
                active += [name] if column.active else []
    return types, active


def features_of_users(dataset: DatasetConfig, facts: Facts) -> list[list[str]]:
    """Return lists of features for a model of users: user, target and embeddings alone, and the active ones."""
    names, active = _names(dataset)
    roles = dataset.roles
    stored = [n for n in active if names[n] == "embedding"] or list(facts.embeddings.values())
    few = [name for name in (roles.user, roles.target, *stored) if name in names]
    return [few, list(dict.fromkeys([*active, roles.user]))]


def factor_space(model: str, features: list[list[str]], few: list[str]) -> dict[str, list[Any]]:
    """Return what is tried of a factorization beside a model, beginning with its first trial.

    ``few`` are user, target and embeddings; those that are in all lists of features are tried alone, besides all.
    """
    shared = [name for name in few if all(name in names for names in features)]
    if not MODELS[model].has_factors or shared[:2] != few[:2]:
        return {}
    named = [ITEM_ID if name == few[1] else name for name in shared]  # as models know the target
    return {"factor_dim": list(FACTOR_DIMS), "factor_features": [named, None]}


def space_of(
    model: str, facts: Facts, features: list[list[str]], target: str, factors: dict[str, list[Any]] | None = None
) -> dict[str, Any]:
    """Return what is tried of a model, in the form of ``tuner_space``."""
    space = {**MODELS[model].space, "use_features": features, **(factors or {})}
    if max(facts.cold.values(), default=0) >= COLD and all(target in names for names in features):
        space["feature_specs"] = [[{"name": target, "dropout": p}] if p else [] for p in ID_DROPOUT]
    return space


def models_to_try(facts: Facts, has_user: bool) -> dict[str, str]:
    """Return the models that suit the data, each with the reason; ``has_user``: whether the user is a feature."""
    suitable = {name: c for name, c in MODELS.items() if facts.history_mean >= c.least_history}
    return {name: c.why for name, c in suitable.items() if has_user or not c.of_users}


def settings_for(model: str, dataset_id: str, facts: Facts, group_id: str | None) -> dict[str, Any]:
    """Return the base settings of a model for data of this size."""
    size = dict(next(settings for bound, settings in SIZES if facts.rows["train"] < bound))
    units = size.pop("units")
    candidate = MODELS[model]
    size["batch_size"] *= candidate.batch_factor
    return {
        "model": model,
        "dataset_id": dataset_id,
        "metrics": ["AUC", "gAUC", "logloss"] if group_id else ["AUC", "logloss"],
        **({"group_id": group_id} if group_id else {}),
        "monitor": "AUC",
        "monitor_mode": "max",
        "early_stop_patience": 2,
        "max_len": int(min(100, max(10, math.ceil(facts.history_high)))),
        "model_root": "./checkpoints/",
        "verbose": 0,
        **size,
        **dict.fromkeys(candidate.units, units),
        **candidate.settings,
    }


class _Autopilot:
    """One start of an autopilot; the state of an earlier one is in its folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = args.out / args.dataset_id
        self.jobs = args.jobs or (1 if args.gpu >= 0 else os.cpu_count() or 1)
        self.script = find_script()
        self.state = self.folder / "state.json"
        self.started = time.monotonic()
        self.told: list[str] = []

    def run(self) -> Outcome:
        """Go through all stages; those that are finished take no time."""
        from fuxictr_mm.config import load_dataset_config
        from fuxictr_mm.files import read_json

        args = self.args
        load_dataset_config(args.config, args.dataset_id)
        self.spent = float(read_json(self.state).get("spent", 0.0)) if self.state.exists() else 0.0
        if self.spent:
            self.tell(f"Continued after {self.spent:.0f} s of {args.budget:.0f} s.")
        try:
            results = self.search()
            members = self.train(results)
            return self.finish(results, members)
        finally:
            self.save()

    def save(self) -> None:
        """Write down how much of the budget is spent."""
        from fuxictr_mm.files import write_json

        write_json(self.state, {"spent": self.spent + time.monotonic() - self.started})

    def tell(self, line: str) -> None:
        """Say what is done, and keep it for the page."""
        self.told.append(line)
        self.save()
        if not self.args.quiet:
            print(f"{self.spent + time.monotonic() - self.started:6.0f} s  {line}", file=sys.stderr, flush=True)

    def until(self, part: float) -> float:
        """Return when this part of the budget is over, by ``time.monotonic()``."""
        return self.started + part * self.args.budget - self.spent

    def search(self) -> dict[str, list[TrialResult]]:
        """Compare the models with a few trials each, then tune the best; the results of each model, best first."""
        dataset, group_id = self.dataset()
        facts = look(dataset)
        self.target = dataset.roles.target
        self.entry = self.extended_entry(computed_features(dataset, facts))
        self.tell(facts.sentence())
        has_user = _names(dataset)[0].get(dataset.roles.user) == "categorical"
        models = models_to_try(facts, has_user)
        for name, why in models.items():
            self.tell(f"{name} is tried: {why}.")
        of_users, of_others = features_of_users(dataset, facts), features_to_try(dataset, facts)
        features = {name: of_users if MODELS[name].of_users else of_others for name in models}
        factors = {name: factor_space(name, features[name], of_users[0]) if has_user else {} for name in models}
        self.tuners = {name: self.write_tuner(name, facts, features[name], group_id, factors[name]) for name in models}
        self.first = {
            name: {
                **MODELS[name].first,
                "use_features": features[name][0],
                **{key: values[0] for key, values in factors[name].items()},
            }
            for name in models
        }
        results: dict[str, list[TrialResult]] = {}
        slowest = 0.0
        for index, name in enumerate(models):
            until = self.until(COMPARING * (index + 1) / len(models))
            if index == 0:
                self.study(name, 1, math.inf)  # one trial there is, however long it takes
            elif slowest > self.until(COMPARING) - time.monotonic() and not self.has_begun(name):
                self.tell(f"{name}: not tried, since a trial may take {slowest:.0f} s, and less time is left for it.")
                continue
            if found := self.study(name, FIRST_TRIALS, until):
                results[name] = found
                slowest = max(slowest, *(trial.seconds for trial in found))
            else:
                self.tell(f"{name}: no trial has finished within its part of the budget.")
        if not results:
            raise UserError(f"no trial has finished; see {self.folder}/*/logs")
        self.tell(f"{self.best_of(results)} is best after {sum(map(len, results.values()))} trials.")
        seconds = {name: statistics.median(trial.seconds for trial in found) for name, found in results.items()}
        quick = [name for name, taken in seconds.items() if taken < max(seconds.values()) / 4]
        for name in quick:
            self.tell(f"{name} is tuned: a trial takes {seconds[name]:.0f} s.")
            results[name] = self.study(name, QUICK_TRIALS, self.until(QUICK))
        best = self.best_of({name: found for name, found in results.items() if name not in quick})
        self.tell(f"{best} is tuned: the best of {'the others' if quick else 'all'}.")
        results[best] = self.study(best, MOST_TRIALS, self.until(SEARCHING))
        top = results[self.best_of(results)][0]
        self.tell(f"Best of {sum(map(len, results.values()))} trials: {top.expid}, valid AUC {top.score:.4f}.")
        return results

    def dataset(self) -> tuple[DatasetConfig, str | None]:
        """Return the dataset, checked, and the column of users if the validation file has it."""
        from fuxictr_mm.config import ExperimentConfig
        from fuxictr_mm.data.parquet import part_files, schema_of
        from fuxictr_mm.yaml_files import write_entries

        args = self.args
        entry = {"look": {"model": "DIN", "dataset_id": args.dataset_id}}
        write_entries(self.folder / "look" / "model_config.yaml", entry, Path("autopilot"))
        for name in ("dataset_config.yaml", "dataset_config"):
            source, link = Path(args.config) / name, self.folder / "look" / name
            if source.exists() and not link.exists():
                link.symlink_to(source.resolve())
        config = ExperimentConfig.load(self.folder / "look", "look", args.data_root)
        dataset = config.dataset
        has_roles = {"target", "history"} <= dataset.roles.model_fields_set
        if not dataset.feature_cols or not (dataset.item_files or has_roles):
            raise ConfigError(
                f"autopilot: dataset {args.dataset_id} has no item_info or feature_cols; its models need items: name "
                "their files, or the columns of target and history, roles: {target: COLUMN, history: COLUMN}"
            )
        dataset.require_one_label("autopilot")
        if not dataset.item_files:
            dataset = encoded(config)
        user = dataset.roles.user
        valid = part_files(dataset.valid_data)[0] if dataset.valid_data else None
        has_user = valid is not None and user in schema_of(valid).names
        return dataset, user if has_user else None

    def extended_entry(self, more: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the dataset's entry with more features, and paths that are found from the folders of the studies."""
        from fuxictr_mm.config import load_dataset_config
        from fuxictr_mm.tuning.tuner_file import with_found_paths

        folder = Path(self.args.config)
        entry = with_found_paths(load_dataset_config(folder, self.args.dataset_id), folder)
        return {**entry, "feature_cols": [*entry["feature_cols"], *more]}

    def write_tuner(
        self, model: str, facts: Facts, features: list[list[str]], group_id: str | None, factors: dict[str, list[Any]]
    ) -> Path:
        """Write the tuner file of a model."""
        from fuxictr_mm.yaml_files import write_entries

        name, dataset_id = f"AUTO_{model}", self.args.dataset_id
        content = {
            "base_expid": name,
            "model_config": {name: settings_for(model, dataset_id, facts, group_id)},
            "dataset_config": {dataset_id: self.entry},
            "search": "tpe",
            "trials": FIRST_TRIALS,
            "pruning": True,
            "tuner_space": space_of(model, facts, features, self.target, factors),
        }
        path = self.folder / f"{name}.yaml"
        write_entries(path, content, Path("autopilot"))
        return path

    def study(self, model: str, trials: int, until: float) -> list[TrialResult]:
        """Go on with the study of a model; its finished trials, best first."""
        from dataclasses import replace

        from fuxictr_mm.tuning import read_tuner, run_study

        args = self.args
        first = dict(self.first[model])
        tuner = read_tuner(self.tuners[model], args.model_zoo)
        if isinstance(dropout := tuner.space.get("feature_specs"), list):
            first["feature_specs"] = dropout[1]  # the least above none
        tuner = replace(tuner, trials=trials, first=first)
        gpus = [args.gpu] * self.jobs
        results, _ = run_study(tuner, gpus, self.script, args.data_root, args.model_zoo, args.quiet, until=until)
        finished = [r for r in results if r.state == "finished" and r.score > -math.inf]
        return sorted(finished, key=lambda result: -result.score)

    def has_begun(self, model: str) -> bool:
        """Whether an earlier start has tried the model, whose trials then count."""
        return self.tuners[model].with_suffix("").is_dir()

    def best_of(self, results: Mapping[str, Sequence[TrialResult]]) -> str:
        """Return the model of the best trial."""
        return max(results, key=lambda name: results[name][0].score)

    def train(self, results: Mapping[str, Sequence[TrialResult]]) -> list[Run]:
        """Train the best trial with more seeds; its runs."""
        from fuxictr_mm.tuning import train_seeds
        from fuxictr_mm.tuning.runner import common_args

        args, name = self.args, self.best_of(results)
        best = results[name][0]
        left = self.until(1.0) - time.monotonic()
        seeds = max(2, min(MOST_SEEDS, int(left / max(best.seconds, 1.0)) * self.jobs))
        self.tell(f"{best.expid} is trained with {seeds} more seeds: their average is better than one.")
        folder = self.tuners[name].with_suffix("")
        return train_seeds(
            self.load(best.expid, folder),
            range(1, seeds + 1),
            folder,
            self.script,
            extra_args=common_args(args.data_root, args.model_zoo),
            jobs=self.jobs,
            resume=True,
            quiet=args.quiet,
        )

    def load(self, expid: str, folder: Path) -> Experiment:
        """Return an experiment of a study."""
        from fuxictr_mm.experiment import Experiment

        args = self.args
        return Experiment.load(expid, folder, gpu=args.gpu, data_root=args.data_root, model_zoo=args.model_zoo)

    def finish(self, results: Mapping[str, Sequence[TrialResult]], runs: Sequence[Run]) -> Outcome:
        """Average, calibrate, write the submission and the page."""
        from fuxictr_mm.evaluation.calibration import calibrate_run, calibrator_of, describe
        from fuxictr_mm.evaluation.ensemble import ensemble
        from fuxictr_mm.report.command import report
        from fuxictr_mm.submission import write_submission

        args, name = self.args, f"AUTO_{self.args.dataset_id}"
        root = runs[0].path.parents[2]
        best = ensemble([runs[0].expid], root, average="logit", name=name, gpu=args.gpu)
        self.tell(
            f"{name}: average of {len(best.config['members'])} runs of the best, valid AUC {best.valid['AUC']:.4f}."
        )
        trials = sorted((r for found in results.values() for r in found), key=lambda result: -result.score)
        chosen = [*trials[:BEST_MEMBERS], *(r for found in results.values() for r in found[:BEST_OF_EACH])]
        members = list(dict.fromkeys(trial.expid for trial in chosen))
        if len(members) > 1:
            several = ensemble(members, root, average="logit", fit_weights=True, name=f"{name}_trials", gpu=args.gpu)
            self.tell(
                f"{name}_trials: {len(members)} of the best trials and all seeds, weights fitted on valid, AUC "
                f"{several.valid['AUC']:.4f} (cross-fitted)."
            )
            best = max(best, several, key=lambda run: run.valid["AUC"])
        submission = None
        if best.config.get("test_data"):
            scores = best.predictions("test")[1]
            measured = calibrate_run(best)
            # Not isotonic, whose ties would cost AUC.
            method = min(("platt", "beta"), key=lambda m: measured["methods"][m]["logloss"])
            if measured["methods"][method]["logloss"] < measured["uncalibrated"]["logloss"]:
                scores = calibrator_of(best, method)(scores)
                self.tell(f"{describe(measured, method)}.")
            else:
                self.tell("No calibration: it would not lower the logloss on valid.")
            submission = str(write_submission(self.folder / f"{name}.zip", scores, args.task))
            self.tell(f"Submission of {best.expid}: {submission}.")
        if best.test:
            self.tell(
                "Test, which nothing was chosen by: " + ", ".join(f"{k} {v:.4f}" for k, v in best.test.items()) + "."
            )
        page = self.folder / "report.html"
        tried = [found[0].expid for found in results.values()]
        names = list(dict.fromkeys([best.expid, runs[0].expid, *tried]))
        report(names, root, page, title=f"Autopilot on {args.dataset_id}", intro=self.told)
        return Outcome(best.expid, best.valid, best.test, submission, str(page), self.told)


def find_script() -> Path:
    """Return run_expid.py, of the working directory or of the checkout of this package.

    Raises
    ------
    MissingFileError
        It is in neither.
    """
    places = [Path("run_expid.py"), Path(__file__).resolve().parents[1] / "run_expid.py"]
    for path in places:
        if path.is_file():
            return path.resolve()
    raise MissingFileError("run_expid.py: not in this folder; run autopilot in a checkout of the project")
