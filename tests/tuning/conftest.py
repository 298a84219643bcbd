"""A base experiment, and a stand-in for run_expid.py that trains nothing."""

import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest

from fuxictr_mm.arguments import run_main
from tests.paths import ROOT, TINY
from tests.tuning.stand_in import START

MODEL = """
from collections.abc import Sequence
from torch import nn


class Fake(nn.Module):
    def __init__(self, feature_map, *, width: int = 1, dnn_hidden_units: Sequence[int] = (8, 4), **params):
        pass
"""

SCRIPT = (
    START
    + """if args.resume:
    note(args.expid, "resumed.txt")
note(f"{args.expid} {args.gpu} {os.getpid()}")
width = params.get("width", 1)
print("width", width)
if width == 13:
    sys.exit("ValueError: width must not be 13\\n")
if width == 77:
    sys.exit(0)
while width == 99 and Path("slow").exists():
    time.sleep(0.05)
if width == 50:  # ends once two trials run at the same time
    while len(Path("runs.txt").read_text().splitlines()) < 2:
        time.sleep(0.05)
valid = {"AUC": 0.5 + width / 1000 - params["learning_rate"], "logloss": 1 - width / 1000}
write_result(valid, {"AUC": 0.75})
"""
)

BASE = """
Base:
    model_root: checkpoints
    metrics: [AUC, logloss]
    monitor: AUC
    monitor_mode: max
Fake_default:
    model: Fake
    dataset_id: TBD
    learning_rate: 1e-3
    width: 1
    dnn_hidden_units: [8, 4]
Fake_named:
    model: Fake
    dataset_id: tiny
"""

DATASET = """
tiny:
    data_root: data/
    data_format: parquet
    train_data: data/tiny/train.parquet
    valid_data: data/tiny/valid.parquet
    item_info: data/tiny/item_info.parquet
    rebuild_dataset: False
    feature_cols:
        - {name: item_id, active: True, dtype: int, type: categorical, vocab_size: 9, source: item}
    label_col: {name: label, dtype: float}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "base/model_config.yaml": BASE,
        "base/dataset_config.yaml": DATASET,
        "model_zoo/Fake.py": MODEL,
        "fake_run.py": SCRIPT,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.fixture
def quick_trials(folder, monkeypatch):
    """The stand-in that ``studies`` describes, and processes that look often."""
    from fuxictr_mm.tuning import pruning, runner, study_trials
    from tests.tuning.studies import SCRIPT as STUDY_SCRIPT

    (folder / "fake_run.py").write_text(STUDY_SCRIPT)
    monkeypatch.setattr(study_trials, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(pruning, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.05)


@pytest.fixture
def forked():
    """Run a function in a process of its own, which begins at once: nothing has to be imported again."""
    started = []

    def begin() -> None:
        # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(function: Callable[[], object]) -> multiprocessing.Process:
        process = multiprocessing.get_context("fork").Process(target=lambda: (begin(), run_main(function)))
        process.start()
        started.append(process)
        return process

    # Imported here so that the children need not.
    import fuxictr_mm.experiment  # noqa: F401

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def wait_for():
    """Wait for a condition."""

    def wait(condition: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return wait


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    """A working directory with tiny_mm of few rows."""
    data = tmp_path / "data" / "tiny_mm"
    shutil.copytree(TINY, data)
    pq.write_table(pq.read_table(data / "train.parquet").slice(0, 600), data / "train.parquet")
    for name in ("model_config.yaml", "dataset_config.yaml"):
        text = (ROOT / name).read_text().replace("epochs: 12", "epochs: 1")
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path
