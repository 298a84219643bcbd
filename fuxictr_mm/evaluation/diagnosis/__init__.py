"""Why a trained model is as good as it is: attention, heads, fields, vectors, calibration, groups of rows."""

from fuxictr_mm.evaluation.diagnosis.diagnose import VERSION, diagnose
from fuxictr_mm.evaluation.diagnosis.findings import find

__all__ = ["VERSION", "diagnose", "find"]
