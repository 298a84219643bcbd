"""The penalty equals FuxiCTR's in value and gradient."""

import pytest
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import nn

from fuxictr_mm.training.penalty import Penalty


class Model(BaseModel):
    """An embedding with a projected vector, a layer, a frozen weight, and a table beside."""

    def __init__(self, embedding_regularizer, net_regularizer, tmp_path):
        feature_map = FeatureMap("d", str(tmp_path))
        feature_map.features["level"] = {"type": "categorical", "source": "", "vocab_size": 5, "padding_idx": 0}
        feature_map.features["vector"] = {"type": "embedding", "source": "", "pretrain_dim": 3, "embedding_dim": 4}
        super().__init__(
            feature_map, embedding_regularizer=embedding_regularizer, net_regularizer=net_regularizer,
            verbose=0, model_root=str(tmp_path), metrics=["AUC"],
        )  # fmt: skip
        self.embedding_layer = FeatureEmbedding(feature_map, 4)
        self.net = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.tables = nn.ModuleDict({"vector": nn.Embedding(5, 3)})
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        self.net.weight.data[0, 0] = 0.0  # where |w| has a kink


@pytest.mark.parametrize("embedding", [None, 0.0, 0.3, "l1(0.2)", "l2(1e-1)", "l1_l2(0.2, 0.1)"])
@pytest.mark.parametrize("net", [None, 0.05, "l1(0.4)", "l1_l2(0.3,0.7)"])
def test_equals_fuxictr(embedding, net, tmp_path):
    model = Model(embedding, net, tmp_path)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = model.regularization_loss() + 0 * sum(p.sum() for p in trained.values())
    gradients = torch.autograd.grad(expected, list(trained.values()))
    penalty = Penalty(model, embedding, net)
    torch.testing.assert_close(penalty.value().double(), expected.detach(), rtol=1e-12, atol=1e-12, check_dtype=False)
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    penalty.add_gradients()
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + gradient, rtol=1e-12, atol=1e-12, msg=name)
    assert model.frozen.grad is None


def test_value_is_differentiable(tmp_path):
    model = Model(None, None, tmp_path)
    penalty = Penalty(model, "l1_l2(0.2, 0.1)", 0.5)
    (gradient,) = torch.autograd.grad(penalty.value(), [model.net.bias])
    torch.testing.assert_close(gradient, 0.5 * model.net.bias)


def test_a_parameter_without_gradient_gets_one(tmp_path):
    model = Model(None, None, tmp_path)
    Penalty(model, None, 0.5).add_gradients()
    torch.testing.assert_close(model.net.weight.grad, 0.5 * model.net.weight.data)
    assert all(p.grad is None for p in model.embedding_layer.parameters())


def test_tables_beside_count_as_embeddings(tmp_path):
    model = Model(None, None, tmp_path)
    table = model.tables["vector"].weight
    Penalty(model, 0.5, None, model.tables).add_gradients()
    torch.testing.assert_close(table.grad, 0.5 * table.data)
    assert model.net.weight.grad is None
