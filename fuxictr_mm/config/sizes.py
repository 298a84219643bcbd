"""Initial settings by the size of the training split: what ``prepare log`` writes, and where the autopilot begins."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Settings for data of a size."""

    bound: float  #: They are for fewer training rows than this.
    #: The settings of these names. Where the weights are averaged, the eighth was the best epoch of every run on
    #: 400,000 rows of MovieLens-1M that had eight, and 20 gained 0.0035 (``docs/results/movielens.md``).
    batch_size: int
    epochs: int
    embedding_dim: int
    units: tuple[int, ...]  #: Hidden units of every MLP.


SIZES: tuple[Size, ...] = (
    Size(1e5, batch_size=256, epochs=20, embedding_dim=32, units=(128, 64)),
    Size(1e6, batch_size=1024, epochs=20, embedding_dim=32, units=(128, 64)),
    Size(math.inf, batch_size=4096, epochs=4, embedding_dim=64, units=(256, 128)),
)


@dataclass(frozen=True)
class Penalty:
    """``embedding_regularizer``, the L2 penalty on the tables of ids."""

    first: float  #: That of ``DIN_MM`` and ``DIN`` without a search; that of ``LightFM`` is ``factor_penalty_for``.
    #: Ends of the range to search, for any model.
    low: float
    high: float


PENALTY = Penalty(first=2e-4, low=1e-6, high=1e-3)
#: That of fewer than 60,000 rows, and of fewer than ten per item without embeddings.
SPARSE = Penalty(first=2e-3, low=1e-5, high=1e-2)
#: That of fewer than 30,000 rows, and of fewer than five per item without embeddings.
SPARSEST = Penalty(first=1e-2, low=1e-4, high=2e-2)

#: With fewer training rows than this, a weak penalty lets the ids of users and items be memorised within two epochs:
#: the model ranks worse than a dot product of embeddings, or a count by category
#: (``docs/settings_measured/few_rows.md``).
FEW_ROWS = 30_000

#: The penalty with fewer training rows than each of these numbers. From a million rows on, there are usually so many
#: ids that the fraction of one in the mean loss is small beside the penalty of whole tables, which then holds its
#: embedding near 0.
PENALTIES: tuple[tuple[float, Penalty], ...] = (
    (FEW_ROWS, SPARSEST),
    (60_000, SPARSE),
    (1e6, PENALTY),
    (math.inf, Penalty(first=1e-5, low=1e-7, high=1e-3)),
)

#: Items with few training rows, and no embeddings, are memorised in the same way: the penalty with fewer rows than each
#: of these numbers for an item on average, if there are fewer than a million in all (with embeddings, it cost 0.002).
ROWS_OF_AN_ITEM: tuple[tuple[float, Penalty], ...] = ((5, SPARSEST), (10, SPARSE))

#: Of ``LightFM`` the penalty falls with the rows, since the loss is their mean and the penalty is of whole tables: a
#: fixed one of 2e-4 costs 0.02 of AUC with 80,000 rows (``docs/settings_measured/lightfm.md``). Fewer than 10,000
#: rows are not measured.
FACTOR_PENALTY, FACTOR_PENALTY_ROWS = 3.0, 10_000

#: The same of the factorization beside ``DIN_MM``: with 3.0, groceries lose what they gain with 1.0.
FACTOR_TABLE_PENALTY = 1.0

#: Epochs after which the plain average of the weights begins, where there is one. A ``learning_rate`` two to four times
#: as high is best with it, and with it alone (``docs/choosing_settings.md``).
SWA_EPOCHS = 2

#: The first learning rate of a model with that average.
SWA_LEARNING_RATE = {"DIN_MM": 4e-3, "QIN": 2e-3, "DIN": 4e-3}


#: The learning rate of training that continues, relative to that before (``benchmarks/continue_training.py``).
CONTINUED_RATE = 0.25


def size_for(rows: int) -> Size:
    """Return the entry of ``SIZES`` for a number of training rows.

    Examples
    --------
    >>> size_for(80_024).batch_size
    256
    """
    return next(size for size in SIZES if rows < size.bound)


def penalty_for(rows: int, items: int = 0) -> Penalty:
    """Return the penalty on tables of ids for a number of training rows, of so many ``items`` without embeddings.

    ``items`` are those that have a training row.

    Examples
    --------
    >>> penalty_for(12_000).first, penalty_for(80_024).first
    (0.01, 0.0002)
    >>> penalty_for(80_024, items=10_000).first, penalty_for(80_024, items=20_000).first
    (0.002, 0.01)
    """
    of_rows = next(penalty for bound, penalty in PENALTIES if rows < bound)
    if rows >= PENALTIES[-2][0]:
        return of_rows
    of_items = next((penalty for count, penalty in ROWS_OF_AN_ITEM if rows < count * items), of_rows)
    return max(of_rows, of_items, key=lambda penalty: penalty.first)


def factor_penalty_for(rows: int) -> Penalty:
    """Return the penalty on the tables of a factorization of user and item for a number of training rows.

    Examples
    --------
    >>> factor_penalty_for(80_024).first, factor_penalty_for(600).first
    (3.7e-05, 0.0003)
    """
    first = float(f"{FACTOR_PENALTY / max(rows, FACTOR_PENALTY_ROWS):.2g}")
    return Penalty(max(first, PENALTY.low), PENALTY.low, PENALTY.high)


def factor_table_penalty_for(rows: int) -> float:
    """Return the penalty on the tables of a factorization beside a network for a number of training rows.

    Examples
    --------
    >>> factor_table_penalty_for(80_024), factor_table_penalty_for(600)
    (1.2e-05, 0.0001)
    """
    return float(f"{FACTOR_TABLE_PENALTY / max(rows, FACTOR_PENALTY_ROWS):.2g}")


def updates_of(epochs: int, rows: int, batch_size: int) -> int:
    """Return the number of updates of some epochs, which ``swa_start`` is given in.

    Examples
    --------
    >>> updates_of(2, 80_024, 256)
    626
    """
    return epochs * math.ceil(rows / batch_size)
