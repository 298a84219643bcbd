"""The folder of a prepared dataset while it is written: whose it is, its lock, and whether it can be continued."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import read_json
from fuxictr_mm_serving.prepared import MANIFEST

#: Version of what is written; a folder that another version began is not continued.
VERSION = 3

#: Changed files or options that an error names; a log may be of thousands of files.
NAMED = 5


class PreparedFolder:
    """A folder to write a dataset into.

    Parameters
    ----------
    path : Path
        The folder.
    origin : mapping
        What is written there: reader, options and files of the source. A folder of another origin is not continued.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any]) -> None:
        self.path, self.origin = path, dict(origin)

    def prepare(self, source: Path, overwrite: bool) -> bool:
        """Create the folder; return whether an earlier dataset in it is to be deleted."""
        overwrite = overwrite and (self.path / MANIFEST).exists()
        if overwrite and self.path.resolve() in (source / "x").resolve().parents:
            raise ConfigError(f"--overwrite: would delete {source}, which is inside {self.path}; give another folder")
        if not overwrite:
            self._check()
        self.path.mkdir(parents=True, exist_ok=True)
        return overwrite

    @contextmanager
    def locked(self, overwrite: bool) -> Iterator[None]:
        """Lock the folder against other processes, and delete what is not continued."""
        lock = FileLock(self.path / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(f"{self.path}: another process is writing this folder; wait until it ends") from None
        try:
            if overwrite or self._is_barely_begun():
                self._clear()
            yield
        finally:
            lock.release()

    def _clear(self) -> None:
        """Delete all but the lock, the manifest last: without it the folder would be that of others."""
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == MANIFEST):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()

    def _is_barely_begun(self) -> bool:
        """Whether nothing is finished, as after an error in the files; these or the options were changed then."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        is_alone = MANIFEST in names and names <= {MANIFEST, ".lock", ".scratch"}
        return is_alone and read_json(self.path / MANIFEST).get("origin") != self.origin

    def _check(self) -> None:
        manifest = self.path / MANIFEST
        if not manifest.exists():
            found = self.path.iterdir() if self.path.is_dir() else ()
            others = [path.name for path in found if path.name not in (".lock", ".scratch")]
            if others:
                raise ConfigError(f"{self.path}: holds {others[0]}; give an empty or a new folder with --out")
            return
        origin = {"version": 1, **(read_json(manifest).get("origin") or {})}
        if origin != self.origin and not self._is_barely_begun():
            changed = next(key for key in {**self.origin, **origin} if origin.get(key) != self.origin.get(key))
            what = f"another {changed}"
            if changed in ("files", "options"):
                now, then = self.origin.get(changed, {}), origin.get(changed, {})
                names = [name for name in {**now, **then} if now.get(name) != then.get(name)]
                more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                what = f"other {changed} ({', '.join(names[:NAMED])}{more})"
            if changed == "version":
                raise ConfigError(
                    f"{self.path}: another version of this library wrote it (layout {origin['version']}, "
                    f"expected {VERSION}); train and predict still read it if it is complete; to write it again, add "
                    "--overwrite, or give another folder with --out"
                )
            raise ConfigError(
                f"{self.path}: was started with {what}; give another folder with --out, or add --overwrite"
            )
