"""``python -m fuxictr_mm`` is ``fuxictr-mm``."""

import os
import sys
from contextlib import suppress


def _search_working_directory_last() -> None:
    """Search the working directory for modules last: with ``-m`` it is first, and has a random.py or torch.py perhaps.

    A module of the user's is still found. A checkout stays first, so that all packages are those of the checkout.
    """
    here = os.getcwd()
    if sys.path[:1] == [here] and here != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
        sys.path.append(sys.path.pop(0))


with suppress(OSError):  # the working directory has been deleted
    _search_working_directory_last()

from fuxictr_mm.cli import main  # noqa: E402

main()
