"""``fuxictr-mm export``: a trained model as graphs and memory-mapped tables; those of ONNX score without torch.

Shape letters: I items, D item dim, V ids of a context field, B rows.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm import __version__
from fuxictr_mm.arguments import add_examples, add_experiment_options, add_output_options, show
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.files import check_folder_to_write, write_folder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.export import ExportedProgram

    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.serving.graphs import Traced
    from fuxictr_mm_serving.graphs import Graph

logger = logging.getLogger(__name__)

#: Largest difference to the model that an export may have, by the precision of its tables or of its layers' weights.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "int8-tables": 5e-2, "int8-weights": 0.1}

#: Rows of a table that are computed at a time.
CHUNK = 65536

#: Validation users whose candidates are scored by the folded graphs, and candidates of each.
FOLD_USERS, FOLD_CANDIDATES = 50, 20

#: What each format needs.
PACKAGES: dict[str, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}
PACKAGES["triton"] = PACKAGES["onnx"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm export``."""
    add_examples(
        parser,
        "fuxictr-mm export --expid DIN_MM_tiny --out DIN_MM_tiny_export",
        "fuxictr-mm export --expid DIN_MM_tiny --out DIN_MM_tiny_export --precision int8-tables --overwrite",
        "fuxictr-mm export --expid DIN_MM_tiny --out triton_models --format triton",
    )
    add_experiment_options(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--format",
        choices=tuple(PACKAGES),
        default="onnx",
        help="graphs of ONNX, of torch.export, or for Triton (onnx)",
    )
    parser.add_argument("--precision", choices=tuple(TOLERANCES), default="fp32", help="of tables or weights (fp32)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights other than the experiment's own")
    parser.add_argument(
        "--tolerance", type=float, help="largest difference of a score (1e-5; more for other precisions)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that an earlier export wrote")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Write the folder."""
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.logs import set_up_logging

    if not args.quiet:
        set_up_logging()
    experiment = Experiment.load(args.expid, args.config, data_root=args.data_root, model_zoo=args.model_zoo)
    options = {name: getattr(args, name) for name in ("format", "weights", "precision", "tolerance", "overwrite")}
    parity = export(experiment, args.out, **options)
    auc = {name: _text(found) for name, found in parity["auc"].items()}
    summary = (
        f"{args.out}: largest difference {parity['largest_difference']:.2g} over {parity['rows']} validation rows, "
        f"AUC {auc['export']} (model: {auc['model']})"
    )
    show(args, {"folder": str(args.out), "expid": args.expid, **parity}, summary)


def export(
    experiment: Experiment,
    out: Path,
    *,
    format: str = "onnx",
    weights: Path | None = None,
    precision: str = "fp32",
    tolerance: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a trained experiment as a folder that scores without torch.

    Parameters
    ----------
    experiment : Experiment
        The trained experiment.
    out : path
        The folder, written atomically; only if its scores are those of the model.
    format : {"onnx", "pt2", "triton"}
        Graphs of ONNX, which ``fuxictr_mm_serving`` reads, or of torch, for programs of your own, or a model repository
        of NVIDIA Triton Inference Server.
    weights : path, optional
        Those of the experiment's newest run by default.
    precision : {"fp32", "fp16", "int8-tables", "int8-weights"}
        Numbers of the tables, where graphs are float32; 8-bit integers have a factor per row. ``int8-weights``: tables
        are float32, and the weights of linear layers 8-bit integers with a factor per column (of ONNX).
    tolerance : float, optional
        Largest difference between a score of the export and the model's; by default that of ``TOLERANCES``.
    overwrite : bool
        Whether a folder that an earlier export wrote may be replaced.

    Returns
    -------
    dict
        What ``parity.json`` holds.

    Raises
    ------
    UserError
        A package is missing; no such weights; a model that cannot be exported; scores that differ from the model's;
        the folder exists already or cannot be written.
    """
    from fuxictr_mm_serving.manifest import MANIFEST

    _check_packages(format)
    if format == "pt2" and precision == "int8-weights":
        raise UserError("--precision int8-weights quantizes graphs of ONNX; leave out --format pt2, or the precision")
    check_folder_to_write(out, [MANIFEST], overwrite)
    _check_experiment(experiment)
    checkpoint = experiment.find_weights(weights)
    experiment.prepare_process()
    dataset = experiment.load_dataset({"valid": True}, checkpoint)
    model = experiment.build_model(dataset)
    model.load_weights(checkpoint)
    model = model.to("cpu").eval()
    expected = _predict(experiment, model, dataset)
    parity: dict[str, Any] = {}

    def write(folder: Path) -> None:
        files, opened = _write_graphs(model, folder, "pt2" if format == "pt2" else "onnx")
        if precision == "int8-weights":
            for name in files.keys() & {"rows", "candidates"}:
                quantize_weights(folder / files[name])
        manifest = _describe(experiment, model, dataset, files, precision)
        if opened is not None:  # graphs of ONNX have names
            manifest["ports"] = {name: {"inputs": g.inputs, "outputs": g.outputs} for name, g in opened.items()}
        _write_tables(model, dataset, folder, manifest, precision)
        if dataset.vocabularies or dataset.items.vocabulary is not None:
            manifest["vocabulary"] = "vocabulary.json"
            _write_vocabularies(dataset, folder / "vocabulary.json")
        _write_manifest(folder, manifest)
        parity.update(_compare(experiment, folder, opened, expected, dataset, tolerance or TOLERANCES[precision]))
        (folder / "parity.json").write_text(_json(parity), encoding="utf-8")
        _write_manifest(folder, manifest)  # now with the checksum of parity.json

    def write_repository(folder: Path) -> None:
        from fuxictr_mm.serving.triton import Repository
        from fuxictr_mm_serving.manifest import read_manifest

        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            source = Path(name)
            write(source)
            Repository(source, folder, experiment.config.expid, read_manifest(source)).write()

    write_folder(out, write_repository if format == "triton" else write)
    return parity


def _check_packages(format: str) -> None:
    missing = [name for name in PACKAGES[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export needs {', '.join(missing)}: pip install 'fuxictr-mm[export]'")


def _check_experiment(experiment: Experiment) -> None:
    from fuxictr_mm.model import MultimodalModel

    name = experiment.config.model
    if not issubclass(experiment.model_class, MultimodalModel):
        raise ConfigError(f"{name} is no MultimodalModel; models in FuxiCTR's batch formats cannot be exported")
    if experiment.config.dataset.item_info is None:
        raise ConfigError(f"dataset {experiment.config.dataset_id}: item_info is missing; an export needs item files")


def _predict(experiment: Experiment, model: Any, dataset: Dataset) -> np.ndarray:
    from fuxictr_mm.training import loop

    return loop.predict(model, experiment.make_loader(dataset.splits["valid"], model)).numpy()


def _write_graphs(model: Any, folder: Path, format: str) -> tuple[dict[str, str], dict[str, Graph] | None]:
    """Write the graphs; returns their files by name, and those of torch as functions."""
    from fuxictr_mm.serving.graphs import fuse_batch_norm, has_fold, rows_example, user_examples
    from fuxictr_mm.serving.torch_graph import TorchGraph

    model = fuse_batch_norm(copy.deepcopy(model))
    graphs = {"rows": rows_example(copy.deepcopy(model))}
    if has_fold(model):
        graphs |= user_examples(model)
    opened: dict[str, Graph] = {}
    for name, traced in graphs.items():
        started = time.perf_counter()
        program = write_graph(traced, folder / f"{name}.{format}", f"{type(model).__name__} ({name}.{format})")
        if format == "pt2":
            opened[name] = TorchGraph(program, traced.names, traced.outputs)
        logger.info(f"{name}.{format}: exported in {time.perf_counter() - started:.1f} s")
    return {name: f"{name}.{format}" for name in graphs}, opened or None


def write_graph(traced: Traced, path: Path, what: str) -> ExportedProgram:
    """Write a graph, of ``torch.export`` or of ONNX by the ending of its name; returns the program that is written.

    Raises
    ------
    UserError
        torch or ONNX Runtime cannot; the message names the operation.
    """
    import torch

    try:
        with torch.no_grad(), _silence():
            program = torch.export.export(traced.module, traced.args, dynamic_shapes=traced.shapes, strict=False)
            return (_write_pt2 if path.suffix == ".pt2" else _write_onnx)(program, traced, path)
    except Exception as error:  # torch raises many types
        raise UserError(f"{what} cannot be exported: {_reason(error)}") from error


def _write_onnx(program: ExportedProgram, traced: Traced, path: Path) -> ExportedProgram:
    import onnxruntime
    import torch

    onnx_program = torch.onnx.export(
        program, input_names=traced.names, output_names=traced.outputs, dynamo=True, verbose=False
    )
    assert onnx_program is not None
    for node in onnx_program.model.graph.all_nodes():  # of which torch keeps the paths of source files
        node.metadata_props.clear()
    onnx_program.save(str(path), external_data=False)
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return program


def _write_pt2(program: ExportedProgram, traced: Traced, path: Path) -> ExportedProgram:
    import torch

    # Of equal scores, ONNX's TopK takes the first; torch's takes any.
    topk = torch.ops.aten.topk.default
    if any(node.target is topk for node in program.graph.nodes):
        program = program.run_decompositions({topk: _stable_topk})
    # ONNX leaves out what the graph does not read, tables above all.
    unused = {node.name for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    signature = program.graph_signature
    for spec in [s for s in signature.input_specs if s.target is not None and s.arg.name in unused]:
        program.graph.erase_node(next(node for node in program.graph.nodes if node.name == spec.arg.name))
        signature.input_specs.remove(spec)
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:  # of sizes that the example has, as the tracer guesses
            program.graph.erase_node(node)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]  # also of loops
    for node in (node for graph in graphs for node in graph.nodes):
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)  # paths of source files
    program.graph_module.recompile()
    program.example_inputs = None
    torch.export.save(program, path)
    return program


def _stable_topk(
    values: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:
    found = values.sort(stable=True, dim=dim, descending=largest)
    return found.values.narrow(dim, 0, k), found.indices.narrow(dim, 0, k)


def quantize_weights(path: Path) -> None:
    """Replace the weights of the linear layers of a graph by 8-bit integers; inputs of these layers are rounded too."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    result, folded = path.with_suffix(".int8"), path.with_suffix(".folded")
    # Parts and sums of parameters become weights, which alone are quantized.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    with _silence():
        quantize_dynamic(
            folded,
            result,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # to 7 bits: with 8, sums of two products overflow on CPUs without VNNI
        )
    folded.unlink()
    result.replace(path)


def _reason(error: BaseException) -> str:
    """Return the operation that stops an export, and the line of the model that has it."""
    import traceback

    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).strip().splitlines()] or [type(error).__name__]
    text = " ".join(lines[: 2 if lines[0].startswith("Constraints violated") else 1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "torch" not in Path(frame.filename).parts and Path(frame.filename).name not in ("export.py", "graphs.py")
    ]
    return (
        f"{text} (at {Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else text
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the tracer's own messages off the terminal; an error holds what is needed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _describe(
    experiment: Experiment, model: Any, dataset: Dataset, graphs: Mapping[str, str], precision: str
) -> dict[str, Any]:
    """Return the manifest, without tables and checksums."""
    import torch

    from fuxictr_mm.config import Roles
    from fuxictr_mm.serving.graphs import given_fields
    from fuxictr_mm_serving.manifest import FORMAT

    roles = Roles.of(experiment.config.to_dict())
    columns = {feature.name: feature.column for feature in dataset.features}
    keys = ("type", "vocab_size", "max_len", "pretrain_dim", "padding", "computed")
    context = []
    for name in given_fields(model):
        spec = model.feature_map.features[name]
        context.append(
            {"name": name, "column": columns.get(name, name), **{key: spec[key] for key in keys if key in spec}}
        )
    return {
        "format": FORMAT,
        "experiment": experiment.config.expid,
        "model": type(model).__name__,
        "dataset": experiment.config.dataset_id,
        "task": model.task,
        "labels": list(model.feature_map.labels),
        "library_version": __version__,
        "torch_version": torch.__version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "precision": precision,
        "graphs": dict(graphs),
        "items": {
            "target": roles.target,
            "history": roles.history,
            "max_len": experiment.config.max_len,
            "fields": {name: model.field_dims[name] for name in model.item_fields},
            "known": "known.npy",
        },
        "context": context,
        "vocabulary": None,
    }


def _write_tables(model: Any, dataset: Dataset, folder: Path, manifest: dict[str, Any], precision: str) -> None:
    """Write the table of items and those of context fields; adds them to the manifest."""
    import numpy as np

    from fuxictr_mm.serving.graphs import context_tables, item_rows

    np.save(folder / "known.npy", model.items.known.numpy())
    manifest["items"]["table"] = write_table(
        partial(item_rows, model), model.items.num_items, folder, "items", precision
    )
    manifest["items"]["contents"] = _write_contents(model, dataset, folder)
    if model.per_item_codes:
        counts = {name: model.items.stored(name)[0].numel() for name in model.per_item_codes}
        np.save(folder / "item_codes.npy", model.code_table().numpy())
        sizes = {f.name: f.vocab_size for f in dataset.features if f.name in counts and f.vocab_size}
        manifest["items"]["codes"] = {"file": "item_codes.npy", "columns": counts, "vocab_sizes": sizes}
    layers = context_tables(model)
    for entry in manifest["context"]:
        if entry["name"] in layers:
            layer, file = layers[entry["name"]], f"context_{entry['name']}"
            entry["table"] = write_table(layer, entry["vocab_size"], folder, file, precision)


def _write_contents(model: Any, dataset: Dataset, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the projections of frozen embeddings; returns what an item that the export does not hold can be given.

    Left out: fields with an encoder of their own, and the norm that needs statistics of all items.
    """
    import numpy as np
    from torch import nn

    from fuxictr_mm.serving.graphs import content_columns, row_dims

    starts = dict(zip(model.item_fields, _starts(model.field_dims[name] for name in model.item_fields), strict=True))
    columns, dims = content_columns(model), row_dims(model)
    content_starts = dict(zip(columns, _starts(dims)[len(dims) - len(columns) :], strict=True))
    encoders = model.embedding_layer.embedding_layer.feature_encoders
    found: dict[str, dict[str, Any]] = {}
    for feature in dataset.features:
        name = feature.name
        if feature.type != "embedding" or feature.norm not in (None, "l2", "layer"):
            continue
        entry: dict[str, Any] = {"norm": feature.norm, "scale": feature.scale}
        if name in starts:
            layer = encoders[name]
            if isinstance(layer, nn.Linear) and layer.bias is None:
                weight = layer.weight.detach().numpy()
            elif isinstance(layer, nn.Identity):
                weight = np.eye(model.field_dims[name], dtype=np.float32)
            else:
                continue
            entry.update(file=f"project_{name}.npy", start=starts[name], dim=weight.shape[1])
            np.save(folder / entry["file"], weight)
        if name in content_starts:
            entry.update(content_start=content_starts[name], dim=model.items.dim(name))
        if "dim" in entry:
            found[name] = entry
    return found


def _starts(dims: Iterable[int]) -> list[int]:
    """Return the first column of each of several parts."""
    return [0, *accumulate(dims)][:-1]


def write_table(
    rows_of: Callable[[Tensor], Tensor], num_rows: int, folder: Path, name: str, precision: str
) -> dict[str, str]:
    """Write the rows of ids 0 to ``num_rows - 1`` as ``NAME.npy``; returns the entry of the manifest."""
    import numpy as np
    import torch
    from numpy.lib.format import open_memmap

    from fuxictr_mm_serving.tables import quantize

    kind = {"fp16": np.float16, "int8-tables": np.int8}.get(precision, np.float32)
    entry, table = {"file": f"{name}.npy"}, None
    scales = np.zeros(num_rows, dtype=np.float32)
    with torch.no_grad():
        for start in range(0, num_rows, CHUNK):
            stop = min(start + CHUNK, num_rows)
            rows = rows_of(torch.arange(start, stop)).float().numpy()
            if table is None:
                table = open_memmap(folder / entry["file"], "w+", dtype=kind, shape=(num_rows, rows.shape[1]))
            if precision == "int8-tables":
                rows, scales[start:stop] = quantize(rows)
            table[start:stop] = rows
    assert table is not None
    table.flush()
    if precision == "int8-tables":
        entry["scales"] = f"{name}_scales.npy"
        np.save(folder / entry["scales"], scales)
    return entry


def _write_vocabularies(dataset: Dataset, path: Path) -> None:
    """Write the vocabularies, with the items that are new since training."""
    import pyarrow as pa

    from fuxictr_mm.data.schema import ITEM_ID

    found = dict(dataset.vocabularies)
    if dataset.items.vocabulary is not None:
        found[ITEM_ID] = dataset.items.vocabulary
    content: dict[str, dict[str, Any]] = {}
    for name, vocabulary in found.items():
        values = vocabulary.values.to_pylist()
        if pa.types.is_integer(vocabulary.values.type):
            content[name] = {"type": "integer", "values": values}
        elif pa.types.is_large_binary(vocabulary.values.type):
            content[name] = {"type": "bytes", "values": [value.hex() for value in values]}
        else:
            content[name] = {"type": "text", "values": values}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    from fuxictr_mm_serving.manifest import MANIFEST, checksum

    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    manifest["bytes"] = {path.name: path.stat().st_size for path in files}
    manifest["sha256"] = {path.name: checksum(path) for path in files}
    (folder / MANIFEST).write_text(_json(manifest), encoding="utf-8")


def _compare(
    experiment: Experiment,
    folder: Path,
    graphs: Mapping[str, Graph] | None,
    expected: np.ndarray,
    dataset: Dataset,
    tolerance: float,
) -> dict[str, Any]:
    """Return the differences between export and model over the validation rows.

    Raises
    ------
    UserError
        They are beyond the tolerance.
    """
    import numpy as np

    from fuxictr_mm_serving import Export
    from fuxictr_mm_serving.parquet import read_part, split
    from fuxictr_mm_serving.scoring import PART_ROWS

    exported = Export(folder, check_bytes=0, graphs=graphs)
    path = str(experiment.config.dataset.valid_data)
    found, differences = [], [0.0]
    for part in split(path, PART_ROWS):
        for columns in read_part(part, exported.columns):
            found.append(exported.score_rows(columns, path))
            if exported.is_folded and len(found) == 1:
                differences += [_compare_fold(exported, columns, row) for row in range(min(FOLD_USERS, len(found[0])))]
    scores = np.concatenate(found)
    report = {
        "rows": len(scores),
        "largest_difference": float(np.abs(scores - expected).max()),
        "largest_difference_folded": float(np.max(differences)),
        "tolerance": tolerance,
        "auc": {"model": _auc(dataset, expected), "export": _auc(dataset, scores)},
    }
    largest = float(np.max([report["largest_difference"], report["largest_difference_folded"]]))  # also NaN
    if not largest <= tolerance:
        raise UserError(
            f"{experiment.config.expid}: scores of the export differ by {largest:.2g} from those of the model, "
            f"expected {tolerance:g} or less (--tolerance); nothing is written"
        )
    return report


def _compare_fold(exported: Any, columns: Mapping[str, Any], row: int) -> float:
    """Return the largest difference between the folded graphs and rows, for the user of a row."""
    import numpy as np

    user = {name: column[row] for name, column in columns.items()}
    candidates = list(columns[exported.target][:FOLD_CANDIDATES])
    count = len(candidates)
    rows = {name: [value] * count for name, value in user.items()} | {exported.target: candidates}
    state = exported.user_state(user, user[exported.history])
    return float(np.abs(exported.score_candidates(state, candidates)[0] - exported.score_rows(rows)).max())


def _auc(dataset: Dataset, scores: np.ndarray) -> float | dict[str, float | None] | None:
    """Return the AUC over the validation rows, of several labels that of each.

    None for a regression, and for rows that are not in memory.
    """
    labels = dataset.feature_map.labels
    label = getattr(dataset.splits["valid"], "label", None)
    if label is None or not hasattr(label, "numpy"):
        return None
    truth, scores = (array.reshape(-1, len(labels)).T for array in (label.numpy(), scores))
    found = [_auc_of_label(*columns) for columns in zip(truth, scores, strict=True)]
    return found[0] if len(found) == 1 else dict(zip(labels, found, strict=True))


def _auc_of_label(truth: np.ndarray, scores: np.ndarray) -> float | None:
    import numpy as np
    from sklearn.metrics import roc_auc_score

    kept = ~np.isnan(truth)  # one of several labels may be missing
    if set(np.unique(truth[kept])) != {0.0, 1.0}:
        return None
    return float(roc_auc_score(truth[kept], scores[kept]))


def _text(auc: float | Mapping[str, float | None] | None) -> str:
    if isinstance(auc, Mapping):
        return ", ".join(f"{label} {_text(found)}" for label, found in auc.items())
    return "none" if auc is None else f"{auc:.6f}"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
