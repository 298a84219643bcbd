"""Grids of the stand-in for run_expid.py."""

from pathlib import Path

from fuxictr_mm.tuning import run_grid

HEAD = "base_config: base\nbase_expid: Fake_default\ndataset_id: tiny\n"


def tuner_file(folder, space, name="grid.yaml", head=HEAD):
    path = folder / name
    path.write_text(head + "tuner_space:\n" + "".join(f"    {line}\n" for line in space.splitlines()))
    return path


def run(config_dir, gpus=(-1,), tag=None, **options):
    return run_grid(config_dir, gpus, tag, Path("fake_run.py"), **options)


def runs(folder):
    path = folder / "runs.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
