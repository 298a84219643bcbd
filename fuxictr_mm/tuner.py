"""Grid search over ``tuner_space:`` of a tuner YAML, several trials at once, finished ones skipped.

The YAML is FuxiCTR's, and so are the folder and the experiment ids that come of it. Departures from FuxiCTR:

- Hashes tell configurations apart (FuxiCTR hashes the sorted characters of the text: swapped digits collide) and stay
  the same from run to run.
- A grid over dataset settings keeps every combination (FuxiCTR keeps the last one of a parquet dataset).
- A list-valued setting takes a list of lists; a flat list is refused instead of being taken as a grid of its numbers.
- Every trial is checked before the first one starts, a trial that fails is reported, and a trial whose result is there
  is not run again.
"""

import csv
import io
import itertools
import json
import math
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from fuxictr_mm.checking import matches, nearest
from fuxictr_mm.config import (
    DATASET_KEYS,
    EXPERIMENT_KEYS,
    PATH_KEYS,
    config_hash,
    list_experiments,
    load_dataset_config,
    load_model_config,
    load_yaml,
    model_schema,
)
from fuxictr_mm.errors import ConfigError, MissingFileError, UserError
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.training.checkpoints import write_beside

TUNER_KEYS = ("base_config", "base_expid", "dataset_id", "model_config", "dataset_config", "tuner_space")
FOLLOWED_KEYS = ("model_id", "dataset_id")  # names that follow from the settings: no settings themselves
POLL_SECONDS = 0.2  # between looks at whether Ctrl-C or SIGTERM came
LOG_TAIL = 8192  # bytes at the end of a log in which its last line is looked for


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial.

    Parameters
    ----------
    expid : str
        Experiment id.
    params : dict
        Its resolved parameters.
    valid, test : dict of str to float
        Metrics; empty where there are none.
    seconds : float
        How long it took; NaN where it failed.
    error : str, optional
        Last line of the output of a trial that failed.
    skipped : bool
        Whether it had finished before.
    """

    expid: str
    params: dict[str, Any]
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    error: str | None = None
    skipped: bool = False

    @property
    def score(self) -> float:
        """The monitored metric, or weighted sum of metrics, on valid; higher is better, -inf without one."""
        monitor = self.params["monitor"]
        weights = {monitor: 1.0} if isinstance(monitor, str) else monitor
        value = sum(weight * self.valid.get(name, math.nan) for name, weight in weights.items())
        return -math.inf if math.isnan(value) else -value if self.params["monitor_mode"] == "min" else value


@dataclass(frozen=True)
class _Trial:
    """An experiment that is checked and ready to run."""

    expid: str
    params: dict[str, Any]
    record: Path

    def result(self, skipped: bool = False) -> TrialResult | None:
        """Return the result that is on disk, None if there is none of these very parameters."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None  # not finished, or not by us: run it
        if not isinstance(record, dict) or record.get("config_hash") != config_hash(self.params):
            return None
        return TrialResult(
            self.expid, self.params, record["valid"], record["test"] or {}, record["seconds"], skipped=skipped
        )


class _Dumper(yaml.SafeDumper):
    """Writes what `load_yaml` reads back: repeated values in full, texts that YAML 1.2 takes as numbers in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def enumerate_trials(tuner_yaml: Path, model_zoo: Path | None = None) -> Path:
    """Write the experiments of a grid as a configuration folder named after the tuner YAML.

    Parameters
    ----------
    tuner_yaml : Path
        Holds ``base_expid`` and ``tuner_space`` (lists are the grid, scalars replace one value), and where the base
        comes from: ``base_config`` (a folder, its own by default) or ``model_config`` and ``dataset_config`` inline.
        ``dataset_id`` takes the place of the one of the experiment.
    model_zoo : Path, optional
        A folder of model files to search first.

    Returns
    -------
    Path
        Folder with ``model_config.yaml`` (experiments ``BASE_001_<hash>`` ...) and ``dataset_config.yaml``.

    Raises
    ------
    ConfigError, MissingFileError
        If a key is unknown, a grid is empty or repeats a value, or a list-valued setting is given as a flat list.
    """
    tuner_yaml = Path(tuner_yaml)
    if tuner_yaml.suffix != ".yaml":
        raise ConfigError(f"{tuner_yaml}: expected a tuner file that ends in .yaml; give it with --config")
    tuner = load_yaml(tuner_yaml)
    for key in tuner:
        if key not in TUNER_KEYS:
            raise ConfigError(f"{tuner_yaml}: unknown key '{key}'{nearest(key, TUNER_KEYS)}")
    for key in ("base_expid", "tuner_space"):
        if not tuner.get(key):
            raise ConfigError(f"{tuner_yaml}: {key} is missing; see run_param_tuner.py --help")
    model, dataset_id, dataset = _read_base(tuner_yaml, tuner)
    name = str(tuner["base_expid"])
    if model.get("dataset_id") == "TBD":
        name = f"{model['model']}_{dataset_id}"
    space = _read_space(tuner_yaml, tuner["tuner_space"], model, dataset, model_zoo)
    in_dataset = {key for key in space if _belongs_to_dataset(key, model, dataset)}

    datasets = {}
    for combination in _combinations(dataset, {key: space[key] for key in space if key in in_dataset}):
        datasets[f"{dataset_id}_{config_hash(combination)[:8]}"] = combination
    if len(datasets) == 1:
        datasets = {dataset_id: next(iter(datasets.values()))}
    models = _combinations(model, {key: space[key] for key in space if key not in in_dataset})
    experiments = {}
    for number, (settings, (used_id, data)) in enumerate(itertools.product(models, datasets.items()), start=1):
        entry = {**settings, "dataset_id": used_id}
        experiments[f"{name}_{number:03d}_{config_hash({**entry, **data})[:8]}"] = entry

    folder = tuner_yaml.with_suffix("")
    _write_yaml(folder / "dataset_config.yaml", datasets, tuner_yaml)
    _write_yaml(folder / "model_config.yaml", experiments, tuner_yaml)
    return folder


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
    # The folder that is written is another than the base's: paths that count from there would not be found.
    found = {key: _from_folder(dataset[key], origin) for key in (*PATH_KEYS, "data_root") if dataset.get(key)}
    return model, dataset_id, {**dataset, **found}


def _mapping(tuner_yaml: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{tuner_yaml}: {where} is {value!r}, expected a mapping of settings")
    return value


def _entry(tuner_yaml: Path, key: str, name: str, entries: Mapping[str, Any]) -> Any:
    if name not in entries:
        listing = ", ".join(str(known) for known in entries)
        raise ConfigError(f"{tuner_yaml}: {key}: there is no '{name}'{nearest(name, entries)} (there are: {listing})")
    return entries[name]


def _from_folder(paths: str | list[str], folder: Path) -> str | list[str]:
    if isinstance(paths, list):
        return [str(_from_folder(path, folder)) for path in paths]
    path = Path(paths)
    if path.is_absolute() or path.exists() or not (folder / path).exists():
        return paths
    return str((folder / path).resolve())


def _belongs_to_dataset(key: str, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> bool:
    # The dataset's settings win over the experiment's where both hold a key.
    return key in dataset or (key in DATASET_KEYS and key not in EXPERIMENT_KEYS and key not in model)


def _read_space(
    tuner_yaml: Path,
    space: Any,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    model_zoo: Path | None,
) -> dict[str, list[Any]]:
    """Return the values to try of each tuned key."""
    space = _mapping(tuner_yaml, "tuner_space", space)
    base = {**model, **dataset}
    schema: dict[str, Any] = {**DATASET_KEYS, **EXPERIMENT_KEYS}
    for name in _grid(space.get("model", model["model"])):
        schema.update(model_schema(load_model_class(name, model_zoo)))
    for key, values in space.items():
        where = f"{tuner_yaml}: tuner_space: {key}"
        if key in FOLLOWED_KEYS:
            raise ConfigError(f"{where}: cannot be tuned; write one tuner file for each {key}")
        if key not in base and key not in schema:
            known = {**base, **schema}
            raise ConfigError(
                f"{where}: neither the base experiment, its dataset nor its model has it{nearest(key, known)}"
            )
        if values == []:
            raise ConfigError(f"{where}: an empty list; expected at least one value")
        if isinstance(values, list):
            if _is_flat_list(values, base.get(key), schema.get(key, Any)):
                raise ConfigError(f"{where}: {values} is one value that is a list; for a grid of one write [{values}]")
            texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
            twice = next((text for text in texts if texts.count(text) > 1), None)
            if twice is not None:
                raise ConfigError(f"{where}: {twice} is given twice; keep one of them")
    return {key: _grid(values) for key, values in space.items()}


def _is_flat_list(values: list[Any], base_value: Any, annotation: Any) -> bool:
    """Whether a list is one value of a list-valued setting rather than a grid of values."""
    if annotation is not Any:
        if all(matches(value, annotation) for value in values):
            return False
        if matches(values, annotation):
            return True
    return isinstance(base_value, list) and not all(value is None or isinstance(value, list) for value in values)


def _grid(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _combinations(base: Mapping[str, Any], space: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    grid = {**{key: [value] for key, value in base.items()}, **space}
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _write_yaml(path: Path, content: Mapping[str, Any], origin: Path) -> None:
    header = f"# Written by run_param_tuner.py from {origin.name}: change it there, not here.\n"
    text = yaml.dump(dict(content), Dumper=_Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True)
    write_beside(path, lambda stream: stream.write((header + text).encode()))


def run_grid(
    config_dir: Path,
    gpus: Sequence[int],
    tag: str | None,
    script: Path,
    extra_args: Sequence[str] = (),
    data_root: Path | None = None,
    model_zoo: Path | None = None,
) -> list[TrialResult]:
    """Run the experiments of a folder that have not finished yet, one at a time on each entry of ``gpus``.

    Ctrl-C and SIGTERM end the trials that run; those that finished are skipped when the grid is run again.

    Parameters
    ----------
    config_dir : Path
        From ``enumerate_trials``, or any configuration folder. The output of trial X goes to ``logs/X.out`` in it.
    gpus : sequence of int
        Device of each worker, -1 for the CPU; repeat an entry for several workers on one device.
    tag : str, optional
        Keeps only the experiment ids that contain it.
    script : Path
        What runs an experiment: run_expid.py.
    extra_args : sequence of str
        More arguments for the script.
    data_root, model_zoo : Path, optional
        As for run_expid.py, which is given them too.

    Returns
    -------
    list of TrialResult
        One for each experiment, in the order of the folder.

    Raises
    ------
    ConfigError, MissingFileError
        If the tag matches nothing, a trial's configuration is wrong, or a device or the script is not there; before any
        trial runs.
    """
    script = Path(script)
    if not script.is_file():
        raise MissingFileError(f"{script}: no such file; --script takes run_expid.py")
    trials = _read_trials(Path(config_dir), gpus, tag, data_root, model_zoo)
    extra_args = [*extra_args]
    extra_args += ["--data_root", str(data_root)] if data_root is not None else []
    extra_args += ["--model_zoo", str(model_zoo)] if model_zoo is not None else []
    logs = Path(config_dir) / "logs"
    logs.mkdir(exist_ok=True)
    results = {trial.expid: trial.result(skipped=True) for trial in trials}
    waiting: queue.SimpleQueue[_Trial] = queue.SimpleQueue()
    for trial in trials:
        if results[trial.expid] is None:
            waiting.put(trial)
    children = _Children()

    def work(gpu: int) -> None:
        while not (children.stopped or received):
            try:
                trial = waiting.get_nowait()
            except queue.Empty:
                return
            command = [sys.executable, "-u", str(script), "--config", str(config_dir), "--expid", trial.expid]
            command += ["--gpu", str(gpu), *extra_args]
            log = logs / f"{trial.expid}.out"
            code = children.run(command, log)
            if children.stopped or received:
                return
            results[trial.expid] = _outcome(trial, code, log)
            _show_progress(bar, results)

    with tqdm(total=len(trials), desc="trials", unit="trial") as bar:
        _show_progress(bar, results)
        with _signals() as received, ThreadPoolExecutor(len(gpus)) as executor:
            pending = {executor.submit(work, gpu) for gpu in gpus}
            try:
                while pending and not received:
                    done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            finally:
                children.stop()
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
    return [result for result in results.values() if result is not None]


def _read_trials(
    config_dir: Path, gpus: Sequence[int], tag: str | None, data_root: Path | None, model_zoo: Path | None
) -> list[_Trial]:
    # Here, because it brings FuxiCTR along, which enumerating and tabling do without.
    from fuxictr_mm.experiment import read_params, record_path

    names = list(list_experiments(config_dir))
    kept = [name for name in names if tag is None or tag in name]
    if not kept:
        raise ConfigError(f"{config_dir}: no experiment id contains the tag '{tag}' (there are: {', '.join(names)})")
    for gpu in sorted(set(gpus)):
        read_params(config_dir, kept[0], gpu=gpu, data_root=data_root, model_zoo=model_zoo)
    trials = []
    for name in kept:
        params = read_params(config_dir, name, data_root=data_root, model_zoo=model_zoo)[0]
        trials.append(_Trial(name, params, record_path(params)))
    return trials


class _Children:
    """The subprocesses that run, so that they can be ended from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, command: Sequence[str], log: Path) -> int | None:
        """Run a command, its output into ``log``; return its exit code, None if it was not started any more."""
        with self._lock:
            if self.stopped:
                return None
            with log.open("wb") as stream:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code

    def stop(self, patience: float = 10.0) -> None:
        """End all; those that are still there after ``patience`` seconds are killed."""
        with self._lock:
            self.stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list.

    They do not raise: an exception amid the locks of the threads that run the trials would leave them in disorder.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _outcome(trial: _Trial, code: int | None, log: Path) -> TrialResult:
    result = trial.result() if code == 0 else None
    if result is not None:
        return result
    reason = f"no result of this configuration in {trial.record}" if code == 0 else _last_line(log)
    return TrialResult(trial.expid, trial.params, error=reason or f"exit code {code} without output")


def _last_line(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - LOG_TAIL))
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _show_progress(bar: tqdm, results: Mapping[str, TrialResult | None]) -> None:
    done = [result for result in results.values() if result is not None]
    finished = [result for result in done if result.score > -math.inf]
    if finished:
        best = max(finished, key=lambda result: result.score)
        value = best.score if best.params["monitor_mode"] == "max" else -best.score
        bar.set_postfix_str(f"best {value:.6f} {best.expid}", refresh=False)
    bar.n = len(done)
    bar.refresh()


def _tuned_keys(results: Sequence[TrialResult]) -> list[str]:
    """Return the settings that differ between trials, in the order of the configuration."""
    keys = dict.fromkeys(key for result in results for key in result.params if key not in FOLLOWED_KEYS)
    texts = {key: {json.dumps(result.params.get(key), default=str) for result in results} for key in keys}
    return [key for key, seen in texts.items() if len(seen) > 1]


def _ranked(results: Sequence[TrialResult]) -> list[TrialResult]:
    return sorted(results, key=lambda result: (result.error is not None, -result.score))


def _columns(results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Return the cells of each trial by the name of the column, best trial first."""
    tuned = _tuned_keys(results)
    valid = dict.fromkeys(name for result in results for name in result.valid)
    test = dict.fromkeys(name for result in results for name in result.test)
    rows = []
    for rank, result in enumerate(_ranked(results), start=1):
        row: dict[str, Any] = {"rank": rank if result.error is None else "", "expid": result.expid}
        row |= {f"valid {name}": result.valid.get(name, "") for name in valid}
        row |= {f"test {name}": result.test.get(name, "") for name in test}
        row |= {key: result.params.get(key) for key in tuned}
        row["seconds"] = "" if math.isnan(result.seconds) else round(result.seconds, 1)
        if any(other.error is not None for other in results):
            row["error"] = result.error or ""
        rows.append(row)
    return rows


def format_table(results: Sequence[TrialResult]) -> str:
    """Return the results as a table, best first by the monitored metric, failed trials last.

    Parameters
    ----------
    results : sequence of TrialResult
        At least one.

    Returns
    -------
    str
        Columns: rank, experiment id, metrics, the settings that differ between the trials, seconds, and the last line
        of output of those that failed.
    """

    def text(column: str, cell: Any) -> str:
        shown = f"{cell:.6f}" if column.startswith(("valid ", "test ")) and cell != "" else str(cell)
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


def report(results: Sequence[TrialResult], config_dir: Path) -> None:
    """Print the table, write it to ``results.csv`` in the folder, and say so if trials failed.

    Raises
    ------
    UserError
        If a trial failed.
    """
    table = config_dir / "results.csv"
    write_table(results, table)
    skipped = sum(result.skipped for result in results)
    print(format_table(results))
    print(f"{len(results)} trials, {skipped} of them finished before; written to {table}")
    failed = [result for result in results if result.error is not None]
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(results)} trials failed, first {first.expid}: {first.error}; "
            f"see {config_dir / 'logs' / first.expid}.out, and run the same command again for the missing ones"
        )
