"""Run trials, a subprocess each, several at once."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from fuxictr_mm.config import config_hash, list_experiments
from fuxictr_mm.errors import ConfigError, MissingFileError, UserError
from fuxictr_mm.files import InheritedLock, read_json, try_lock, write_beside
from fuxictr_mm.runs import MODEL_CODE, RunPaths, monitored
from fuxictr_mm.runtime import collect_signals
from fuxictr_mm.threads import CORES_VARIABLE
from fuxictr_mm.tuning import child

FOLLOWED_KEYS = ("model_id", "dataset_id")  # names derived from the settings


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Parameters
    ----------
    expid : str
        Experiment id.
    params : dict
        Its parameters: the monitor and its mode, and at least those that are tuned.
    valid, test : dict of str to float
        Metrics; empty where there are none.
    seconds : float
        Wall time; NaN if it failed.
    error : str, optional
        Last line of the output of a trial that failed.
    skipped : bool
        Whether it had finished before.
    pruned : bool
        Whether it was ended early; ``valid`` is its last evaluation.
    """

    expid: str
    params: dict[str, Any]
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    error: str | None = None
    skipped: bool = False
    pruned: bool = False

    @property
    def state(self) -> str:
        """``finished``, ``pruned`` or ``failed``."""
        return "failed" if self.error is not None else "pruned" if self.pruned else "finished"

    @property
    def score(self) -> float:
        """The monitored metric, or weighted sum of metrics, on valid; higher is better, -inf without one."""
        value = monitored(self.params, self.valid)
        return -math.inf if math.isnan(value) else -value if self.params["monitor_mode"] == "min" else value


@dataclass(frozen=True)
class Trial:
    """An experiment that is checked and ready to run.

    Parameters
    ----------
    expid : str
        Experiment id.
    params : dict
        Resolved parameters.
    paths : RunPaths, optional
        Where its files are; None if not known yet.
    lock : InheritedLock, optional
        Protects its files from other processes.
    number : int
        Of the trial in its study.
    arguments : tuple of str
        More arguments for the script.
    name : str
        Of its log; the experiment id if empty.
    model_code : str
        Hash of the model's file.
    """

    expid: str
    params: dict[str, Any]
    paths: RunPaths | None = None
    lock: InheritedLock | None = None
    number: int = -1
    arguments: tuple[str, ...] = ()
    name: str = ""
    model_code: str = ""

    def result(self, skipped: bool = False) -> TrialResult | None:
        """Return the result on disk, None if there is none of exactly these parameters and this model file."""
        try:
            record = {} if self.paths is None else read_json(self.paths.result)
        except UserError:
            return None  # not finished, or not by this library: run it
        same_code = record.get(MODEL_CODE, self.model_code) == self.model_code
        if record.get("config_hash") != config_hash(self.params) or not same_code:
            return None
        return TrialResult(
            self.expid, self.params, record["valid"], record["test"] or {}, record["seconds"], skipped=skipped
        )

    def release(self) -> None:
        """Release the lock on its files."""
        if self.lock is not None:
            self.lock.release()


POLL_SECONDS = 0.2  # between checks of the children and of signals


LOG_TAIL = 8192  # bytes at the end of a log that are searched for its last line


class Trials(Protocol):
    """Source of trials, and receiver of their results."""

    total: int

    @property
    def done(self) -> bool:
        """Whether no trial remains, now or later; called after ``take``."""

    def take(self) -> Trial | None:
        """Return a locked trial to run; None if there is none at the moment."""

    def may_continue(self, trial: Trial) -> bool:
        """Whether a running trial should continue; polled."""

    def finish(self, trial: Trial, error: str) -> None:
        """Record that a trial's process has ended; ``error`` is the reason if there is no result."""

    def give_back(self, trial: Trial) -> None:
        """Record that a trial was ended because this process ends; it resumes later."""

    def results(self) -> list[TrialResult]:
        """Return the results so far."""


def run_grid(
    config_dir: Path,
    gpus: Sequence[int],
    tag: str | None,
    script: Path,
    extra_args: Sequence[str] = (),
    data_root: Path | None = None,
    model_zoo: Path | None = None,
    quiet: bool = False,
) -> list[TrialResult]:
    """Run the experiments of a folder that have not finished yet, one at a time on each entry of ``gpus``.

    Ctrl-C and SIGTERM end the running trials; finished ones are skipped when the grid is run again. Several processes
    on one folder divide the trials among them.

    Parameters
    ----------
    config_dir : Path
        From ``enumerate_trials``, or any configuration folder. The output of trial X goes to ``logs/X.out`` in it.
    gpus : sequence of int
        Device of each worker, -1 for the CPU; repeat an entry for several workers on one device.
    tag : str, optional
        Keeps only the experiment ids that contain it.
    script : Path
        The script that trains an experiment: run_expid.py.
    extra_args : sequence of str
        More arguments for the script.
    data_root, model_zoo : Path, optional
        Passed on to run_expid.py.
    quiet : bool
        No progress bar.

    Returns
    -------
    list of TrialResult
        One for each experiment, in the order of the folder.

    Raises
    ------
    ConfigError, MissingFileError
        The tag matches nothing, a trial's configuration is wrong, or a device or the script does not exist; before any
        trial runs.
    """
    trials = _Grid(config_dir, tag, data_root, model_zoo)
    run_trials(trials, config_dir, gpus, script, [*extra_args, *common_args(data_root, model_zoo)], quiet)
    return trials.results()


def common_args(data_root: Path | None, model_zoo: Path | None) -> list[str]:
    """Return the arguments that the tuner passes on to run_expid.py."""
    given = {"--data_root": data_root, "--model_zoo": model_zoo}
    return [text for flag, path in given.items() if path is not None for text in (flag, str(path))]


class _Grid:
    """The experiments of a configuration folder."""

    def __init__(self, config_dir: Path, tag: str | None, data_root: Path | None, model_zoo: Path | None) -> None:
        # Imported here because it imports FuxiCTR, which the other functions do not need.
        from fuxictr_mm.experiment import Experiment

        names = list(list_experiments(config_dir))
        kept = [name for name in names if tag is None or tag in name]
        if not kept:
            listing = ", ".join(names)
            raise ConfigError(f"{config_dir}: no experiment id contains the tag '{tag}' (there are: {listing})")
        trials = []
        for name in kept:
            experiment = Experiment.load(name, config_dir, data_root=data_root, model_zoo=model_zoo)
            params, code = experiment.config.to_dict(), experiment.model_code
            trials.append(Trial(name, params, experiment.paths, model_code=code))
        self.total = len(trials)
        self._locks = Path(config_dir) / "locks"
        self._results = {trial.expid: trial.result(skipped=True) for trial in trials}
        self._waiting = [trial for trial in trials if self._results[trial.expid] is None]

    @property
    def done(self) -> bool:
        return not self._waiting

    def take(self) -> Trial | None:
        for trial in list(self._waiting):
            lock = try_lock(self._locks / f"{trial.expid}.lock")
            if lock is None:
                continue  # another process runs it
            self._waiting.remove(trial)
            self._results[trial.expid] = trial.result(skipped=True)
            if self._results[trial.expid] is None:
                return replace(trial, lock=lock)
            lock.release()
        return None

    def may_continue(self, trial: Trial) -> bool:
        return True

    def finish(self, trial: Trial, error: str) -> None:
        self._results[trial.expid] = trial.result() or TrialResult(trial.expid, trial.params, error=error)

    def give_back(self, trial: Trial) -> None:
        pass

    def results(self) -> list[TrialResult]:
        return [result for result in self._results.values() if result is not None]


def run_trials(
    trials: Trials,
    config_dir: Path,
    gpus: Sequence[int],
    script: Path,
    extra_args: Sequence[str],
    quiet: bool,
    *,
    logs: Path | None = None,
    what: str = "trial",
) -> None:
    """Run trials until there are none left, one at a time on each entry of ``gpus``.

    Progress is a bar on a terminal, elsewhere a line on stderr for each trial that ends. The output of the trials goes
    to ``logs``, in the configuration folder by default; ``what`` names a trial.

    Raises
    ------
    ConfigError, MissingFileError
        A device or the script does not exist.
    KeyboardInterrupt, SystemExit
        Ctrl-C or SIGTERM came; the children have been ended.
    """
    from fuxictr_mm.runtime import device_of

    if not Path(script).is_file():
        raise MissingFileError(f"{script}: no such file; --script takes run_expid.py")
    for gpu in sorted(set(gpus)):
        device_of(gpu)
    logs = logs or Path(config_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    # Each worker's torch would otherwise take all cores.
    environment = {CORES_VARIABLE: str(max(1, (os.cpu_count() or 1) // len(gpus))), **os.environ}
    free, children, waited = list(gpus), list[_Child](), False

    bar = tqdm(total=trials.total, desc=f"{what}s", unit=what, disable=quiet or not sys.stderr.isatty())
    progress = _Progress(bar, trials, what, quiet)
    with bar, collect_signals() as received:
        try:
            progress.show()
            while not received:
                for running in [each for each in children if each.process.poll() is not None]:
                    children.remove(running)
                    free.append(running.gpu)
                    trials.finish(running.trial, running.error())
                    running.trial.release()
                    progress.show()
                for running in children:
                    if not running.asked_to_end and not trials.may_continue(running.trial):
                        running.asked_to_end = True
                        running.process.terminate()
                while free and not received and (trial := trials.take()) is not None:
                    command = [sys.executable, "-u", str(script), "--config", str(config_dir), "--expid", trial.expid]
                    command += ["--gpu", str(free[0]), *trial.arguments, *extra_args]
                    log = logs / f"{trial.name or trial.expid}.out"
                    children.append(_Child(trial, free.pop(0), _start(command, trial, log, environment), log))
                if not children and trials.done:
                    break
                if not children and not waited and not quiet:
                    waited = True
                    print("the remaining trials run in other processes; waiting for them", file=sys.stderr)
                time.sleep(POLL_SECONDS)
        finally:
            _stop([running.process for running in children])
        for running in children:
            trials.give_back(running.trial)
            running.trial.release()
        progress.show()
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])


@dataclass
class _Child:
    """A running trial."""

    trial: Trial
    gpu: int
    process: subprocess.Popen[bytes]
    log: Path
    asked_to_end: bool = False

    def error(self) -> str:
        """Return the reason why the process ended without a result."""
        code = self.process.returncode
        if code == 0:
            assert self.trial.paths is not None
            return f"no result of this configuration in {self.trial.paths.folder}"
        return _last_line(self.log) or f"exit code {code} without output"


def _start(command: list[str], trial: Trial, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # The child ends with this process and holds the lock until then, so nobody starts the trial while it still writes.
    wrapper = [sys.executable, "-I", str(Path(child.__file__)), str(os.getpid())]
    locks = [] if trial.lock is None else [trial.lock.fileno()]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [*wrapper, *command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=locks,
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]], patience: float = 10.0) -> None:
    """End all trials; kill those that still run after ``patience`` seconds."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - LOG_TAIL))
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _Progress:
    """A bar on a terminal, elsewhere a line for each trial that has ended since the last look."""

    def __init__(self, bar: tqdm, trials: Trials, what: str, quiet: bool) -> None:
        self._bar, self._trials, self._what, self._quiet = bar, trials, what, quiet
        self._told: set[str] | None = None

    def show(self) -> None:
        if self._quiet:
            return
        done = self._trials.results()
        finished = [result for result in done if result.score > -math.inf and result.state == "finished"]
        best = max(finished, key=lambda result: result.score, default=None)
        if self._bar.disable:
            self._print(done, best)
            return
        if best is not None:
            self._bar.set_postfix_str(f"best {_reached(best):.6f} {best.expid}", refresh=False)
        self._bar.total = self._trials.total
        self._bar.n = len(done)
        self._bar.refresh()

    def _print(self, done: Sequence[TrialResult], best: TrialResult | None) -> None:
        new = [] if self._told is None else [result for result in done if result.expid not in self._told]
        self._told = {result.expid for result in done}
        for number, result in enumerate(new, start=len(done) - len(new) + 1):
            line = f"{self._what} {number} of {self._trials.total}: {result.expid} {result.state}"
            if result.error is not None:
                line += f": {result.error}"
            elif not math.isnan(value := _reached(result)):
                monitor = result.params["monitor"]
                line += f", {monitor if isinstance(monitor, str) else 'monitor'} {value:.6f}, {result.seconds:.0f} s"
            line += "" if best is None or best is result else f"; best {_reached(best):.6f} {best.expid}"
            print(line, file=sys.stderr, flush=True)


def _reached(result: TrialResult) -> float:
    """Return the monitored metric of a trial, NaN where there is none."""
    return monitored(result.params, result.valid)


def _tuned_keys(results: Sequence[TrialResult]) -> list[str]:
    """Return the settings that differ between trials, in the order of the configuration."""
    keys = dict.fromkeys(key for result in results for key in result.params if key not in FOLLOWED_KEYS)
    texts = {key: {json.dumps(result.params.get(key), default=str) for result in results} for key in keys}
    return [key for key, seen in texts.items() if len(seen) > 1]


def _ranked(results: Sequence[TrialResult]) -> list[TrialResult]:
    return sorted(results, key=lambda result: (result.error is not None, result.pruned, -result.score))


def _columns(results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Return the cells of each trial by the name of the column, best trial first."""
    tuned = _tuned_keys(results)
    valid = dict.fromkeys(name for result in results for name in result.valid)
    test = dict.fromkeys(name for result in results for name in result.test)
    rows = []
    for rank, result in enumerate(_ranked(results), start=1):
        row: dict[str, Any] = {"rank": rank if result.state == "finished" else "", "expid": result.expid}
        row |= {f"valid {name}": result.valid.get(name, "") for name in valid}
        row |= {f"test {name}": result.test.get(name, "") for name in test}
        row |= {key: result.params.get(key) for key in tuned}
        row["seconds"] = "" if math.isnan(result.seconds) else round(result.seconds, 1)
        if any(other.state != "finished" for other in results):
            row["state"] = result.state
        if any(other.error is not None for other in results):
            row["error"] = result.error or ""
        rows.append(row)
    return rows


def format_table(results: Sequence[TrialResult]) -> str:
    """Return the results as a table, best first by the monitored metric, then pruned trials, then failed ones.

    Parameters
    ----------
    results : sequence of TrialResult
        At least one.

    Returns
    -------
    str
        Columns: rank, experiment id, metrics, the settings that differ between the trials, seconds; the state where not
        all have finished, and the last line of output of those that failed.
    """

    def text(column: str, cell: Any) -> str:
        # Six digits in the table; the CSV has all.
        if column.startswith(("valid ", "test ")) and cell != "":
            shown = f"{cell:.6f}"
        else:
            shown = f"{cell:.6g}" if isinstance(cell, float) and column != "seconds" else str(cell)
        return shown if column == "error" or len(shown) <= 40 else shown[:37] + "..."

    rows = _columns(results)
    lines = [list(rows[0]), *([text(column, cell) for column, cell in row.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_table(results: Sequence[TrialResult], path: Path) -> None:
    """Write the table of ``format_table`` as CSV, numbers in full."""
    rows = _columns(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_beside(path, lambda stream: stream.write(text.getvalue().encode()))


def report(
    results: Sequence[TrialResult],
    config_dir: Path,
    tag: str | None = None,
    importance: Mapping[str, float] | None = None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Print the table, write it into the folder, and raise an error if trials failed.

    Parameters
    ----------
    results : sequence of TrialResult
        At least one.
    config_dir : Path
        Gets ``results.csv``, or ``results_TAG.csv`` if only the trials of a tag ran.
    tag : str, optional
        Part of the experiment ids.
    importance : mapping of str to float, optional
        Importance of the settings, largest first.
    quiet : bool
        Print nothing.
    as_json : bool
        Print one JSON document instead.

    Raises
    ------
    UserError
        If a trial failed.
    """
    importance = importance or {}
    table = config_dir / ("results.csv" if tag is None else f"results_{tag}.csv")
    write_table(results, table)
    skipped = sum(result.skipped for result in results)
    if as_json:
        print(json.dumps({"folder": str(config_dir), "trials": _columns(results), "importance": importance}))
    elif not quiet:
        print(format_table(results))
        if importance:
            print("importance: " + ", ".join(f"{key} {fraction:.2f}" for key, fraction in importance.items()))
        print(f"{len(results)} trials, {skipped} of them run before or elsewhere; written to {table}")
    failed = [result for result in results if result.error is not None]
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(results)} trials failed, first {first.expid}: {first.error}; "
            f"see {config_dir / 'logs' / first.expid}.out, and run the same command again for the missing ones"
        )
