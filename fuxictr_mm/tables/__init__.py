"""Embedding tables whose training costs as much as the rows of a batch, not as the table is long."""

from fuxictr_mm.tables.average import RowAverage
from fuxictr_mm.tables.gradients import sharded_parameters, touched_parameters, touched_rows
from fuxictr_mm.tables.kinds import AUTO_ROWS, choose_kinds
from fuxictr_mm.tables.optim import Optimizers, Penalize, TouchedOptimizer
from fuxictr_mm.tables.sharded import ShardedOptimizer, answer_lookups, gathered_state, is_spread, sharded_tables
