"""``fuxictr-mm prepare``: turn a log of your own, or a public dataset, into this library's layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, nearest

if TYPE_CHECKING:
    from fuxictr_mm.datasets.reader import Reader
    from fuxictr_mm.datasets.writer import Summary

#: Settings of both experiments that are written to begin with.
FIRST_SETTINGS = {
    "metrics": ["AUC", "logloss"],
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "embedding_regularizer": 1e-6,
    "batch_size": 4096,
    "epochs": 10,
    "early_stop_patience": 2,
    "embedding_dim": 32,
    "dnn_hidden_units": [256, 128],
    "net_dropout": 0.1,
}


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
    parser.add_argument("--max_len", type=int, metavar="N", help="newest items kept of a history (default: by dataset)")
    parser.add_argument(
        "--labels", nargs="+", metavar="NAME", help="labels to train on, of the kinds of feedback (default: the first)"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin again: delete what is in --out")
    add_output_options(parser)
    add_log_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Write the dataset and say what was found."""
    from fuxictr_mm.data.prepared import MANIFEST
    from fuxictr_mm.datasets.own.options import given_options
    from fuxictr_mm.datasets.reader import load_reader
    from fuxictr_mm.datasets.writer import Writer
    from fuxictr_mm.logs import set_up_logging

    if not args.quiet and not args.json:
        set_up_logging()
    if args.max_len is not None and args.max_len < 1:
        raise ConfigError(f"--max_len is {args.max_len}, expected 1 or more")
    if args.like is not None and args.name == "log":
        return _write_later(args)
    reader_class = load_reader(args.name)
    reader = reader_class(args.source, args.out / ".scratch", args.max_len or reader_class.history_len)
    reader.configure(given_options(args))
    labels = choose_labels(args.name, reader, args.labels)
    is_kept = (args.out / "dataset_config.yaml").exists() and not (args.overwrite and (args.out / MANIFEST).exists())
    if args.labels and is_kept and not reader.options:  # which are compared with those of the folder
        raise ConfigError(
            f"--labels: {args.out / 'dataset_config.yaml'} is there already and is kept; change its label_col, or give "
            "--overwrite"
        )
    name = args.name.partition(":")[2] or args.name
    summary = Writer(reader, name, args.out, verbose=0 if args.quiet or args.json else 1).write(args.overwrite)
    dataset_id = args.out.resolve().name
    experiments = write_config(args.out, dataset_id, reader, summary, labels)
    document = {"folder": str(args.out), "experiments": experiments, **asdict(summary)}
    show(args, document, format_summary(summary, args.out, experiments))


def _write_later(args: argparse.Namespace) -> None:
    """Write a log that goes on where another ended, and say what was found."""
    from fuxictr_mm.datasets.own.later import LaterLog
    from fuxictr_mm.datasets.own.options import given_options
    from fuxictr_mm.datasets.writer import Writer

    like, out = Path(args.like), args.out
    if args.max_len is not None:
        raise ConfigError(f"--max_len: with --like it is that of {like}; leave it out")
    if like.resolve() in (out.resolve(), *out.resolve().parents) or out.resolve() in like.resolve().parents:
        raise ConfigError(f"--out {out}: lies in --like {like} or holds it; give another folder")
    reader = LaterLog(args.source, out / ".scratch", LaterLog.history_len)
    reader.configure(given_options(args))
    summary = Writer(reader, "log", out, verbose=0 if args.quiet or args.json else 1).write(args.overwrite)
    new_items = summary.items - reader.base.known_items
    document = {"folder": str(out), "like": str(like), "new_items": new_items, **asdict(summary)}
    lines = [_format_splits(summary, "new item"), "", f"{new_items} new items"]
    lines += ["", f"{out}: rows written. To score them:"]
    score = f"fuxictr-mm predict --config {quote(str(like))} --expid EXPID --data {quote(str(out / 'test'))}"
    show(args, document, "\n".join([*lines, f"  {score} --out predictions.parquet"]))


def format_summary(summary: Summary, folder: Path, experiments: list[str]) -> str:
    """Return what was written, as text."""
    from fuxictr_mm.terminal import grouped

    lines = [_format_splits(summary, "cold target"), ""]
    lines.append(f"{grouped(summary.items)} items, {grouped(summary.users)} users")
    unknown = sum(split.unknown_items for split in summary.splits.values())
    if unknown:
        lines.append(f"{grouped(unknown)} history items are in no item file; they were dropped")
    lines += [f"{name}: {part:.1%} of the items" for name, part in summary.coverage.items()]
    lines += [line for source, facts in summary.columns.items() for line in _format_columns(source, facts)]
    lines += ["", f"{folder}: configuration written. To train:"]
    lines += [f"  fuxictr-mm train --config {quote(str(folder))} --expid {expid}" for expid in experiments]
    return "\n".join(lines)


def _format_splits(summary: Summary, cold: str) -> str:
    """Return a line of each split; ``cold`` names the rows of targets that training does not have."""
    from fuxictr_mm.terminal import format_table, grouped

    header = ["split", "rows", "positive", "history", "no history", cold, "left out"]
    rows = []
    for name, split in summary.splits.items():
        parts = [split.positives / split.rows, split.without_history / split.rows, split.cold / split.rows]
        positive, empty, cold = (f"{part:.1%}" for part in parts)
        mean = f"{split.history_items / split.rows:.1f}"
        rows.append([name, grouped(split.rows), positive, mean, empty, cold, grouped(split.left_out)])
    return format_table(header, rows, right=header[1:])


def _format_columns(source: str, facts: dict[str, Any]) -> list[str]:
    """Return a line of the columns of a file that became features, and of those that did not."""
    written = ", ".join(f"{name} ({column['type']})" for name, column in facts["written"].items())
    left_out = ", ".join(f"{name} ({why})" for name, why in facts["left_out"].items())
    return [f"{source}: {written or 'no column'}", *([f"{source}, left out: {left_out}"] if left_out else [])]


def choose_labels(name: str, reader: Reader, given: Sequence[str] | None) -> list[str]:
    """Return the labels to train on, by default the reader's own.

    Raises
    ------
    ConfigError
        The dataset has no such label, or one is given twice.
    """
    labels = list(given or [reader.label])
    known = [reader.label, *reader.other_labels]
    for label in labels:
        if label not in known or labels.count(label) > 1:
            what = "is given twice" if label in known else f"no label of {name}{nearest(label, known)}"
            raise ConfigError(f"--labels {label}: {what} (there are: {', '.join(known)})")
    return labels


def write_config(
    folder: Path, dataset_id: str, reader: Reader, summary: Summary, labels: Sequence[str] = ()
) -> list[str]:
    """Write ``dataset_config.yaml`` and ``model_config.yaml`` for a prepared folder; return the experiment ids.

    Files that are there already are kept: they may have been changed.
    """
    from fuxictr_mm.files import atomic_path
    from fuxictr_mm.yaml_files import dump_yaml

    dataset = dataset_entry(reader, summary, labels)
    experiments = {}
    for model, others in reader.experiments(summary).items():
        settings = {key: value for key, value in {**FIRST_SETTINGS, **others}.items() if value is not None}
        experiments[f"{model}_{dataset_id}"] = {"model": model, "dataset_id": dataset_id, **settings}
    for stem, content in (("dataset_config", {dataset_id: dataset}), ("model_config", experiments)):
        path = folder / f"{stem}.yaml"
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_text(dump_yaml(content), encoding="utf-8")
    return list(experiments)


def dataset_entry(reader: Reader, summary: Summary, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entry of ``dataset_config.yaml`` for a prepared folder, by default on the reader's own label."""
    from fuxictr_mm.data.prepared import ITEM_FILE

    user_id: dict[str, Any] = {"name": "user_id", "dtype": "int", "type": "meta"}
    if reader.embeds_users(summary):
        user_id.update(type="categorical", vocab_size=summary.vocab_sizes["user_id"])
    columns: list[dict[str, Any]] = [
        user_id,
        {"name": "item_seq", "dtype": "int", "type": "meta"},
    ]
    for name, kind in reader.context.items():
        columns.append(_feature(name, kind, summary))
    item_id = {"name": "item_id", "dtype": "int", "type": "categorical" if reader.embed_item_id else "meta"}
    columns.append({**item_id, "source": "item", "vocab_size": summary.items + 1})
    for name, kind in reader.item_columns.items():
        if kind != "text":
            columns.append({**_feature(name, kind, summary), "source": "item"})
    for name in summary.coverage:
        feature: dict[str, Any] = {"name": name, "dtype": "float", "type": "embedding", "source": "item"}
        if name in summary.scales:
            feature["scale"] = summary.scales[name]
        columns.append(feature)
    paths = {f"{split}_data": f"./{split}" for split in summary.splits}
    label_col = [{"name": name, "dtype": "float"} for name in labels or [reader.label]]
    return {
        "data_root": "./",
        "data_format": "parquet",
        **paths,
        "item_info": [f"./{ITEM_FILE}", *(f"./{name}.parquet" for name in summary.coverage)],
        "rebuild_dataset": False,
        "feature_cols": columns,
        "label_col": label_col if len(label_col) > 1 else label_col[0],
    }


def _feature(name: str, kind: str, summary: Summary) -> dict[str, Any]:
    if kind == "numeric":
        return {"name": name, "dtype": "float", "type": "numeric"}
    return {"name": name, "dtype": "int", "type": kind, "vocab_size": summary.vocab_sizes[name]}
