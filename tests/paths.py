"""Where the repository is, and the small dataset in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "data" / "tiny_mm"
