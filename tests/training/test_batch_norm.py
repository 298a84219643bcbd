"""Batch norm over the samples of all processes, or of each."""

import pytest
import torch
from torch import nn

from fuxictr_mm.training import distributed
from fuxictr_mm.training.batch_norm import LocalBatchNorm, SyncBatchNorm, replace_batch_norm


@pytest.mark.parametrize("shape", [(7, 5), (4, 5, 3)])
@pytest.mark.parametrize(("kind", "rounding"), [(SyncBatchNorm, 1e-9), (LocalBatchNorm, 0)])
def test_batch_norm_of_one_process_is_torchs_own(shape, kind, rounding, monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    own, ours = nn.Sequential(nn.BatchNorm1d(5)).double(), nn.Sequential(nn.BatchNorm1d(5)).double()
    parameters = list(ours.parameters())
    replace_batch_norm(ours, sync=kind is SyncBatchNorm)
    assert isinstance(ours[0], kind)
    assert [id(p) for p in ours.parameters()] == [id(p) for p in parameters]
    for training in (True, True, False):
        x = torch.randn(shape, dtype=torch.float64)
        results = []
        for model in (own, ours):
            model.train(training)
            model.zero_grad()
            inputs = x.clone().requires_grad_()
            out = model(inputs)
            (out * torch.arange(out.numel()).view_as(out)).sum().backward()
            results.append([out, inputs.grad, *(p.grad for p in model.parameters()), *model.buffers()])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=rounding / 10, atol=rounding)


def test_batch_norm_of_a_process_without_samples(monkeypatch):
    x = torch.randn(6, 5, dtype=torch.float64)
    variance, mean = torch.var_mean(x, 0, correction=0)
    others = torch.cat([mean, variance, torch.tensor([6.0])]).unsqueeze(0)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(distributed, "gather_equal", lambda own: torch.cat([own, others]))
    norm = SyncBatchNorm(nn.BatchNorm1d(5).double())
    expected = nn.BatchNorm1d(5).double()
    expected(x)
    out = norm(x[:0].requires_grad_())
    out.sum().backward()
    assert out.shape == (0, 5)
    assert norm.weight.grad.tolist() == [0.0] * 5
    for found, value in zip(norm.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_of_too_few_samples_of_all_processes_keeps_its_statistics(rows, monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    model = nn.Sequential(nn.BatchNorm1d(5))
    model(torch.randn(6, 5))
    replace_batch_norm(model)
    before = [value.clone() for value in model[0].buffers()]
    x = torch.randn(rows, 5, requires_grad=True)
    out = model(x)
    out.sum().backward()
    assert out.shape == x.grad.shape == (rows, 5)
    for value in (out, x.grad, *(p.grad for p in model.parameters())):
        assert bool(value.isfinite().all())
    assert all(torch.equal(value, kept) for value, kept in zip(model[0].buffers(), before, strict=True))


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_of_own_rows_that_are_too_few_takes_the_running_statistics(rows):
    model = nn.Sequential(nn.BatchNorm1d(5))
    model(torch.randn(6, 5))
    replace_batch_norm(model, sync=False)
    before = [value.clone() for value in model[0].buffers()]
    x = torch.randn(rows, 5, requires_grad=True)
    out = model(x)
    out.sum().backward()
    assert torch.equal(out, model.eval()(x))
    assert bool(x.grad.isfinite().all())
    mean, variance, batches = before
    assert torch.equal(model[0].running_mean, mean)
    assert torch.equal(model[0].running_var, variance)
    assert model[0].num_batches_tracked == batches + 1  # as on the other processes


@pytest.mark.parametrize("compiled", [False, True])
def test_batch_norm_over_processes_is_left_out_of_a_compiled_model(compiled):
    model = nn.Sequential(nn.BatchNorm1d(3))
    model.compiled_logits = model.forward if compiled else None
    replace_batch_norm(model)
    assert isinstance(model[0], SyncBatchNorm)
    assert getattr(model[0].forward, "_torchdynamo_disable", False) == compiled
