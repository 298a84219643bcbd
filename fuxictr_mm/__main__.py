"""``python -m fuxictr_mm`` is ``fuxictr-mm``."""

from fuxictr_mm.cli import main

main()
