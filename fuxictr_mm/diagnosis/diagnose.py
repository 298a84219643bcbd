"""``fuxictr-mm diagnose``: what a trained model uses, what it ignores, and where it fails."""

from __future__ import annotations

import argparse
import json
import logging
import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm import __version__, experiment
from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.config import PATH_KEYS
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.diagnosis import attention, calibration, importance, slices, vectors
from fuxictr_mm.diagnosis import importance as senet
from fuxictr_mm.diagnosis.attention import find_probes
from fuxictr_mm.diagnosis.findings import SEVERITIES, find
from fuxictr_mm.diagnosis.importance import all_groups, context_fields, item_fields, vector_fields
from fuxictr_mm.diagnosis.scorer import Scorer, sample
from fuxictr_mm.diagnosis.slices import Popularity
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.evaluation.significance import auc_with_interval
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.runs import DIAGNOSIS, WEIGHTS, RunRecord, find_runs, read_run, resolve_one
from fuxictr_mm.runtime import is_one_of_several

if TYPE_CHECKING:
    from fuxictr_mm.diagnosis.slices import Popularity

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm diagnose``."""
    add_examples(
        parser,
        "fuxictr-mm diagnose --expid DIN_MM_tiny",
        "fuxictr-mm diagnose --expid DIN_MM_tiny --split test --test_data data/tiny_mm/test_labelled.parquet",
        "fuxictr-mm diagnose --expid DIN_MM_tiny --json --quiet | python -m json.tool",
    )
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument("--run", metavar="RUN", help="a run's name or folder (default: the newest finished one)")
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of the configuration (default: this one)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--data_root", metavar="DIR", help="take the place of the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--weights", metavar="FILE", help="trained weights (default: those of the run)")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="rows to look at (default: valid)")
    parser.add_argument("--test_data", metavar="FILE", help="take the place of the dataset's test_data; needs labels")
    parser.add_argument(
        "--rows", type=int, default=20_000, help="most rows to look at, drawn at random (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="permutations of each field (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of rows and permutations (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="JSON file (default: diagnosis.json in the run's folder)")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Diagnose, write the JSON file, print the summary or the JSON."""
    from fuxictr_mm import experiment

    if is_one_of_several():
        raise ConfigError("diagnose runs in one process; start it without torchrun")
    for name, least in (("rows", 2), ("repeats", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} is {getattr(args, name)}, expected {least} or more")
    if not args.quiet:
        experiment.set_up_logging()
    trained = find_trained(
        args.expid,
        config=args.config,
        run=args.run,
        weights=args.weights,
        gpu=args.gpu,
        data_root=args.data_root,
        model_zoo=args.model_zoo,
        test_data=args.test_data,
    )
    out = Path(args.out) if args.out else trained.output
    check_outputs([out], _inputs(trained), overwrite=True)
    result = diagnose_trained(
        trained,
        split=args.split,
        rows=args.rows,
        repeats=args.repeats,
        seed=args.seed,
        verbose=0 if args.quiet else 1,
    )
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_beside(out, lambda stream: stream.write(text.encode()))
    show(args, result, f"{format_summary(result)}\n\nall figures: {out}")


def diagnose_trained(trained: Trained, *, split: str = "valid", **options: Any) -> dict[str, Any]:
    """Read the data, build the model, load its weights, and diagnose it.

    Parameters
    ----------
    trained : Trained
        From ``find_trained``.
    split : {"valid", "test"}
        Rows to look at; they need labels.
    **options
        ``rows``, ``repeats``, ``seed`` and ``verbose`` of ``diagnose``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        Whatever is wrong with configuration, data or weights.
    """
    from fuxictr.pytorch.torch_utils import seed_everything

    from fuxictr_mm import experiment
    from fuxictr_mm.data.dataset import load_dataset
    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.runtime import device_of, keep_freed_memory, set_precision

    params = dict(trained.params)
    # Differences of a few ten-thousandths are looked at, which bf16 would blur; and the split has to be in memory.
    params.update({key: value for key, value in {"precision": "fp32", "compile": False}.items() if key in params})
    params.update(resident=True, verbose=0)
    if params.get("task", "binary_classification") != "binary_classification":
        raise ConfigError(f"{params['model_id']}: diagnose looks at predicted clicks, but task is {params['task']}")
    seed_everything(params["seed"])
    set_precision("fp32", device_of(params["gpu"]))
    if params["gpu"] < 0 and params.get("keep_memory", True):
        keep_freed_memory()
    dataset = load_dataset(params, {split: True})
    table = dataset.splits[split]
    assert isinstance(table, InteractionTable)
    model = experiment.build_model(trained.model_class, dataset, params)
    model.load_weights(str(trained.weights))
    model.eval()
    result = diagnose(model, params, table, _popularity(params, dataset.items.num_items), **options)
    return {
        "version": result.pop("version"),
        "fuxictr_mm": __version__,
        "created_at": datetime.now().isoformat(timespec="seconds"),
        "expid": params["model_id"],
        "run": trained.run,
        "model": params["model"],
        "dataset_id": params["dataset_id"],
        "weights": str(trained.weights),
        "split": split,
        **result,
    }


def _popularity(params: dict[str, Any], num_items: int) -> Popularity | None:
    """Count clicks in the training file, None where it is not there."""
    from fuxictr_mm.diagnosis.slices import count_items

    try:
        return count_items(params.get("train_data") or "", params["label_col"]["name"], num_items)
    except MissingFileError as error:
        logger.warning(f"{error}; nothing is said of popularity")
        return None


def _inputs(trained: Trained) -> list[str | Path]:
    params = trained.params
    files = [params["item_info"]] if isinstance(params["item_info"], str) else list(params["item_info"])
    return [*files, *(params[k] for k in ("train_data", "valid_data", "test_data") if params.get(k)), trained.weights]


#: Of the keys of a diagnosis and their meaning; raised where a reader of version 1 would be misled.
VERSION = 1


def diagnose(
    model: Any,
    params: Mapping[str, Any],
    table: InteractionTable,
    popularity: Popularity | None = None,
    *,
    rows: int = 20_000,
    repeats: int = 5,
    seed: int = 0,
    verbose: int = 0,
) -> dict[str, Any]:
    """Look at a trained model.

    Parameters
    ----------
    model : BaseModel
        With its trained weights; it is the same afterwards.
    params : mapping
        Of the experiment.
    table : InteractionTable
        Rows with labels, of both classes.
    popularity : Popularity, optional
        From the training rows.
    rows : int
        Where the table has more, so many are drawn at random.
    repeats : int
        Permutations of each group of fields.
    seed : int
        Of the rows and of the permutations.
    verbose : int
        0 turns the progress bar off.

    Returns
    -------
    dict
        Plain values, as described in ``docs/diagnosis.md``.

    Raises
    ------
    DataError
        The rows are of one class, or predictions are not finite.
    """
    from fuxictr_mm.terminal import progress_bar

    started = time.perf_counter()
    items, features = model.feature_map.items, model.feature_map.features
    groups = all_groups(features, items.names)
    probes = find_probes(model)
    passes = 1 + attention.number_of_passes(probes) + importance.number_of_passes(groups, repeats)
    shown, model._verbose = model._verbose, 0
    try:
        with progress_bar(range(passes), "diagnosis", verbose) as bar:
            bar.unit = "pass"
            scorer = Scorer(model, sample(table, rows, seed), params, bar.update)
            sections, absent = _of_attention(scorer, [attention.Watched(probe) for probe in probes])
            entries = importance.measure(scorer, groups, repeats, seed)
    finally:
        model._verbose = shown
    assert scorer.base is not None
    label, prediction = scorer.label, scorer.base
    known = items.known.cpu().numpy()
    columns = {name: items[name].cpu().numpy() for name in vector_fields(features, items.names)}
    files = [params["item_info"]] if isinstance(params["item_info"], str) else list(params["item_info"])
    target = scorer.table.target.cpu().numpy()
    clicks = np.bincount(target[label == 1], minlength=items.num_items) if popularity is None else popularity.clicked
    result: dict[str, Any] = {
        "version": VERSION,
        "rows": len(label),
        "rows_in_split": len(table),
        "repeats": repeats,
        "seed": seed,
        "metrics": {
            **auc_with_interval(label, prediction),
            "logloss": _log_loss(label, prediction),
            "positives": int(label.sum()),
            "rate": float(label.mean()),
        },
        **sections,
        "importance": {
            "fields": [entry for entry in entries if entry["kind"] == "field"],
            "groups": [entry for entry in entries if entry["kind"] != "field"],
        },
        "vectors": [
            {**vectors.describe(name, column[1:][known[1:]]), "reduction": vectors.find_reduction(name, files)}
            for name, column in columns.items()
        ],
        "calibration": calibration.describe(label, prediction, seed=seed),
        "history_length": slices.by_history_length(
            label, prediction, scorer.table.history_offsets.diff().cpu().numpy()
        ),
    }
    if popularity is None:
        absent["popularity"] = "no training file to count clicks in"
    else:
        result["popularity"] = slices.by_popularity(label, prediction, target, popularity)
    if columns:
        result["neighbours"] = vectors.describe_neighbours(columns, clicks, known, files)
    else:
        del result["vectors"]
        absent["vectors"] = absent["neighbours"] = "the model reads no vector of items"
    result["absent"] = absent
    result["passes"] = scorer.passes
    result["seconds"] = time.perf_counter() - started
    result["findings"] = find(result)
    return result


def _of_attention(scorer: Scorer, watched: list[attention.Watched]) -> tuple[dict[str, Any], dict[str, str]]:
    """Score the rows as they are, watching attention and SENet; then with weights made even and heads silenced.

    Returns
    -------
    sections : dict
        ``attention``, ``heads`` and ``senet``, as far as the model has them.
    absent : dict of str to str
        Why the others are not there.
    """
    gates = senet.find_senets(scorer.model)
    with ExitStack() as stack:
        for block in [*(w.watching() for w in watched), *(g.watching() for g in gates)]:
            stack.enter_context(block)
        scorer.score_base()
    watched = [watch for watch in watched if watch.parts and watch.norms]
    sections: dict[str, Any] = {}
    absent: dict[str, str] = {}
    if watched:
        sections["attention"] = [
            {**attention.describe_entropy(watch), **attention.measure_evenly(scorer, watch.probe)} for watch in watched
        ]
        sections["heads"] = [attention.measure_heads(scorer, watch) for watch in watched]
    else:
        absent["attention"] = absent["heads"] = "the model has no attention whose weights can be read"
    features = scorer.model.feature_map.features
    context, items = context_fields(features), item_fields(features, scorer.model.feature_map.items.names)
    if described := [
        senet.describe(gate.name, gate.weights, senet.name_fields(gate.weights.shape[1], context, items))
        for gate in gates
        if gate.parts
    ]:
        sections["senet"] = described
    else:
        absent["senet"] = "the model has no SENet"
    return sections, absent


def _log_loss(label: np.ndarray, prediction: np.ndarray) -> float:
    clipped = prediction.clip(1e-15, 1 - 1e-15)
    return float(-np.where(label == 1, np.log(clipped), np.log1p(-clipped)).mean())


WIDTH = 110


def format_summary(result: Mapping[str, Any]) -> str:
    """Return the figures section by section, then the findings."""
    parts = [_head(result)]
    for section in (_attention, _heads, _senet, _importance, _vectors, _calibration, _slices, _neighbours):
        parts += section(result)
    parts += [f"no {name}: {reason}" for name, reason in result["absent"].items()]
    return "\n\n".join([*parts, format_findings(result["findings"])])


def format_findings(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return the findings with advice, wrapped."""
    if not findings:
        return "findings: none"
    counts = [(severity, sum(f["severity"] == severity for f in findings)) for severity in SEVERITIES]
    lines = ["findings: " + ", ".join(f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts if n)]
    for finding in findings:
        lines += textwrap.wrap(
            f"{finding['severity']}: {finding['text']}. Advice: {finding['advice']}.",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    return "\n".join(lines)


def _head(result: Mapping[str, Any]) -> str:
    metrics = result["metrics"]
    of = "" if result["rows"] == result["rows_in_split"] else f" of {result['rows_in_split']}"
    named = " ".join(str(result[key]) for key in ("expid", "run", "split") if result.get(key))
    return (
        f"{named or 'diagnosis'}: AUC {metrics['auc']:.4f} ({metrics['low']:.4f} to {metrics['high']:.4f}), logloss "
        f"{metrics['logloss']:.4f}, {result['rows']}{of} rows; {result['passes']} passes in {result['seconds']:.1f} s"
    )


def _attention(result: Mapping[str, Any]) -> list[str]:
    if "attention" not in result:
        return []
    rows = [
        [
            e["name"],
            e["kind"],
            _number(e["entropy_ratio"], 3),
            " ".join(f"{b['name']}: {_number(b['entropy_ratio'], 3)}" for b in e["by_length"]),
            _loss(e["uniform_auc_lost"], e["uniform_noise"]),
        ]
        for e in result["attention"]
    ]
    return [_table(["attention", "kind", "entropy / uniform", "by items of history", "AUC lost if uniform"], rows)]


def _heads(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for entry in result.get("heads", []):
        for head in entry["heads"]:
            rows.append(
                [
                    f"{entry['attention']} {head['head']}",
                    f"{head['output_share']:.1%}",
                    _loss(head["removed_auc_lost"], head["removed_noise"]),
                    _loss(head["alone_auc_lost"], head["alone_noise"]),
                ]
            )
        if entry["num_heads"] > 1:
            everything = _loss(entry["all_removed_auc_lost"], entry["all_removed_noise"])
            rows.append([f"{entry['attention']} all", "100.0%", everything, "-"])
    return [_table(["head", "of output", "AUC lost without it", "AUC lost with it alone"], rows)] if rows else []


def _senet(result: Mapping[str, Any]) -> list[str]:
    return [
        _table(
            [f"{entry['name']}: field", "mean weight", "deviation"],
            [[f["field"], f"{f['mean']:.3f}", f"{f['deviation']:.3f}"] for f in entry["fields"]],
        )
        for entry in result.get("senet", [])
    ]


def _importance(result: Mapping[str, Any]) -> list[str]:
    entries = [*result["importance"]["fields"], *result["importance"]["groups"]]
    rows = [
        [e["name"], e["kind"], _loss(e["auc_lost"], e["noise"]), f"{e['deviation']:.4f}", ", ".join(e["fields"])]
        for e in sorted(entries, key=lambda e: (e["kind"] == "field", -e["auc_lost"]))
    ]
    return [_table(["permuted", "kind", "AUC lost", "deviation", "fields"], rows)]


def _vectors(result: Mapping[str, Any]) -> list[str]:
    if "vectors" not in result:
        return []
    rows = [
        [
            e["column"],
            str(e["width"]),
            f"{e['effective_rank']:.1f}",
            f"{e['participation_ratio']:.1f}",
            str(e["components_90"]),
            f"{e['zero_share']:.1%}",
            f"{e['norm_mean']:.3g}",
            f"{e['reduction']['kept']:.1%}" if e["reduction"] else "-",
        ]
        for e in result["vectors"]
    ]
    head = ["vectors", "width", "effective rank", "participation", "for 90 %", "missing", "length", "reduction kept"]
    return [_table(head, rows)]


def _calibration(result: Mapping[str, Any]) -> list[str]:
    entry = result["calibration"]
    slope = "" if entry["slope"] is None else f", slope {entry['slope']:.2f}, intercept {entry['intercept']:+.2f}"
    return [
        f"calibration: expected error {entry['expected_calibration_error']:.4f} (noise {entry['noise']:.4f}), mean "
        f"prediction {entry['mean_prediction']:.4f}, rate {entry['rate']:.4f}{slope}"
    ]


def _slices(result: Mapping[str, Any]) -> list[str]:
    tables = []
    for section, what in (("popularity", "clicks in training"), ("history_length", "items of history")):
        rows = [
            [
                e["name"],
                str(e["rows"]),
                str(e["positives"]),
                _number(e["auc"], 4),
                "-" if e["low"] is None else f"{e['low']:.3f} to {e['high']:.3f}",
            ]
            for e in result.get(section, [])
        ]
        if rows:
            tables.append(_table([what, "rows", "clicks", "AUC", "interval"], rows))
    return tables


def _neighbours(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for item in result.get("neighbours", [])[:2]:
        lines.append(f"nearest to {_item(item)}, {item['clicks']} clicks:")
        for column in item["columns"]:
            near = "; ".join(f"{_item(n)} ({n['cosine']:.2f})" for n in column["neighbours"][:3])
            lines.append(f"  {column['column']}: {near or 'it has no vector'}")
    return ["\n".join(lines)] if lines else []


def _item(item: Mapping[str, Any]) -> str:
    return f"{item['item_id']} {textwrap.shorten(item['title'], 40)!r}" if item["title"] else str(item["item_id"])


def _loss(lost: float, noise: float) -> str:
    return f"{lost:+.4f} ± {noise:.4f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    )


#: Of a run's configuration, what this computer and this command decide.
OWN_KEYS = frozenset({"gpu", "data_root", "model_root", "verbose"})


@dataclass(frozen=True)
class Trained:
    """A trained experiment.

    Parameters
    ----------
    params : dict
        Checked parameters.
    model_class : type
        Of the model.
    weights : Path
        File of weights.
    run : str or None
        Name of the run, None where the weights are of none.
    output : Path
        Where a diagnosis of it belongs.
    """

    params: dict[str, Any]
    model_class: type
    weights: Path
    run: str | None
    output: Path


def find_trained(
    expid: str,
    *,
    config: str | os.PathLike[str] = ".",
    run: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    gpu: int = -1,
    data_root: str | os.PathLike[str] | None = None,
    model_zoo: str | os.PathLike[str] | None = None,
    test_data: str | None = None,
) -> Trained:
    """Find settings and weights of an experiment.

    Parameters
    ----------
    expid : str
        Experiment id.
    config : path
        Folder of the configuration.
    run : str, optional
        Name or folder of a run; the newest finished one by default, and without any the experiment's newest weights.
    weights : path, optional
        Take the place of the run's; without ``run`` they are of no run, and the configuration is the folder's.
    gpu, data_root, model_zoo
        As of ``read_params``.
    test_data : str, optional
        Takes the place of the dataset's.

    Raises
    ------
    ConfigError, MissingFileError
        Anything wrong with the configuration; no such run, no such file.
    """
    own = {} if test_data is None else {"test_data": test_data}
    where: dict[str, Any] = {"gpu": gpu, "data_root": data_root, "model_zoo": model_zoo}
    params, model_class = experiment.read_params(config, expid, overrides=own, **where)
    record = _find_run(params, run) if run or not weights else None
    if record is not None and record.config:
        # The experiment may have been edited since; paths stay those of the configuration, as files move.
        settings = {k: v for k, v in record.config.items() if k not in OWN_KEYS and k not in PATH_KEYS}
        params, model_class = experiment.read_params(config, expid, overrides={**settings, **own}, **where)
    newest = experiment.log_path(params).with_suffix(".model")
    if weights is not None:
        found = Path(weights)
        if not found.exists():
            raise MissingFileError(f"--weights {weights}: no such file; give a file that run_expid.py wrote")
    elif record is not None:
        found = record.path / WEIGHTS
        if not found.exists():
            raise MissingFileError(f"{found}: no such file, the weights of this run are gone; name others by --weights")
    else:
        found = newest
        if not found.exists():
            raise MissingFileError(
                f"{found}: no such file, {expid} is not trained; run python run_expid.py --expid {expid} first, "
                "or name a file by --weights"
            )
    output = newest.with_suffix(".diagnosis.json") if record is None else record.path / DIAGNOSIS
    return Trained(params, model_class, found, None if record is None else record.run, output)


def _find_run(params: dict[str, Any], run: str | None) -> RunRecord | None:
    """Return the run that is named, or the newest finished one, None without any."""
    expid = params["model_id"]
    if run is None:
        runs = find_runs(params["model_root"], dataset=params["dataset_id"], expid=expid)
        return next((r for r in runs if r.finished), None)
    if os.sep in run and Path(run).is_dir():
        record = read_run(run)
    else:
        record = resolve_one(run, find_runs(params["model_root"]), params["model_root"])[0]
    if record.problem:
        raise ConfigError(f"--run {run}: {record.problem}")
    if record.expid != expid:
        raise ConfigError(
            f"--run {run}: is a run of {record.expid}, expected one of {expid}; give --expid {record.expid}"
        )
    return record
