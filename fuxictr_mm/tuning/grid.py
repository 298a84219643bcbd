"""From a tuner YAML to a folder of experiments, one per point of the grid."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_mm.config import config_hash
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.tuning.config_folder import write_entries
from fuxictr_mm.tuning.tuner_file import read_tuner


def enumerate_trials(tuner_yaml: Path, model_zoo: Path | None = None) -> Path:
    """Write the experiments of a grid as a configuration folder named after the tuner YAML.

    Parameters
    ----------
    tuner_yaml : Path
        As for ``read_tuner``: in ``tuner_space`` lists are the grid, scalars replace one value.
    model_zoo : Path, optional
        A folder of model files to search first.

    Returns
    -------
    Path
        Folder with ``model_config.yaml`` (experiments ``BASE_001_<hash>`` ...) and ``dataset_config.yaml``.

    Raises
    ------
    ConfigError, MissingFileError
        Anything that is wrong with the file, or it asks for another search.
    """
    tuner = read_tuner(tuner_yaml, model_zoo)
    if tuner.search != "grid":
        raise ConfigError(f"{tuner_yaml}: search is {tuner.search}, expected grid; only a grid can be enumerated")
    space = {key: values for key, values in tuner.space.items() if isinstance(values, list)}
    in_dataset = tuner.dataset_keys

    datasets = {}
    for combination in _combinations(tuner.dataset, {key: space[key] for key in space if key in in_dataset}):
        datasets[f"{tuner.dataset_id}_{config_hash(combination)[:8]}"] = combination
    if len(datasets) == 1:
        datasets = {tuner.dataset_id: next(iter(datasets.values()))}
    models = _combinations(tuner.model, {key: space[key] for key in space if key not in in_dataset})
    experiments = {}
    for number, (settings, (used_id, data)) in enumerate(itertools.product(models, datasets.items()), start=1):
        entry = {**settings, "dataset_id": used_id}
        experiments[f"{tuner.name}_{number:03d}_{config_hash({**entry, **data})[:8]}"] = entry

    write_entries(tuner.folder / "dataset_config.yaml", datasets, tuner.path)
    write_entries(tuner.folder / "model_config.yaml", experiments, tuner.path)
    return tuner.folder


def _combinations(base: Mapping[str, Any], space: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    grid = {**{key: [value] for key, value in base.items()}, **space}
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
