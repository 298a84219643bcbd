"""Errors that a user can fix: one line each, shown without a traceback and with exit code 2."""

import difflib
import errno
from collections.abc import Iterable

#: Errors of a disk that is written, such as a full one.
OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def nearest(name: object, known: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"`` for a near miss, else an empty string."""
    spelled = {str(k).lstrip("-"): str(k) for k in known}  # the dashes of options make all of them alike
    matches = difflib.get_close_matches(str(name).lstrip("-"), spelled, n=1, cutoff=0.65)
    return f"; did you mean '{spelled[matches[0]]}'?" if matches else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error that may have many, or its class where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class UserError(ValueError):
    """Data, configuration or an option is wrong.

    The message is one line: what was found, where, what was expected, what to do.
    """


class ConfigError(UserError):
    """A YAML file, an experiment id, a flag or a model parameter is wrong."""


class DataError(UserError):
    """A data file holds something that cannot be trained on or scored."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a run after it had written its state; like Ctrl-C, no ``except Exception`` catches it.

    Parameters
    ----------
    message : str
        Where the run stopped and how to resume it.
    signal : int
        Number of the signal; the exit code is 128 more, as of a program that the signal killed.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
