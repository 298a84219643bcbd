import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.layers import DINAttention, MultiHeadTargetAttention, triton_kernels
from tests.errors import raises_naming
from tests.paths import ROOT


def test_fuse_reaches_the_layers_that_have_kernels(monkeypatch):
    monkeypatch.setattr(triton_kernels, "find_spec", lambda _: True)
    model = nn.ModuleList([nn.Sequential(MultiHeadTargetAttention(4, 4)), DINAttention(4), nn.Linear(4, 4)])
    triton_kernels.fuse(model)
    assert [m.uses_kernels for m in model.modules() if hasattr(m, "uses_kernels")] == [True, True]
    assert not MultiHeadTargetAttention.uses_kernels
    assert not DINAttention.uses_kernels


def test_fuse_without_triton(monkeypatch):
    monkeypatch.setattr(triton_kernels, "find_spec", lambda _: None)
    with raises_naming(ConfigError, "fused_attention", "Triton"):
        triton_kernels.fuse(nn.Linear(1, 1))


def test_tensors_that_kernels_take(monkeypatch):
    on_gpu = {
        dtype: SimpleNamespace(is_cuda=True, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)
    }
    assert triton_kernels.takes(on_gpu[torch.float32], on_gpu[torch.bfloat16])
    assert not triton_kernels.takes(on_gpu[torch.float32], on_gpu[torch.float64])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not triton_kernels.takes(on_gpu[torch.float32])


def test_tensors_that_kernels_do_not_take():
    assert not triton_kernels.takes(torch.zeros(1))  # on the CPU
    on_gpu = torch.zeros(1, device="meta")
    assert not triton_kernels.takes(on_gpu)
    assert triton_kernels.takes_queries(4, 192)
    assert triton_kernels.takes_queries(1, 2048)
    assert not triton_kernels.takes_queries(5, 257)
    assert [triton_kernels.filled(size) for size in (1, 3, 192, 256)] == [1, 4, 256, 256]


@pytest.mark.slow
def test_compiled_for_gpus_the_kernels_spill_no_registers():
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compiled_kernels", "80", "90"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 30
    assert {name: stack for name, (_, stack) in found.items() if stack} == {}
