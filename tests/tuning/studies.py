"""Studies whose trials are run by a stand-in for run_expid.py, and what it notes."""

import json
from pathlib import Path

from fuxictr_mm import tuning
from fuxictr_mm.tuning import run_study, run_tuner
from tests.tuning.grids import HEAD
from tests.tuning.points import draw_all
from tests.tuning.stand_in import START

SCRIPT = (
    START
    + """width = params["width"]
run = folder / args.expid / "20250101-000000-seed1"
run.mkdir(parents=True, exist_ok=True)
if Path("stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
note(f"begin {args.expid} {os.getpid()}")
if Path(f"broken{width}").exists():
    sys.exit(f"ValueError: width {width}")
auc = 0.5 + width / 1000 - params["learning_rate"]
ended = Path("runs.txt").read_text().count("end ")
while Path("slow").exists() or Path(f"slow{ended}").exists():
    time.sleep(0.02)
with (run / "metrics.jsonl").open("w") as stream:
    for epoch in range(1, params["epochs"] + 1):
        late = epoch <= 2 and Path(f"late{width}").exists()
        reached = 0.1 if late else auc
        line = {"epoch": epoch, "step": epoch * 10, "loss": 0.5, "AUC": reached, "logloss": 1, "seconds": epoch}
        print(json.dumps(line), file=stream, flush=True)
        if late and epoch == 2:
            time.sleep(2)
        if epoch == 3 and Path(f"endless{width}").exists() and len(list(folder.glob("*.json"))) >= 5:
            time.sleep(100)
write_result({"AUC": auc, "logloss": 1.0}, None)
note(f"end {args.expid} {os.getpid()}")
"""
)

SPACE = "width: {low: 1, high: 60}\nlearning_rate: {low: 1.e-4, high: 1.e-2, log: True}\nepochs: 2\nmax_len: [5, 9]"


def tuner_file(folder, space=SPACE, name="hunt.yaml", **keys):
    keys = {"search": "random", "trials": 6, **keys}
    text = HEAD + "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
    path = folder / name
    path.write_text(text + "tuner_space:\n" + "".join(f"    {line}\n" for line in space.splitlines()))
    return path


def hunt(path, gpus=(-1,)):
    return run_study(tuning.read_tuner(path), gpus, Path("fake_run.py"), quiet=True).trials


def tune(path, gpus=(-1,)):
    return lambda: run_tuner(path, gpus, Path("fake_run.py"), quiet=True)


def noted(folder, what):
    path = folder / "runs.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1] for line in lines if line.split()[0] == what]


def summary(results):
    return [(result.expid, result.params, result.valid) for result in results]


def undisturbed(path):
    """The points of a study of the stand-in."""
    tuner = tuning.read_tuner(path)
    auc = lambda point: 0.5 + point["width"] / 1000 - point["learning_rate"]  # noqa: E731
    return draw_all(tuner.space, tuner.search, tuner.seed, tuner.trials, auc, tuner.first)


def points_of(results):
    return [{k: v for k, v in result.params.items() if not k.startswith("monitor")} for result in results]
