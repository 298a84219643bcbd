"""Export: a trained model as graphs and memory-mapped tables; those of ONNX score without torch."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm import __version__
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.files import check_folder_to_write, write_folder

if TYPE_CHECKING:
    import numpy as np

    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.serving.graph_files import Written
    from fuxictr_mm.serving.prepared import Prepared
    from fuxictr_mm.serving.tables import Parts
    from fuxictr_mm_serving.graphs import Graph

logger = logging.getLogger(__name__)

#: Largest difference to the model that an export may have, by the precision of its tables or of its layers' weights.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "int8-tables": 5e-2, "int8-weights": 0.1}

#: Rows of a batch, an odd number, and number of batches, by which the model's own rounding errors are found.
SMALL_BATCH, FEW_BATCHES = 7, 500

#: What each format needs.
PACKAGES: dict[str, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}
PACKAGES["triton"] = PACKAGES["onnx"]


def export(
    experiment: Experiment,
    out: Path,
    *,
    format: str = "onnx",
    weights: str | Path | None = None,
    precision: str = "fp32",
    tolerance: float | None = None,
    auc_loss: float | None = None,
    overwrite: bool = False,
    ids: str = "source",
    items: Path | None = None,
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
        Largest difference between a score of the export and the model's; by default that of ``TOLERANCES``, or more if
        scores of the model itself change by as much with the size of a batch.
    auc_loss : float, optional
        How much lower the AUC of the export may be than the model's, in place of ``tolerance``, if ``precision`` is not
        ``fp32``; also that of up to 1,000 rows that are scored by user.
    overwrite : bool
        Whether a folder that an earlier export wrote may be replaced.
    ids : {"source", "numbers"}
        What stands for items, users and categories in requests where ``fuxictr-mm prepare`` numbered them: the ids of
        its source, with numbers before they were scaled, or what it wrote.
    items : path, optional
        Folder of a later log (``fuxictr-mm prepare log --like``), whose items are exported instead of those of the
        dataset: new ones have their features, and no embedding of their ids.

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

    if auc_loss is not None and (precision == "fp32" or tolerance is not None):
        raise UserError("--auc-loss takes the place of --tolerance, with --precision fp16, int8-tables or int8-weights")
    parts_of = _choose_parts(experiment, format, precision)
    check_folder_to_write(out, [MANIFEST], overwrite)
    source = _read_source(experiment, parts_of, weights, items, of_owner=ids == "source")
    parity: dict[str, Any] = {}

    def write(folder: Path) -> None:
        parity.update(_write(source, folder, format, precision, tolerance, auc_loss))

    def write_repository(folder: Path) -> None:
        from fuxictr_mm.serving.triton import Repository
        from fuxictr_mm_serving.manifest import read_manifest

        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            written = Path(name)
            write(written)
            Repository(written, folder, experiment.config.expid, read_manifest(written)).write()

    write_folder(out, write_repository if format == "triton" else write)
    return parity


@dataclass(frozen=True)
class _Source:
    """What is exported: a trained model with its data, and its scores over the validation rows.

    ``prepared`` are the owner's values of ``columns`` of ids; ``items`` the folder of a later log, if they are its.
    """

    experiment: Experiment
    model: Any
    dataset: Dataset
    parts: Parts
    expected: np.ndarray
    prepared: Prepared | None
    columns: list[str]
    items: Path | None


def _read_source(
    experiment: Experiment,
    parts_of: Callable[..., Parts],
    weights: str | Path | None,
    items: Path | None,
    of_owner: bool,
) -> _Source:
    """Load data and model, take the model apart, and score the validation rows with it."""
    from fuxictr_mm.serving.prepared import Prepared

    checkpoint = experiment.find_weights(weights)
    experiment.prepare_process()
    experiment = experiment if items is None else _with_items(experiment, items)
    dataset = experiment.load_dataset({"valid": True}, checkpoint)
    model = experiment.build_model(dataset)
    model.load_weights(checkpoint)
    model = model.to("cpu").eval()
    parts = parts_of(model, dataset, experiment)
    expected = _predict_finite(experiment, model, dataset)
    given = [entry["name"] for entry, _ in parts.ids]
    sizes = _sizes(dataset, [*parts.context, *parts.code_columns, *given])
    prepared = Prepared.of(dataset, experiment.config.dataset.item_files, sizes) if of_owner else None
    columns = [name for name in dict.fromkeys((*parts.code_columns, *given)) if name in sizes]
    return _Source(experiment, model, dataset, parts, expected, prepared, columns, items)


def _write(
    source: _Source, folder: Path, format: str, precision: str, tolerance: float | None, auc_loss: float | None
) -> dict[str, Any]:
    """Write an export, that of ``triton`` without its repository, and return what ``parity.json`` holds."""
    from fuxictr_mm.data.numbering import all_items_in, earlier_items_in
    from fuxictr_mm.serving import tables
    from fuxictr_mm.serving.graph_files import write_graphs
    from fuxictr_mm.serving.quantization import quantize_weights
    from fuxictr_mm_serving.manifest import FORMATS

    parts, dataset, prepared = source.parts, source.dataset, source.prepared
    written = write_graphs(parts.graphs, folder, "pt2" if format == "pt2" else "onnx", type(source.model).__name__)
    rows_of_32_bits, bits = b"", {}
    if precision == "int8-weights":
        rows_of_32_bits = (folder / written.files["rows"]).read_bytes()
        for name in sorted(written.files.keys() & {"rows", "candidates"}):
            quantize_weights(folder / written.files[name])
            bits[name] = 8
    manifest = _describe(source.experiment, parts, dataset, written, precision)
    if source.items is not None:
        manifest["numbering"] |= all_items_in(source.items)
        manifest["earlier_items"] = earlier_items_in(source.items)
    opened = written.opened or None
    if opened is not None:  # graphs of ONNX have names
        manifest["ports"] = {name: {"inputs": g.inputs, "outputs": g.outputs} for name, g in opened.items()}
    tables.write_tables(parts, dataset, folder, manifest, precision, source.experiment.config.verbose)
    if prepared is not None:
        prepared.describe(manifest, source.columns)
    if len(dataset.vocabularies) or dataset.items.vocabulary is not None or prepared is not None:
        manifest["vocabulary"] = "vocabulary.json"
        own = {} if prepared is None else prepared.vocabularies
        if tables.write_vocabularies(dataset, folder / "vocabulary.json", own, as_arrays=format == "onnx"):
            manifest["format"] = FORMATS[2]
    _write_manifest(folder, manifest)
    try:
        parity = _compare(source, folder, opened, precision, tolerance, auc_loss)
    except UserError as error:
        if precision != "int8-weights" or "candidates" not in written.files:
            raise
        (folder / written.files["rows"]).write_bytes(rows_of_32_bits)
        bits["rows"] = 32
        _write_manifest(folder, manifest)
        parity = _compare(
            source, folder, opened, precision, tolerance, auc_loss
        )  # another error if those of users differ too
        what = "rows keep weights of 32 bits; candidates of a user are scored with 8"
        logger.warning(f"{str(error).removesuffix('; nothing is written')}; {what}")
    if bits:
        parity["weight_bits"] = bits
    (folder / "parity.json").write_text(_json(parity), encoding="utf-8")
    _write_manifest(folder, manifest, ["parity.json"])
    return parity


def _compare(
    source: _Source,
    folder: Path,
    opened: Mapping[str, Graph] | None,
    precision: str,
    tolerance: float | None,
    auc_loss: float | None,
) -> dict[str, Any]:
    """Compare the scores of a folder with the model's; without a ``tolerance``, its rounding errors are tolerated."""
    from fuxictr_mm.serving.parity import compare, differences

    experiment, dataset, expected = source.experiment, source.dataset, source.expected

    def rounding() -> np.ndarray:
        found = _predict(experiment, source.model, dataset, batches=FEW_BATCHES, batch_size=SMALL_BATCH)
        return differences(found, expected[: len(found)])

    limit = TOLERANCES[precision] if tolerance is None else tolerance
    tolerated = rounding if tolerance is None and precision == "fp32" else None
    return compare(experiment, folder, opened, expected, dataset, limit, tolerated, auc_loss, source.model)


def _with_items(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with the items of a later log."""
    from fuxictr_mm.data.later_items import item_files_of_later_log

    found = copy(experiment)
    files = item_files_of_later_log(folder, experiment.config.dataset.item_files)
    found.config = experiment.config.with_dataset(item_info=files)
    return found


def _sizes(dataset: Dataset, names: list[str]) -> dict[str, int]:
    """Return the number of ids of each column of ids, also of one that only a similarity or the model reads."""
    of_items = [f for f in dataset.features if f.is_item]
    specs: dict[str, Any] = {f.name: {"type": f.type, "vocab_size": f.vocab_size} for f in of_items}
    specs |= dataset.feature_map.features
    return {n: specs[n]["vocab_size"] for n in names if specs.get(n, {}).get("type") in ("categorical", "sequence")}


def _choose_parts(experiment: Experiment, format: str, precision: str) -> Callable[..., Parts]:
    """Return what takes the model apart, and refuse what cannot be exported."""
    from fuxictr_mm.compat import is_third_party
    from fuxictr_mm.serving.fuxictr_graph import fuxictr_parts
    from fuxictr_mm.serving.tables import zoo_parts

    if missing := [name for name in PACKAGES[format] if importlib.util.find_spec(name) is None]:
        raise UserError(f"export needs {', '.join(missing)}: pip install 'fuxictr-mm[export]'")
    if format == "pt2" and precision == "int8-weights":
        raise UserError("--precision int8-weights quantizes ONNX graphs; remove --format pt2, or the precision")
    if experiment.config.dataset.item_info is None:
        raise ConfigError(f"dataset {experiment.config.dataset_id}: item_info is missing; an export needs item files")
    if not is_third_party(experiment.model_class):
        short = experiment.config.dataset.roles.short_history
        if short is not None and getattr(experiment.model_class, "reads_short_history", False):
            raise ConfigError(
                f"{experiment.config.expid}: {experiment.config.model} reads the short history '{short}', and requests "
                "have one history; train with the long one alone, whose newest items are then the short one"
            )
        return zoo_parts
    if precision in ("fp16", "int8-tables"):
        raise UserError(
            f"--precision {precision}: {experiment.config.model} is not a MultimodalModel, so its graph "
            "reads tables as float32; remove --precision, or use int8-weights"
        )
    return fuxictr_parts


def _predict_finite(experiment: Experiment, model: Any, dataset: Dataset) -> np.ndarray:
    """Return the model's scores over the validation rows."""
    import numpy as np

    found = _predict(experiment, model, dataset)
    if len(wrong := found[~np.isfinite(found)]):
        what = (
            f"{len(wrong):,} scores of the model over the validation rows are {wrong[0]} or infinite, expected numbers"
        )
        raise UserError(f"{experiment.config.expid}: {what}")
    return found


def _predict(
    experiment: Experiment, model: Any, dataset: Dataset, *, batches: int | None = None, batch_size: int | None = None
) -> np.ndarray:
    from fuxictr_mm.training import scoring

    loader = experiment.make_loader(dataset.splits["valid"], model, batch_size=batch_size)
    return scoring.predict(model, loader if batches is None else islice(loader, batches)).numpy()


def _describe(
    experiment: Experiment, parts: Parts, dataset: Dataset, written: Written, precision: str
) -> dict[str, Any]:
    """Return the manifest, without tables and checksums."""
    import torch

    from fuxictr_mm.data.numbers import scales_of
    from fuxictr_mm_serving.manifest import FORMATS
    from fuxictr_mm_serving.prepared import EXTENDS, NUMBERING

    roles = experiment.config.dataset.roles
    features = {feature.name: feature for feature in dataset.features}
    columns = {name: feature.column for name, feature in features.items()}
    scales = scales_of(dataset.vocabularies)
    keys = ("type", "vocab_size", "max_len", "pretrain_dim", "padding", "computed")
    context = []
    for name in parts.context:
        spec = dataset.feature_map.features[name]
        given = {key: spec[key] for key in keys if key in spec}
        if name not in parts.context_tables and spec["type"] in ("categorical", "sequence"):
            given["as_ids"] = True
        if (feature := features.get(name)) is not None and feature.fill_na is not None:
            given["fill_na"] = float(feature.fill_na)
        if name in scales:
            given["shift"], given["scale"] = scales[name]
        context.append({"name": name, "column": columns.get(name, name), **given})
    max_len, longest = experiment.config.max_len, written.longest_history
    if max_len is not None and longest is not None and max_len > longest:
        logger.warning(
            f"{experiment.config.expid}: max_len is {max_len}, but a server refuses more than {longest} history items, "
            "for which the model needs too much memory; train with a smaller max_len"
        )
    reads_codes = any("candidate_codes" in traced.names for traced in parts.graphs.values())
    return {
        "format": FORMATS[1] if reads_codes else FORMATS[0],
        "experiment": experiment.config.expid,
        "model": experiment.model_class.__name__,
        "dataset": experiment.config.dataset_id,
        "task": experiment.config.task,
        "labels": list(dataset.feature_map.labels),
        "library_version": __version__,
        "torch_version": torch.__version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "precision": precision,
        "graphs": written.files,
        "numbers_per_pair": written.numbers_per_pair,
        "longest_history": written.longest_history,
        "items": {
            "target": roles.target,
            "history": roles.history,
            "max_len": max_len,
            "fields": dict(parts.fields),
            "known": "known.npy",
        },
        "context": context,
        "numbering": dict(dataset.vocabularies.settings.get(NUMBERING, {})),
        "extends": dict(dataset.vocabularies.settings.get(EXTENDS, {})),
        "vocabulary": None,
    }


def _write_manifest(folder: Path, manifest: dict[str, Any], added: Sequence[str] | None = None) -> None:
    """Write the manifest with sizes and checksums of all files, or of those that were ``added`` since."""
    from fuxictr_mm_serving.manifest import MANIFEST, checksum

    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    sums = {name: manifest["sha256"][name] for name in names if name not in added} if added is not None else {}
    manifest["bytes"] = {name: (folder / name).stat().st_size for name in names}
    manifest["sha256"] = {name: sums[name] if name in sums else checksum(folder / name) for name in names}
    (folder / MANIFEST).write_text(_json(manifest), encoding="utf-8")


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
