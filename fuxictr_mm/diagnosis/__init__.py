"""Why a trained model is as good as it is: attention, heads, fields, vectors, calibration, groups of rows."""
