"""Results on disk of trials."""

import pytest

from fuxictr_mm.config import config_hash
from fuxictr_mm.files import write_json
from fuxictr_mm.runs import RunPaths
from fuxictr_mm.tuning.trial import Trial

PARAMS = {"model": "DIN", "monitor": "AUC", "monitor_mode": "max"}


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        ({}, True),
        ({"config_hash": "another"}, False),
        ({"valid": 1}, False),
        ({"test": None}, False),
        ({"seconds": None}, False),
    ],
)
def test_a_file_that_is_no_result_of_a_trial_is_none(tmp_path, change, is_found):
    """None stands for a key that the file does not have."""
    paths = RunPaths(tmp_path, "tiny", "DIN_tiny")
    result = {"expid": "DIN_tiny", "config_hash": config_hash(PARAMS), "valid": {"AUC": 0.5}, "test": {}, "seconds": 1}
    write_json(paths.result, {key: value for key, value in {**result, **change}.items() if value is not None})
    assert (Trial("DIN_tiny", PARAMS, paths).result() is not None) == is_found
