"""Selection among runs: runs on the present data are preferred to newer runs on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fuxictr_mm.config import NOT_SET, differing
from fuxictr_mm.data.fingerprint import data_hashes, data_paths
from fuxictr_mm.runs.run import TEST_DATA, Run
from fuxictr_mm.terminal import listed


def present_first(runs: Sequence[Run]) -> list[Run]:
    """Return runs of the data as it is now by configuration, that of the newest of them first, then all others.

    They are given newest first. The test file decides no weights: of one configuration, runs of the test file as it is
    now come first. Otherwise the order is kept; so is that of all runs, if none is known to be of the data as it is
    now.
    """
    if all((run.data, _paths(run)) == (runs[0].data, _paths(runs[0])) for run in runs):
        return list(runs)  # no file is read where there is nothing to choose
    place: dict[str, int] = {}
    for run in runs:
        place.setdefault(run.config_key, len(place))

    def rank(run: Run) -> tuple[bool, int, bool]:
        return (False, place[run.config_key], bool(outdated(run, test=True))) if is_present(run) else (True, 0, False)

    return sorted(runs, key=rank)


def is_present(run: Run) -> bool:
    """Whether the files that determine a run's weights exist and have the saved hashes."""
    return any(run.data.get(name) for name in _paths(run) if name != TEST_DATA) and not outdated(run)


def outdated(run: Run, *, test: bool = False) -> str:
    """Return the first file of a known hash that has changed or is missing, among the test file or of all others."""
    now = data_hashes(run.config)
    for name, path in _paths(run).items():
        if (name == TEST_DATA) == test and run.data.get(name) not in (None, now.get(name)):
            return f"{name}: {path} {'changed since' if name in now else 'is missing'}"
    return ""


def differences(runs: Sequence[Run]) -> list[str]:
    """Return in which of their ``sources`` runs differ; a last entry for hashes that only some have."""
    found = differing([run.sources for run in runs])
    known = [name for name, hashes in found.items() if not {None, NOT_SET} & set(hashes)]
    return known + ["hashes of files, which only some have"] * (len(known) < len(found))


def left_out(runs: Sequence[Run], first: Run) -> str:
    """Return which runs, newest first, are newer than the first of ``present_first``, and why they come after it."""
    newer = runs[: [run.path for run in runs].index(first.path)]
    newer = [run for run in newer if run.config_key == first.config_key or not is_present(run)]
    if not newer:
        return ""
    reasons = dict.fromkeys(found for run in newer if (found := outdated(run) or outdated(run, test=True)))
    reason = " and ".join(reasons) or "their data is not known"
    return f"runs on the present data are preferred to newer ones ({', '.join(run.run for run in newer)}: {reason})"


def different_files(runs: Mapping[str, Run], split: str = "valid") -> list[str]:
    """Return notes on data files whose contents are known to differ between runs: of training, and of a split's rows.

    Rows are not refused for it: the same ones in another format, or with one more column, have another hash too. Labels
    and groups, which are compared elsewhere, do not tell them from rows with other items.
    """
    rows = f"{split}_data"
    found: dict[str, str] = {}
    for setting in dict.fromkeys(setting for run in runs.values() for setting in run.data):
        names: dict[str, list[str]] = {}
        for name, run in runs.items():
            if run.data.get(setting):
                names.setdefault(run.data[setting], []).append(name)
        if len(names) > 1 and (setting == rows or setting != TEST_DATA):
            sides = (f"{listed(side)}: {_paths(runs[side[0]]).get(setting, 'unknown path')}" for side in names.values())
            found[setting] = f"{setting} ({'; '.join(sides)})"
    evaluated = found.pop(rows, None)
    notes = [f"trained on files of different contents: {', '.join(found.values())}"] if found else []
    if evaluated:
        notes.append(
            f"evaluated on files of different contents: {evaluated}; right only if their rows are the same, in the "
            "same order"
        )
    return notes


def _paths(run: Run) -> dict[str, str]:
    return dict(data_paths(run.config))
