"""Updates of touched rows equal those of torch, or a dense re-computation; other rows keep weights and state."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.tables import Optimizers, TouchedOptimizer
from fuxictr_mm.training.clipping import clip_gradients
from fuxictr_mm.training.optimizers import make_optimizer
from fuxictr_mm.training.penalty import Penalty
from fuxictr_mm.training.weight_average import WeightAverage
from tests.errors import raises_naming

ROWS, DIM = 9, 3


def gradients(steps=7):
    """Yield rows, with duplicates, and their gradients; one step reaches no row."""
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        count = 0 if step == 3 else 6
        rows = torch.randint(0, ROWS - 2, (count,), generator=generator)
        yield rows, torch.randn(count, DIM, generator=generator, dtype=torch.float64)


def train(make):
    """Return table and optimizer after a few steps; rows 7 and 8 are never reached."""
    table = nn.Parameter(torch.linspace(-1, 1, ROWS * DIM, dtype=torch.float64).view(ROWS, DIM))
    optimizer = make([table])
    for rows, values in gradients():
        table.grad = torch.sparse_coo_tensor(rows.unsqueeze(0), values, table.shape, check_invariants=True)
        optimizer.step()
    return table, optimizer


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        ("adam", partial(torch.optim.SparseAdam, eps=1e-20)),  # which is added before the correction of the bias there
        ("adagrad", torch.optim.Adagrad),
        ("sgd", torch.optim.SGD),
    ],
)
def test_updates_are_those_of_torch(rule, theirs):
    eps = 1e-20 if rule == "adam" else None
    table, optimizer = train(lambda tables: TouchedOptimizer(tables, 0.1, rule, eps=eps))
    expected, _ = train(lambda tables: theirs(tables, lr=0.1))
    torch.testing.assert_close(table, expected, rtol=1e-12, atol=1e-12)
    start = torch.linspace(-1, 1, ROWS * DIM, dtype=torch.float64).view(ROWS, DIM)
    assert torch.equal(table[7:], start[7:])
    for value in optimizer.state[table].values():
        assert not isinstance(value, torch.Tensor) or not value[7:].any()


def test_row_wise_adagrad_in_closed_form():
    table, optimizer = train(lambda tables: TouchedOptimizer(tables, 0.1, "rowwise_adagrad"))
    expected = torch.linspace(-1, 1, ROWS * DIM, dtype=torch.float64).view(ROWS, DIM)
    total = torch.zeros(ROWS, 1, dtype=torch.float64)
    for rows, values in gradients():
        dense = torch.zeros(ROWS, DIM, dtype=torch.float64).index_add_(0, rows, values)
        total += dense.square().sum(1, keepdim=True) / DIM
        expected -= torch.where(dense != 0, 0.1 * dense / (total.sqrt() + 1e-10), 0.0)
    torch.testing.assert_close(table.data, expected, rtol=1e-12, atol=1e-12)
    assert optimizer.state[table]["sum"].shape == (ROWS, 1)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "sgd"])
def test_a_table_of_which_every_step_reaches_all_rows_is_trained_as_a_dense_one(name):
    """Weight decay included, which AdamW has by default."""
    start = torch.randn(5, DIM, dtype=torch.float64)
    sparse, dense, net = (nn.Parameter(start.clone()) for _ in range(3))
    settings = {"table_weight_decay": 0.3} if name in ("adam", "sgd") else {}
    touched = make_optimizer(name, [net, sparse], 0.1, tables=[sparse], touched=[sparse], **settings)
    whole = make_optimizer(name, [dense], 0.1, tables=[dense], **settings)
    for _ in range(5):
        gradient = torch.randn(5, DIM, dtype=torch.float64)
        sparse.grad, dense.grad, net.grad = gradient.to_sparse(1), gradient, torch.zeros_like(gradient)
        touched.step()
        whole.step()
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)


def test_weight_decay_is_that_of_touched_rows():
    table = nn.Parameter(torch.ones(4, 2))
    optimizer = TouchedOptimizer([table], 0.5, "sgd", weight_decay=0.2)
    table.grad = torch.sparse_coo_tensor(
        [[1, 3]], torch.tensor([[1.0, 0.0], [0.0, 0.0]]), (4, 2), check_invariants=True
    )
    optimizer.step()
    torch.testing.assert_close(table.data, torch.tensor([[1, 1], [0.4, 0.9], [1, 1], [0.9, 0.9]]))


def test_a_row_makes_up_for_the_weight_decay_it_has_missed():
    """As gradient descent on a dense table with decoupled decay, at the updates that reach a row."""
    table, _ = train(lambda tables: TouchedOptimizer(tables, 0.1, "sgd", weight_decay=0.5))
    start = torch.linspace(-1, 1, ROWS * DIM, dtype=torch.float64).view(ROWS, DIM)
    dense, last = start.clone(), torch.zeros(ROWS, dtype=torch.int64)
    for update, (rows, values) in enumerate(gradients(), start=1):
        dense = dense * 0.95 - 0.1 * torch.zeros_like(dense).index_add_(0, rows, values)
        last[rows] = update
    expected = dense / 0.95 ** (7 - last).double().unsqueeze(1)
    expected[7:] = start[7:]
    torch.testing.assert_close(table.data, expected, rtol=1e-12, atol=1e-12)
    assert last[:7].unique().numel() > 1


@pytest.mark.parametrize(
    ("regularizer", "due"), [(0.3, [0.3, 10.0]), ("l1(0.3)", [0.3, 10.0]), ("l1(20)", [20.0, 20.0])]
)
def test_what_is_due_for_many_updates_takes_a_weight_to_zero_at_most(regularizer, due):
    """But for one update, whose regularizer is that of a dense table."""
    model = nn.Embedding(2, 1, sparse=True)
    penalty = Penalty(model, None, regularizer)
    found = penalty.of_rows(model.weight, torch.ones(2, 1), torch.tensor([[1.0], [1e6]]), 0.1)
    torch.testing.assert_close(found, torch.tensor(due).unsqueeze(1))
    assert Penalty(model, regularizer, None).of_rows is None


def test_the_sum_of_two_regularizers_takes_a_weight_to_zero_at_most():
    """But for one update of L1."""
    model = nn.Embedding(2, 1, sparse=True)
    penalty = Penalty(model, None, "l1_l2(0.3, 0.2)")
    found = penalty.of_rows(model.weight, torch.ones(2, 1), torch.tensor([[1.0], [1e6]]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[0.5], [10.3]]))


@pytest.mark.parametrize("regularizer", [0.3, "l1(0.3)"])
def test_what_is_due_is_finite_at_a_learning_rate_of_zero(regularizer):
    model = nn.Embedding(2, 1, sparse=True)
    penalty = Penalty(model, None, regularizer)
    found = penalty.of_rows(model.weight, torch.tensor([[0.0], [1.0]]), torch.full((2, 1), 4.0), 0.0)
    torch.testing.assert_close(found, torch.tensor([[0.0], [1.2]]))


@pytest.mark.parametrize("rule", ["adagrad", "sgd"])
def test_a_checkpoint_without_the_last_updates_of_rows_is_regularized_from_there_on(rule):
    def make(tables):
        return TouchedOptimizer(tables, 0.1, rule, weight_decay=0.5)

    whole, optimizer = train(make)
    state = copy.deepcopy(optimizer.state_dict())
    for of_table in state["state"].values():
        del of_table["last_update"]
    table = nn.Parameter(whole.detach().clone())
    resumed = make([table])
    resumed.load_state_dict(state)
    table.grad = torch.sparse_coo_tensor([[0]], torch.zeros(1, DIM, dtype=torch.float64), table.shape)
    resumed.step()
    torch.testing.assert_close(table[0], whole[0] * 0.95, rtol=1e-12, atol=1e-12)
    assert torch.equal(resumed.state[table]["last_update"].flatten(), torch.tensor([8.0] + [7.0] * 8).double())


def test_two_optimizers_are_used_as_one():
    def make():
        torch.manual_seed(0)
        net, table = nn.Linear(2, 1), nn.Embedding(6, 2, sparse=True)
        parameters = [*net.parameters(), table.weight]
        rates = {"tables": [table.weight], "touched": [table.weight], "table_learning_rate": 0.3}
        return net, table, make_optimizer("adam", parameters, 0.1, **rates)

    def step(net, table, optimizer, ids):
        net(table(torch.tensor(ids))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, other = make(), make()
    assert isinstance(one[2], Optimizers)
    assert [group["lr"] for group in one[2].param_groups] == [0.1, 0.3]
    for ids in ([1, 2], [2, 2, 5], [0]):
        step(*one, ids)
    for module, source in zip(other[:2], one[:2], strict=True):
        module.load_state_dict(source.state_dict())
    other[2].load_state_dict(copy.deepcopy(one[2].state_dict()))
    for ids in ([5, 1], [3]):
        step(*one, ids)
        step(*other, ids)
    assert torch.equal(one[1].weight, other[1].weight)
    assert torch.equal(one[0].weight, other[0].weight)
    assert all(p.grad is None for p in (one[1].weight, *one[0].parameters()))
    with raises_naming(UserError, "table: ", "--resume"):
        other[2].load_state_dict(torch.optim.Adam(one[0].parameters()).state_dict())


def test_a_dense_gradient_is_refused():
    table = nn.Parameter(torch.ones(4, 2))
    table.grad = torch.ones(4, 2)
    with raises_naming(ConfigError, "(4, 2)", "table: dense"):
        TouchedOptimizer([table], 0.5).step()


RATES = [0.05, 0.1, 0.2, 0.2, 0.1, 0.05, 0.01]


def dense_rows(regularizer, decay, rates):
    """Return rows after gradient descent in NumPy, each by itself: it catches up where a gradient reaches it."""
    weights = torch.linspace(-1, 1, ROWS * DIM, dtype=torch.float64).view(ROWS, DIM).numpy()
    last = np.zeros(ROWS, int)
    l1, l2 = regularizer
    for update, (rows, values) in enumerate(gradients(), start=1):
        for row in sorted(set(rows.tolist())):
            gradient = values[rows == row].sum(0).numpy()
            decayed, kept = weights[row].copy(), weights[row].copy()
            for _ in range(last[row], update):
                decayed *= 1 - rates[update - 1] * decay
                kept -= rates[update - 1] * l2 * kept
            step = rates[update - 1] * l1 * np.sign(weights[row])
            due = weights[row] - kept + step
            for _ in range(last[row] + 1, update):  # to zero at most
                further = np.where(np.abs(due + step) < np.abs(weights[row]), due + step, weights[row])
                due = np.where(np.abs(due) < np.abs(weights[row]), further, due)
            weights[row] = decayed - due - rates[update - 1] * gradient
            last[row] = update
    return weights


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize(("text", "regularizer"), [(None, (0, 0)), (0.9, (0, 0.9)), ("l1_l2(0.3, 0.5)", (0.3, 0.5))])
def test_rows_catch_up_at_the_learning_rate_of_the_update_that_reaches_them(text, regularizer, decay):
    model = nn.Embedding(ROWS, DIM, sparse=True, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, ROWS * DIM, dtype=torch.float64).view(ROWS, DIM))
    penalty = Penalty(model, None, text).of_rows
    optimizer = TouchedOptimizer([model.weight], 0.1, "sgd", weight_decay=decay, penalty=penalty)
    for rate, (rows, values) in zip(RATES, gradients(), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        model.weight.grad = torch.sparse_coo_tensor(rows.unsqueeze(0), values, (ROWS, DIM), check_invariants=True)
        optimizer.step()
    expected = dense_rows(regularizer, decay, RATES)
    np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("missed", [1, 7, 1000, 10**6])
def test_l2_by_gradient_descent_is_weight_decay(missed):
    """As it is in a dense table, also of a row that has missed many updates."""
    model = nn.Embedding(1, DIM, sparse=True)
    with torch.no_grad():
        model.weight.fill_(1.0)
    due = Penalty(model, None, 1e-3).of_rows(model.weight, model.weight.data, torch.tensor([[float(missed)]]), 0.1)
    torch.testing.assert_close(1 - 0.1 * due, torch.full((1, DIM), (1 - 1e-4) ** missed), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ["adam", "adagrad", "rowwise_adagrad", "sgd"])
def test_the_padding_row_stays_zero(rule):
    table = nn.Embedding(ROWS, DIM, padding_idx=0, sparse=True)
    penalty = Penalty(table, None, "l1_l2(0.1, 0.1)").of_rows
    optimizer = TouchedOptimizer([table.weight], 0.1, rule, weight_decay=0.3, penalty=penalty)
    for ids in ([0, 1, 2], [0, 0], [3, 0], [1, 0]):
        table(torch.tensor(ids)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not table.weight[0].any()
    assert table.weight.isfinite().all()


def test_what_is_due_is_no_part_of_the_norm_that_is_clipped():
    """As docs/scale.md says: the regularizer is added afterwards."""
    table = nn.Embedding(ROWS, DIM, sparse=True, dtype=torch.float64)
    start = table.weight.detach().clone()
    optimizer = TouchedOptimizer([table.weight], 0.1, "sgd", penalty=Penalty(table, None, 0.5).of_rows)
    table(torch.tensor([2])).sum().mul(100).backward()
    clip_gradients([table.weight], 1.0)
    optimizer.step()
    expected = start[2] - 0.1 * (1 / DIM**0.5 + 0.5 * start[2])
    torch.testing.assert_close(table.weight[2].detach(), expected, rtol=1e-6, atol=1e-6)


def test_updates_beyond_what_float32_counts_are_right_on_average():
    table = nn.Parameter(torch.ones(2, 1))
    optimizer = TouchedOptimizer([table], 1e-3, "sgd", weight_decay=0.1)

    def step():
        table.grad = torch.sparse_coo_tensor([[0]], torch.zeros(1, 1), (2, 1), check_invariants=True)
        optimizer.step()

    step()
    state = optimizer.state[table]
    state["step"] = 2**24 - 1
    state["last_update"].fill_(2**24 - 1)
    before = table[0].item()
    for _ in range(65):  # to a number that float32 holds
        step()
    assert table[0].item() == pytest.approx(before * (1 - 1e-4) ** 65, rel=1e-5)


@pytest.mark.parametrize("settings", [{"decay": 0.9}, {"start": 3}], ids=["ema", "swa"])
def test_averages_of_rows_that_catch_up_are_those_of_all_rows(settings):
    table = nn.Embedding(ROWS, DIM, sparse=True, dtype=torch.float64)
    penalty = Penalty(table, None, "l1_l2(0.01, 0.3)").of_rows
    optimizer = TouchedOptimizer([table.weight], 0.1, "adam", weight_decay=0.5, penalty=penalty)
    average, seen = WeightAverage(nn.ModuleList([table, nn.Linear(2, 1)]), **settings), []
    expected = table.weight.detach().clone()
    for update, (rows, values) in enumerate(gradients(), start=1):
        table.weight.grad = torch.sparse_coo_tensor(rows.unsqueeze(0), values, (ROWS, DIM), check_invariants=True)
        average.before_update()
        optimizer.step()
        average.update()
        seen.append(table.weight.detach().clone())
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * seen[-1]
    if "start" in settings:
        expected = torch.stack(seen[2:]).mean(0)
    with average.applied():
        torch.testing.assert_close(table.weight.detach(), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(table.weight, seen[-1])
