"""The command ``fuxictr-mm prepare``."""

from fuxictr_mm.cli import main


def run(*arguments: object) -> int:
    """Run ``fuxictr-mm prepare``; returns its exit code."""
    try:
        main(["prepare", *map(str, arguments)])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0
