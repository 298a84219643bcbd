"""Encoders of a few hundred weights in the place of those of the hub, and a model file of the challenge."""

from pathlib import Path

#: As the challenge's files are written.
CHALLENGE_MODEL = """
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class DIN(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, dnn_hidden_units=(8,), **kwargs):
        super().__init__(feature_map, gpu=gpu, **kwargs)
        specs = feature_map.features.values()
        self.width = sum(s.get("embedding_dim", embedding_dim) for s in specs if s.get("source") == "item")
        context = sum(embedding_dim for s in specs if s["type"] != "meta" and s.get("source") != "item")
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(context + 2 * self.width, output_dim=1, hidden_units=list(dnn_hidden_units))
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        batch_dict, item_dict, mask = self.get_inputs(inputs)
        items = self.embedding_layer(item_dict, flatten_emb=True).view(len(mask), -1, self.width)
        history = (items[:, :-1] * mask.unsqueeze(-1)).sum(1)
        parts = [self.embedding_layer(batch_dict, flatten_emb=True), items[:, -1], history]
        return {"y_pred": self.mlp(torch.cat(parts, dim=-1)).sigmoid()}

    def get_inputs(self, inputs, feature_source=None):
        batch_dict, item_dict, mask = inputs
        known = self.feature_map.features
        context = {k: v for k, v in batch_dict.items() if known.get(k, {}).get("type", "meta") != "meta"}
        items = {k: v for k, v in item_dict.items() if k in known}
        return context, items, mask

    def get_labels(self, inputs):
        return inputs[0][self.feature_map.labels[0]].float().view(-1, 1)

    def get_group_id(self, inputs):
        return inputs[0][self.feature_map.group_id]
"""

BLOCK = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def save_text_model(folder: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=24, **BLOCK)).save_pretrained(folder)


def save_image_model(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder.mkdir(parents=True)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    ViTModel(ViTConfig(image_size=16, patch_size=8, **BLOCK)).save_pretrained(folder)
