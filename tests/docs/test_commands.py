"""Every command in the README and in docs/ is run, on data and models that are small; what cannot run is named here.

A page that fails here is wrong, or holds something new. Then, in this order: mend the page; say in SMALL what makes the
new command small; make in ``base`` or ``prepare`` what it reads; name it in NOT_RUN with the reason, if it can run
nowhere but on a user's machine.
"""

import argparse
import logging
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as launch

from fuxictr_mm import cli
from fuxictr_mm.config import list_experiments
from tests.docs.fences import PAGES, Command, commands, fences, is_shell
from tests.docs.models import CHALLENGE_MODEL, save_image_model, save_text_model
from tests.docs.public_logs import write_public_logs
from tests.paths import ROOT

pytestmark = pytest.mark.slow

SYNTH = " --users 300 --items 300 --train-rows 300 --valid-rows 100 --test-rows 100 --overwrite"

#: Rows of the files of tiny_mm that are kept.
ROWS = {"train": 300, "valid": 200, "test": 200, "test_labelled": 200}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


#: Port of the server of a page.
PORT = free_port()

#: What makes a command small: patterns in the text of a fence and what takes their place, in this order.
SMALL = [
    (r"--expid X\b", "--expid DIN_MM_tiny"),
    (r" \.\.\. ", " "),
    (r"(--config data/(shop|shop_2|contest) --expid) DIN_MM_\2", r"\1 LightFM_\2"),
    (r"(--initial_weights|fuxictr-mm compare) DIN_MM_shop", r"\1 LightFM_shop"),
    (r"for seed in 1 2 3", "for seed in 1 2"),
    (r"((?:run_expid\.py|fuxictr-mm train) [^#\n]*--seeds) 1 2 3", r"\1 1 2"),
    (r"--folds 5", "--folds 2"),
    (r"(benchmarks[^#\n]*) (?:--seeds 1 2 3|--seeds 3)", r"\1 --seeds 1"),
    (r"((?:run_param_tuner\.py|fuxictr-mm tune)[^#\n]*) --gpu 0 1", r"\1"),
    (r"(run_expid\.py [^#\n]*)--gpu 0(?= *$)", r"\1--gpu -1"),
    (r"(sentence-transformers|bert-base)[\w/.-]*", "encoders/text"),
    (r"(google|openai)/[\w/.-]*", "encoders/image"),
    (r"(fuxictr-mm synth [^#\n]*)", rf"\1{SYNTH}"),
    (r"(fuxictr-mm synth --preset microlens-1m [^#\n]*)", r"\1 --text-dim 128 --image-dim 128"),
    (r"(fuxictr-mm synth --preset long [^#\n]*)", r"\1 --seq-len 50 --recent-noise 10"),
    (r"(fuxictr-mm synth --preset taobao-mm) --scale 0.01([^#\n]*)", r"\1 --scale 0.0001\2 --seq-len 20"),
    (r"(fuxictr-mm embed reduce (?:(?!--apply|--variance)[^#\n])*--dim) \d+", r"\1 8"),
    (r"(fuxictr-mm embed align (?:(?!--apply)[^#\n])*)", r"\1 --dim 8 --steps 10 --evaluate-every 5 "),
    (r"(fuxictr-mm embed pretrain (?:(?!--apply)[^#\n])*)$", r"\1 --steps 10 --evaluate-every 5 "),
    (r"(fuxictr-mm diagnose [^#|\n]*)", r"\1 --repeats 1 --rows 300 "),
    (r"(fuxictr-mm check-submission [^#\n]*--rows) 3000", rf"\1 {ROWS['test']}"),
    (r"(fuxictr-mm compare [^#|\n]*)", r"\1 --samples 100 "),
    (r"(fuxictr-mm embed quantize (?:(?!--apply)[^#\n])*)$", r"\1 --codes 16 "),
    (
        r"(benchmarks\.throughput [^#\n]*)",
        r"\1 --batch_size 64 --steps 1 --repeats 1 --warmup 1 --threads 1 --rows 600 --users 200 --items 300",
    ),
    (r"(benchmarks[^#\n]*--device) cuda", r"\1 cpu"),
    (
        r"(benchmarks\.floor)[^#\n]*",
        r"\1 --model DIN_MM --batch_size 64 --precision fp32 --steps 1 --rows 600 --users 200 --items 300",
    ),
    (r"(benchmarks\.few_rows)[^#\n]*", r"\1 --worlds long --models LightFM --penalties 2.e-4 --seeds 1"),
    (r"(benchmarks\.table_kinds)[^#\n]*", r"\1 --expid LightFM_mls --regularizer 0 --seeds 1"),
    (r"(benchmarks\.zoo [^#\n]*--minutes) \d+", r"\1 0.001 --expid LightFM_zoo --seeds 1"),  # else of every model
    (r"(benchmarks\.tables)[^#\n]*", r"\1 --rows 2000 --batch_size 64 --distinct 90 --steps 1 --repeats 1"),
    (r"(benchmarks\.embedding_strategies [^#\n]*)", r"\1 --epochs 1 --strategies V4 "),
    (r"ML100K_MM=FOLDER", "ML100K_MM=data/ml100k"),
    (r"MLS_MM=FOLDER", "MLS_MM=data/mls"),
    (r"ML1M_MM=FOLDER", "ML1M_MM=data/ml1m"),
    (r"--dataset_id mine", "--dataset_id tiny_mm"),
    (r"(fuxictr-mm autopilot [^#\n]*--budget) 20m", r"\1 1s"),
    (r"data/mine/", "data/tiny_mm/"),
    (r"--config din --expid \w+", "--config grid --expid {trial}"),
    (r"localhost:8000", f"localhost:{PORT}"),
    (r"(fuxictr-mm serve (?:(?!--port)[^#\n])*)(?=$|#)", rf"\1 --port {PORT} "),
    (r"--port 9000 --workers 2", f"--port {free_port()}"),
]

#: Commands that are not run, by what they begin with, and why not; they are checked as far as it says.
NOT_RUN = {
    r"^make ": "sets up an environment of its own; the target has to be in the Makefile",
    r"^fuxictr-mm-serve ": "installs as a program; the same as fuxictr-mm serve",
    r"^pip install": "changes the environment; the extra has to be in pyproject.toml",
    r"^torchrun --nproc-per-node 8": "needs eight GPUs; the options have to be those of the script",
    r"torchrun --nnodes ": "needs several hosts; tests/training/test_elastic.py starts two",
    r"scale\.ray_train ": "starts Ray; tests/scale/test_ray_train.py runs it",
    r"^source \.venv/": "make demo makes the environment; it has to be that of the Makefile",
    r"^(eval|source) ": "tests/test_cli.py runs these scripts",
    r"--config config/example4_config ": "needs a checkout of FuxiCTR; the options have to be those of the script",
    r"--model_zoo FuxiCTR/": "needs FuxiCTR's repository",
    r"^fuxictr-mm prepare (?!log (?:.*target=asin time=time |--source (?:tomorrow|contest|events|public/\S+) ))": (
        "needs other files"
    ),
    r"--config data/kuairand": "needs what prepare would have written",
    r"benchmarks\.threads ": "starts processes in the checkout; tests/benchmarks/test_threads.py runs it",
    r"benchmarks\.ranks ": "starts processes in the checkout; tests/benchmarks/test_ranks.py runs it",
    r"benchmarks\.boosted_trees ": "needs LightGBM; tests/benchmarks/test_boosted_trees.py runs it",
    r"--runs LightFM_mls ": "needs runs on real sets; the options have to be those of the script",
    r"benchmarks\.compare_errors ": "takes six seeds of each experiment; the options have to be those of the script",
}

#: Exit codes that are no failure, by command.
EXIT_CODES = {"check-data": (0, 1)}

#: Programs of seconds; a line of theirs that stands on several pages is run once.
COSTLY = ("torchrun", "run_expid.py", "train", "run_param_tuner.py", "tune", "influence", "diagnose", "autopilot")

#: Datasets that pages speak of, with the options of ``fuxictr-mm synth``; a page that makes one replaces it.
DATASETS = {
    "data/MicroLens_1M_x1": "--tags 100 --emb-dim 128 --text-dim 128 --image-dim 128 --seq-len 50",
    "data/tiny_noisy_mm": "--text-noise 1 --image-noise 1",
    "data/ml100k": "--users 900 --tags 20 --emb-dim 128 --text-dim 128 --image-dim 128 --seq-len 20",
    "data/mls": "--users 600 --tags 20 --emb-dim 128 --text-dim 128 --image-dim 128 --seq-len 20",
    "data/ml1m": "--users 600 --tags 19 --emb-dim 128 --text-dim 128 --image-dim 128 --seq-len 20",
}
RAW = {"text": "txt_emb_BERT", "image": "img_emb_CLIPRN50"}
EXPERIMENTS = {
    "data/tiny_noisy_mm": "_noisy",
    "data/MicroLens_1M_x1": "_MicroLens ",
}  # that speak of a dataset without its name
TUNER = "base_config: .\nbase_expid: DIN_tiny\ntuner_space:\n    learning_rate: [1.e-3]\n"


class _Parsed(BaseException):
    """The options were those of the program."""


def narrow(text: str) -> str:
    """Return a configuration with one epoch and few hidden units."""
    return re.sub(r"hidden_units: \[\d[\d, ]*\]", "hidden_units: [16, 8]", re.sub(r"\bepochs: \d+", "epochs: 1", text))


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as a reader has it: configuration, data with fewer rows, trained experiments, encoders, covers."""
    pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("docs") / "base"
    shutil.copytree(ROOT / "data", folder / "data")
    for name in ("model_config.yaml", "dataset_config.yaml"):
        (folder / name).write_text(narrow((ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copytree(ROOT / "benchmarks" / "real", folder / "benchmarks" / "real")
    real = folder / "benchmarks" / "real" / "model_config.yaml"
    real.write_text(narrow(real.read_text(encoding="utf-8")), encoding="utf-8")
    tiny = folder / "data" / "tiny_mm"
    for name, rows in ROWS.items():
        pq.write_table(pq.read_table(tiny / f"{name}.parquet").slice(0, rows), tiny / f"{name}.parquet")
    shutil.copy(tiny / "train.parquet", folder)
    features = pq.read_table(tiny / "item_feature.parquet")
    for name in ("items.parquet", "item_feature.parquet", "new.parquet", "new_items.parquet"):
        pq.write_table(features, folder / name)
    save_text_model(folder / "encoders" / "text")
    save_image_model(folder / "encoders" / "image")
    with zipfile.ZipFile(folder / "covers.zip", "w") as archive:
        for number in features["item_id"].to_pylist():
            with archive.open(f"{number}.png", "w") as stream:
                pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                image.fromarray(pixels).save(stream, "png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Two seeds of the first: what is skipped on one page because another has run it, pages still rely on.
        for options in (["DIN_MM_tiny"], ["DIN_MM_tiny", "--seeds", "1", "2"], ["DIN_tiny"]):
            words = ["python", "run_expid.py", "--expid", *options]
            run(Command("base", "", words), patch)
            RUN.add(tuple(words))
        run(Command("base", "", ["python", "prediction.py", "--expid", "DIN_MM_tiny"]), patch)
    (folder / "tuner.yaml").write_text(TUNER)
    scores = np.random.default_rng(0).random(ROWS["valid"])
    (folder / "other_program.csv").write_text("\n".join(["score", *map(str, scores)]) + "\n")
    return folder


@pytest.fixture
def folder(base, tmp_path, monkeypatch):
    """A copy of the base for a page."""
    copy = tmp_path / "page"
    shutil.copytree(base, copy)
    monkeypatch.chdir(copy)
    return copy


def run(command: Command, patch: pytest.MonkeyPatch) -> None:
    """Run a command in this process where it is ours, as a program elsewhere."""
    program, *words = command.words
    with pytest.MonkeyPatch.context() as inner:
        for name, value in command.environment.items():
            inner.setenv(name, value)
        if program == "python" and words[0] == "-m":
            inner.setattr(sys, "argv", words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif program == "python":
            inner.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
            script = Path(words[0]) if Path(words[0]).is_file() else ROOT / words[0]  # one that the page shows
            runpy.run_path(str(script), run_name="__main__")
        elif program == "fuxictr-mm" and words[0] == "serve":
            serve(words)
        elif program == "curl":
            subprocess.run([program, "--fail", *words], check=True, capture_output=True)
        elif program == "fuxictr-mm":
            inner.setattr(sys, "argv", [program, *words])
            cli.main()
        elif program == "torchrun":
            words = [str(ROOT / word) if word.endswith(".py") else word for word in words]
            inner.setenv("OMP_NUM_THREADS", "1")
            signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # torchrun sets its own
            handlers = [signal.getsignal(number) for number in signals]
            try:
                launch(words)
            finally:
                for number, handler in zip(signals, handlers, strict=True):
                    signal.signal(number, handler)
        else:
            subprocess.run([program, *words], check=True, capture_output=True)


#: Servers of the page that is run.
SERVERS: list[subprocess.Popen[bytes]] = []


def serve(words: list[str]) -> None:
    """Start a server, which runs until the end of the page."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fuxictr_mm", *words]
    SERVERS.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}/ready"
    for _ in range(600):
        assert SERVERS[-1].poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server is not ready")


@pytest.fixture
def servers():
    """End the servers of a page."""
    yield SERVERS
    for server in SERVERS:
        server.terminate()
        server.wait(30)
    SERVERS.clear()


def check(command: Command, patch: pytest.MonkeyPatch) -> None:
    """Check a command that is not run."""
    program, *words = command.words
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert set(words) <= set(targets), f"the Makefile has no target {words}"
    elif program == "source" and words[0].startswith(".venv/"):
        assert f"VENV   ?= {Path(words[0]).parts[0]}\n" in (ROOT / "Makefile").read_text()
    elif program == "pip":
        extras = _extras()
        asked = [name for word in words for name in re.findall(r"\[(.*)\]", word) for name in name.split(",")]
        assert set(asked) <= extras, f"pyproject.toml has no extra {set(asked) - extras}"
    elif program in ("torchrun", "python", "fuxictr-mm"):
        if program == "torchrun":
            words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
        with pytest.MonkeyPatch.context() as inner:
            _only_parse(inner)
            try:
                program = "python" if program == "torchrun" else program
                run(Command(command.where, command.text, [program, *words]), patch)
            except _Parsed:
                return
            raise AssertionError("the script did not parse its options")


def _only_parse(patch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(*arguments, **options):
        parse(*arguments, **options)
        raise _Parsed

    patch.setattr(argparse.ArgumentParser, "parse_args", stop)


def _extras() -> set[str]:
    # By a pattern: tomllib came with Python 3.11.
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = ", section, flags=re.M))


def small(text: str) -> str:
    """Return the text of a fence with all that makes its commands small."""
    text = re.sub(r"\\\n\s*", "", text)
    for pattern, replacement in SMALL:
        text = re.sub(pattern, replacement, text, flags=re.M)
    if "{trial}" in text:
        trials = list(list_experiments("grid")) if Path("grid").is_dir() else ["none"]
        text = text.replace("{trial}", trials[0])
    return text


def write_files(page: str) -> None:
    """Write the files that a page shows with their names in the first line, add its entries to ours."""
    for fence in fences(page):
        first = fence.text.split("\n", 1)[0]
        if fence.language == "yaml" and not first.startswith("# "):
            _add_entries(yaml.safe_load(fence.text.replace("data/mine/", "data/tiny_mm/")))
        if found := re.match(r'# ([\w/]+\.yaml)$|"""([\w/]+\.py)"""$', first):
            path = Path(found[1] or found[2])
            path.parent.mkdir(parents=True, exist_ok=True)
            text = re.sub(r"\bepochs: \d+", "epochs: 1", fence.text)
            text = re.sub(r"\btrials: \d+", "trials: 1", text)
            text = re.sub(r"(learning_rate: \[\S+), \S+\]", r"\1]", text)
            text = re.sub(r"(dnn_hidden_units: \[\[[\d, ]+\]), [^#\n]*\]", r"\1]", text)
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n" + text)


def _add_entries(content: object) -> None:
    """Add entries of experiments to model_config.yaml, of datasets to dataset_config.yaml."""
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        return
    for name, entry in content.items():
        path = Path("model_config.yaml" if "model" in entry else "dataset_config.yaml")
        ours = yaml.safe_load(path.read_text())
        if "feature_cols" in entry:  # what the page leaves out is as in tiny_mm
            named = {name for column in entry["feature_cols"] for name in _names(column)}
            known = [column for column in ours["tiny_mm"]["feature_cols"] if not named & set(_names(column))]
            for column in entry["feature_cols"]:
                column.pop("pretrain_dim", None)  # the stages are run with another width
            entry = {**ours["tiny_mm"], **entry, "feature_cols": [*known, *entry["feature_cols"]]}
        elif "model" in entry:
            entry = {**ours["DIN_MM_tiny"], **entry}
        path.write_text(path.read_text() + "\n" + yaml.safe_dump({name: entry}))


def _names(column: dict[str, Any]) -> list[str]:
    return [column["name"]] if isinstance(column["name"], str) else column["name"]


def prepare(page: str, patch: pytest.MonkeyPatch) -> None:
    """Put what a page speaks of into its folder."""
    write_files(page)
    if page.startswith("docs/your_data/"):  # continues the example of that page
        write_files("docs/your_data.md")
        first = next(filter(is_shell, fences("docs/your_data.md")))
        for command in commands(first, small(first.text)):
            run(command, patch)
    if page == "docs/your_data/public_logs.md":
        write_public_logs(Path("public"))
    if page == "docs/drop_in.md":
        Path("my_config").mkdir()
        for name in ("model_config.yaml", "dataset_config.yaml"):
            shutil.copy(name, "my_config")
        Path("my_models").mkdir()
        Path("my_models/DIN.py").write_text(CHALLENGE_MODEL)
    text = "\n".join(small(fence.text) for fence in fences(page) if is_shell(fence))
    for folder, options in DATASETS.items():
        if folder in text or EXPERIMENTS.get(folder, folder) in text:
            words = f"fuxictr-mm synth --quiet --out {folder}{SYNTH} {options}".split()
            cli.main(words[1:])
            if folder == "data/tiny_noisy_mm" and f"--out {folder}/item_emb_aligned.parquet" not in text:
                sources = [f"{name}={folder}/item_feature.parquet:{column}" for name, column in RAW.items()]
                out = ["--train", f"{folder}/train.parquet", "--out", f"{folder}/item_emb_aligned.parquet"]
                cli.main(["embed", "align", *sources, *out, "--dim", "16", "--steps", "10", "--quiet"])


RUN: set[tuple[str, ...]] = set()


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_shell, fences(page)))])
def test_commands(page, folder, servers, monkeypatch, capsys):
    """Run the commands of a page one after the other, in one folder."""
    prepare(page, monkeypatch)
    modules, handlers, level = set(sys.modules), logging.root.handlers[:], logging.root.level
    failures = []
    for fence in fences(page):
        if not is_shell(fence):
            continue
        for command in commands(fence, small(fence.text)):
            if any(name in COSTLY for name in command.words[:2]):
                if tuple(command.words) in RUN:
                    continue
                RUN.add(tuple(command.words))
            for made, source in {"new_text.parquet": "text.parquet", "new_image.parquet": "image.parquet"}.items():
                if Path(source).is_file():
                    shutil.copy(source, made)
            handle = check if any(re.search(pattern, command.text) for pattern in NOT_RUN) else run
            try:
                handle(command, monkeypatch)
            except SystemExit as stop:
                if stop.code not in EXIT_CODES.get(command.words[1], (0, None)):
                    failures.append(f"{command.where}: {command.text}\n    {capsys.readouterr().err.strip()[-2000:]}")
            except subprocess.CalledProcessError as error:
                failures.append(f"{command.where}: {command.text}\n    {error.stderr.decode()[-2000:]}")
            except (AssertionError, ChildFailedError) as error:
                failures.append(f"{command.where}: {command.text}\n    {error}")
            capsys.readouterr()
    for name in set(sys.modules) - modules:
        if name.startswith("fuxictr_mm.model_zoo"):
            del sys.modules[name]
    logging.root.handlers[:], logging.root.level = handlers, level
    assert not failures, "\n".join([f"{len(failures)} commands of {page} fail; see the head of this file", *failures])
