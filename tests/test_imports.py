"""Imports point one way, as the contracts in pyproject.toml say, and what is slow is imported only where it is used."""

import re
import subprocess
import sys

from tests.paths import ROOT


def test_imports_keep_the_contracts():
    # In a process of its own: import-linter configures logging and disables existing loggers.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


#: They import argparse besides ``commands``: the parser itself, and options that a reader of data also checks.
PARSERS = {"arguments.py", "cli.py", "datasets/own/options.py"}


def test_command_lines_are_parsed_in_commands():
    package = ROOT / "fuxictr_mm"
    importing = {p.relative_to(package) for p in package.rglob("*.py") if "import argparse\n" in p.read_text("utf-8")}
    assert {path.as_posix() for path in importing if path.parts[0] != "commands"} == PARSERS


def test_fuxictr_is_imported_in_one_place():
    """Elsewhere, it would load what it seldom uses: 170 MB, if that module were the first to be imported."""
    package = ROOT / "fuxictr_mm"
    direct = re.compile(r"(?m)^ *(?:from|import) fuxictr\b")
    found = [p.relative_to(package).as_posix() for p in package.rglob("*.py") if direct.search(p.read_text("utf-8"))]
    assert found == ["fuxictr_imports.py"]


#: In one process: what is done, and what it must not import, which takes long and is not used.
LIGHT = [
    ("import fuxictr_mm as fm", "torch fuxictr numpy pyarrow pydantic"),
    ("import fuxictr_mm.submission", "numpy pandas pyarrow torch"),
    ("import fuxictr_mm.config", "torch fuxictr pandas"),
    ("fm.load_run; import fuxictr_mm.runs, fuxictr_mm.evaluation.compare", "torch"),
    # FuxiCTR's layers and models import these, and a step of an optimizer torch's compiler.
    ("import fuxictr_mm.layers, fuxictr_mm.model", "ray sklearn scipy.stats polars pandas h5py torch._dynamo triton"),
    ("fm.Experiment; import fuxictr_mm.experiment", "ray sklearn scipy.stats polars pandas h5py torch._dynamo"),
    (
        """
import torch
from fuxictr_mm.training.optimizers import make_optimizer
net, table = torch.nn.Linear(2, 1), torch.nn.Embedding(3, 2, sparse=True)
dense, tables = [*net.parameters()], [table.weight]
for optimizer in (
    make_optimizer("adam", dense, 0.1), make_optimizer("adam", [*dense, *tables], 0.1, touched=tables)
):
    net(table(torch.tensor([1]))).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
""",
        "torch._dynamo",
    ),
]


def test_what_is_slow_is_not_imported():
    code = f"""
import sys
for code, forbidden in {LIGHT!r}:
    exec(code)
    found = [name for name in forbidden.split() if name in sys.modules]
    if found:
        sys.exit(f"{{code}} imports {{found}}")
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
