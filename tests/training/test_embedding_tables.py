"""Which parameters are embedding tables."""

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding
from torch import nn

from fuxictr_mm.training.embedding_tables import embedding_tables


def test_projections_and_other_embeddings_are_none(tmp_path):
    feature_map = FeatureMap("d", str(tmp_path))
    feature_map.features["level"] = {"type": "categorical", "source": "", "vocab_size": 5, "padding_idx": 0}
    feature_map.features["vector"] = {"type": "embedding", "source": "", "pretrain_dim": 3, "embedding_dim": 4}
    model = nn.ModuleDict({"features": FeatureEmbedding(feature_map, 4), "net": nn.Embedding(2, 4)})
    model["tables"] = nn.ModuleDict({"vector": nn.Embedding(5, 3)})
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for p in embedding_tables(model, model["tables"])]
    assert found == ["features.embedding_layer.embedding_layers.level.weight", "tables.vector.weight"]
