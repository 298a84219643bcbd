"""The table of trials: printed, and written as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuxictr_mm import terminal
from fuxictr_mm.errors import UserError
from fuxictr_mm.files import write_beside
from fuxictr_mm.tuning.trial import FOLLOWED_KEYS, TrialResult


def _tuned_keys(results: Sequence[TrialResult]) -> list[str]:
    """Return the settings that differ between trials, in the order of the configuration."""
    keys = dict.fromkeys(key for result in results for key in result.params if key not in FOLLOWED_KEYS)
    texts = {key: {json.dumps(result.params.get(key), default=str) for result in results} for key in keys}
    return [key for key, seen in texts.items() if len(seen) > 1]


def _columns(results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Return the cells of each trial by the name of the column, best trial first."""
    tuned = _tuned_keys(results)
    valid = dict.fromkeys(name for result in results for name in result.valid)
    test = dict.fromkeys(name for result in results for name in result.test)
    ranked = sorted(results, key=lambda result: (result.error is not None, result.pruned, -result.score))
    rows = []
    for rank, result in enumerate(ranked, start=1):
        row: dict[str, Any] = {"rank": rank if result.state == "finished" else "", "expid": result.expid}
        row |= {f"valid {name}": result.valid.get(name, "") for name in valid}
        row |= {f"test {name}": result.test.get(name, "") for name in test}
        row |= {key: result.params.get(key) for key in tuned}
        row["seconds"] = "" if math.isnan(result.seconds) else round(result.seconds, 1)
        if any(other.state != "finished" for other in results):
            row["state"] = result.state
        if any(other.error is not None for other in results):
            row["error"] = result.error or ""
        rows.append(row)
    return rows


def format_table(results: Sequence[TrialResult]) -> str:
    """Return the results, one or more, best first by the monitored metric, then pruned trials, then failed ones.

    Columns: rank, experiment id, metrics, the settings that differ between the trials, seconds; the state where not all
    have finished, and the last line of output of those that failed.
    """

    def text(column: str, cell: Any) -> str:
        # Six digits in the table; the CSV has all.
        if column.startswith(("valid ", "test ")) and cell != "":
            shown = f"{cell:.6f}"
        else:
            shown = f"{cell:.6g}" if isinstance(cell, float) and column != "seconds" else str(cell)
        return shown if column == "error" or len(shown) <= 40 else shown[:37] + "..."

    rows = _columns(results)
    cells = [[text(column, cell) for column, cell in row.items()] for row in rows]
    return terminal.format_table(list(rows[0]), cells)


def write_table(results: Sequence[TrialResult], path: Path) -> None:
    """Write the table of ``format_table`` as CSV, numbers in full."""
    rows = _columns(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_beside(path, lambda stream: stream.write(text.getvalue().encode()))


def report(
    results: Sequence[TrialResult],
    config_dir: Path,
    tag: str | None = None,
    importance: Mapping[str, float] | None = None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Print the table, or one JSON document, write it into the folder, and raise an error if trials failed.

    It is ``results.csv``, or ``results_TAG.csv`` if only the trials of a tag ran. ``importance`` of the settings is
    printed as well.

    Raises
    ------
    UserError
        If a trial failed.
    """
    importance = importance or {}
    table = config_dir / ("results.csv" if tag is None else f"results_{tag}.csv")
    write_table(results, table)
    skipped = sum(result.skipped for result in results)
    if as_json:
        print(json.dumps({"folder": str(config_dir), "trials": _columns(results), "importance": importance}))
    elif not quiet:
        print(format_table(results))
        if importance:
            print("importance: " + ", ".join(f"{key} {fraction:.2f}" for key, fraction in importance.items()))
        print(f"{len(results)} trials, {skipped} of them run earlier or by another process; written to {table}")
    failed = [result for result in results if result.error is not None]
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(results)} trials failed, first {first.expid}: {first.error}; "
            f"see {config_dir / 'logs' / first.expid}.out, and run the same command again for the missing ones"
        )
