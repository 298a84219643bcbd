"""Initial settings by the size of the training split."""

from __future__ import annotations

import math
from typing import Any

#: Settings by the number of training rows: those of the first bound that is larger. ``units`` are of every MLP.
SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (1e5, {"batch_size": 256, "epochs": 20, "embedding_dim": 32, "units": [128, 64]}),
    (1e6, {"batch_size": 1024, "epochs": 8, "embedding_dim": 32, "units": [128, 64]}),
    (math.inf, {"batch_size": 4096, "epochs": 4, "embedding_dim": 64, "units": [256, 128]}),
)

#: Epochs after which the plain average of the weights begins, where there is one. A ``learning_rate`` two to four times
#: as high is best with it, and with it alone (``docs/choosing_settings.md``).
SWA_EPOCHS = 2

#: The first learning rate of a model with that average.
SWA_LEARNING_RATE = {"DIN_MM": 4e-3, "QIN": 2e-3, "DIN": 4e-3}


def size_for(rows: int) -> dict[str, Any]:
    """Return the entry of ``SIZES`` for a number of training rows.

    Examples
    --------
    >>> size_for(80_024)["batch_size"]
    256
    """
    return dict(next(settings for bound, settings in SIZES if rows < bound))


def updates_of(epochs: int, rows: int, batch_size: int) -> int:
    """Return the number of updates of some epochs, which ``swa_start`` is given in.

    Examples
    --------
    >>> updates_of(2, 80_024, 256)
    626
    """
    return epochs * math.ceil(rows / batch_size)
