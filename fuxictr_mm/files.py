"""Atomic file writes, JSON and YAML files, and a lock that child processes inherit."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file in the folder of ``path``; it replaces ``path`` if the block ends without an exception.

    Raises
    ------
    UserError
        The folder cannot be written or the disk is full; the old file is unchanged.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: could not be written ({reason}); the old file is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_beside(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically; raises as ``atomic_path``."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        try:
            write(stream)
        except RuntimeError as error:
            # torch reports a full disk as a RuntimeError of its zip writer.
            full = shutil.disk_usage(temporary.parent).free < 2**20
            reason = os.strerror(errno.ENOSPC) if full else next(iter(str(error).splitlines()), "RuntimeError")
            raise OSError(errno.ENOSPC if full else 0, reason) from error


def check_folder_to_write(out: Path, markers: Sequence[str], overwrite: bool) -> None:
    """Refuse to replace a folder other than an earlier export, which holds the files ``markers``.

    Raises
    ------
    UserError
        Another folder or a file; an export without ``overwrite``.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not all((out / name).is_file() for name in markers):
        raise UserError(f"{out}: exists already and is not an export of fuxictr-mm; give another folder")
    if not overwrite:
        raise UserError(f"{out}: holds an export already; give another folder, or --overwrite")


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Let ``write(folder)`` fill a temporary folder, then rename it, so that ``out`` is complete or as it was.

    Raises
    ------
    UserError
        The folder cannot be written or the disk is full.
    """
    out = out.absolute()
    beside: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        new, old = beside / "new", beside / "old"
        new.mkdir()
        write(new)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise UserError(f"{out}: could not be written ({error.strerror or error})") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside)


def check_outputs(
    outputs: Iterable[str | os.PathLike[str] | None],
    inputs: Iterable[str | os.PathLike[str] | None],
    overwrite: bool,
) -> None:
    """Refuse output files that cannot or must not be written, before any work; None is no file.

    Raises
    ------
    ConfigError
        A file that is an input as well (also with ``overwrite``), named twice, a folder, existing, or in a folder that
        cannot be written.
    """
    read = {Path(path).resolve() for path in inputs if path is not None}
    seen: set[Path] = set()
    for output in outputs:
        if output is None:
            continue
        path = Path(output).resolve()
        if path in read or path.parent in read:
            raise ConfigError(f"{output}: is an input as well; choose another name for the output")
        if path in seen:
            raise ConfigError(f"{output}: is named for two outputs; choose another name for one")
        seen.add(path)
        if path.is_dir():
            raise ConfigError(f"{output}: is a folder, expected a file")
        if path.exists() and not overwrite:
            raise ConfigError(f"{output}: exists already; add --overwrite or choose another name")
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(f"{output}: {folder} cannot be written; choose another folder")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    MissingFileError, DataError
        There is no such file; it is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; expected a JSON object") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a line for each key."""
    write_beside(path, lambda stream: stream.write(json.dumps(content, indent=1).encode() + b"\n"))


class InheritedLock:
    """A lock on a file that child processes inherit: it ends with the last process that has its descriptor.

    filelock has no such lock: it unlocks the file for all processes that inherited the descriptor, and hides the
    descriptor. Without ``fcntl`` (Windows) nothing is locked.

    Parameters
    ----------
    path : Path
        The file; it is never deleted, because another process could have locked it meanwhile.

    Raises
    ------
    BlockingIOError
        Another process holds it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab")
        if importlib.util.find_spec("fcntl") is None:
            return
        import fcntl

        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self._stream.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to pass to a child."""
        return self._stream.fileno()

    def release(self) -> None:
        """Close the descriptor; a child that has it keeps the lock."""
        self._stream.close()


def try_lock(path: Path) -> InheritedLock | None:
    """Return the lock on a file, None if another process holds it."""
    try:
        return InheritedLock(path)
    except BlockingIOError:
        return None


#: Keys whose values are keys elsewhere, of datasets and experiments, and keys of mappings that these are keys of.
IDS, ENTRIES = ("dataset_id", "base_expid"), ("model_config", "dataset_config")

#: What the names of YAML's types begin with.
TAG = "tag:yaml.org,2002:"


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML 1.2 file whose top level is a mapping.

    Its keys and the values of ``IDS`` are taken as strings, such as the experiment id 2024.

    A key that is null may be given again.

    Raises
    ------
    MissingFileError
        There is no such file.
    ConfigError
        It is not YAML, not a mapping, or gives a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected a YAML file")
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    try:
        with path.open(encoding="utf-8") as stream:
            content = _yaml().load(stream)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 (byte {error.start}); expected YAML") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        if isinstance(error, DuplicateKeyError):
            key = re.sub(r'found duplicate key "(.*?)" with value .*', r"\1", problem, flags=re.S)
            problem = f"the key '{key}' is given twice; keep one of them"
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}") from None
    except ValueError as error:  # a date that does not exist, such as 2025-02-30
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: the top level is a {type(content).__name__}, expected a mapping of names to settings"
        )
    return content


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Return YAML that ``load_yaml`` and YAML 1.1 read back, in the order of ``content``, repeated values in full."""
    stream = io.StringIO()
    _yaml().dump(dict(content), stream)
    return stream.getvalue()


def write_entries(path: Path, content: Mapping[str, Any], origin: Path) -> None:
    """Write a configuration file that names the tuner YAML it comes from, by an atomic write."""
    header = f"# Written by run_param_tuner.py from {origin.name}: change it there, not here.\n"
    write_beside(path, lambda stream: stream.write((header + dump_yaml(content)).encode()))


def _yaml() -> Any:
    """Return a safe reader and writer of YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import SafeConstructor
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
    from ruamel.yaml.representer import SafeRepresenter

    class Constructor(SafeConstructor):
        def construct_document(self, node: Node) -> Any:
            self._take_ids_as_text(node)
            return super().construct_document(node)

        def _take_ids_as_text(self, node: Node) -> None:
            for key, value in node.value if isinstance(node, MappingNode) else ():
                if isinstance(key, ScalarNode) and key.tag != f"{TAG}merge":
                    key.tag = f"{TAG}str"
                if key.value in ENTRIES:
                    self._take_ids_as_text(value)
                for name, named in [(key, value), *(value.value if isinstance(value, MappingNode) else ())]:
                    if name.value in IDS and isinstance(named, ScalarNode) and named.tag != f"{TAG}null":
                        named.tag = f"{TAG}str"

        def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
            # FuxiCTR's files list a key with null and set it further down.
            return (key in mapping and mapping[key] is None) or super().check_mapping_key(
                node, key_node, mapping, key, value
            )

    class Representer(SafeRepresenter):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        # FuxiCTR reads YAML 1.1, where 1e-05 is a string, yes is True and 1:30 is 90.
        def represent_float(self, data: float) -> Any:
            node = super().represent_float(data)
            node.value = re.sub(r"^(-?\d+)e", r"\1.0e", node.value)
            return node

        def represent_str(self, data: str) -> Any:
            quoted = re.fullmatch(r"(?i)y|n|yes|no|on|off|[-+]?[\d_]+(:\d+)+", data)
            return self.represent_scalar(f"{TAG}str", data, style="'" if quoted else None)

    Representer.add_representer(float, Representer.represent_float)
    Representer.add_representer(str, Representer.represent_str)

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Representer = Constructor, Representer
    yaml.default_flow_style, yaml.width = None, 120
    yaml.sort_base_mapping_type_on_output = False
    return yaml
