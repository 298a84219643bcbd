"""YAML 1.2 files, read by PyYAML's parser in C."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.files import StrPath, write_beside

#: Keys whose values are keys elsewhere, of datasets and experiments, and keys of mappings that these are keys of.
IDS, ENTRIES = ("dataset_id", "base_expid"), ("model_config", "dataset_config")

#: What the names of YAML's types begin with.
TAG = "tag:yaml.org,2002:"

#: The types that YAML 1.2 reads otherwise than 1.1: a pattern, and the letters that it begins with.
TYPES = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "float": (
        r"[-+]?\d[\d_]*(\.[\d_]*([eE][-+]?\d+)?|[eE][-+]?\d+)|[-+]?\.[\d_]+([eE][-+]?\d+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "int": (r"[-+]?(0b[01_]+|0o[0-7_]+|0x[\da-fA-F_]+|[\d_]+)", "-+0123456789"),
}


def load_yaml(path: StrPath) -> dict[str, Any]:
    """Read a YAML 1.2 file whose top level is a mapping.

    Its keys and the values of ``IDS`` are taken as strings, such as the experiment id 2024.

    A key that is null may be given again.

    Raises
    ------
    MissingFileError
        There is no such file.
    ConfigError
        It is not YAML, not a mapping, gives a key twice, or has a value that holds itself.
    """
    return copy.deepcopy(load_shared(path))


def load_shared(path: StrPath) -> dict[str, Any]:
    """Read a file as ``load_yaml`` does, parsed once for all that read it; the result must not be changed."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected a YAML file")
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 (byte {error.start}); expected YAML") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or 'cannot be read'}"
        ) from None
    except (ValueError, KeyError, AttributeError) as error:  # of PyYAML, for a value that is not of its tag's type
        raise ConfigError(f"{path}: not valid YAML: a value does not fit its tag or type ({error})") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: it is nested too deeply, or contains itself") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: the top level is a {type(content).__name__}, expected a mapping of names to settings"
        )
    return content


@lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    # A tuner reads its file, or its folder of files, once for each of its experiments.
    return yaml.load(text, Loader=_Loader)


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Return YAML that ``load_yaml`` and YAML 1.1 read back, in the order of ``content``, repeated values in full."""
    options: dict[str, Any] = {"sort_keys": False, "default_flow_style": None, "width": 120, "allow_unicode": True}
    return yaml.dump(dict(content), Dumper=_Dumper, **options)


def write_entries(path: Path, content: Mapping[str, Any], origin: Path) -> None:
    """Write a configuration file that names the tuner YAML it comes from, by an atomic write."""
    header = f"# Written by fuxictr-mm tune from {origin.name}: change it there, not here.\n"
    write_beside(path, lambda stream: stream.write((header + dump_yaml(content)).encode()))


class _Loader(yaml.CSafeLoader):
    """Reads YAML 1.2."""

    def construct_document(self, node: Node) -> Any:
        self._take_ids_as_text(node)
        self._check_nodes(node, {})
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

    def _check_nodes(self, node: Any, is_checked: dict[Node, bool]) -> None:
        """Refuse a list or mapping that holds itself, and a key that is given twice, by ``_check_keys``.

        ``is_checked`` holds the nodes so far, with False those that this one is inside of.
        """
        if isinstance(node, ScalarNode) or is_checked.get(node):
            return
        if node in is_checked:
            problem = "a list or mapping contains itself by an alias (*NAME); write the value in full"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        is_checked[node] = False
        pairs = node.value if isinstance(node, MappingNode) else [(entry,) for entry in node.value]
        for part in (part for pair in pairs for part in pair):
            self._check_nodes(part, is_checked)
        if isinstance(node, MappingNode):
            self._check_keys(node)
        is_checked[node] = True

    def _check_keys(self, node: MappingNode) -> None:
        """Refuse a key that is given twice, except after null: FuxiCTR's files list a key and set it further down."""
        given: dict[tuple[str, str], Node] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                continue
            earlier = given.setdefault((key.tag, key.value), value)
            if earlier is not value and earlier.tag != f"{TAG}null":
                problem = f"the key '{key.value}' is given twice; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            given[key.tag, key.value] = value

    def flatten_mapping(self, node: MappingNode) -> None:
        """Put merged keys (``<<``) into a mapping: its own come first, then the first mapping of a list.

        PyYAML 6.0.4 has another order than 6.0.3 and YAML: the last mapping of a list, and keys under a merged one.
        """
        merged: list[tuple[Node, Node]] = []
        own: list[tuple[Node, Node]] = []
        for key, value in node.value:
            if key.tag != f"{TAG}merge":
                own.append((key, value))
                continue
            for source in reversed(value.value) if isinstance(value, SequenceNode) else [value]:
                if not isinstance(source, MappingNode):
                    problem = f"expected a mapping or a list of mappings after <<, found a {source.id}"
                    raise yaml.constructor.ConstructorError(None, None, problem, source.start_mark)
                self.flatten_mapping(source)
                merged.extend(source.value)
        node.value = merged + own  # of a key that is given twice, the last counts

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node).replace("_", "")
        return int(text, 0 if re.match("[-+]?0[box]", text) else 10)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1, which FuxiCTR reads, or 1.2 takes for another type than a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar(f"{TAG}str", data, style="'" if data in ("y", "Y", "n", "N") else None)


# PyYAML's patterns of YAML 1.1 are left out, and those of 1.2 added; dates and a lone "=" are strings there.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(TAG) not in (*TYPES, "timestamp", "value")]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{TAG}int", _Loader.construct_yaml_int)
_Dumper.add_representer(str, _Dumper.represent_str)
for _name, (_pattern, _first) in TYPES.items():
    _Loader.add_implicit_resolver(TAG + _name, re.compile(f"({_pattern})$"), list(_first))
    _Dumper.add_implicit_resolver(TAG + _name, re.compile(f"({_pattern})$"), list(_first))
