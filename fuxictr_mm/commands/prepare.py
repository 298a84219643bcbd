"""``fuxictr-mm prepare``: turn a log of your own, or a public dataset, into this library's layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.datasets.configuration import choose_labels, dataset_of, write_config
from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    from fuxictr_mm.datasets.own.later import LaterLog
    from fuxictr_mm.datasets.summary import Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm prepare``."""
    from fuxictr_mm.datasets.own.options import add_log_options
    from fuxictr_mm.datasets.reader import list_readers

    readers = list_readers()
    width = max(map(len, readers))
    parser.description = "\n".join(
        [
            "Turn a log of your own, or a public dataset, into this library's layout, with a configuration to train.",
            "",
            "datasets:",
        ]
        + [f"  {name:{width}}  {line}" for name, line in readers.items()]
        + ["", "The data are not downloaded: the owners' pages, named in docs/datasets.md, have the terms of use."]
    )
    add_examples(
        parser,
        "fuxictr-mm prepare kuairand --source KuaiRand-1K --out data/kuairand_1k --labels is_click is_like long_view",
        "fuxictr-mm prepare log --source exports --out data/shop --roles user=user target=asin --labels click",
        "fuxictr-mm prepare mind --source MINDsmall --out data/mind_small",
        "fuxictr-mm prepare log --source tomorrow --like data/shop --out data/shop_new",
    )
    parser.add_argument("name", metavar="NAME", help="a dataset of the list above, or a reader: package.module:Class")
    parser.add_argument("--source", required=True, type=Path, metavar="DIR", help="folder of the unpacked files")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write; run again to continue")
    parser.add_argument(
        "--max_len", type=int, metavar="N", help="maximum number of newest items of a history (default: by dataset)"
    )
    parser.add_argument(
        "--labels", nargs="+", metavar="NAME", help="labels to train on, of the kinds of feedback (default: the first)"
    )
    parser.add_argument("--overwrite", action="store_true", help="start again: delete the content of --out")
    add_output_options(parser)
    add_log_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Write the dataset and say what was found."""
    from fuxictr_mm.config import list_experiments
    from fuxictr_mm.datasets.own.options import given_options
    from fuxictr_mm.datasets.reader import load_reader
    from fuxictr_mm.datasets.writer import Writer
    from fuxictr_mm.logs import set_up_logging
    from fuxictr_mm_serving.prepared import MANIFEST

    if not args.quiet and not args.json:
        set_up_logging()
    if args.max_len is not None and args.max_len < 1:
        raise ConfigError(f"--max_len is {args.max_len}, expected 1 or more")
    if not args.source.is_dir():
        found = "is a file" if args.source.exists() else "no such folder"
        raise ConfigError(f"--source {args.source}: {found}; expected the folder of the unpacked files")
    if args.like is not None and args.name == "log":
        return _write_later(args)
    reader_class = load_reader(args.name)
    reader = reader_class(args.source, args.out / ".scratch", args.max_len or reader_class.history_len)
    reader.configure(given_options(args))
    labels = choose_labels(args.name, reader, args.labels)
    is_kept = (args.out / "dataset_config.yaml").exists() and not (args.overwrite and (args.out / MANIFEST).exists())
    if args.labels and is_kept and not reader.options:  # which are compared with those of the folder
        raise ConfigError(
            f"--labels: {args.out / 'dataset_config.yaml'} already exists and is kept; change its label_col, or give "
            "--overwrite"
        )
    name = args.name.partition(":")[2] or args.name
    writer = Writer(reader, name, args.out, verbose=0 if args.quiet or args.json else 1)
    is_configured = all((args.out / f"{stem}.yaml").exists() for stem in ("dataset_config", "model_config"))
    summary = writer.finished() if is_configured and not args.overwrite else None
    if summary is not None:
        experiments, advice = list(list_experiments(args.out)), writer.kept_advice()
    else:
        summary = writer.write(args.overwrite)
        experiments = write_config(args.out, args.out.resolve().name, reader, summary, labels)
        advice = list(reader.advice(summary))
        writer.keep_advice(advice)
    document = {"folder": str(args.out), "experiments": experiments, **asdict(summary)}
    show(args, document, format_summary(summary, args.out, experiments, advice))


def _write_later(args: argparse.Namespace) -> None:
    """Write a log that continues an earlier one, and print a summary."""
    from fuxictr_mm.datasets.own.extended import ExtendedLog
    from fuxictr_mm.datasets.own.later import LaterLog
    from fuxictr_mm.datasets.own.options import given_options
    from fuxictr_mm.datasets.writer import Writer
    from fuxictr_mm.terminal import plural

    like, out = Path(args.like), args.out
    if args.max_len is not None:
        raise ConfigError(f"--max_len: with --like it is that of {like}; leave it out")
    if like.resolve() in (out.resolve(), *out.resolve().parents) or out.resolve() in like.resolve().parents:
        raise ConfigError(f"--out {out}: is inside --like {like} or contains it; give another folder")
    if args.extend:
        dataset_of(like)
    reader = (ExtendedLog if args.extend else LaterLog)(args.source, out / ".scratch", LaterLog.history_len)
    reader.configure(given_options(args))
    writer = Writer(reader, "log", out, verbose=0 if args.quiet or args.json else 1)
    summary = (None if args.overwrite else writer.finished()) or writer.write(args.overwrite)
    if args.extend:
        return _show_extended(args, reader, summary)
    new_items = summary.items - reader.base.known_items
    document = {"folder": str(out), "like": str(like), "new_items": new_items, **asdict(summary)}
    lines = [_format_splits(summary, "new item"), "", plural(new_items, "new item")]
    lines += ["", f"{out}: rows written. To score them:"]
    score = (
        f"fuxictr-mm predict --config {quote(str(reader.base.trained))} --expid EXPID --data {quote(str(out / 'test'))}"
    )
    show(args, document, "\n".join([*lines, f"  {score} --out predictions.parquet"]))


def _show_extended(args: argparse.Namespace, reader: LaterLog, summary: Summary) -> None:
    """Write the configuration of a log that extends an earlier one, and print a summary."""
    from fuxictr_mm.config.sizes import CONTINUED_RATE
    from fuxictr_mm.datasets.configuration import copy_config
    from fuxictr_mm.terminal import plural

    base, out = reader.base, args.out
    growth = summary.splits["train"].rows / base.num_training_rows
    rate = 1.0 if base.notes.extends else CONTINUED_RATE  # once, on the first day that continues
    experiments = copy_config(out, out.resolve().name, base.folder, summary, growth, rate)
    new = {"items": summary.items - len(base.item_ids), "users": summary.users - len(base.vocabulary("user_id"))}
    document = {"folder": str(out), "like": str(base.folder), "experiments": list(experiments)}
    document |= {f"new_{what}": count for what, count in new.items()} | asdict(summary)
    lines = [_format_splits(summary, "cold target"), ""]
    lines.append(f"{plural(new['items'], 'new item')}, {plural(new['users'], 'new user')}")
    lines += ["", f"{out}: configuration written. To continue training:"]
    for expid, before in experiments.items():
        weights = quote(f"checkpoints/{base.folder.resolve().name}/{before}.model")
        lines.append(f"  fuxictr-mm train --config {quote(str(out))} --expid {expid} --initial_weights {weights}")
    show(args, document, "\n".join(lines))


def format_summary(summary: Summary, folder: Path, experiments: list[str], advice: Sequence[str] = ()) -> str:
    """Return what was written, as text, with the advice of the reader."""
    from fuxictr_mm.terminal import grouped

    lines = [_format_splits(summary, "cold target"), ""]
    lines.append(f"{grouped(summary.items)} items, {grouped(summary.users)} users")
    unknown = sum(split.unknown_items for split in summary.splits.values())
    if unknown:
        lines.append(f"{grouped(unknown)} history items are in no item file; they were dropped")
    lines += [f"{name}: {part:.1%} of the items" for name, part in summary.coverage.items()]
    lines += [line for source, facts in summary.columns.items() for line in _format_columns(source, facts)]
    lines += ["", *advice] if advice else []
    lines += ["", f"{folder}: configuration written. To train:"]
    lines += [f"  fuxictr-mm train --config {quote(str(folder))} --expid {expid}" for expid in experiments]
    return "\n".join(lines)


def _format_splits(summary: Summary, cold: str) -> str:
    """Return a line of each split; ``cold`` names the rows of targets that training does not have."""
    from fuxictr_mm.terminal import format_table, grouped

    header = ["split", "rows", "positive", "history", "no history", cold, "left out"]
    rows = []
    for name, split in summary.splits.items():
        positive = f"{split.positives / split.labelled:.1%}" if split.labelled else "-"
        empty, unseen = (f"{part / split.rows:.1%}" for part in (split.without_history, split.cold))
        mean = f"{split.history_items / split.rows:.1f}"
        rows.append([name, grouped(split.rows), positive, mean, empty, unseen, grouped(split.left_out)])
    return format_table(header, rows, right=header[1:])


def _format_columns(source: str, facts: dict[str, Any]) -> list[str]:
    """Return a line of the columns of a file that became features, and of those that did not."""
    texts = [name for name, column in facts["written"].items() if column["type"] == "text"]
    kinds = {name: column["type"] for name, column in facts["written"].items()}
    kinds |= dict.fromkeys(texts, "text, not read by models")
    written = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    lines = [f"{source}: {written or 'no column'}"]
    if left_out := ", ".join(f"{name} ({why})" for name, why in facts["left_out"].items()):
        lines.append(f"{source}, left out: {left_out}")
    if texts:
        lines.append(
            "models read embeddings of texts: write them with fuxictr-mm embed encode, and prepare again with "
            "--embeddings"
        )
    return lines
