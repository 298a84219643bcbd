"""Run the trials of a folder, a subprocess each, several at once."""

import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from fuxictr_mm.config import list_experiments
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.signals import collect_signals
from fuxictr_mm.tuning.trial import Trial, TrialResult

POLL_SECONDS = 0.2  # between looks at whether Ctrl-C or SIGTERM came
LOG_TAIL = 8192  # bytes at the end of a log in which its last line is looked for


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
    waiting: queue.SimpleQueue[Trial] = queue.SimpleQueue()
    for trial in trials:
        if results[trial.expid] is None:
            waiting.put(trial)
    children = _Children(len(gpus))

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

    with tqdm(total=len(trials), desc="trials", unit="trial", disable=not sys.stderr.isatty()) as bar:
        _show_progress(bar, results)
        with collect_signals() as received, ThreadPoolExecutor(len(gpus)) as executor:
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
) -> list[Trial]:
    # Here, because it brings FuxiCTR along, which enumerating and tabling do without.
    from fuxictr_mm.device import device_of
    from fuxictr_mm.experiment import read_params, record_path

    names = list(list_experiments(config_dir))
    kept = [name for name in names if tag is None or tag in name]
    if not kept:
        raise ConfigError(f"{config_dir}: no experiment id contains the tag '{tag}' (there are: {', '.join(names)})")
    for gpu in sorted(set(gpus)):
        device_of(gpu)
    trials = []
    for name in kept:
        params = read_params(config_dir, name, data_root=data_root, model_zoo=model_zoo)[0]
        trials.append(Trial(name, params, record_path(params)))
    return trials


class _Children:
    """The subprocesses that run, so that they can be ended from another thread."""

    def __init__(self, workers: int) -> None:
        # Each worker's torch would otherwise take all cores.
        threads = max(1, (os.cpu_count() or 1) // workers)
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, command: Sequence[str], log: Path) -> int | None:
        """Run a command, its output into ``log``; return its exit code, None if it was not started any more."""
        with self._lock:
            if self.stopped:
                return None
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=self._environment
                )
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


def _outcome(trial: Trial, code: int | None, log: Path) -> TrialResult:
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
