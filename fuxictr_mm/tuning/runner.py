"""Run trials, a subprocess each, several at once."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from fuxictr_mm.errors import MissingFileError
from fuxictr_mm.runtime import collect_signals
from fuxictr_mm.threads import CORES_VARIABLE
from fuxictr_mm.tuning import child
from fuxictr_mm.tuning.trial import Trial, TrialResult, Trials

POLL_SECONDS = 0.2  # between checks of the children and of signals
STOP_SECONDS = 10.0  # that a trial has to end by itself
BAR_SECONDS = 1.0  # between updates of the time on the bar
TELL_SECONDS = 60.0  # without a trial that ends, after which a line says which ones run
LOG_TAIL = 8192  # bytes at the end of a log that are searched for its last line


def run_trials(
    trials: Trials,
    gpus: Sequence[int],
    script: Path | None,
    extra_args: Sequence[str],
    quiet: bool,
    *,
    logs: Path | None = None,
    what: str = "trial",
) -> None:
    """Run trials until there are none left, one at a time on each entry of ``gpus``.

    Progress is a bar on a terminal, elsewhere a line on stderr for each trial that ends, and now and then one of those
    that run. The output of the trials goes to ``logs``, in the folder of their configuration by default; ``what`` names
    a trial. Without a script they are ``fuxictr-mm train``.

    Raises
    ------
    ConfigError, MissingFileError
        A device or the script does not exist.
    KeyboardInterrupt, SystemExit
        Ctrl-C or SIGTERM came; the children have been ended.
    """
    from fuxictr_mm.runtime import device_of

    if script is not None and not Path(script).is_file():
        raise MissingFileError(
            f"{script}: no such file; expected a script that trains an experiment, such as run_expid.py"
        )
    for gpu in sorted(set(gpus)):
        device_of(gpu)
    launch = ["-m", "fuxictr_mm", "train"] if script is None else [str(script)]
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
                    config = ["--config", str(trial.config_dir), "--expid", trial.expid, "--gpu", str(free[0])]
                    command = [sys.executable, "-u", *launch, *config, *trial.arguments, *extra_args]
                    log = (logs or trial.config_dir / "logs") / f"{trial.name or trial.expid}.out"
                    log.parent.mkdir(parents=True, exist_ok=True)
                    children.append(_Child(trial, free.pop(0), _start(command, trial, log, environment), log))
                if not children and trials.done:
                    break
                if not children and not waited and not quiet:
                    waited = True
                    print("the remaining trials run in other processes; waiting for them", file=sys.stderr)
                progress.wait(children)
                time.sleep(POLL_SECONDS)
        finally:  # also after an error, such as one of the database in ``take``
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
    started: float = field(default_factory=time.monotonic)

    def error(self) -> str:
        """Return the reason why the process ended without a result."""
        code = self.process.returncode
        if code == 0:
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


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End all trials; kill those that still run after ``STOP_SECONDS``."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - LOG_TAIL))
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _Progress:
    """A bar on a terminal, elsewhere a line for each trial that has ended since the last look, or of those that run."""

    def __init__(self, bar: tqdm, trials: Trials, what: str, quiet: bool) -> None:
        self._bar, self._trials, self._what, self._quiet = bar, trials, what, quiet
        self._seen: set[str] | None = None
        self._told = time.monotonic()

    def wait(self, children: Sequence[_Child]) -> None:
        """Say that trials run, if nothing has been said for some time."""
        now = time.monotonic()
        if self._quiet or not children or now < self._told + (BAR_SECONDS if not self._bar.disable else TELL_SECONDS):
            return
        self._told = now
        if not self._bar.disable:
            self._bar.refresh()
            return
        running = ", ".join(f"{c.trial.name or c.trial.expid} for {now - c.started:.0f} s" for c in children)
        print(f"{self._what}s running: {running}", file=sys.stderr, flush=True)

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
            self._bar.set_postfix_str(f"best {best.reached:.6f} {best.expid}", refresh=False)
        self._bar.total = self._trials.total
        self._bar.n = len(done)
        self._bar.refresh()

    def _print(self, done: Sequence[TrialResult], best: TrialResult | None) -> None:
        new = [] if self._seen is None else [result for result in done if result.expid not in self._seen]
        self._seen = {result.expid for result in done}
        for number, result in enumerate(new, start=len(done) - len(new) + 1):
            line = f"{self._what} {number} of {self._trials.total}: {result.expid} {result.state}"
            if result.error is not None:
                line += f": {result.error}"
            elif not math.isnan(value := result.reached):
                monitor = result.params["monitor"]
                line += f", {monitor if isinstance(monitor, str) else 'monitor'} {value:.6f}, {result.seconds:.0f} s"
            line += "" if best is None or best is result else f"; best {best.reached:.6f} {best.expid}"
            print(line, file=sys.stderr, flush=True)
            self._told = time.monotonic()
