"""``fuxictr-mm compare``: which of two or more configurations is better, by more than chance."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.evaluation.significance import (
    Difference,
    RankedRows,
    Side,
    bootstrap_aucs,
    delong_variance,
    difference,
    fixed,
    holm,
    verdict,
)
from fuxictr_mm.runs import RunRecord, find_runs, resolve_one, state
from fuxictr_mm.terminal import format_table

MIN_USERS = 10


#: Label, prediction, group or None of each row.
Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Pair:
    """Two sides and what was found of them.

    Parameters
    ----------
    first, second : Side
        The difference is first less second.
    found : Difference
        From ``difference``.
    corrected_p : float
        Corrected for the number of pairs.
    verdict : str
        A sentence.
    """

    first: Side
    second: Side
    found: Difference
    corrected_p: float
    verdict: str

    @property
    def better(self) -> str | None:
        """Name of the better side, None where no difference is shown."""
        if not self.found.is_shown(self.corrected_p):
            return None
        return self.first.name if self.found.value > 0 else self.second.name


@dataclass(frozen=True)
class Comparison:
    """Groups of runs and their differences.

    Parameters
    ----------
    sides : list of Side
        Best mean AUC first where there are more than two, else as given.
    records : list of list of RunRecord
        The runs of each side.
    pairs : list of Pair
        All pairs; those of the first side come first. Corrected for their number.
    rows, positives, users : int
        Of the validation rows.
    samples : int
        Draws that had both classes.
    notes : list of str
        What was chosen, and what to keep in mind.
    """

    sides: list[Side]
    records: list[list[RunRecord]]
    pairs: list[Pair]
    rows: int
    positives: int
    users: int
    samples: int
    notes: list[str] = field(default_factory=list)


def compare_groups(
    groups: Mapping[str, Sequence[RunRecord]],
    known: Sequence[RunRecord],
    *,
    samples: int = 2000,
    seed: int = 0,
    track: Callable[[Iterable[int]], Any] = iter,
    on_problem: Callable[[str, RunRecord, str], None] | None = None,
) -> Comparison:
    """Compare every two groups of runs on their validation rows.

    Parameters
    ----------
    groups : mapping of str to sequence of RunRecord
        Seeds of one configuration each, by a name for the sentences. More than two are put in order, the best first.
    known : sequence of RunRecord
        All runs there are: further seeds of a group's configuration count for how far seeds lie apart.
    samples, seed : int
        Draws of users, and their seed.
    track : callable
        Wraps the iterable of the chunks of draws, to show progress.
    on_problem : callable, optional
        Gets name, run and reason where a run has no predictions, or other rows than most; it is left out then, and so
        is a group without a run. Without it the first problem is raised.

    Raises
    ------
    UserError
        Nothing can be compared, or, without ``on_problem``, a run cannot.
    """
    notes: list[str] = []
    read: list[tuple[str, RunRecord, Rows]] = []
    for name, record in [(name, record) for name, group in groups.items() for record in group]:
        try:
            read.append((name, record, record.predictions()))
        except UserError as error:
            if on_problem is None:
                raise
            on_problem(name, record, str(error))
    if not read:
        raise DataError("no run has predictions to compare")
    digests = [_digest(rows) for _, _, rows in read]
    _, chosen, (label, _, user_of_row) = read[digests.index(Counter(digests).most_common(1)[0][0])]
    if label.min() == label.max():
        raise DataError(f"{chosen.path}: all {len(label)} labels are {label[0]}; AUC needs both classes")
    kept: dict[str, list[tuple[RunRecord, np.ndarray]]] = {}
    for name, record, (own_label, prediction, own_group) in read:
        what = _what_differs(label, own_label, user_of_row, own_group)
        if not what:
            kept.setdefault(name, []).append((record, prediction))
        elif on_problem is None:
            raise DataError(
                f"{record.path} and {chosen.path} were validated on different rows: {what}; compare runs that "
                "validated on one file"
            )
        else:
            on_problem(name, record, f"validated on other rows than {chosen.run}: {what}")
    user = _users(label, user_of_row, notes)
    users = int(user.max()) + 1
    ranked = [RankedRows(label, prediction) for group in kept.values() for _, prediction in group]
    drawn = bootstrap_aucs(ranked, user, samples, seed, track)
    if drawn.shape[1] < samples // 2:
        raise DataError(f"only {drawn.shape[1]} of {samples} draws of users hold both classes: too few validation rows")
    compared = [[record for record, _ in group] for group in kept.values()]
    everyone = [record for group in compared for record in group]
    sides, start = [], 0
    for name, group in zip(kept, compared, strict=True):
        part = slice(start, start + len(group))
        others = _other_seeds(group, everyone, known, label)
        sides.append(Side(name, group[0].config_key, ranked[part], drawn[part], others))
        start += len(group)
    if len(sides) > 2:
        order = sorted(range(len(sides)), key=lambda i: -sides[i].mean)
        sides, compared = [sides[i] for i in order], [compared[i] for i in order]
    pairs = _compare_all(sides, users)
    return Comparison(sides, compared, pairs, len(label), int(label.sum()), users, drawn.shape[1], notes)


def _compare_all(sides: Sequence[Side], users: int) -> list[Pair]:
    couples = list(itertools.combinations(sides, 2))
    found = [difference(first, second, users) for first, second in couples]
    corrected = holm([f.p_value for f in found])
    pairs = []
    for (first, second), one, p_value in zip(couples, found, corrected, strict=True):
        sentence = verdict(first, second, one, p_value if len(couples) > 1 else None)
        pairs.append(Pair(first, second, one, p_value, sentence))
    return pairs


def _digest(rows: Rows) -> str:
    label, _, group = rows
    of_group = "" if group is None else sha256(group.astype(str).tobytes()).hexdigest()
    return sha256(label.astype(np.int8).tobytes()).hexdigest() + of_group


def _what_differs(
    label: np.ndarray, own_label: np.ndarray, group: np.ndarray | None, own_group: np.ndarray | None
) -> str:
    if len(own_label) != len(label):
        return f"{len(own_label)} against {len(label)}"
    if not np.array_equal(own_label, label):
        return f"labels differ, first in row {int(np.argmax(own_label != label))}"
    if own_group is not None and group is not None and not np.array_equal(own_group, group):
        return f"groups differ, first in row {int(np.argmax(own_group != group))}"
    return ""


def _users(label: np.ndarray, group: np.ndarray | None, notes: list[str]) -> np.ndarray:
    """Return the number of each row's user, from 0."""
    if group is None:
        notes.append("the runs have no group_id, so rows are resampled instead of users, as if no two were of one user")
        return np.arange(len(label))
    user = np.unique(group, return_inverse=True)[1]
    if user.max() + 1 < MIN_USERS:
        raise DataError(f"validation rows of {user.max() + 1} users; {MIN_USERS} or more are needed to resample them")
    return user


def _other_seeds(
    group: Sequence[RunRecord], compared: Sequence[RunRecord], known: Sequence[RunRecord], label: np.ndarray
) -> list[float]:
    """Return the AUCs of further seeds of a side's configuration on the same rows."""
    taken = {record.path.resolve() for record in compared}
    seeds = {record.seed for record in compared if record.config_key == group[0].config_key}
    aucs = []
    for record in known:
        fits = record.is_usable and record.config_key == group[0].config_key and record.seed not in seeds
        if not fits or record.path.resolve() in taken:
            continue
        try:
            own_label, prediction, _ = record.predictions()
        except UserError:
            continue  # missing, or not finite: not one of those that were asked for
        if np.array_equal(own_label, label):
            seeds.add(record.seed)
            aucs.append(RankedRows(label, prediction).auc)
    return aucs


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
