"""Where a trained experiment's settings and weights are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr_mm import experiment
from fuxictr_mm.config import PATH_KEYS
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.records.reading import DIAGNOSIS, WEIGHTS, RunRecord, find_runs, read_run, resolve_one

#: Of a run's configuration, what this computer and this command decide.
OWN_KEYS = frozenset({"gpu", "data_root", "model_root", "verbose"})


@dataclass(frozen=True)
class Trained:
    """A trained experiment.

    Parameters
    ----------
    params : dict
        Checked parameters.
    model_class : type
        Of the model.
    weights : Path
        File of weights.
    run : str or None
        Name of the run, None where the weights are of none.
    output : Path
        Where a diagnosis of it belongs.
    """

    params: dict[str, Any]
    model_class: type
    weights: Path
    run: str | None
    output: Path


def find_trained(
    expid: str,
    *,
    config: str | os.PathLike[str] = ".",
    run: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    gpu: int = -1,
    data_root: str | os.PathLike[str] | None = None,
    model_zoo: str | os.PathLike[str] | None = None,
    test_data: str | None = None,
) -> Trained:
    """Find settings and weights of an experiment.

    Parameters
    ----------
    expid : str
        Experiment id.
    config : path
        Folder of the configuration.
    run : str, optional
        Name or folder of a run; the newest finished one by default, and without any the experiment's newest weights.
    weights : path, optional
        Take the place of the run's; without ``run`` they are of no run, and the configuration is the folder's.
    gpu, data_root, model_zoo
        As of ``read_params``.
    test_data : str, optional
        Takes the place of the dataset's.

    Raises
    ------
    ConfigError, MissingFileError
        Anything wrong with the configuration; no such run, no such file.
    """
    own = {} if test_data is None else {"test_data": test_data}
    where: dict[str, Any] = {"gpu": gpu, "data_root": data_root, "model_zoo": model_zoo}
    params, model_class = experiment.read_params(config, expid, overrides=own, **where)
    record = _find_run(params, run) if run or not weights else None
    if record is not None and record.config:
        # The experiment may have been edited since; paths stay those of the configuration, as files move.
        settings = {k: v for k, v in record.config.items() if k not in OWN_KEYS and k not in PATH_KEYS}
        params, model_class = experiment.read_params(config, expid, overrides={**settings, **own}, **where)
    newest = experiment.log_path(params).with_suffix(".model")
    if weights is not None:
        found = Path(weights)
        if not found.exists():
            raise MissingFileError(f"--weights {weights}: no such file; give a file that run_expid.py wrote")
    elif record is not None:
        found = record.path / WEIGHTS
        if not found.exists():
            raise MissingFileError(f"{found}: no such file, the weights of this run are gone; name others by --weights")
    else:
        found = newest
        if not found.exists():
            raise MissingFileError(
                f"{found}: no such file, {expid} is not trained; run python run_expid.py --expid {expid} first, "
                "or name a file by --weights"
            )
    output = newest.with_suffix(".diagnosis.json") if record is None else record.path / DIAGNOSIS
    return Trained(params, model_class, found, None if record is None else record.run, output)


def _find_run(params: dict[str, Any], run: str | None) -> RunRecord | None:
    """Return the run that is named, or the newest finished one, None without any."""
    expid = params["model_id"]
    if run is None:
        runs = find_runs(params["model_root"], dataset=params["dataset_id"], expid=expid)
        return next((r for r in runs if r.finished), None)
    if os.sep in run and Path(run).is_dir():
        record = read_run(run)
    else:
        record = resolve_one(run, find_runs(params["model_root"]), params["model_root"])[0]
    if record.problem:
        raise ConfigError(f"--run {run}: {record.problem}")
    if record.expid != expid:
        raise ConfigError(
            f"--run {run}: is a run of {record.expid}, expected one of {expid}; give --expid {record.expid}"
        )
    return record
