"""The stages of an autopilot: compare models, tune the best, train seeds, average, calibrate, report."""

from __future__ import annotations

import filecmp
import math
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fuxictr_mm.autopilot.candidates import (
    MODELS,
    computed_features,
    factor_space,
    features_of_users,
    features_to_try,
    first_of,
    models_to_try,
    settings_for,
    space_of,
    types_and_active,
)
from fuxictr_mm.autopilot.facts import Facts, encoded, look
from fuxictr_mm.config import DatasetConfig, ExperimentConfig, load_dataset_config
from fuxictr_mm.data.parquet import part_files, schema_of
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.evaluation.calibration import calibrate_run, calibrator_of, describe_calibration
from fuxictr_mm.evaluation.ensemble import ensemble
from fuxictr_mm.evaluation.significance import auc_with_interval
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.files import read_json, try_lock, write_json
from fuxictr_mm.report.report import check_packages, report
from fuxictr_mm.submission import write_submission
from fuxictr_mm.tuning import TrialResult, read_tuner, run_study, train_seeds
from fuxictr_mm.tuning.source import Source
from fuxictr_mm.tuning.tuner_file import with_found_paths
from fuxictr_mm.yaml_files import write_entries

#: Trials of each model, after which only the best model is tuned further.
FIRST_TRIALS = 3

#: Trials of models that take less than a quarter of the time of the slowest.
QUICK_TRIALS = 20

#: Parts of the budget: for comparing models, for that and tuning quick ones, for that and tuning the best; the rest is
#: for seeds of the best trial of each model.
COMPARING, QUICK, SEARCHING = 0.3, 0.5, 0.8

#: Seconds between two notes of how much of the budget is spent: what a kill forgets.
NOTE_SECONDS = 10

#: Most trials of a model, and seeds of a configuration.
MOST_TRIALS, MOST_SEEDS = 100, 3

#: Experiments whose runs are averaged: the best of all, and the best of each model.
BEST_MEMBERS, BEST_OF_EACH = 16, 4


@dataclass(frozen=True)
class Request:
    """Request of an autopilot; the fields are the options of ``fuxictr-mm autopilot``."""

    dataset_id: str
    out: Path = Path("autopilot")
    budget: float = 1800.0  #: Seconds.
    config: str | Path = "."
    gpu: int = -1
    jobs: int | None = None
    data_root: Path | None = None
    model_zoo: Path | None = None
    task: str = "Task2"
    quiet: bool = False


@dataclass
class Outcome:
    """Result of an autopilot.

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


class Autopilot:
    """One start of an autopilot; the state of an earlier one is in its folder."""

    def __init__(self, asked: Request) -> None:
        check_packages()
        self.asked = asked
        self.folder = asked.out / asked.dataset_id
        self.jobs = asked.jobs or (1 if asked.gpu >= 0 else os.cpu_count() or 1)
        self.state = self.folder / "state.json"
        self.started = time.monotonic()
        self.told: list[str] = []
        #: The last error of the models of which a trial has failed.
        self.failed: dict[str, str] = {}

    def run(self) -> Outcome:
        """Run all stages; finished ones are skipped."""
        asked = self.asked
        load_dataset_config(asked.config, asked.dataset_id)
        with self.alone():
            return self.go()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder.

        Raises
        ------
        ConfigError
            Another autopilot runs in it, or it cannot be written.
        """
        try:
            lock = try_lock(self.folder / "lock")
        except OSError as error:
            raise ConfigError(
                f"--out {self.asked.out}: cannot be written ({error.strerror}); give another folder"
            ) from error
        if lock is None:
            raise ConfigError(
                f"{self.folder}: another autopilot is running there; wait until it ends, or give another --out"
            )
        try:
            yield
        finally:
            lock.release()

    def go(self) -> Outcome:
        """Run all stages in the locked folder."""
        asked = self.asked
        self.link_config()
        spent = read_json(self.state).get("spent", 0.0) if self.state.exists() else 0.0
        if not isinstance(spent, int | float):
            raise ConfigError(f"{self.state}: spent is {spent!r}, expected seconds; delete the file to start again")
        self.spent = float(spent)
        if self.spent:
            self.tell(f"Continued after {self.spent:.0f} s of {asked.budget:.0f} s.")
        with self.noted():
            results = self.search()
            self.train(results)
            return self.finish(results)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Save the spent part of the budget every few seconds and at the end."""
        over = threading.Event()

        def note() -> None:
            while not over.wait(NOTE_SECONDS):
                self.save()

        thread = threading.Thread(target=note, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.save()

    def save(self) -> None:
        """Save the spent part of the budget."""
        write_json(self.state, {"spent": self.spent + time.monotonic() - self.started})

    def tell(self, line: str) -> None:
        """Print a line and save it for the page."""
        self.told.append(line)
        if not self.asked.quiet:
            print(f"{self.spent + time.monotonic() - self.started:6.0f} s  {line}", file=sys.stderr, flush=True)

    def until(self, part: float) -> float:
        """Return when this part of the budget is over, by ``time.monotonic()``."""
        return self.started + part * self.asked.budget - self.spent

    def search(self) -> dict[str, list[TrialResult]]:
        """Compare the models with a few trials each, then tune the best; the results of each model, best first."""
        dataset, group_id = self.dataset()
        facts = look(dataset)
        self.target = dataset.roles.target
        self.entry = self.extended_entry(computed_features(dataset, facts))
        self.tell(facts.sentence())
        has_user = types_and_active(dataset)[0].get(dataset.roles.user) == "categorical"
        models = models_to_try(facts, has_user)
        for name, why in models.items():
            self.tell(f"{name} is tried: {why}.")
        of_users, of_others = features_of_users(dataset, facts), features_to_try(dataset, facts)
        features = {name: of_users if MODELS[name].of_users else of_others for name in models}
        factors = {name: factor_space(name, features[name], of_users[0]) if has_user else {} for name in models}
        self.tuners = {name: self.write_tuner(name, facts, features[name], group_id, factors[name]) for name in models}
        self.first = {name: first_of(name, facts, features[name], factors[name]) for name in models}
        results: dict[str, list[TrialResult]] = {}
        slowest = 0.0
        for index, name in enumerate(models):
            until = self.until(COMPARING * (index + 1) / len(models))
            if index == 0:
                self.study(name, 1, math.inf)  # one trial there is, however long it takes
            elif slowest > self.until(COMPARING) - time.monotonic() and not self.has_begun(name):
                self.tell(
                    f"{name}: not tried, because a trial may take {slowest:.0f} s, which exceeds the remaining time."
                )
                continue
            if found := self.study(name, FIRST_TRIALS, until):
                results[name] = found
                slowest = max(slowest, *(trial.seconds for trial in found))
            else:
                failed = self.failed.get(name)
                self.tell(
                    f"{name}: no trial has finished{f' ({failed})' if failed else ' within its part of the budget'}."
                )
        if not results:
            raise UserError(f"no trial has finished; see {self.folder}/*/logs")
        count = sum(map(len, results.values()))
        self.tell(f"{self.best_of(results)} is best after {count} trial{'s' if count > 1 else ''}.")
        seconds = {name: statistics.median(trial.seconds for trial in found) for name, found in results.items()}
        quick = [name for name, taken in seconds.items() if taken < max(seconds.values()) / 4]
        for name in quick:
            self.tell(f"{name} is tuned: a trial takes {seconds[name]:.0f} s.")
            results[name] = self.study(name, QUICK_TRIALS, self.until(QUICK) - seconds[name])
        best = self.best_of({name: found for name, found in results.items() if name not in quick})
        self.tell(f"{best} is tuned: the best of {'the others' if quick else 'all'}.")
        results[best] = self.study(best, MOST_TRIALS, self.until(SEARCHING) - seconds[best])
        top = results[self.best_of(results)][0]
        self.tell(f"Best of {sum(map(len, results.values()))} trials: {top.expid}, valid AUC {top.score:.4f}.")
        return results

    def link_config(self) -> None:
        """Link the configuration of datasets into the folder, all of whose results are those of one.

        Raises
        ------
        ConfigError
            The folder belongs to another configuration.
        """
        for name in ("dataset_config.yaml", "dataset_config"):
            source, link = Path(self.asked.config) / name, self.folder / "look" / name
            if link.exists() and not link.is_symlink() and _is_copy(link, source):
                _remove(link)  # of a folder that was copied with its links followed
            if link.exists() and link.resolve() != source.resolve():
                raise ConfigError(
                    f"--config {self.asked.config}: {self.folder} has results of {link.resolve()}, which differs; "
                    "give its folder as --config, or another --out"
                )
            if source.exists() and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)  # of a file that is gone
                link.symlink_to(source.resolve())

    def dataset(self) -> tuple[DatasetConfig, str | None]:
        """Return the dataset, checked, and the column of users if the validation file has it."""
        asked = self.asked
        entry = {"look": {"model": "DIN", "dataset_id": asked.dataset_id}}
        write_entries(self.folder / "look" / "model_config.yaml", entry, Path("autopilot"))
        config = ExperimentConfig.load(self.folder / "look", "look", asked.data_root)
        dataset = config.dataset
        has_roles = {"target", "history"} <= dataset.roles.model_fields_set
        if not dataset.feature_cols or not (dataset.item_files or has_roles):
            raise ConfigError(
                f"autopilot: dataset {asked.dataset_id} has no item_info or feature_cols; its models need "
                "items: set their files, or the columns of target and history, roles: "
                "{target: COLUMN, history: COLUMN}"
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
        folder = Path(self.asked.config)
        entry = with_found_paths(load_dataset_config(folder, self.asked.dataset_id), folder)
        return {**entry, "feature_cols": [*entry["feature_cols"], *more]}

    def write_tuner(
        self, model: str, facts: Facts, features: list[list[str]], group_id: str | None, factors: dict[str, list[Any]]
    ) -> Path:
        """Write the tuner file of a model."""
        name, dataset_id = f"AUTO_{model}", self.asked.dataset_id
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
        """Continue the study of a model; return its finished trials, best first."""
        asked = self.asked
        first = dict(self.first[model])
        tuner = read_tuner(self.tuners[model], asked.model_zoo)
        if isinstance(dropout := tuner.space.get("feature_specs"), list):
            first["feature_specs"] = dropout[1]  # the least above none
        tuner = replace(tuner, trials=trials, first=first)
        gpus = [asked.gpu] * self.jobs
        results, _ = run_study(tuner, gpus, None, Source(asked.data_root, asked.model_zoo), asked.quiet, until=until)
        finished = [r for r in results if r.state == "finished" and r.score > -math.inf]
        for result in results:
            if result.error is not None:
                self.failed[model] = result.error
        return sorted(finished, key=lambda result: -result.score)

    def has_begun(self, model: str) -> bool:
        """Whether an earlier start has tried the model, whose trials then count."""
        return self.tuners[model].with_suffix("").is_dir()

    def best_of(self, results: Mapping[str, Sequence[TrialResult]]) -> str:
        """Return the model of the best trial."""
        return max(results, key=lambda name: results[name][0].score)

    def train(self, results: Mapping[str, Sequence[TrialResult]]) -> None:
        """Train the best trial with more seeds, and while there is time the best one of each other model."""
        for index, name in enumerate(sorted(results, key=lambda name: -results[name][0].score)):
            try:
                self.train_model(name, results[name][0], least=0 if index else 2)
            except UserError as error:  # such as a loss of nan with another seed; the trials are enough
                self.tell(f"{name}: {error}.")

    def train_model(self, name: str, best: TrialResult, least: int = 0) -> None:
        """Train a trial of a model with as many more seeds as there is time for."""
        asked = self.asked
        left = self.until(1.0) - time.monotonic()
        seeds = max(least, min(MOST_SEEDS, int(left / max(best.seconds, 1.0)) * self.jobs))
        if seeds < 1:
            return
        self.tell(f"{best.expid} is trained with {seeds} more seeds: their average is better than one.")
        folder = self.tuners[name].with_suffix("")
        train_seeds(
            self.load(best.expid, folder),
            range(1, seeds + 1),
            folder,
            None,
            extra_args=Source(asked.data_root, asked.model_zoo).arguments,
            jobs=self.jobs,
            resume=True,
            quiet=asked.quiet,
        )

    def load(self, expid: str, folder: Path) -> Experiment:
        """Return an experiment of a study."""
        asked = self.asked
        return Experiment.load(expid, folder, gpu=asked.gpu, data_root=asked.data_root, model_zoo=asked.model_zoo)

    def finish(self, results: Mapping[str, Sequence[TrialResult]]) -> Outcome:
        """Average, calibrate, write the submission and the page."""
        asked, name = self.asked, f"AUTO_{self.asked.dataset_id}"
        first = self.best_of(results)
        top = results[first][0].expid
        root = self.load(top, self.tuners[first].with_suffix("")).paths.model_root
        best = ensemble([top], root, average="logit", name=name, gpu=asked.gpu)
        averaged = best.config.get("members")  # not of a single run
        what = f"average of {len(averaged)} runs of the best" if averaged else "the best run"
        self.tell(f"{best.expid}: {what}, valid AUC {best.valid['AUC']:.4f}.")
        trials = sorted((r for found in results.values() for r in found), key=lambda result: -result.score)
        chosen = [*trials[:BEST_MEMBERS], *(r for found in results.values() for r in found[:BEST_OF_EACH])]
        members = list(dict.fromkeys(trial.expid for trial in chosen))
        if len(members) > 1:
            several = ensemble(members, root, average="logit", fit_weights=True, name=f"{name}_trials", gpu=asked.gpu)
            self.tell(
                f"{name}_trials: {len(members)} of the best trials and all seeds, weights fitted on valid, AUC "
                f"{several.valid['AUC']:.4f} (cross-fitted)."
            )
            best = max(best, several, key=lambda run: run.valid["AUC"])
        label, prediction, _ = best.predictions()
        assert label is not None
        if (auc_with_interval(label, prediction)["low"] or 0.0) <= 0.5:
            self.tell(
                f"Warning: {best.expid} may rank the validation rows at random; the features may be uninformative."
            )
        submission = None
        if best.config.get("test_data"):
            scores = best.predictions("test")[1]
            measured = calibrate_run(best)
            # Not isotonic, whose ties would cost AUC, nor what makes all predictions the same.
            useful = [m for m in ("platt", "beta") if not calibrator_of(measured, m).is_constant]
            method = min(useful, key=lambda m: measured["methods"][m]["logloss"], default=None)
            if method and measured["methods"][method]["logloss"] < measured["uncalibrated"]["logloss"]:
                scores = calibrator_of(measured, method)(scores)
                self.tell(f"{describe_calibration(measured, method)}.")
            else:
                self.tell("No calibration: it would not reduce the logloss on valid.")
            submission = str(write_submission(self.folder / f"{name}.zip", scores, asked.task))
            self.tell(f"Submission of {best.expid}: {submission}.")
        if best.test:
            self.tell(
                "Test, which was not used for selection: "
                + ", ".join(f"{k} {v:.4f}" for k, v in best.test.items())
                + "."
            )
        page = self.folder / "report.html"
        tried = [found[0].expid for found in results.values()]
        names = list(dict.fromkeys([best.expid, top, *tried]))
        report(names, root, page, title=f"Autopilot on {asked.dataset_id}", intro=self.told)
        return Outcome(best.expid, best.valid, best.test, submission, str(page), self.told)


def _is_copy(path: Path, source: Path) -> bool:
    """Whether a file or folder holds what another does."""
    if path.is_file() or source.is_file():
        return path.is_file() and source.is_file() and filecmp.cmp(path, source, shallow=False)
    names = [{str(file.relative_to(folder)) for file in folder.rglob("*")} for folder in (path, source)]
    files = [name for name in names[0] if (path / name).is_file()]
    return names[0] == names[1] and filecmp.cmpfiles(path, source, files, shallow=False)[0] == files


def _remove(path: Path) -> None:
    """Delete a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
