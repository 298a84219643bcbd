"""Which of several runs are taken: those of the data as it is now, before newer ones of other data."""

from __future__ import annotations

from collections.abc import Sequence

from fuxictr_mm.data.fingerprint import changed_data
from fuxictr_mm.runs.run import TEST_DATA, Run


def present_first(runs: Sequence[Run]) -> list[Run]:
    """Return runs of the data as it is now, then those of which only the test file has changed, then all others.

    The order within each part is kept; so is that of all runs, if none is known to be of the data as it is now.
    """
    if all(run.data == runs[0].data for run in runs):  # no file is read where there is nothing to choose
        return list(runs)
    return sorted(runs, key=_age_of_data)


def _age_of_data(run: Run) -> int:
    """Return 0 of the data as it is now, 1 if only the test file has changed, 2 of other data and of unknown."""
    decisive = {k: v for k, v in run.data.items() if k != TEST_DATA}
    if not decisive or changed_data(decisive, run.config):
        return 2
    return 1 if changed_data(run.data, run.config) else 0


def differences(runs: Sequence[Run]) -> list[str]:
    """Return in which of their ``sources`` runs differ; a last entry for hashes that only some have."""
    sources = [run.sources for run in runs]
    names = dict.fromkeys(name for found in sources for name in found)
    differ = [name for name in names if len({found.get(name) for found in sources}) > 1]
    known = [name for name in differ if all(found.get(name) for found in sources)]
    return known + ["hashes of files, which only some have"] * (len(known) < len(differ))


def left_out(runs: Sequence[Run], first: Run) -> str:
    """Return which runs, newest first, are newer than the first of ``present_first``, and why they come after it."""
    newer = runs[: [run.path for run in runs].index(first.path)]
    if not newer:
        return ""
    changed = dict.fromkeys(found for run in newer if (found := changed_data(run.data, run.config)))
    reason = f"{' and '.join(changed)} changed since" if changed else "their data is not known"
    return (
        f"runs of the data as it is now are taken before newer ones ({', '.join(run.run for run in newer)}: {reason})"
    )
