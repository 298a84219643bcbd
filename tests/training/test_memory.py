"""The warning of parameters that do not fit."""

import logging

import pytest
import torch
from torch import nn

from fuxictr_mm.training import memory


@pytest.mark.parametrize(("free", "expected"), [(3_000_000, ["large", "Module", "1.0 GB"]), (9e9, [])])
def test_the_warning_comes_before_the_memory_is_taken(free, expected, monkeypatch, caplog):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    caplog.set_level(logging.WARNING, logger=memory.__name__)
    with memory.warn_of_large_parameters("X", torch.device("cpu"), "fuxictr-mm plan --expid X"):
        shared = nn.Linear(100, 100)
        assert not caplog.messages
        nn.ModuleList([shared, shared])
        nn.Module.register_parameter(nn.Linear(1, 1), "again", shared.weight)
        assert not caplog.messages
        for _ in range(2):  # torch.empty takes no memory until it is written
            nn.Module().register_parameter("large", nn.Parameter(torch.empty(16_000, 16_000)))
    assert len(caplog.messages) == bool(expected)
    assert all(part in caplog.messages[0] for part in expected)
    nn.Linear(1000, 1000)
    assert len(caplog.messages) == bool(expected)
