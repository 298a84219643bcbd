"""Precision of products, and bf16 as an option of an experiment."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from benchmarks.memory import in_use
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.runtime import CODE_CACHE, keep_freed_memory, return_freed_memory, set_precision
from tests.paths import ROOT
from tests.tensors import read_tensors


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_precision_of_products():
    cpu = torch.device("cpu")
    for name, expected in (("fp32", "highest"), ("tf32", "medium"), ("bf16", "medium"), ("fp32", "highest")):
        set_precision(name, cpu)
        assert torch.get_float32_matmul_precision() == expected
    set_precision("tf32", torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_on_a_processor_without_it_is_slow_and_says_so(monkeypatch, caplog, fast):
    monkeypatch.setattr("fuxictr_mm.runtime._has_fast_bfloat16", lambda: fast)
    set_precision("bf16", torch.device("cpu"))
    assert ("precision: bf16" in caplog.text) is not fast


def test_freed_memory_is_kept_by_glibc():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep other memory")
def test_freed_memory_is_returned_after_files_are_read():
    library, size = ctypes.CDLL(None), 2**16
    library.malloc.restype = ctypes.c_void_p
    blocks = [ctypes.c_void_p(library.malloc(size)) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    *freed, last = blocks  # the last one keeps the heap from shrinking
    for block in freed:
        library.free(block)
    before = in_use("cpu")
    return_freed_memory()
    assert before - in_use("cpu") > 500 * size
    library.free(last)


@pytest.mark.parametrize("users", [None, "7"])
def test_code_of_products_is_bounded_unless_the_user_has_set_it(users):
    environment = {name: value for name, value in os.environ.items() if name != CODE_CACHE}
    environment.update({CODE_CACHE: users} if users else {}, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", f"import os, fuxictr_mm; print(os.environ['{CODE_CACHE}'])"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (users or "64")


@pytest.mark.slow
@pytest.mark.parametrize("expid", ["DIN_tiny", "DIN_MM_tiny"])
def test_bf16_learns_as_well(tmp_path, expid):
    def auc(precision):
        overrides = {"precision": precision, "epochs": 6, "model_root": str(tmp_path), "verbose": 0}
        result = Experiment.load(expid, ROOT, **overrides).fit()
        state = read_tensors(result.weights)
        assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())
        return result.valid["AUC"]

    assert abs(auc("bf16") - auc("fp32")) < 0.02
