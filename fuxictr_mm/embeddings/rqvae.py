"""RQ-VAE: codes of a learned latent space.

Shape letters: M items, B items of a batch, D dim of an embedding, W latent dim, L levels, C codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.embeddings.codebooks import Codebook, Floats, Layer, Space
from fuxictr_mm.errors import UserError
from fuxictr_mm.terminal import progress_bar

#: Fraction of the steps, at the end, in which unused codes are not reset, so that every code has time to converge.
_FINAL_STEPS = 0.25

#: The factor beta of the loss.
_BETA = 0.25


class RQVAE(nn.Module):
    r"""Encoder, residual codebooks and decoder.

    .. math::

        r_1 = f(x), \quad c_l = \arg\min_c \lVert r_l - e_{l,c} \rVert^2, \quad r_{l+1} = r_l - e_{l,c_l}, \quad
        q = \sum_l e_{l,c_l}

        \mathcal{L} = \lVert x - g(f(x) + \mathrm{sg}[q - f(x)]) \rVert^2
            + \sum_l \lVert \mathrm{sg}[r_l] - e_{l,c_l} \rVert^2 + \beta \lVert r_l - \mathrm{sg}[e_{l,c_l}] \rVert^2

    With one level it is VQ-VAE: van den Oord, Vinyals and Kavukcuoglu, NeurIPS 2017, https://arxiv.org/abs/1711.00937.
    Residual codebooks are from SoundStream: Zeghidour et al., IEEE/ACM TASLP 2021, https://arxiv.org/abs/2107.03312;
    their codes are the semantic ids of TIGER: Rajput et al., NeurIPS 2023, https://arxiv.org/abs/2305.05065.

    Departures: a part of each batch is decoded from its first levels only, so that these are useful alone; their
    number is sampled per item (SoundStream: per batch). Codebooks learn by the loss above, not by moving averages.

    Parameters
    ----------
    dim : int
        D.
    hidden_units : sequence of int
        Dims of the encoder's hidden layers; the decoder has them in reverse order.
    latent_dim : int
        W.
    levels, codes : int
        L and C.
    """

    def __init__(self, dim: int, hidden_units: Sequence[int], latent_dim: int, levels: int, codes: int) -> None:
        super().__init__()
        dims = [dim, *hidden_units, latent_dim]
        self.encoder = _mlp(dims)
        self.decoder = _mlp(dims[::-1])
        self.codebooks = nn.Parameter(torch.zeros(levels, codes, latent_dim))

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize latents ``(B, W)``; no gradient flows between levels.

        Returns codes ``(B, L)`` int64, the centroid of each level ``(B, L, W)``, and its input, the residual ``(B, L,
        W)``.
        """
        codes, chosen, residuals = [], [], []
        residual = latent
        for codebook in self.codebooks:
            code = torch.cdist(residual.detach(), codebook.detach()).argmin(dim=1)
            codes.append(code)
            chosen.append(codebook[code])
            residuals.append(residual)
            residual = residual - chosen[-1].detach()
        return torch.stack(codes, 1), torch.stack(chosen, 1), torch.stack(residuals, 1)

    def loss(self, x: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of ``x`` ``(B, D)``, the codes ``(B, L)`` and the residuals ``(B, L, W)``.

        ``depth`` ``(B,)`` is the number of levels that each item is decoded from.
        """
        latent = self.encoder(x)
        codes, chosen, residuals = self.quantize(latent)
        decoded_levels = torch.arange(chosen.shape[1], device=x.device) < depth[:, None]
        quantized = (chosen * decoded_levels[..., None]).sum(dim=1)
        # Straight-through: the encoder gets the gradient of the decoder's input.
        decoded = self.decoder(latent + (quantized - latent).detach())
        reconstruction = F.mse_loss(decoded, x)
        codebook = (residuals.detach() - chosen).square().mean(dim=(0, 2)).sum()
        commitment = (residuals - chosen.detach()).square().mean(dim=(0, 2)).sum()
        return reconstruction + codebook + _BETA * commitment, codes, residuals.detach()

    @torch.no_grad()
    def initialize_codebooks(self, x: Tensor, seed: int) -> None:
        """Set each level's centroids to k-means of the residuals of the latents of ``x`` ``(M, D)``."""
        from sklearn.cluster import KMeans

        residual = self.encoder(x)
        for codebook in self.codebooks:
            kmeans = KMeans(len(codebook), n_init=1, max_iter=20, random_state=seed).fit(residual.cpu().numpy())
            codebook.copy_(torch.from_numpy(kmeans.cluster_centers_))
            residual = residual - codebook[torch.from_numpy(kmeans.labels_).long().to(residual.device)]

    @torch.no_grad()
    def reset_unused(self, used: Tensor, residuals: Tensor, generator: torch.Generator) -> None:
        """Move unused codes, by ``used`` ``(L, C)``, to ``residuals`` ``(B, L, W)`` of random items."""
        for level, codebook in enumerate(self.codebooks):
            unused = (~used[level]).nonzero().squeeze(1)
            items = torch.randint(len(residuals), (len(unused),), generator=generator)
            codebook[unused] = residuals[items, level]


def _mlp(dims: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(dims):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit_rqvae(
    space: Space,
    z: Floats,
    levels: int,
    codes: int,
    seed: int,
    *,
    hidden_units: Sequence[int] = (256, 128),
    latent_dim: int = 32,
    steps: int = 5000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    quiet: bool = True,
) -> Codebook:
    """Train an RQ-VAE on ``z`` ``(M, D)`` float32 with L ``levels`` of C ``codes``.

    The first tenth of the steps trains encoder and decoder only; then k-means initializes the codebooks, and all are
    trained together. Codes that are not used in a pass over the items are reset to the residual of a random item, but
    for the last quarter of the steps. The latent dim is at most D. The global generator of random numbers is not
    changed.
    """
    generator = torch.Generator().manual_seed(seed)
    # The MLPs train best on inputs of mean square 1, whatever the scale of the space.
    unit = float(np.sqrt(np.square(z).mean())) or 1.0
    x = torch.from_numpy(z / np.float32(unit))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed reseeds GPUs as well
        model = RQVAE(space.dim, hidden_units, min(latent_dim, space.dim), levels, codes)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps_per_epoch = math.ceil(len(x) / batch_size)
    warm_up = steps // 10
    used = torch.zeros(levels, codes, dtype=torch.bool)
    order = torch.randperm(len(x), generator=generator)
    for step in progress_bar(range(steps), "VQ-VAE", verbose=0 if quiet else 1):
        index = step % steps_per_epoch
        if index == 0:
            order = torch.randperm(len(x), generator=generator)
        batch = x[order[index * batch_size : (index + 1) * batch_size]]
        if step == warm_up:
            model.initialize_codebooks(x[order[: 256 * codes]], seed)
        if step < warm_up:
            loss = F.mse_loss(model.decoder(model.encoder(batch)), batch)
        else:
            depth = torch.randint(1, levels + 1, (len(batch),), generator=generator)
            depth[: (len(batch) + 1) // 2] = levels
            loss, chosen, residuals = model.loss(batch, depth)
            used[torch.arange(levels), chosen] = True
        if not torch.isfinite(loss):
            raise UserError(f"VQ-VAE: the loss is {loss.item()} at step {step}; reduce --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= warm_up and index == steps_per_epoch - 1:
            # A pass that the codebooks were initialized in has not counted all items.
            if warm_up + steps_per_epoch - 1 <= step < (1 - _FINAL_STEPS) * steps:
                model.reset_unused(used, residuals, generator)
            used.zero_()
    return _codebook(space, model, np.float32(unit))


def _codebook(space: Space, model: RQVAE, unit: np.float32) -> Codebook:
    """Return the model as a codebook, the unit of its input folded into its first and last layers."""
    encoder, decoder = (
        [Layer(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in network if isinstance(m, nn.Linear)]
        for network in (model.encoder, model.decoder)
    )
    encoder[0] = Layer(encoder[0].weight / unit, encoder[0].bias)
    decoder[-1] = Layer(decoder[-1].weight * unit, decoder[-1].bias * unit)
    centroids = model.codebooks.detach().numpy().copy()
    return Codebook("vqvae", space, centroids, None, tuple(encoder), tuple(decoder))
