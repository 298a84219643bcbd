"""``python -m fuxictr_mm_serving``."""

from fuxictr_mm_serving.command import main

if __name__ == "__main__":
    main()
