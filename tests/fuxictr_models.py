"""Models as their authors write them for FuxiCTR and for the challenge."""

MODEL = """
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Plain(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, embedding_regularizer=None, **kwargs):
        super().__init__(feature_map, gpu=gpu, embedding_regularizer=embedding_regularizer, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[8])
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        return {"y_pred": self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)).sigmoid()}
"""


#: As the challenge's files are written: a tuple comes in, items are rows of one long dict, the target is the last one,
#: and the model adds a feature of its own to the feature map.
CHALLENGE = """
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Plain(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, accumulation_steps=1, **kwargs):
        super().__init__(feature_map, gpu=gpu, **kwargs)
        self.accumulation_steps = accumulation_steps
        self.width = sum(s.get("embedding_dim", embedding_dim) for s in feature_map.features.values()
                         if s.get("source") == "item")
        feature_map.features["code"] = {"type": "categorical", "source": "item", "vocab_size": 5, "embedding_dim": 4}
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim, not_required_feature_columns=["code"])
        self.code = FeatureEmbedding(feature_map, embedding_dim, required_feature_columns=["code"])
        self.mlp = MLP_Block(embedding_dim + 2 * self.width + 4, output_dim=1, hidden_units=[32])
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        batch_dict, item_dict, mask = self.get_inputs(inputs)
        code = self.code({"code": item_dict["item_id"].view(len(mask), -1)[:, -1] % 5}, flatten_emb=True)
        items = self.embedding_layer(item_dict, flatten_emb=True).view(len(mask), -1, self.width)
        history = (items[:, :-1] * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        parts = [self.embedding_layer(batch_dict, flatten_emb=True), items[:, -1], history, code]
        return {"y_pred": self.mlp(torch.cat(parts, dim=-1)).sigmoid()}

    def get_inputs(self, inputs, feature_source=None):
        batch_dict, item_dict, mask = inputs
        columns = {n: v.to(self.device) for n, v in batch_dict.items() if n not in self.feature_map.labels
                   and self.feature_map.features[n]["type"] != "meta"}
        for name, value in item_dict.items():
            item_dict[name] = value.to(self.device)
        return columns, item_dict, mask.to(self.device)

    def get_labels(self, inputs):
        return inputs[0][self.feature_map.labels[0]].to(self.device).float().view(-1, 1)

    def get_group_id(self, inputs):
        return inputs[0][self.feature_map.group_id]

    def train_step(self, batch_data):
        loss = self.compute_loss(self.forward(batch_data), self.get_labels(batch_data)) / self.accumulation_steps
        loss.backward()
        if (self._batch_index + 1) % self.accumulation_steps == 0:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self._max_gradient_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss
"""


#: As FuxiCTR's sequence models are written: names of a target and of a sequence among the columns.
SEQUENCE = """
import torch
from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Plain(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, din_target_field=("item_id",),
                 din_sequence_field=("item_seq",), **kwargs):
        super().__init__(feature_map, gpu=gpu, **kwargs)
        self.target, self.sequence = din_target_field, din_sequence_field
        self.embedding_layer = FeatureEmbeddingDict(feature_map, embedding_dim)
        self.attention = DIN_Attention(embedding_dim, attention_units=[8])
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[8])
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        X = self.get_inputs(inputs)
        emb = self.embedding_layer(X)
        mask = X[self.sequence].long() != 0
        emb[self.sequence] = self.attention(emb[self.target], emb[self.sequence], mask)
        return {"y_pred": self.mlp(self.embedding_layer.dict2tensor(emb, flatten_emb=True)).sigmoid()}
"""


ALL = ["likes_level", "item_id", "item_tags", "item_emb_d16"]


HISTORY = {
    "use_features": [*ALL, "item_seq"],
    "feature_specs": [{"name": "item_seq", "type": "sequence", "share_embedding": "item_id", "feature_encoder": None}],
}


DEEP = "self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))"


LINEAR = (
    MODEL.replace("import FeatureEmbedding,", "import FeatureEmbedding, LogisticRegression,")
    .replace("        self.compile", "        self.linear = LogisticRegression(feature_map)\n        self.compile")
    .replace(DEEP, f"({DEEP} + self.linear(self.get_inputs(inputs)))")
)
