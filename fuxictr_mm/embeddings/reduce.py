"""``fuxictr-mm embed reduce``: vectors of any modalities, reduced and joined by PCA.

The strategies of "Feature Fusion Revisited" (Zhou, WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2504.18961):
V1 PCA(text), V2 PCA(image), V3 PCA(text, image), V4 PCA(text) + PCA(image).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fuxictr_mm.cli import add_examples, show
from fuxictr_mm.embeddings.item_file import ItemFileWriter, vector_type
from fuxictr_mm.embeddings.output import add_output
from fuxictr_mm.embeddings.progress import item_bar
from fuxictr_mm.embeddings.reduction.fit import CHUNK_BYTES, choose_strategies, fit_reducer
from fuxictr_mm.embeddings.reduction.pretrained_emb import PretrainedEmbFile
from fuxictr_mm.embeddings.reduction.reducer import SCALINGS, Reducer
from fuxictr_mm.embeddings.reduction.report import format_applied, format_report, summarize, yaml_lines
from fuxictr_mm.embeddings.store import JoinedVectors, Source, add_sources
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs, write_beside


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
        A reducer that was saved, to be applied instead of fitting one.
    save : str or path, optional
        Where the fitted reducer goes; ``OUT`` with ``.reducer.safetensors`` in place of its suffix by default.
    report : str or path, optional
        A JSON file for the report.
    h5 : str or path, optional
        Start of the names of files for FuxiCTR's ``pretrained_emb``, one for each strategy: ``H5_v1.h5``, ...
    prefix : str
        Of the columns.
    overwrite : bool
        Replace files that are there.
    progress : bool
        Show a progress bar.
    **fit
        ``dim``, ``variance``, ``scaling``, ``whiten``, ``balance``, ``strategies`` and ``memory`` of ``fit_reducer``.

    Returns
    -------
    tuple of Reducer and dict
        The reducer and the report of its fit (``reduction.report.summarize``); with ``apply`` a dict of ``applied``,
        ``items``, ``missing`` (items without a vector of each modality) and that report under ``fit``.

    Raises
    ------
    UserError
        For settings, files or vectors that are wrong. Each file is whole then, or as it was before.
    """
    if not prefix.isidentifier():
        raise ConfigError(f"prefix '{prefix}', expected a name of letters, digits and _ such as item_emb")
    out = Path(out)
    save = Path(save) if save else out.with_suffix(".reducer.safetensors")
    outputs = [out, *([] if apply else [save]), *([Path(report)] if report else [])]
    reducer = Reducer.load(apply) if apply else None
    if h5:
        plan = choose_strategies([source.name for source in sources], fit.get("strategies"))
        names = [s.name for s in reducer.strategies] if reducer else [name for name, _ in plan]
        outputs += [Path(f"{h5}_{name}.h5") for name in names]
    check_outputs(outputs, [*(source.path for source in sources), apply], overwrite)
    with JoinedVectors(sources) as joined, ExitStack() as stack:
        if reducer is None:
            with item_bar(len(joined.ids), "fitting", int(progress)) as bar:
                reducer = fit_reducer(joined, **fit, advance=bar.update)
        reducer.check(joined.widths)
        columns = {strategy.name: f"{prefix}_{strategy.name}" for strategy in reducer.strategies}
        schema = {columns[s.name]: vector_type(s.width) for s in reducer.strategies}
        writes: list[Callable[..., None]] = []
        if h5:
            for strategy in reducer.strategies:
                path, size = f"{h5}_{strategy.name}.h5", (len(joined.ids), strategy.width)
                file = stack.enter_context(PretrainedEmbFile(path, *size, overwrite))
                writes.append(lambda ids, reduced, file=file, name=strategy.name: file.write(ids, reduced[name]))
        writer = stack.enter_context(ItemFileWriter(out, schema, overwrite))
        writes.append(lambda ids, reduced: writer.write(ids, {columns[name]: v for name, v in reduced.items()}))
        bar = stack.enter_context(item_bar(len(joined.ids), "reducing", int(progress)))
        missing = dict.fromkeys(joined.widths, 0)
        for ids, vectors in joined.chunks(max(256, CHUNK_BYTES // (8 * sum(joined.widths.values())))):
            reduced = reducer.transform(vectors)
            for name, rows in vectors.items():
                missing[name] += int((~rows.any(axis=1)).sum())
            for write in writes:
                write(ids, reduced)
            bar.update(len(ids))
    summary = summarize(reducer, prefix)
    if apply:
        summary = {"applied": str(apply), "items": len(joined.ids), "missing": missing, "fit": summary}
    else:
        reducer.save(save)
    if report:
        text = json.dumps(summary, indent=2) + "\n"
        write_beside(report, lambda stream: stream.write(text.encode()))
    return reducer, summary


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
    width = parser.add_mutually_exclusive_group()
    width.add_argument("--dim", type=int, metavar="N", help="width of each strategy (default: 128)")
    width.add_argument("--variance", type=float, metavar="SHARE", help="keep this share of the variance, such as 0.95")
    parser.add_argument(
        "--scaling",
        choices=SCALINGS,
        help="of the vectors before: as they are, l2 per row, standard per column (default: none)",
    )
    parser.add_argument(
        "--no-balance", action="store_true", help="leave each modality's part of v4 (apart) at its own scale"
    )
    parser.add_argument("--whiten", action="store_true", help="give each component the variance 1")
    parser.add_argument(
        "--strategies",
        metavar="NAME,...",
        help="v1 to v4 for two modalities, else their names, joint and apart (default: all)",
    )
    parser.add_argument("--prefix", default="item_emb", help="of the columns (default: item_emb)")
    parser.add_argument("--save", metavar="FILE", help="the fitted reducer (default: OUT.reducer.safetensors)")
    parser.add_argument("--apply", metavar="FILE", help="reduce by a saved reducer instead of fitting one")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON as well")
    parser.add_argument("--h5", metavar="PREFIX", help="write PREFIX_v1.h5, ... for FuxiCTR's pretrained_emb as well")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="fit in memory up to this size, else in chunks (default: 1)"
    )
    add_output(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Reduce as the parsed options of ``add_arguments`` say."""
    if args.memory is not None and not args.memory > 0:
        raise ConfigError(f"--memory is {args.memory:g}, expected gigabytes above 0; the less, the more is in chunks")
    options = {
        "dim": args.dim,
        "variance": args.variance,
        "scaling": args.scaling,
        "whiten": args.whiten or None,
        "balance": False if args.no_balance else None,
        "strategies": args.strategies and [name.strip() for name in args.strategies.split(",")],
        "memory": None if args.memory is None else 1e9 * args.memory,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if args.apply:
        for name in [*given, *(["save"] if args.save else [])]:
            option = "no-balance" if name == "balance" else name
            raise ConfigError(f"--{option} is a setting of the fit, and --apply fits nothing; leave one of them out")
    _, report = reduce_vectors(
        [Source.parse(text) for text in args.sources],
        args.out,
        apply=args.apply,
        save=args.save,
        report=args.report,
        h5=args.h5,
        prefix=args.prefix,
        overwrite=args.overwrite,
        progress=not args.quiet,
        **given,
    )
    told = format_applied(report) if args.apply else format_report(report)
    paste = f"For feature_cols in dataset_config.yaml, with {args.out} added to item_info:"
    show(args, report, f"{told}\n\n{paste}\n\n{yaml_lines(report.get('fit', report))}")
