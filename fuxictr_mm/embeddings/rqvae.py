"""A residual VQ-VAE: codes of a learned space, from one network into it and one back.

Shape letters: M items, B items of a batch, D width of a vector, W width of the learned space, L levels, C codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.embeddings.codebooks import Fitted, Layer, Vectors
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.terminal import progress_bar

#: Share of the steps, at the end, in which unused codes stay as they are, so that every code has time to settle.
_SETTLING = 0.25


class ResidualVQVAE(nn.Module):
    r"""Encoder, residual codebooks and decoder.

    .. math::

        r_1 = f(x), \quad c_l = \arg\min_c \lVert r_l - e_{l,c} \rVert^2, \quad r_{l+1} = r_l - e_{l,c_l}, \quad
        q = \sum_l e_{l,c_l}

        \mathcal{L} = \lVert x - g(f(x) + \mathrm{sg}[q - f(x)]) \rVert^2
            + \sum_l \lVert \mathrm{sg}[r_l] - e_{l,c_l} \rVert^2 + \beta \lVert r_l - \mathrm{sg}[e_{l,c_l}] \rVert^2

    One level is VQ-VAE: van den Oord, Vinyals and Kavukcuoglu, NeurIPS 2017, https://arxiv.org/abs/1711.00937. Several
    are SoundStream's residual codebooks: Zeghidour et al., IEEE/ACM TASLP 2021, https://arxiv.org/abs/2107.03312; as
    semantic ids of items, TIGER: Rajput et al., NeurIPS 2023, https://arxiv.org/abs/2305.05065.

    Departures: for a part of each batch only the first levels are summed, a number drawn per item (SoundStream draws it
    for all), so that the first levels alone are of use too. Codebooks learn by the loss above, not by moving averages.

    Parameters
    ----------
    width : int
        D.
    hidden_units : sequence of int
        Widths of the encoder's hidden layers; the decoder has them the other way round.
    latent_dim : int
        W.
    levels, codes : int
        L and C.
    commitment : float
        beta.
    """

    def __init__(
        self,
        width: int,
        hidden_units: Sequence[int],
        latent_dim: int,
        levels: int,
        codes: int,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        widths = [width, *hidden_units, latent_dim]
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        self.codebooks = nn.Parameter(torch.zeros(levels, codes, latent_dim))
        self.commitment = commitment

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise latents ``(B, W)``.

        Returns
        -------
        codes : Tensor
            ``(B, L)`` int64.
        chosen : Tensor
            ``(B, L, W)`` the centroid of each level.
        residuals : Tensor
            ``(B, L, W)`` what each level had to describe; no gradient flows between levels.
        """
        codes, chosen, residuals = [], [], []
        left = latent
        for codebook in self.codebooks:
            code = torch.cdist(left.detach(), codebook.detach()).argmin(dim=1)
            codes.append(code)
            chosen.append(codebook[code])
            residuals.append(left)
            left = left - chosen[-1].detach()
        return torch.stack(codes, 1), torch.stack(chosen, 1), torch.stack(residuals, 1)

    def loss(self, x: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of ``x`` ``(B, D)``, with the codes ``(B, L)`` and the residuals ``(B, L, W)``.

        ``depth`` ``(B,)`` is how many levels each item is decoded from.
        """
        latent = self.encoder(x)
        codes, chosen, residuals = self.quantize(latent)
        summed = torch.arange(chosen.shape[1], device=x.device) < depth[:, None]
        quantized = (chosen * summed[..., None]).sum(dim=1)
        # Straight through: the decoder sees the codes, the encoder gets the decoder's gradient as if it had not.
        decoded = self.decoder(latent + (quantized - latent).detach())
        reconstruction = F.mse_loss(decoded, x)
        follow = (residuals.detach() - chosen).square().mean(dim=(0, 2)).sum()
        commit = (residuals - chosen.detach()).square().mean(dim=(0, 2)).sum()
        return reconstruction + follow + self.commitment * commit, codes, residuals.detach()

    @torch.no_grad()
    def initialize_codebooks(self, x: Tensor, seed: int) -> None:
        """Set each level's centroids to k-means of what the levels before leave of the latents of ``x`` ``(M, D)``."""
        from sklearn.cluster import KMeans

        left = self.encoder(x)
        codes = self.codebooks.shape[1]
        for codebook in self.codebooks:
            kmeans = KMeans(codes, n_init=1, max_iter=20, random_state=seed).fit(left.cpu().numpy())
            codebook.copy_(torch.from_numpy(kmeans.cluster_centers_))
            left = left - codebook[torch.from_numpy(kmeans.labels_).long().to(left.device)]

    @torch.no_grad()
    def revive(self, used: Tensor, residuals: Tensor, generator: torch.Generator) -> int:
        """Move codes that nothing used onto residuals of random items.

        Parameters
        ----------
        used : Tensor
            ``(L, C)`` bool.
        residuals : Tensor
            ``(B, L, W)``.
        generator : torch.Generator
            Draws the items.

        Returns
        -------
        int
            Codes moved.
        """
        for level, codebook in enumerate(self.codebooks):
            dead = (~used[level]).nonzero().squeeze(1)
            items = torch.randint(len(residuals), (len(dead),), generator=generator)
            codebook[dead] = residuals[items, level]
        return int((~used).sum())


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit_vqvae(
    vectors: Vectors,
    levels: int,
    codes: int,
    seed: int,
    *,
    hidden_units: Sequence[int] = (256, 128),
    latent_dim: int = 32,
    steps: int = 5000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    commitment: float = 0.25,
    quiet: bool = True,
) -> Fitted:
    """Train a residual VQ-VAE.

    The first tenth of the steps trains encoder and decoder alone; then k-means sets the codebooks, and all learn
    together. Codes that a pass over the vectors does not use start again from a random item's residual, save in the
    last quarter.

    Parameters
    ----------
    vectors : ndarray
        ``(M, D)`` float32.
    levels, codes : int
        L and C.
    seed : int
        Of everything that is drawn.
    hidden_units, latent_dim
        As of ``ResidualVQVAE``; the learned space is never wider than the vectors.
    steps, batch_size, learning_rate
        Of Adam.
    commitment : float
        beta.
    quiet : bool
        No progress bar.

    Returns
    -------
    Fitted
        With the networks, for NumPy.

    Raises
    ------
    UserError
        The loss is not finite.
    """
    if min(steps, batch_size, latent_dim, *hidden_units) < 1:
        raise ConfigError("VQ-VAE: steps, batch_size, latent_dim and hidden_units must be 1 or more")
    generator = torch.Generator().manual_seed(seed)
    # The networks learn best from numbers of deviation 1, whatever the scale of the space.
    unit = float(np.sqrt(np.square(vectors).mean())) or 1.0
    x = torch.from_numpy(vectors / np.float32(unit))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResidualVQVAE(
            vectors.shape[1], hidden_units, min(latent_dim, vectors.shape[1]), levels, codes, commitment
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps_per_pass = math.ceil(len(x) / batch_size)
    warm_up = steps // 10
    used = torch.zeros(levels, codes, dtype=torch.bool)
    order = torch.randperm(len(x), generator=generator)
    for step in progress_bar(range(steps), "VQ-VAE", verbose=0 if quiet else 1):
        place = step % steps_per_pass
        if place == 0:
            order = torch.randperm(len(x), generator=generator)
        batch = x[order[place * batch_size : (place + 1) * batch_size]]
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
            raise UserError(f"VQ-VAE: the loss is {loss.item()} at step {step}; lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= warm_up and place == steps_per_pass - 1:
            if step < (1 - _SETTLING) * steps:
                model.revive(used, residuals, generator)
            used.zero_()
    return _fitted(model, unit)


def _fitted(model: ResidualVQVAE, unit: float) -> Fitted:
    """Return the networks with the unit of their input in their first and last weights."""
    encoder, decoder = (
        [Layer(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in network if isinstance(m, nn.Linear)]
        for network in (model.encoder, model.decoder)
    )
    encoder[0] = Layer(encoder[0].weight / np.float32(unit), encoder[0].bias)
    decoder[-1] = Layer(decoder[-1].weight * np.float32(unit), decoder[-1].bias * np.float32(unit))
    return Fitted(model.codebooks.detach().numpy().copy(), None, tuple(encoder), tuple(decoder))
