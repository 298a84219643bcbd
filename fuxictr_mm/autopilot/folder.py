"""What was asked of an autopilot, and the folder of its state, which belongs to one configuration of datasets."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import try_lock
from fuxictr_mm.tuning.source import Source


@dataclass(frozen=True)
class Request:
    """Request of an autopilot; the fields are the options of ``fuxictr-mm autopilot``."""

    dataset_id: str
    out: Path = Path("autopilot")
    budget: float = 1800.0  #: Seconds.
    config: str | Path = "."
    gpu: int = -1
    jobs: int | None = None
    data_root: Path | None = None
    model_zoo: Path | None = None
    task: str = "Task2"
    quiet: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the dataset's autopilot."""
        return self.out / self.dataset_id

    @property
    def workers(self) -> list[int]:
        """The device of each parallel process."""
        return [self.gpu] * (self.jobs or (1 if self.gpu >= 0 else os.cpu_count() or 1))

    @property
    def source(self) -> Source:
        """The folders that replace those of the configuration."""
        return Source(self.data_root, self.model_zoo)


@contextmanager
def locked(request: Request) -> Iterator[None]:
    """Lock the folder.

    Raises
    ------
    ConfigError
        Another autopilot runs in it, or it cannot be written.
    """
    try:
        lock = try_lock(request.folder / "lock")
    except OSError as error:
        raise ConfigError(f"--out {request.out}: cannot be written ({error.strerror}); give another folder") from error
    if lock is None:
        raise ConfigError(
            f"{request.folder}: another autopilot is running there; wait until it ends, or give another --out"
        )
    try:
        yield
    finally:
        lock.release()


def link_config(request: Request) -> Path:
    """Link the configuration of datasets into the folder, all of whose results are those of one; return the links'.

    Raises
    ------
    ConfigError
        The folder belongs to another configuration.
    """
    folder = request.folder / "look"
    for name in ("dataset_config.yaml", "dataset_config"):
        source, link = Path(request.config) / name, folder / name
        if link.exists() and not link.is_symlink() and _is_copy(link, source):
            _remove(link)  # of a folder that was copied with its links followed
        if link.exists() and link.resolve() != source.resolve():
            raise ConfigError(
                f"--config {request.config}: {request.folder} has results of {link.resolve()}, which differs; "
                "give its folder as --config, or another --out"
            )
        if source.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)  # of a file that is gone
            link.symlink_to(source.resolve())
    return folder


def _is_copy(path: Path, source: Path) -> bool:
    """Whether a file or folder holds what another does."""
    if path.is_file() or source.is_file():
        return path.is_file() and source.is_file() and filecmp.cmp(path, source, shallow=False)
    names = [{str(file.relative_to(folder)) for file in folder.rglob("*")} for folder in (path, source)]
    files = [name for name in names[0] if (path / name).is_file()]
    return names[0] == names[1] and filecmp.cmpfiles(path, source, files, shallow=False)[0] == files


def _remove(path: Path) -> None:
    """Delete a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
