"""``fuxictr-mm synth``: synthetic data in the layout of MicroLens_1M_x1, with a configuration to train."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from shlex import quote

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.data.synthetic.spec import PRESETS, SyntheticSpec
from fuxictr_mm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm synth``: one for each field of ``SyntheticSpec``, with the preset as default."""
    add_examples(
        parser,
        "fuxictr-mm synth --preset tiny --out data/my_data",
        "fuxictr-mm synth --preset microlens-1m --out data/MicroLens_1M_x1",
        "fuxictr-mm synth --preset long --out data/long_mm",
        "fuxictr-mm synth --preset taobao-mm --scale 0.01 --out data/taobao_like",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny", help="sizes to start from (default: tiny)")
    parser.add_argument("--scale", type=float, metavar="X", help="X times as many users, items and rows")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an older dataset in FOLDER; its configuration is kept"
    )
    add_output_options(parser)
    for field in dataclasses.fields(SyntheticSpec):
        kind = type(field.default)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, metavar=kind.__name__.upper(), help=field.metadata["help"]
        )


def main_from_args(args: argparse.Namespace) -> None:
    """Write the dataset that the parsed options ask for."""
    from fuxictr_mm.data.synthetic.writer import CONFIGURATION, generate
    from fuxictr_mm.datasets.synthetic import write_synthetic_config

    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(SyntheticSpec)}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.scale is not None and not 0 < args.scale <= 1000:
        raise ConfigError(f"--scale is {args.scale}, expected a number above 0 and at most 1000")
    spec = PRESETS[args.preset].scaled(1.0 if args.scale is None else args.scale, **changes)
    folder = Path(args.out)
    kept = [name for name in CONFIGURATION if (folder / name).exists()]
    generate(spec, folder, progress=not args.quiet and sys.stderr.isatty(), overwrite=args.overwrite)
    experiments = write_synthetic_config(folder, spec)
    files = sorted(path.name for path in folder.iterdir())
    document = {
        **{"folder": str(folder), "preset": args.preset, "spec": dataclasses.asdict(spec)},
        **{"files": files, "experiments": experiments, "kept": kept},
    }
    lines = [f"{folder}: {', '.join(files)}"]
    if kept:
        lines.append(f"{' and '.join(kept)} existed and was not changed; to have it written for these data, delete it")
    lines += [
        "",
        "To train:",
        *(f"  fuxictr-mm train --config {quote(str(folder))} --expid {name}" for name in experiments),
    ]
    show(args, document, "\n".join(lines))
