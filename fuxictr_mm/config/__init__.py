"""Configuration of experiments and datasets: every key of the YAML with its type, range, default and meaning.

``ExperimentConfig.load`` reads ``model_config`` and ``dataset_config``, merges them and checks the result; everything
that is wrong is reported in one message. Nothing here imports torch.
"""

from fuxictr_mm.config.columns import Columns
from fuxictr_mm.config.dataset import PATH_KEYS, DatasetConfig, label_names
from fuxictr_mm.config.differences import (
    LOCAL_KEYS,
    NOT_SET,
    comparable,
    describe_differences,
    differing,
    result_differences,
)  # fmt: skip
from fuxictr_mm.config.entries import (
    check_id,
    find_config,
    list_datasets,
    list_experiments,
    load_dataset_config,
    load_model_config,
    results_csv_path,
)  # fmt: skip
from fuxictr_mm.config.experiment import (
    DATASET_KEYS,
    DEFAULTS,
    EXPERIMENT_KEYS,
    ExperimentConfig,
    Fold,
    key_types,
    load_config,
)  # fmt: skip
from fuxictr_mm.config.features import (
    COMPUTED_TYPES,
    Dropout,
    EncodedFeature,
    FeatureConfig,
    FeatureSpec,
    LabelConfig,
    Number,
    Roles,
)  # fmt: skip
from fuxictr_mm.config.fingerprints import (
    NAMING_KEYS,
    VOLATILE_KEYS,
    as_json,
    checkpoint_hash,
    config_hash,
    json_hash,
    seeds_hash,
    with_text_keys,
)  # fmt: skip
from fuxictr_mm.config.model import HiddenUnits, ModelSettings, Regularizer, per_label

# What model files import from here; the rest is for this package.
__all__ = ["Dropout", "HiddenUnits"]
