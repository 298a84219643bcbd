"""Start a program that gets SIGTERM when its parent process has ended, even by SIGKILL.

Run by its path: ``python -I child.py PARENT_PID PROGRAM ARGUMENT ...``. Linux signals a child when its parent
ends; elsewhere the program simply starts, and the lock that it inherits protects its files.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Request the signal, then execute the program."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it ended before the request
            sys.exit("the process that started this trial has ended")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
