"""``python -m fuxictr_mm`` is ``fuxictr-mm``."""

import os
import sys

# With -m, Python searches the working directory first, and would import a random.py or torch.py of the user's in place
# of the module. It is searched last instead: a module of the user's, or a checkout that is not installed, is found.
if sys.path[:1] == [os.getcwd()]:
    sys.path.append(sys.path.pop(0))

from fuxictr_mm.cli import main

main()
