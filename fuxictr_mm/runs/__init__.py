"""Runs of experiments: where their files are, what they hold, and ``fuxictr-mm runs``, which lists them."""

from fuxictr_mm.runs.evaluations import (
    FALLING,
    best_epoch_was_last,
    cost_name,
    is_falling,
    monitored,
    newest_evaluations,
    read_evaluations,
    read_lines,
)
from fuxictr_mm.runs.finished import FinishedRuns
from fuxictr_mm.runs.paths import (
    CALIBRATION,
    CONFIG,
    DATA,
    DIAGNOSIS,
    ENSEMBLE,
    ENVIRONMENT,
    HUB_CARD,
    HUB_CONFIG,
    HUB_FEATURES,
    HUB_WEIGHTS,
    LOG,
    METRICS,
    MODEL_CODE,
    PREDICTIONS,
    RESULT,
    RUN_NAME,
    TENSORBOARD,
    VOCABULARY,
    WEIGHTS,
    RunPaths,
    config_of_weights,
    file_of_weights,
    unwritable,
    vocabulary_of_weights,
)  # fmt: skip
from fuxictr_mm.runs.predictions import Predictions
from fuxictr_mm.runs.reading import (
    find_runs,
    load_run,
    read_run,
    resolve,
    resolve_one,
    run_of_weights,
    runs_of,
    weights_of,
)
from fuxictr_mm.runs.result import Result
from fuxictr_mm.runs.run import TEST_DATA, Run
from fuxictr_mm.runs.selection import differences, different_files, is_present, left_out, outdated, present_first
