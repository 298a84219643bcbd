"""``fuxictr-mm compare``: which of two or more configurations is better, by more than chance."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.records.auc import delong_variance
from fuxictr_mm.records.comparison import fixed
from fuxictr_mm.records.listing import state
from fuxictr_mm.records.reading import RunRecord, find_runs, resolve_one
from fuxictr_mm.records.standing import Comparison, compare_groups
from fuxictr_mm.records.table import format_table

MIN_SAMPLES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm compare``."""
    add_examples(
        parser,
        "fuxictr-mm compare DIN_MM_tiny DIN_tiny                   all finished runs of two experiments, seeds grouped",
        "fuxictr-mm compare DIN_MM_tiny DIN_MM_text_tiny DIN_tiny  each against the best",
        "fuxictr-mm compare checkpoints/tiny_mm/DIN_tiny other/tiny_mm/DIN_tiny/20250102-030405-seed7 --json",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="experiment id, name of a run, or folder of either")
    parser.add_argument("--root", default="checkpoints", metavar="DIR", help="the model_root of the runs (checkpoints)")
    parser.add_argument("--split", choices=("valid",), default="valid", help="rows to compare on (valid)")
    parser.add_argument("--samples", type=int, default=2000, metavar="N", help="draws of users (2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (0)")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Compare and print."""
    if len(args.names) < 2:
        raise ConfigError(f"compare: '{args.names[0]}' alone; give two or more experiment ids, runs or folders")
    if args.samples < MIN_SAMPLES:
        raise ConfigError(f"--samples is {args.samples}, expected {MIN_SAMPLES} or more")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}, expected 0 or more")
    found = compare(args.names, args.root, samples=args.samples, seed=args.seed, quiet=args.quiet)
    show(args, as_dict(found), as_text(found))


def compare(
    names: Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str] = "checkpoints",
    *,
    samples: int = 2000,
    seed: int = 0,
    quiet: bool = True,
) -> Comparison:
    """Compare the runs that names stand for on their validation rows.

    Parameters
    ----------
    names : sequence of str or path
        Two or more, as for ``resolve_one``.
    root : path
        The ``model_root`` of the runs.
    samples, seed : int
        Draws of users, and their seed.
    quiet : bool
        No progress bar.

    Raises
    ------
    UserError
        A name stands for no run, two sides share a run, or runs were validated on different rows.
    """
    known = find_runs(root)
    notes: list[str] = []
    labels = [_label(name, names) for name in names]
    chosen = [_one_configuration(resolve_one(name, known, root), _label(name, names), notes) for name in names]
    _check_distinct(chosen, labels)
    groups = dict(zip(labels, chosen, strict=True))
    found = compare_groups(groups, known, samples=samples, seed=seed, track=lambda chunks: _progress(chunks, quiet))
    notes += found.notes
    if len(found.pairs) > 1:
        notes.append(
            f"p is corrected for all {len(found.pairs)} pairs (Holm), since the best was chosen among them; intervals "
            "are of each pair alone"
        )
    return replace(found, notes=notes)


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison for JSON."""
    sides = []
    for side, records in zip(comparison.sides, comparison.records, strict=True):
        runs = [
            {
                "run": record.run,
                "expid": record.expid,
                "seed": record.seed,
                "path": str(record.path),
                "auc": run.auc,
                "delong_error": delong_variance([run]) ** 0.5,
                "bootstrap_error": float(sample.std(ddof=1)),
            }
            for record, run, sample in zip(records, side.runs, side.samples, strict=True)
        ]
        sides.append({"name": side.name, "configuration": side.configuration, "auc": side.mean, "runs": runs})
    pairs = [
        {
            "first": pair.first.name,
            "second": pair.second.name,
            **asdict(pair.found),
            "corrected_p": pair.corrected_p,
            "better": pair.better,
            "verdict": pair.verdict,
        }
        for pair in comparison.pairs
    ]
    names = ("rows", "positives", "users", "samples", "notes")
    return {**{name: getattr(comparison, name) for name in names}, "sides": sides, "pairs": pairs}


def as_text(comparison: Comparison) -> str:
    """Return a comparison for a terminal."""
    of_users = "" if comparison.users == comparison.rows else f" of {comparison.users:,} users"
    lines = [f"{comparison.rows:,} validation rows{of_users}, {comparison.positives:,} positive", ""]
    rows = []
    for side, records in zip(comparison.sides, comparison.records, strict=True):
        if len(side.runs) > 1:
            spread = f"seeds {side.aucs.std(ddof=1):.4f}"
            rows.append([f"{side.name}, mean of {len(side.runs)}", "", f"{side.mean:.4f}", spread])
        for record, run in zip(records, side.runs, strict=True):
            name = f"  {record.run}" if len(side.runs) > 1 else side.name
            error = f"rows  {delong_variance([run]) ** 0.5:.4f}"
            rows.append([name, "" if record.seed is None else str(record.seed), f"{run.auc:.4f}", error])
    lines += [format_table(["run", "seed", "AUC", "deviation"], rows, right=["seed", "AUC"]), ""]
    against_best = [pair for pair in comparison.pairs if pair.first is comparison.sides[0]]
    header = ["difference", "", "95 % interval", "for these weights", "DeLong p", "p"]
    rows = [
        [
            f"{pair.first.name} - {pair.second.name}",
            fixed(pair.found.value, "+"),
            f"{fixed(pair.found.low, '+')} to {fixed(pair.found.high, '+')}" if pair.found.seeds else "seeds unknown",
            f"{fixed(pair.found.rows_low, '+')} to {fixed(pair.found.rows_high, '+')}",
            _format_p(pair.found.delong_p),
            _format_p(pair.corrected_p) if pair.found.seeds else "",
        ]
        for pair in against_best
    ]
    lines += [format_table(header, rows), ""]
    lines += [f"{pair.verdict}." for pair in against_best]
    lines += [f"Note: {note}." for note in comparison.notes]
    return "\n".join(lines)


def _label(name: str | os.PathLike[str], names: Iterable[str | os.PathLike[str]]) -> str:
    """Return the last part of a path, unless another name ends the same."""
    short = Path(name).name
    return os.fspath(name) if sum(Path(other).name == short for other in names) > 1 else short


def _one_configuration(records: Sequence[RunRecord], name: str, notes: list[str]) -> list[RunRecord]:
    """Return the runs of the newest configuration, the newest of each seed; broken ones are left out."""
    broken = [f"{name}, run {record.run}, is left out: {state(record)}" for record in records if not record.is_usable]
    records = [record for record in records if record.is_usable]
    if not records:
        raise DataError(f"{'; '.join(broken)}; train it again")
    notes += broken
    key = records[0].config_key
    kept: dict[int | None, RunRecord] = {}
    for record in (r for r in records if r.config_key == key):
        kept.setdefault(record.seed, record)
    configurations = len({record.config_key for record in records})
    if configurations > 1:
        notes.append(
            f"{name}: its {len(records)} runs are of {configurations} configurations; {len(kept)} of the newest, begun "
            f"at {records[0].started_at}, {'is' if len(kept) == 1 else 'are'} compared"
        )
    elif len(kept) < len(records):
        notes.append(f"{name}: of runs with the same seed the newest is compared ({len(kept)} of {len(records)} runs)")
    return list(kept.values())


def _check_distinct(groups: Sequence[Sequence[RunRecord]], labels: Sequence[str]) -> None:
    owner: dict[Path, str] = {}
    for group, name in zip(groups, labels, strict=True):
        for record in group:
            path = record.path.resolve()
            if path in owner:
                raise ConfigError(
                    f"the run {record.run} is on both sides, of {owner[path]} and of {name}; "
                    "give two different experiments or runs"
                )
            owner[path] = name


def _progress(chunks: Iterable[int], quiet: bool) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(chunks, desc="draws of users", leave=False, disable=quiet or not sys.stderr.isatty())


def _format_p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
