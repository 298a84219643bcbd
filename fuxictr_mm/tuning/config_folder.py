"""Experiments and datasets, written as run_expid.py reads them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fuxictr_mm.files import write_beside


class _Dumper(yaml.SafeDumper):
    """Writes what `load_yaml` reads back: repeated values in full, texts that YAML 1.2 takes as numbers in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def write_entries(path: Path, content: Mapping[str, Any], origin: Path) -> None:
    """Write a configuration file, whole or not at all, that says which tuner YAML it comes from."""
    header = f"# Written by run_param_tuner.py from {origin.name}: change it there, not here.\n"
    text = yaml.dump(dict(content), Dumper=_Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True)
    write_beside(path, lambda stream: stream.write((header + text).encode()))
