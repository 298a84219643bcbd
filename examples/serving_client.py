"""Rank candidates by a server of ``fuxictr-mm serve``: ``python examples/serving_client.py http://localhost:8000``."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any


def score(server: str, request: dict[str, Any]) -> list[float]:
    """Return the score of each candidate of a request."""
    body = json.dumps(request).encode()
    asked = urllib.request.Request(f"{server}/score", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)["scores"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {json.load(error)['error']}") from error


if __name__ == "__main__":
    candidates = [8, 9, 10, 11, 12]
    context = {"likes_level": 3, "views_level": 2}
    scores = score(sys.argv[1], {"context": context, "history": [5, 6, 7], "candidates": candidates})
    for item, found in sorted(zip(candidates, scores, strict=True), key=lambda pair: -pair[1]):
        print(f"{item:6} {found:.4f}")
