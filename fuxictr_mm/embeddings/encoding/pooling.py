"""From one vector per token to one vector per item.

Shape letters: B texts or images, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool_tokens(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    r"""Pool the tokens of each row; padding takes no part.

    With :math:`m_t` 1 for a token and 0 for padding,

    * cls: :math:`h_1`
    * mean: :math:`\sum_t m_t h_t / \sum_t m_t`
    * max: :math:`\max_{t : m_t = 1} h_t`
    * last: :math:`h_{\max\{t : m_t = 1\}}`

    Parameters
    ----------
    hidden : Tensor
        ``(B, T, D)``, the last hidden state.
    mask : Tensor
        ``(B, T)``, 1 for a token, 0 for padding.
    pooling : str
        One of ``POOLINGS``.

    Returns
    -------
    Tensor
        ``(B, D)``, float32.

    Examples
    --------
    >>> from fuxictr_mm.embeddings.encoding.choices import POOLINGS
    >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> [float(pool_tokens(hidden, torch.tensor([[1, 1, 0]]), pooling)) for pooling in POOLINGS]
    [1.0, 2.0, 3.0, 3.0]
    """
    hidden = hidden.float()
    real = mask.bool().unsqueeze(-1)
    if pooling == "mean":
        return hidden.masked_fill(~real, 0).sum(1) / real.sum(1).clamp(min=1)
    if pooling == "max":
        return hidden.masked_fill(~real, -torch.inf).amax(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    # Of padding on the left, the first real token is the classification token.
    wanted = torch.where(mask.bool(), places if pooling == "last" else -places, -mask.shape[1]).argmax(1)
    return hidden[torch.arange(len(hidden), device=mask.device), wanted]
