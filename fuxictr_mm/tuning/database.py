"""The database of a study."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm.config import as_json, config_hash
from fuxictr_mm.errors import ConfigError, first_line
from fuxictr_mm.registry import code_hash, load_model_class
from fuxictr_mm.tuning.tuner_file import Tuner

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage


def shown_url(tuner: Tuner) -> str:
    """Return the database's URL without its password."""
    from sqlalchemy.engine import make_url

    return make_url(_url(tuner)).render_as_string(hide_password=True)


def _url(tuner: Tuner) -> str:
    return os.path.expandvars(tuner.storage or f"sqlite:///{tuner.folder.resolve()}/study.db")


def open_storage(tuner: Tuner) -> RDBStorage:
    """Connect to the database.

    Raises
    ------
    ConfigError
        The database cannot be opened.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        backend = make_url(_url(tuner)).get_backend_name()
    except SQLAlchemyError:
        raise ConfigError(
            f"{tuner.path}: storage is not a database URL; expected one such as postgresql://user@host/optuna, "
            "or leave it out for a file in the study's folder"
        ) from None
    # SQLite lets one process write at a time; the others wait for it.
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if backend == "sqlite" else {"pool_pre_ping": True}
    try:
        return RDBStorage(_url(tuner), engine_kwargs=options)
    except (ImportError, RuntimeError, SQLAlchemyError) as error:
        reason = first_line(getattr(error, "orig", None) or error)
        raise ConfigError(
            f"{tuner.path}: storage {shown_url(tuner)} cannot be opened ({reason}); "
            "check that the database exists and its Python driver is installed"
        ) from error


def open_study(tuner: Tuner, storage: RDBStorage, model_zoo: Path | None, data: Mapping[str, str]) -> Study:
    """Create the study, or load one that was started with the same tuner file and data.

    ``data`` are the hashes of the data, by the settings that name it.

    Raises
    ------
    ConfigError
        The study was begun with another tuner file or other data.
    """
    import optuna

    study = optuna.create_study(
        study_name=tuner.study,
        storage=storage,
        direction="minimize" if tuner.setting("monitor_mode") == "min" else "maximize",
        load_if_exists=True,
    )
    space = {key: values if isinstance(values, list) else vars(values) for key, values in tuner.space.items()}
    models = tuner.space.get("model")
    files = dict(data) | {
        f"file of the model {name}": code_hash(load_model_class(name, model_zoo))
        for name in (models if isinstance(models, list) else [tuner.model["model"]])
    }
    ours = {
        **files,
        "search": tuner.search,
        "seed": tuner.seed,
        **{f"tuner_space: {key}": as_json(values) for key, values in space.items()},
        "the base experiment": config_hash({**tuner.model, **tuner.dataset, "dataset_id": tuner.dataset_id}),
    }
    theirs = study.user_attrs.get("tuner", None if study.get_trials(deepcopy=False) else ours)
    if theirs is None:
        raise ConfigError(
            f"{tuner.path}: {tuner.study} is a study of another program; give the study another name, study: NAME"
        )
    # A study begun by an older version does not name the files of its models and data.
    known = {key: value for key, value in ours.items() if key in theirs or key not in files}
    changed = [key for key in {**theirs, **known} if theirs.get(key) != known.get(key)]
    if changed:
        raise ConfigError(
            f"{tuner.path}: {changed[0]} has changed since the study '{tuner.study}' was started; undo the change, or "
            "start another study (study: NAME; of autopilot: another --out)"
        )
    study.set_user_attr("tuner", ours)
    return study
