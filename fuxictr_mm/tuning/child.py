"""Start a program that gets SIGTERM when the process that started it is gone, even by SIGKILL.

Run by its path: ``python -I child.py PARENT_PID PROGRAM ARGUMENT ...``. Linux tells a child of its parent's death;
elsewhere the program simply starts, and the lock that it inherits keeps others off its files.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for the signal, then become the program."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before we had asked
            sys.exit("the process that started this trial is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
