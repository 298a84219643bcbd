"""Package metadata; tools are configured in pyproject.toml, the tested versions are pinned in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "fuxictr_mm/__init__.py").read_text(encoding="utf-8"))

setup(
    name="fuxictr-mm",
    version=VERSION[1] if VERSION else "0",
    description="Multimodal click-through-rate prediction as a plugin of FuxiCTR",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["fuxictr_mm", "fuxictr_mm.*"]), "fuxictr_mm.model_zoo"],
    # The zoo lies at the root of the checkout, where users drop files in; in the wheel it is part of the package,
    # because FuxiCTR's own wheel already installs a top-level `model_zoo`.
    package_dir={"fuxictr_mm": "fuxictr_mm", "fuxictr_mm.model_zoo": "model_zoo"},
    package_data={"fuxictr_mm": ["py.typed", "report/templates/*"]},
    install_requires=[
        "fuxictr~=2.3.10",
        "torch>=2.4",
        "numpy>=1.26",
        "pyarrow>=15",
        "pydantic>=2.11",
        "ruamel.yaml>=0.18",
        "tqdm>=4.60",
        "filelock>=3.14",
        "threadpoolctl>=3",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "safetensors>=0.4",
        "h5py>=3.10",
        "argcomplete>=3.5",
    ],
    extras_require={
        "encode": ["sentence-transformers>=6", "transformers>=5", "pillow>=10"],
        "quantize": ["faiss-cpu>=1.9"],
        "quality": ["ftfy>=6.2", "py3langid>=0.4"],
        "tensorboard": ["tensorboard>=2.16"],
        "tuning": ["optuna>=5"],
        "report": ["jinja2>=3.1", "matplotlib>=3.8"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings-python>=1.10", "latex2mathml>=3.77"],
        "dev": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.9", "mypy>=1.13", "import-linter>=2.1"],
    },
    entry_points={"console_scripts": ["fuxictr-mm = fuxictr_mm.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
