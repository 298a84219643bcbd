"""Configurations of flat settings that say only what a test needs."""

from fuxictr_mm.config import ExperimentConfig, LabelConfig
from fuxictr_mm.config.columns import Columns
from fuxictr_mm.config.dataset import DatasetConfig
from fuxictr_mm.data import dataset
from fuxictr_mm.encoding import fuxictr


def config_of(params):
    """Return the configuration of flat settings, which are not checked and need not be complete."""
    columns = Columns.of(params)
    labels = params.get("label_col")
    label_col = [LabelConfig(**one) for one in labels] if isinstance(labels, list) else labels and LabelConfig(**labels)
    own = {k: v for k, v in params.items() if k in DatasetConfig.model_fields}
    own |= {"roles": columns.roles, "feature_cols": columns.entries or None, "label_col": label_col}
    settings = {k: v for k, v in params.items() if k in ExperimentConfig.model_fields}
    settings |= {"dataset": DatasetConfig.model_construct(**own), "feature_specs": columns.specs}
    return ExperimentConfig.model_construct(**{"expid": "m", "model": "DIN", "dataset_id": "d", **settings})


def load_dataset(params, *args, **options):
    """Read a dataset with items."""
    return dataset.read_dataset(config_of(params), *args, **options)


def load_any_dataset(params, *args, **options):
    """Read a dataset of any layout."""
    return fuxictr.load_dataset(config_of(params), *args, **options)
