"""DHEN: layers that add the outputs of several kinds of feature interaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.layers import DINAttention
from fuxictr_mm.model import DNNModel

Interaction = Literal["dot", "cross", "attention", "linear", "convolution"]


class DHEN(DNNModel):
    r"""Deep Hierarchical Ensemble Network. Zhang et al., DLP-KDD 2022, https://arxiv.org/abs/2203.11014.

    .. math::

        x^{(0)} = [c, t, \mathrm{DIN}(t, s)], \qquad
        x^{(l + 1)} = \mathrm{LN}\Big(\sum_j I_j(x^{(l)}) + P x^{(l)}\Big), \qquad
        \hat y = \sigma(\mathrm{DNN}(x^{(L)}))

    with tokens x of the fields of context c, target t and interest in the history s. The interactions I, each with
    own weights in each layer, map T tokens to M:

    - ``dot``: an MLP of the products of all pairs of tokens;
    - ``cross``: :math:`P (x \odot (W x + b) + x)` of all tokens, concatenated;
    - ``attention``: :math:`P \, \mathrm{MHA}(x)` of the tokens with each other;
    - ``linear``: :math:`P x`;
    - ``convolution``: :math:`P (K * x)`, a kernel of 3 x 3 over tokens and dims.

    P is a linear map of tokens, and in the shortcut the identity if M = T.

    Departures: the paper's interactions read and write as many tokens as a search finds; here all layers write M. It
    joins the outputs by a concatenation, a sum or a weighted sum; here they are summed.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        L, number of layers.
    num_tokens : int, optional
        M, number of tokens of a layer; by default that of the first layer, one per field.
    interactions : sequence of str
        Kinds of interaction, see above.
    hidden_dim : int
        Hidden dim of the MLP of ``dot``.
    num_heads : int
        Heads of ``attention``; must divide ``embedding_dim``.
    attention_hidden_units : sequence of int
        Dims of the hidden layers of DIN's attention MLP.
    din_use_softmax : bool
        Whether the weights of DIN's activation unit sum to one.
    dnn_hidden_units : sequence of int
        Dims of the DNN's hidden layers.
    **params
        Those of DNNModel and MultimodalModel.
    """

    same_dims = True

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_layers: PositiveInt = 2,
        num_tokens: PositiveInt | None = None,
        interactions: Annotated[Sequence[Interaction], Field(min_length=1)] = ("dot", "cross", "attention", "linear"),
        hidden_dim: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        attention_hidden_units: HiddenUnits = (64,),
        din_use_softmax: bool = False,
        dnn_hidden_units: HiddenUnits = (512, 128, 64),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        dim = self.embedding_dim
        self.check_heads(num_heads, dim, "embedding_dim")
        if len(set(interactions)) < len(interactions):
            raise ConfigError(f"{self.model_id}: interactions is {list(interactions)}, expected each kind once")
        self.attention = DINAttention(self.item_dim, attention_hidden_units, use_softmax=din_use_softmax)
        fields = len(self.context_fields) + 2 * len(self.item_fields)
        counts = [fields] + num_layers * [num_tokens or fields]
        makers: dict[str, Callable[[int, int], nn.Module]] = {
            "dot": lambda t, m: PairProducts(t, m, dim, hidden_dim),
            "cross": lambda t, m: nn.Sequential(Flat(CrossNetV2(t * dim, 1)), TokenLinear(t, m)),
            "attention": lambda t, m: nn.Sequential(SelfAttention(dim, num_heads), TokenLinear(t, m)),
            "linear": TokenLinear,
            "convolution": lambda t, m: nn.Sequential(Convolution(), TokenLinear(t, m)),
        }
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: makers[name](t, m) for name in interactions}) for t, m in pairwise(counts)
        )
        self.shortcuts = nn.ModuleList(nn.Identity() if t == m else TokenLinear(t, m) for t, m in pairwise(counts))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_layers))
        self.dnn = self.make_dnn(counts[-1] * dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        return self.head(torch.cat([e.context, e.target, self.attention(e.target, e.history)], dim=1))

    def head(self, inputs: Tensor) -> Tensor:
        """Return the logits ``(B, 1)`` of context, target and interest, concatenated."""
        tokens = inputs.unflatten(1, (-1, self.embedding_dim))
        for layer, shortcut, norm in zip(self.layers, self.shortcuts, self.norms, strict=True):
            interactions: Iterable[nn.Module] = layer.values()  # type: ignore[operator]
            tokens = norm(sum((interaction(tokens) for interaction in interactions), shortcut(tokens)))
        return self.dnn(tokens.flatten(1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, history and its part of the attention."""
        return context, history, self.attention.keys(history)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, interest = state[0], self.attention.attend(candidates, *state[1:])
        return self.head(torch.cat([context.expand(candidates.shape[0], -1), candidates, interest], dim=1))


class TokenLinear(nn.Linear):
    """Linear map of tokens ``(B, T, W)`` to M tokens, the same for each dim."""

    def __init__(self, num_tokens: int, num_outputs: int) -> None:
        super().__init__(num_tokens, num_outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(B, M, W)``."""
        return super().forward(tokens.transpose(1, 2)).transpose(1, 2)


class PairProducts(nn.Module):
    """MLP of the inner products of all pairs of tokens ``(B, T, W)``, to M tokens."""

    def __init__(self, num_tokens: int, num_outputs: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.pairs = torch.triu_indices(num_tokens, num_tokens, 1).tolist()
        hidden = nn.Linear(num_tokens * (num_tokens - 1) // 2, hidden_dim)
        self.mlp = nn.Sequential(hidden, nn.ReLU(), nn.Linear(hidden_dim, num_outputs * dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(B, M, W)``."""
        first, second = self.pairs
        return self.mlp((tokens @ tokens.transpose(1, 2))[:, first, second]).unflatten(1, (-1, tokens.shape[2]))


class SelfAttention(nn.Module):
    """Attention of tokens ``(B, T, W)`` to each other."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Flat(nn.Module):
    """A module on all tokens, concatenated."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        return self.module(tokens.flatten(1)).view_as(tokens)


class Convolution(nn.Conv2d):
    """Convolution of tokens and dims as an image of one channel."""

    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        return super().forward(tokens.unsqueeze(1)).squeeze(1)
