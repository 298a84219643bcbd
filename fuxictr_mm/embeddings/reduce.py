"""``fuxictr-mm embed reduce``: PCA of item embeddings, separate for each modality and joint.

The strategies of "Feature Fusion Revisited" (Zhou, WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2504.18961):
V1 PCA(text), V2 PCA(image), V3 PCA(text, image), V4 PCA(text) + PCA(image).

Shape letters: I items, n items of a chunk, D dim of an embedding, K dim after the reduction.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.data.ids import numbering
from fuxictr_mm.embeddings.command import add_output, add_settings, flag, given_settings
from fuxictr_mm.embeddings.item_files import (
    ItemFileWriter,
    JoinedEmbeddings,
    Source,
    add_sources,
    embedding_type,
    read_embeddings,
)
from fuxictr_mm.embeddings.reducer import (
    APART,
    CHUNK_BYTES,
    JOINT,
    ReduceOptions,
    Reducer,
    Strategy,
    choose_strategies,
    fit_reducer,
    rows_of,
)
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import atomic_path, check_outputs, write_beside
from fuxictr_mm.terminal import format_table, item_bar

#: A modality is dominated if it has less than this fraction of an equal part of the joint components, ...
SMALL_FRACTION = 0.2

#: ... or if they keep less than this fraction of what its own PCA keeps in an equal part of the dim.
SMALL_PART = 0.5


def summarize(reducer: Reducer, prefix: str) -> dict[str, Any]:
    """Return the report as plain values.

    Keys: ``scaling``, ``whiten``, ``balance``; ``modalities`` with ``items`` (of the fit), ``missing`` and
    ``variance``; ``strategies`` with ``kept`` (fraction of all variance), ``kept_of`` (of each modality's) and, for the
    joint one, ``made_of`` (fraction of its components' variance from each modality); ``warnings``.
    """
    names = [m.name for m in reducer.modalities]
    modalities = [
        {"name": m.name, "column": m.column, "width": m.dim}
        | {"items": m.pca.count, "missing": m.missing, "variance": m.pca.total}
        for m in reducer.modalities
    ]
    strategies = [
        {"column": f"{prefix}_{s.name}", "strategy": s.describe(names), "width": s.dim, "widths": s.dims}
        | _fractions(reducer, s)
        for s in reducer.strategies
    ]
    warnings = [sentence for s in reducer.strategies if s.kind == JOINT for sentence in _dominated(reducer, s)]
    settings = {"scaling": reducer.scaling, "whiten": reducer.whiten, "balance": reducer.balance}
    return {**settings, "modalities": modalities, "strategies": strategies, "warnings": warnings}


def _fractions(reducer: Reducer, strategy: Strategy) -> dict[str, Any]:
    if strategy.kind == JOINT:
        assert reducer.joint is not None
        pca = reducer.joint.keep(strategy.dim)
        weighted = pca.variances @ pca.components**2
        amounts = {name: float(weighted[columns].sum()) for name, columns in reducer.columns.items()}
        totals = reducer.joint_totals
    else:
        used = [m for m in reducer.modalities if m.name in strategy.dims]
        amounts = {m.name: float(m.pca.variances[: strategy.dims[m.name]].sum()) for m in used}
        totals = {m.name: m.pca.total for m in used}
    kept = sum(amounts.values())
    fractions = {
        "kept": kept / sum(totals.values()),
        "kept_of": {name: amount / totals[name] for name, amount in amounts.items()},
    }
    made_of = {"made_of": {name: amount / kept for name, amount in amounts.items()}}
    return fractions | made_of if strategy.kind == JOINT else fractions


def _dominated(reducer: Reducer, strategy: Strategy) -> list[str]:
    """Return a warning for each modality that the joint PCA hardly keeps."""
    fractions = _fractions(reducer, strategy)
    made_of, kept_of = fractions["made_of"], fractions["kept_of"]
    equal_part = max(strategy.dim // len(reducer.modalities), 1)
    largest = max(made_of, key=made_of.__getitem__)
    separate = next((s.name for s in reducer.strategies if s.kind == APART), APART)
    fix = f"use {separate}" if reducer.scaling != "none" else f"use {separate}, or --scaling standard or l2"
    sentences = []
    for modality in reducer.modalities:
        alone = float(modality.pca.variances[:equal_part].sum()) / modality.pca.total
        small = made_of[modality.name] < SMALL_FRACTION / len(reducer.modalities)
        if modality.name != largest and (small or kept_of[modality.name] < SMALL_PART * alone):
            sentences.append(
                f"{largest} dominates {strategy.name}: its components are {made_of[largest]:.1%} {largest} and "
                f"{made_of[modality.name]:.1%} {modality.name}; they keep {kept_of[modality.name]:.1%} of "
                f"{modality.name}'s variance, its own PCA keeps {alone:.1%} in {equal_part} components; {fix}"
            )
    return sentences


def format_report(report: dict[str, Any]) -> str:
    """Return the tables and the warnings of a fit."""
    names = [m["name"] for m in report["modalities"]]
    keys = ("name", "column", "width", "items", "missing")
    modalities = [[*(str(m[key]) for key in keys), f"{m['variance']:.6g}"] for m in report["modalities"]]
    rows = []
    for s in report["strategies"]:
        kept = [f"{s['kept_of'][name]:.1%}" if name in s["kept_of"] else "-" for name in names]
        rows.append([s["column"], s["strategy"], " + ".join(map(str, s["widths"].values())), f"{s['kept']:.1%}", *kept])
    head = ["column", "strategy", "dim", "variance kept", *(f"of {name}" for name in names)]
    lines = [format_table(["modality", "column", "dim", "items", "without", "variance"], modalities), ""]
    lines.append(format_table(head, rows))
    for s in report["strategies"]:
        if "made_of" in s:
            parts = ", ".join(f"{fraction:.1%} {name}" for name, fraction in s["made_of"].items())
            lines += ["", f"The components of {s['column']} are {parts}."]
    return "\n".join(lines + [f"warning: {sentence}" for sentence in report["warnings"]])


def format_applied(report: dict[str, Any]) -> str:
    """Return what a saved reducer was applied to; what it kept is that of its own fit."""
    fit = report["fit"]
    lines = [f"{report['items']} items reduced by {report['applied']}"]
    lines += [f"  {count} without an embedding of {name}" for name, count in report["missing"].items() if count]
    rows = [[s["column"], s["strategy"], str(s["width"]), f"{s['kept']:.1%}"] for s in fit["strategies"]]
    items = max(m["items"] for m in fit["modalities"])
    head = ["column", "strategy", "dim", f"variance kept of the {items} items of the fit"]
    return "\n".join([*lines, "", format_table(head, rows)])


def yaml_lines(report: dict[str, Any]) -> str:
    """Return the lines of ``feature_cols`` in dataset_config.yaml."""
    return "\n".join(
        f"- {{name: {s['column']}, active: False, dtype: float, type: embedding, source: item, "
        f"pretrain_dim: {s['width']}}}"
        for s in report["strategies"]
    )


def reduce_vectors(
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    *,
    apply: str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    h5: str | os.PathLike[str] | None = None,
    prefix: str = "item_emb",
    overwrite: bool = False,
    progress: bool = False,
    **fit: Any,
) -> tuple[Reducer, dict[str, Any]]:
    """Fit a reducer, or load one, and write a column for each of its strategies.

    Parameters
    ----------
    sources : sequence of Source
        The modalities; joined on ``item_id``.
    out : str or path
        The item file to write.
    apply : str or path, optional
        A saved reducer, to be applied instead of fitting one.
    save : str or path, optional
        Where the fitted reducer goes; ``OUT`` with ``.reducer.safetensors`` instead of its suffix by default.
    report : str or path, optional
        A JSON file for the report.
    h5 : str or path, optional
        Start of the names of files for FuxiCTR's ``pretrained_emb``, one for each strategy: ``H5_v1.h5``, ...
    prefix : str
        Of the columns.
    overwrite : bool
        Replace existing files.
    progress : bool
        Show a progress bar.
    **fit
        The fields of ``ReduceOptions``.

    Returns
    -------
    tuple of Reducer and dict
        The reducer and the report of its fit (``summarize``); with ``apply`` a dict of ``applied``, ``items``,
        ``missing`` (items without an embedding of each modality) and that report under ``fit``.

    Raises
    ------
    UserError
        Settings, files or embeddings are wrong. No file is left incomplete.
    """
    if not prefix.isidentifier():
        raise ConfigError(f"prefix '{prefix}', expected a name of letters, digits and _ such as item_emb")
    out = Path(out)
    save = Path(save) if save else out.with_suffix(".reducer.safetensors")
    reducer = Reducer.load(apply) if apply else None
    options = ReduceOptions.read(fit, "reduce")
    plan = choose_strategies([source.name for source in sources], options.strategies)
    names = [s.name for s in reducer.strategies] if reducer else [name for name, _ in plan]
    h5_files = {name: Path(f"{h5}_{name}.h5") for name in names} if h5 else {}
    outputs = [out, None if apply else save, report, *h5_files.values()]
    check_outputs(outputs, [*(source.path for source in sources), apply], overwrite)
    if h5 and numbering().items is not None:
        raise ConfigError("--h5: holds items as integers, and the ids of these items are none; leave it out")
    with JoinedEmbeddings(sources) as joined:
        if reducer is None:
            with item_bar(len(joined.ids), "fitting", int(progress)) as bar:
                reducer = fit_reducer(joined, options, bar.update)
        reducer.check(joined.dims)
        summary = summarize(reducer, prefix)
        missing = _write(joined, reducer, out, prefix, overwrite, progress, save=None if apply else save)
        count = len(joined.ids)
    for name, file in h5_files.items():
        _write_h5(file, Source(name, out, f"{prefix}_{name}"), count)
    if apply:
        summary = {"applied": str(apply), "items": count, "missing": missing, "fit": summary}
    if report:
        text = json.dumps(summary, indent=2) + "\n"
        write_beside(report, lambda stream: stream.write(text.encode()))
    return reducer, summary


def _write(
    joined: JoinedEmbeddings,
    reducer: Reducer,
    out: Path,
    prefix: str,
    overwrite: bool,
    progress: bool,
    save: Path | None,
) -> dict[str, int]:
    """Write all items, and the reducer to ``save``; return how many have no embedding of each modality."""
    missing = dict.fromkeys(joined.dims, 0)
    schema = {f"{prefix}_{s.name}": embedding_type(s.dim) for s in reducer.strategies}
    bar = item_bar(len(joined.ids), "reducing", int(progress))
    with ItemFileWriter(out, schema, overwrite) as writer, bar:
        for ids, vectors in joined.chunks(rows_of(joined, CHUNK_BYTES)):
            for name, rows in vectors.items():
                missing[name] += int((~rows.any(axis=1)).sum())
            writer.write(ids, {f"{prefix}_{name}": rows for name, rows in reducer.transform(vectors).items()})
            bar.update(len(ids))
        if save is not None:
            reducer.save(save)  # before the file gets its name: no file without its reducer
    return missing


def _write_h5(path: Path, column: Source, count: int) -> None:
    """Write ``key`` ``(I,)`` int64 and ``value`` ``(I, K)`` float32 of a column, without the padding."""
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        keys = file.create_dataset("key", shape=(count,), dtype=np.int64)
        values = file.create_dataset("value", shape=(count, column.dim), dtype=np.float32)
        row = 0
        for ids, rows in read_embeddings(column):
            keys[row : row + len(ids)], values[row : row + len(ids)] = ids, rows
            row += len(ids)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm embed reduce``."""
    add_examples(
        parser,
        "fuxictr-mm embed reduce text=item_feature.parquet:txt_emb_BERT image=item_feature.parquet:img_emb_CLIPRN50 \\",
        "    --dim 128 --out item_emb.parquet",
        "fuxictr-mm embed reduce text=new_items.parquet:txt_emb_BERT image=new_items.parquet:img_emb_CLIPRN50 \\",
        "    --apply item_emb.reducer.safetensors --out new_item_emb.parquet",
    )
    add_sources(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="item file to write, one column per strategy")
    add_settings(parser, ReduceOptions, without=["strategies", "memory"])
    parser.add_argument("--strategies", metavar="NAME,...", help=ReduceOptions.model_fields["strategies"].description)
    parser.add_argument("--prefix", default="item_emb", help="prefix of the columns (default: item_emb)")
    parser.add_argument("--save", metavar="FILE", help="the fitted reducer (default: OUT.reducer.safetensors)")
    parser.add_argument("--apply", metavar="FILE", help="reduce by a saved reducer instead of fitting one")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON as well")
    parser.add_argument("--h5", metavar="PREFIX", help="write PREFIX_v1.h5, ... for FuxiCTR's pretrained_emb as well")
    parser.add_argument("--memory", type=float, metavar="GB", help="embeddings held at a time (default, most: 0.033)")
    add_output(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed reduce``."""
    given = given_settings(args, ReduceOptions)
    if "strategies" in given:
        given["strategies"] = [name.strip() for name in args.strategies.split(",")]
    if "memory" in given:
        if not args.memory > 0:
            raise ConfigError(f"--memory is {args.memory:g}, expected gigabytes above 0")
        given["memory"] *= 1e9
    if args.apply:
        for name in [*given, *(["save"] if args.save else [])]:
            option = flag("no_balance" if name == "balance" else name)
            raise ConfigError(f"{option} is a setting of the fit, and --apply fits nothing; leave one of them out")
    files = {name: getattr(args, name) for name in ("apply", "save", "report", "h5", "prefix", "overwrite")}
    sources = [Source.parse(text) for text in args.sources]
    _, report = reduce_vectors(sources, args.out, **files, progress=not args.quiet, **given)
    summary = format_applied(report) if args.apply else format_report(report)
    paste = f"For feature_cols in dataset_config.yaml, with {args.out} added to item_info:"
    show(args, report, f"{summary}\n\n{paste}\n\n{yaml_lines(report.get('fit', report))}")
