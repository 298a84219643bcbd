"""Results on disk of trials."""

from pathlib import Path

import pytest

from fuxictr_mm.experiment import Experiment
from fuxictr_mm.files import write_json
from fuxictr_mm.tuning.trial import Trial

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        ({}, True),
        ({"config_hash": "another"}, False),
        ({"valid": 1}, False),
        ({"seconds": None}, False),
    ],
)
def test_a_file_that_is_no_result_of_a_trial_is_none(tmp_path, change, is_found):
    """None stands for a key that the file does not have."""
    experiment = Experiment.load("DIN_tiny", ROOT, model_root=str(tmp_path))
    code = experiment.config.fingerprint()
    result = {"expid": "DIN_tiny", "config_hash": code, "valid": {"AUC": 0.5}, "test": {}, "seconds": 1}
    write_json(
        experiment.paths.result, {key: value for key, value in {**result, **change}.items() if value is not None}
    )
    assert (Trial("DIN_tiny", experiment).result() is not None) == is_found
