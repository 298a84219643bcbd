"""Latency of an exported model, without HTTP: ``python -m benchmarks.serving``.

One user with a history and many candidates, on one core, at the sizes of MicroLens. With ``--train`` the weights are
trained on tiny_mm, and the AUC that 8-bit weights cost is shown.
Every line is measured side by side with the others, so that their ratios hold on a machine that is busy.

- ``eager rows``: the model in torch, a row per candidate.
- ``export, new user``: the folded graphs, nothing cached.
- ``export, cached user``: the candidate graph alone.
- ``... int8 weights``: the same with ``--precision int8-weights``.
- ``export, rows``: what the models of ``AS_ROWS`` are without graphs of user and candidates; these models have neither
  8-bit weights nor DNNs here.
- ``DNN alone``: the DNN of DIN_MM, (1024, 512, 256), in ONNX Runtime; ``DNN in torch``: the same in torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged

ROOT = Path(__file__).resolve().parents[1]

#: Settings of MicroLens' sizes, on the features of tiny_mm.
SIZES: dict[str, dict[str, Any]] = {
    "DIN_MM": {"embedding_dim": 64, "dnn_hidden_units": [1024, 512, 256], "batch_norm": True},
    "QIN": {"embedding_dim": 128, "num_layers": 4, "num_row": 4, "batch_norm": True},
    "DIN": {"embedding_dim": 64, "dnn_hidden_units": [1024, 512, 256], "attention_hidden_units": [64]},
}
#: Models that search the history, at the sizes of their defaults but for the dim.
SEARCH = ("SIM", "SIM_hard", "ETA", "TWIN", "MUSE", "SEMINAR")
SIZES |= {
    name: {"embedding_dim": 64, "dnn_hidden_units": [512, 128, 64], "top_k": 50, "short_len": 50} for name in SEARCH
}
for name in ("SIM", "SIM_hard", "ETA", "TWIN"):
    SIZES[name]["attention_dim"] = 64
SIZES["ETA"]["hash_bits"] = 32
#: Others, of similar sizes; the last two have no graphs of user and candidates.
OTHERS = (
    "HSTU", "OneTrans", "BST", "RankMixer", "TokenMixerLarge", "HyFormer", "DHEN", "DMF", "DMGIN", "INFNet",
    "InterFormer", "Transformer_DCN",
)  # fmt: skip
SIZES |= {name: {"embedding_dim": 64, "dnn_hidden_units": [512, 128, 64]} for name in OTHERS}
for name in ("HSTU", "OneTrans", "RankMixer"):
    SIZES[name]["token_dim"] = 64
SIZES["OneTrans"]["last_len"], SIZES["BST"]["num_outputs"] = 16, 20
SIZES["Transformer_DCN"]["dcn_hidden_units"] = SIZES["Transformer_DCN"].pop("dnn_hidden_units")
AS_ROWS = (*SEARCH, *OTHERS)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["DIN_MM", "QIN"], choices=tuple(SIZES), metavar="NAME")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--history", type=int, nargs="+", default=[100], help="lengths")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument(
        "--without-eager", action="store_true", help="leave out the rows in torch, which are all in memory at once"
    )
    parser.add_argument("--train", action="store_true", help="train the weights first")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(f"{args.candidates} candidates, one core, ms")
    print(f"{'model':8} {'':22} {'history':>8} {'p50':>8} {'p99':>8} {'CPU':>8}")
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            model, exports, parity = exports_of(name, max(args.history), Path(folder), args.train)
            for length in args.history:
                runs = cases(model, exports, args.candidates, length, Path(folder))
                if args.without_eager:
                    del runs["eager rows"]
                for case, (p50, p99, cpu) in measure(runs, args.repeats).items():
                    print(f"{name:8} {case:22} {length:8} {p50:8.2f} {p99:8.2f} {cpu:8.2f}", flush=True)
        if args.train and parity:
            auc, difference = parity["auc"], parity["largest_difference"]
            print(f"{name:8} AUC {auc['model']:.4f}, int8 weights {auc['export']:.4f}; difference {difference:.4f}")
            auc, difference = parity["auc_folded"], parity["largest_difference_folded"]
            print(f"{name:8} of the server: {auc['model']:.4f}, {auc['export']:.4f}; {difference:.4f}")


def exports_of(name: str, length: int, folder: Path, train: bool) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return a model, its exports, and the parity of its 8-bit weights."""
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.serving.export import export
    from fuxictr_mm_serving import Export

    settings = {"model_root": str(folder / "checkpoints"), "verbose": 0, "max_len": length, **SIZES[name]}
    experiment = Experiment.load(f"{name}_tiny", ROOT, **settings)
    dataset = experiment.load_dataset({"valid": True})
    model = experiment.build_model(dataset).eval()
    weights = folder / "weights.model"
    if train:
        weights = experiment.fit().weights
        model.load_weights(weights)
    else:
        model.save_weights(weights)
    export(experiment, folder / "export", weights=weights, tolerance=1e-4)
    exports = {"export": Export(folder / "export")}
    if name in AS_ROWS:
        shutil.copytree(folder / "export", folder / "rows")
        path = folder / "rows" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"graphs": {"rows": "rows.onnx"}}))
        return model, exports | {"rows": Export(folder / "rows")}, {}
    options: dict[str, Any] = {"precision": "int8-weights", "tolerance": 1.0}
    parity = export(experiment, folder / "int8", weights=weights, **options)
    return model, exports | {"int8": Export(folder / "int8")}, parity


def cases(
    model: Any, exports: dict[str, Any], num_candidates: int, length: int, folder: Path
) -> dict[str, Callable[[], object]]:
    """Return what is measured for a model."""
    generator = np.random.default_rng(0)
    history = generator.integers(1, 1001, length).tolist()
    candidates = generator.integers(1, 1001, num_candidates).tolist()
    context = {"likes_level": 3, "views_level": 2}
    batch = Batch(
        {key: torch.full((num_candidates,), value) for key, value in context.items()},
        torch.tensor(candidates),
        Jagged(torch.tensor(history).repeat(num_candidates), torch.arange(num_candidates + 1) * length),
    )
    exported = exports["export"]
    states = {name: one.user_state(context, history) for name, one in exports.items()}
    dnn = getattr(model, "dnn", None) if "int8" in exports else None
    inputs = None if dnn is None else torch.rand(num_candidates, dnn_inputs(dnn))

    def eager() -> None:
        with torch.no_grad():
            model(batch)

    def eager_dnn() -> None:
        with torch.no_grad():
            dnn(inputs)

    runs = {
        "eager rows": eager,
        "export, new user": lambda: exported.score_candidates(exported.user_state(context, history), candidates),
        "export, cached user": lambda: exported.score_candidates(states["export"], candidates),
    }
    for name, case in (("int8", "... int8 weights"), ("rows", "export, rows")):
        if name in exports:
            runs[case] = lambda name=name: exports[name].score_candidates(states[name], candidates)
    if dnn is not None:
        runs |= {"DNN alone": dnn_alone(dnn, inputs, folder), "DNN in torch": eager_dnn}
    return runs


def dnn_inputs(dnn: nn.Module) -> int:
    """Return the dim of a DNN's inputs."""
    return next(module.in_features for module in dnn.modules() if isinstance(module, nn.Linear))


def dnn_alone(dnn: nn.Module, rows: torch.Tensor, folder: Path) -> Callable[[], object]:
    """Return a run of a model's DNN in ONNX Runtime."""
    import onnxruntime

    program = torch.onnx.export(dnn, (rows,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(folder / "dnn.onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "dnn.onnx"), options)
    inputs = {session.get_inputs()[0].name: rows.numpy()}
    return lambda: session.run(None, inputs)


def measure(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float, float]]:
    """Return p50, p99 and the median CPU time of each in ms; they take turns.

    Each runs once before it is timed: a server repeats one of them, with its weights in the cache.
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    ignored = min(3, repeats)
    for repeat in range(repeats + ignored):
        for name, run in runs.items():
            run()
            started, used = time.perf_counter(), time.process_time()
            run()
            if repeat >= ignored:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    return {
        name: tuple(1e3 * float(x) for x in (*np.percentile(wall[name], [50, 99]), np.median(cpu[name])))
        for name in runs
    }


if __name__ == "__main__":
    main()
