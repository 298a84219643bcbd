"""Finished chunks of an encoding beside its output: a run that was killed goes on where it stood.

Shape letters: I items, n items of a chunk, D width.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fuxictr_mm.embeddings.encoding.pretrained import first_line
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.files import write_beside

#: Names the files that a run was writing from finished chunks.
OUTPUTS = "outputs.json"


def begun_outputs(folder: Path) -> set[Path]:
    """Return the files that a run which was killed had begun to write, or had written, from its finished chunks."""
    noted = folder / OUTPUTS
    return {Path(name) for name in json.loads(noted.read_text(encoding="utf-8"))} if noted.is_file() else set()


class ChunkStore:
    """A folder with a file of vectors per finished chunk, and what they were made of.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    made_of : mapping of str to str
        Model, input and options; chunks of anything else are not taken.
    restart : bool
        Throw away what is there.

    Raises
    ------
    ConfigError
        The folder holds chunks of another model, input or options.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, str], restart: bool = False) -> None:
        self.folder = folder
        manifest = folder / "made_of.json"
        if restart and manifest.is_file():
            self.remove()
        if manifest.is_file():
            self._require_same(json.loads(manifest.read_text(encoding="utf-8")), made_of)
        else:
            # Chunks are only ever written after the manifest: what lies here without one is not ours.
            if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
                raise ConfigError(f"{folder}: is in the way of the finished chunks; move it or name another output")
            write_beside(manifest, lambda stream: stream.write(json.dumps(dict(made_of), indent=1).encode()))
        self.finished = {int(file.stem) for file in folder.glob("*.npy") if re.fullmatch(r"[0-9]+", file.stem)}

    def _require_same(self, there: Mapping[str, str], now: Mapping[str, str]) -> None:
        changed = [
            key
            if len(f"{there.get(key)}{now.get(key)}") > 60
            else f"{key} ({there.get(key)} there, {now.get(key)} now)"
            for key in dict.fromkeys([*now, *there])
            if there.get(key) != now.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{self.folder}: holds finished chunks of a run with another {', '.join(changed)}; "
                "go on with the same model, input and options, or add --restart to throw them away"
            )

    def save(self, number: int, vectors: np.ndarray, broken: Mapping[int, str]) -> None:
        """Keep a chunk: vectors ``(n, D)``, and why an item (by its place in the chunk) has none."""
        reasons = json.dumps({str(place): reason for place, reason in sorted(broken.items())}).encode()
        write_beside(self.folder / f"{number:08d}.json", lambda stream: stream.write(reasons))
        # The vectors come last: where they are, the chunk is whole.
        write_beside(self.folder / f"{number:08d}.npy", lambda stream: np.save(stream, vectors, allow_pickle=False))
        self.finished.add(number)

    def vectors(self, number: int) -> np.ndarray:
        """Return vectors ``(n, D)`` of a finished chunk, mapped from the file."""
        file = self.folder / f"{number:08d}.npy"
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file}: cannot be read ({first_line(error)}); did another run with the same output end? "
                "start again with --restart"
            ) from None

    def broken(self, number: int) -> dict[int, str]:
        """Return for each item of a finished chunk that has no vector its place in the chunk, and why."""
        text = (self.folder / f"{number:08d}.json").read_text(encoding="utf-8")
        return {int(place): reason for place, reason in json.loads(text).items()}

    def begin_outputs(self, outputs: Iterable[Path]) -> None:
        """Note that all chunks are finished and these files are about to be written; a run that goes on may do so."""
        names = json.dumps([str(path.resolve()) for path in outputs]).encode()
        write_beside(self.folder / OUTPUTS, lambda stream: stream.write(names))

    def remove(self) -> None:
        """Remove the folder at once; what is left of a removal that was killed is hidden, and the next one takes it."""
        going = self.folder.with_name(f".{self.folder.name}.removed")
        try:
            if going.exists():
                shutil.rmtree(going)
            if self.folder.exists():
                self.folder.rename(going)
                shutil.rmtree(going)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be removed ({error.strerror}); remove it by hand") from None
