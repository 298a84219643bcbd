"""Settings to begin with on data of some size."""

from __future__ import annotations

import math
from typing import Any

#: Settings by the number of training rows: those of the first bound that is larger. ``units`` are of every MLP.
SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (1e5, {"batch_size": 256, "epochs": 20, "embedding_dim": 32, "units": [128, 64]}),
    (1e6, {"batch_size": 1024, "epochs": 8, "embedding_dim": 32, "units": [128, 64]}),
    (math.inf, {"batch_size": 4096, "epochs": 4, "embedding_dim": 64, "units": [256, 128]}),
)
