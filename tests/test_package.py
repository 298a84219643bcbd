"""The distributions: the wheels import from any folder, the source distribution is the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests.paths import ROOT


def test_requirements_are_constraints_as_well():
    """Which pip refuses with extras: ``pip install -c requirements.txt``."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert not [line for line in lines if "[" in line and not line.startswith("#")]


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, "--no-cache-dir"]
    # From a copy: setuptools writes its build folder into the source.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("fuxictr_mm", "fuxictr_mm_serving", "model_zoo"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*build, source], check=True, capture_output=True)
    wheel = next(tmp_path.glob("fuxictr_mm-*.whl"))
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True, capture_output=True
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    code = """
from fuxictr_mm.registry import list_models, load_model_class
from fuxictr_mm.model_zoo.DIN import DIN
from fuxictr.pytorch import layers
assert "site" in str(list_models()["DIN_MM"]), list_models()
assert load_model_class("DIN_MM").__name__ == "DIN_MM"
assert load_model_class("DIN").__name__ == DIN.__name__
assert layers.DINAttention
from importlib.resources import files
assert files("fuxictr_mm_serving").joinpath("page.html").is_file()
assert all(files(package).joinpath("py.typed").is_file() for package in ("fuxictr_mm", "fuxictr_mm_serving"))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_distribution_without_torch(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "fuxictr_mm_serving", source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    options = ["--no-build-isolation", "--no-cache-dir", "--target", tmp_path / "site", source]
    subprocess.run([*pip, *options], check=True, capture_output=True)
    installed = tmp_path / "site" / "fuxictr_mm_serving"
    assert (installed / "page.html").is_file()
    assert (installed / "server.py").is_file()
    assert (installed / "py.typed").is_file()
    assert not (installed / "pyproject.toml").exists()
    licence = next((tmp_path / "site").glob("fuxictr_mm_serving-*.dist-info/licenses/LICENSE"))
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert not (tmp_path / "site" / "fuxictr_mm").exists()
    assert (tmp_path / "site" / "bin" / "fuxictr-mm-serve").is_file()


@pytest.mark.slow
def test_the_source_distribution_is_the_checkout(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    source = tmp_path / "source"
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("fuxictr_mm-*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - held == {".gitignore"}
