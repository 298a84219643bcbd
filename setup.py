"""Packages of the distribution; everything else is in pyproject.toml, the tested versions in requirements.txt."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fuxictr_mm", "fuxictr_mm.*"]), "fuxictr_mm.model_zoo", "fuxictr_mm_serving"],
    # The zoo lies at the root of the checkout, where users drop files in; in the wheel it is part of the package,
    # because FuxiCTR's own wheel already installs a top-level `model_zoo`.
    package_dir={
        "fuxictr_mm": "fuxictr_mm",
        "fuxictr_mm_serving": "fuxictr_mm_serving",
        "fuxictr_mm.model_zoo": "model_zoo",
    },
)
