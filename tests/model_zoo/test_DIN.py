"""DIN equals a padded re-computation from its formulas."""

import pytest
import torch


@pytest.mark.parametrize("settings", [{}, {"attention_output_activation": "Sigmoid"}, {"din_use_softmax": True}])
def test_equals_the_dense_model(equals_dense, din, settings):
    def dense(model, p):
        return model.dnn(torch.cat([p.c, p.t, din(model.attention_layers, p.t, p.s, p.mask)], dim=-1))

    equals_dense("DIN_tiny", dense, **settings)


def test_the_order_of_a_history_is_of_no_account(order_counts):
    assert not order_counts("DIN_tiny")
