"""The embedding of items that training does not show."""

import torch

from fuxictr_mm.layers.unknown_item import UnknownItem


def test_in_evaluation_ids_without_a_training_batch_are_the_unknown_one():
    layer = UnknownItem(6, 2)
    layer.embedding.data = torch.tensor([7.0, 8.0])
    ids = torch.tensor([0, 2, 5])
    assert layer.known(ids) is ids  # in training, where dropout decides
    layer.eval()
    assert layer.known(torch.arange(6)).tolist() == [0, 0, 2, 0, 0, 5]
    assert layer.fill(torch.ones(3, 2), torch.tensor([2, 0, 5])).tolist() == [[1, 1], [7, 8], [1, 1]]
    again = UnknownItem(6, 2)
    again.load_state_dict(layer.state_dict())
    assert again.eval().known(torch.arange(6)).tolist() == [0, 0, 2, 0, 0, 5]
