"""Find a model class by name: one file per model, and only the file asked for is imported."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import threading
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, ModuleType
from weakref import WeakKeyDictionary

from fuxictr_mm.errors import ConfigError, MissingFileError, nearest

ENTRY_POINTS = "fuxictr_mm.models"

#: Where the files of models are in a folder: ours, and those of a checkout of FuxiCTR (DIN/src/DIN.py), seen from any
#: folder above them.
FILES = ("*.py", "src/*.py", "*/src/*.py", "*/*/src/*.py")

_registered: dict[str, type] = {}

#: The code that the module of a model file was imported from, by file; see ``_code_of``.
_imported_code: WeakKeyDictionary[ModuleType, dict[Path, str]] = WeakKeyDictionary()

#: Held while a model file is imported: a thread that asks for it meanwhile waits for the whole module.
_importing = threading.RLock()


def register_model(model_class: type) -> type:
    """Register a model class under its name for ``model: NAME``; usable as a decorator.

    It takes precedence over a model file of the same name, in this process only.

    Parameters
    ----------
    model_class : type
        A subclass of ``MultimodalModel``, or of ``BaseModel`` of FuxiCTR.

    Returns
    -------
    type
        The same class.

    Raises
    ------
    ConfigError
        It is not a class.
    """
    if not inspect.isclass(model_class):
        raise ConfigError(f"register_model: got {model_class!r}, expected a class")
    _registered[model_class.__name__] = model_class
    return model_class


def models(model_zoo: str | Path | None = None) -> list[str]:
    """Return the names of all models that an experiment can use, sorted.

    Parameters
    ----------
    model_zoo : path, optional
        A folder of model files to search first.
    """
    return sorted(name for name, where in list_models(model_zoo).items() if names_a_model(name, where))


def names_a_model(name: str, where: Path | str) -> bool:
    """Return whether a name of ``list_models`` is a model's: a script beside models defines nothing of its name."""
    if isinstance(where, str):
        return True
    defines = rf"^(class +{name}\b|{name} *=|(from|import) .*\b{name}\b)"
    return re.search(defines, where.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) is not None


def search_folders(model_zoo: str | Path | None = None) -> list[Path]:
    """Return the folders that are searched: that of the user, ``./model_zoo`` and the packaged one."""
    package = Path(__file__).resolve().parent
    folders = [Path("model_zoo"), package / "model_zoo"]
    if model_zoo is not None:
        if not Path(model_zoo).is_dir():
            raise MissingFileError(f"{model_zoo}: no such folder; --model_zoo takes a folder of model files")
        folders.insert(0, Path(model_zoo))
    # FuxiCTR's wheel leaves a stray `model_zoo` beside installed packages; a checkout has its setup.py beside it.
    if (package.parent / "setup.py").is_file():
        folders.append(package.parent / "model_zoo")
    unique: dict[Path, Path] = {}
    for folder in folders:
        if folder.is_dir():
            unique.setdefault(folder.resolve(), folder)
    return list(unique.values())


def list_models(model_zoo: str | Path | None = None) -> dict[str, Path | str]:
    """Return every model name with its file, or with the entry point that declares it."""
    found = _list_without_entry_points(model_zoo)
    for point in entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, point.value)
    return found


def _list_without_entry_points(model_zoo: str | Path | None) -> dict[str, Path | str]:
    """Return the models that precede those of entry points, which only the metadata of every installed package names.

    These are the registered ones and those of files.
    """
    found: dict[str, Path | str] = {name: f"{cls.__module__}:{name}" for name, cls in _registered.items()}
    for folder in search_folders(model_zoo):
        files = [file for pattern in FILES for file in sorted(folder.glob(pattern))]
        files += [file for file in sorted(folder.glob("*/*.py")) if file.stem == file.parent.name]  # FuxiCTR's LongCTR
        for path in files:
            is_tensorflow = any(part.endswith("_tf") for part in path.parts)
            if path.stem.isidentifier() and not path.stem.startswith("_") and not is_tensorflow:
                found.setdefault(path.stem, path)
    return found


def load_model_class(name: str, model_zoo: str | Path | None = None) -> type:
    """Return the class of a model; of a file whose code has changed since it was imported, the new one.

    The name is ``NAME`` for a file ``NAME.py`` that defines class ``NAME``, also one of FuxiCTR's ``model_zoo``, or
    ``package.module:Class``.

    Raises
    ------
    ConfigError
        No such model (those that exist are listed), or its file cannot be imported or does not define the class.
    """
    if ":" in name:
        return _from_package(name, name)
    if name in _registered:
        return _registered[name]
    known = _list_without_entry_points(model_zoo)
    if name not in known:
        known = list_models(model_zoo)
    if name not in known:
        hint = nearest(name, known) or _stem_of(name, known)
        names = ", ".join(models(model_zoo))
        raise ConfigError(f"model: there is no '{name}'{hint} (there are: {names}; --model_zoo FOLDER searches more)")
    where = known[name]
    if isinstance(where, str):
        return _from_package(where, name)
    found = _take(_import_file(where, name), name, str(where))
    code_hash(found)  # of the code as it was imported
    return found


@cache
def code_hash(model_class: type) -> str:
    """Return a hash of the file of a model's class and of the files next to it that it imports; empty without a file.

    Comments and docstrings are ignored.
    """
    # By a function of the class: the module of its name may be another file, imported later.
    part = next((value for value in vars(model_class).values() if inspect.isfunction(value)), model_class)
    try:
        file = inspect.getsourcefile(part)
    except TypeError:  # a class of a notebook
        return ""
    code = _code_of(Path(file)) if file is not None else {}
    text = "\n".join(code[path] for path in sorted(code, key=lambda path: path.name))
    return hashlib.sha256(text.encode()).hexdigest() if code else ""


def _code_of(file: Path) -> dict[Path, str]:
    """Return the code, without comments and docstrings, of a file and of the files next to it that it imports."""
    seen: dict[Path, str] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        content = path.read_bytes()
        try:
            seen[path], imported = _parse(content)
        except (SyntaxError, ValueError):
            if path == file:
                raise
            seen[path] = hashlib.sha256(content).hexdigest()  # perhaps it is never imported
            continue
        waiting += [path.with_name(f"{name}.py") for name in imported]
    return seen


@lru_cache(maxsize=256)
def _parse(content: bytes) -> tuple[str, frozenset[str]]:
    """Return the code of a file, without comments and docstrings, and what it may import of the files next to it."""
    tree = ast.parse(content)
    imported = frozenset(_imported(tree))
    return ast.unparse(_without_docstrings(tree)), imported


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove the docstrings of a module in place, and return it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def source_of(cls: type, method: str | None = None) -> str:
    """Return the file and line of a class, or of one of its methods, for errors."""
    found = getattr(cls, method, None) if method is not None else None
    method_code = getattr(inspect.unwrap(found) if found is not None else None, "__code__", None)
    if method_code is not None and not _is_library(method_code.co_filename):  # not inherited from this package
        return f"{method_code.co_filename}, line {method_code.co_firstlineno}"
    try:
        return f"{inspect.getfile(cls)}, line {inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):  # of a notebook, or without its source
        return cls.__module__


def _imported(tree: ast.AST) -> set[str]:
    """Return the first parts of the names of imported modules, and of names imported from the own package."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names


def _stem_of(name: str, known: Iterable[str]) -> str:
    """Return the hint at the longest model name that ``name`` begins with, such as QIN for QIN_variety_v9."""
    stems = [other for other in known if name.startswith(f"{other}_")]
    return f"; did you mean '{max(stems, key=len)}'?" if stems else ""


class _SourceLoader(SourceFileLoader):
    """Compiles a file each time: Python's saved code is also taken for an edit in the same second of the same size."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_file(path: Path, name: str) -> ModuleType:
    """Return the module of a model file; where code has changed since it was imported, a new one.

    Objects of the old module keep its classes and globals, also in other threads, but can no longer be pickled: pickle
    finds a class by its name, which is that of the new one.
    """
    path = path.resolve()
    module_name = f"fuxictr_mm.model_zoo.{name}"
    spec = importlib.util.spec_from_file_location(module_name, path, loader=_SourceLoader(module_name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    with _importing:
        loaded = sys.modules.get(module_name)
        forgotten: dict[str, ModuleType] = {}
        try:
            code = _code_of(path)
        except (SyntaxError, ValueError):  # the import says what is wrong
            code = {}
        if loaded is not None and getattr(loaded, "__file__", None) == str(path):
            before = _imported_code.setdefault(loaded, code)
            if before == code:
                return loaded
            forgotten = _forget_changed(before, code, path) if code else {}
        module = importlib.util.module_from_spec(spec)
        # Registered first, so that the file's own classes can be pickled and reloaded; taken out again if it fails.
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            if loaded is not None:
                sys.modules[module_name] = loaded
            sys.modules.update(forgotten)
            raise ConfigError(f"{path}: cannot be imported: {describe_error(error, path)}") from error
        _imported_code[module] = code
        return module


def _forget_changed(before: dict[Path, str], code: dict[Path, str], model: Path) -> dict[str, ModuleType]:
    """Have the files beside a model file imported again where one of them has changed: they may import each other.

    Returns their modules by name; other models keep those that they have imported.
    """
    beside, forgotten = before.keys() - {model}, dict[str, ModuleType]()
    if any(before[path] != code.get(path) for path in beside):
        files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
        for name, file in files.items():
            if (
                file is not None
                and Path(file).stem in {path.stem for path in beside}
                and Path(file).resolve() in beside
            ):
                forgotten[name] = sys.modules.pop(name)
    return forgotten


def describe_error(error: BaseException, path: Path | None = None) -> str:
    """Return an error of a model file in one line, with the file and line that raised it.

    Without ``path``, it is the last file of the traceback outside of Python, installed packages and this package.
    """
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    at = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file == str(path):
            at = f" (line {trace.tb_lineno})"
        elif path is None and not _is_library(file):
            at = f" in {file}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split())}{at}"


def failed_on_first_batch(model_id: str, method: str, error: BaseException, advice: str = "") -> ConfigError:
    """Return the error of one line for what a method of a model file raises; ``advice`` ends in a semicolon."""
    reason = describe_error(error)
    return ConfigError(
        f"{model_id}: {method} failed on its first batch ({reason}); {advice}--debug shows the traceback"
    )


def _is_library(file: str) -> bool:
    path, package = Path(file), Path(__file__).resolve().parent
    if path.is_relative_to(package):  # also where this package is installed
        return path.parent.name != "model_zoo"
    python = Path(inspect.__file__).parent
    return "site-packages" in file or file.startswith("<frozen ") or path.is_relative_to(python)


def _from_package(target: str, name: str) -> type:
    module_name, _, class_name = target.partition(":")
    return _take(import_module(module_name, f"model: '{name}'"), class_name, module_name)


def import_module(name: str, what: str) -> ModuleType:
    """Import a module of the working directory or of an installed package.

    Raises
    ------
    ConfigError
        It cannot be imported; ``what`` names the setting in the error.
    """
    here = os.getcwd()
    # As ./model_zoo is: a script of another folder does not have the working directory on its path.
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module may raise anything
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)


def _take(module: object, class_name: str, where: str) -> type:
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [k for k, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__]  # type: ignore[attr-defined]
        raise ConfigError(
            f"{where}: defines no class '{class_name}'{nearest(class_name, classes)} (it defines: "
            f"{', '.join(classes) or 'none'}); file, class and model name are the same"
        )
    return found
