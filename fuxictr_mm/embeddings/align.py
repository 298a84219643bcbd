"""Embeddings aligned with clicks, by Swing and contrastive heads.

The heads are functions of content only, so items without clicks get aligned embeddings as well.

Shapes: I items, P principal components of all modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveInt

from fuxictr_mm.checking import Settings
from fuxictr_mm.embeddings.fit_reducer import split_dim
from fuxictr_mm.embeddings.item_files import JoinedEmbeddings, Source
from fuxictr_mm.embeddings.swing import Neighbors
from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    from fuxictr_mm.embeddings.contrastive import Alignment
    from fuxictr_mm.embeddings.early_stopping import TrainingResult


class AlignOptions(Settings):
    """The heads and their training."""

    dim: PositiveInt = Field(128, description="dim of the aligned embeddings, divided evenly among the modalities")
    components: PositiveInt = Field(256, description="maximum number of principal components of a modality")
    hidden: NonNegativeInt = Field(256, description="hidden dim of the residual MLP; 0 for a linear projection")
    per_modality: bool = Field(False, description="also train a head for each modality")
    temperature: float = Field(0.3, gt=0, allow_inf_nan=False, description="temperature of the contrastive loss")
    batch_size: PositiveInt = Field(512, description="pairs per batch")
    steps: PositiveInt = Field(2000, description="maximum number of steps")
    evaluate_every: PositiveInt = Field(50, description="steps between evaluations")
    patience: PositiveInt = Field(5, description="evaluations without a better recall before training stops")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="learning rate of AdamW")
    weight_decay: float = Field(3.0, ge=0, allow_inf_nan=False, description="weight decay, towards the PCA")
    held_out: float = Field(0.1, gt=0, lt=1, description="fraction of items whose pairs are held out for evaluation")
    recall_at: PositiveInt = Field(20, description="number of nearest items in an evaluation")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, held-out items and pairs, and of Swing")


def align(
    sources: Sequence[Source],
    neighbors: Neighbors,
    options: AlignOptions | None = None,
    verbose: int = 1,
) -> tuple[Alignment, dict[str, TrainingResult]]:
    """Train the joint head, and one per modality on request.

    Memory is that of the components, ``(I, P)`` float32, and the square of the dims; not of the embeddings.

    Parameters
    ----------
    sources : sequence of Source
        The modalities, raw or reduced embeddings. A missing embedding is replaced by the mean.
    neighbors : Neighbors
        Which items are similar.
    options : AlignOptions, optional
        The heads and their training.
    verbose : int
        0 shows no progress bar.

    Returns
    -------
    alignment : Alignment
        To apply to these and to new items.
    trained : dict of str to TrainingResult
        By head.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        Embeddings or neighbors are wrong, or have too few items in common.
    """
    import torch

    from fuxictr_mm.embeddings.content_inputs import by_modality, fit_inputs, mean_squares, read_inputs
    from fuxictr_mm.embeddings.contrastive import (
        JOINT,
        Alignment,
        AlignmentHead,
        NeighborPairs,
        start_matrix,
        train_head,
    )

    options = options or AlignOptions()
    if any(source.name == JOINT for source in sources):
        raise ConfigError(f"a modality has the name '{JOINT}', which is reserved for all of them; use another name")
    with JoinedEmbeddings(sources) as joined:
        parts = fit_inputs(joined, options.components)
        check_dims({part.name: len(part.components) for part in parts}, options)
        item_ids, inputs = read_inputs(joined, parts)
    pairs = NeighborPairs(neighbors, item_ids, options.held_out, options.seed)
    columns = by_modality(inputs, parts)
    heads, trained = {}, {}
    for name in [JOINT, *columns] if options.per_modality else [JOINT]:
        used = list(columns) if name == JOINT else [name]
        dims = zip(used, split_dim(options.dim, len(used)), strict=True)
        start = start_matrix([(mean_squares(columns[part]), dim) for part, dim in dims])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(options.seed)  # torch.manual_seed reseeds GPUs as well
            heads[name] = AlignmentHead(start, options.hidden)
        content = inputs if name == JOINT else columns[name]
        trained[name] = train_head(heads[name], content, pairs, options, f"align {name}", verbose)
        heads[name].requires_grad_(False)
    return Alignment(tuple(parts), heads), trained


def check_dims(available: Mapping[str, int], options: AlignOptions) -> None:
    """Raise a ConfigError if a head needs more components of a modality than there are, or if it gets none."""
    if options.dim < len(available):
        raise ConfigError(f"align: dim is {options.dim}, expected at least {len(available)}: one for each modality")
    heads = [list(available), *([name] for name in available if options.per_modality)]
    for names in heads:
        for name, needed in zip(names, split_dim(options.dim, len(names)), strict=True):
            if needed > available[name]:
                most = len(names) * min(available[n] for n in names)
                raise ConfigError(
                    f"align: dim is {options.dim}, of which '{name}' gives {needed}, but it has only "
                    f"{available[name]} components (the minimum of its dim, its items minus one, and "
                    f"--components {options.components}); expected a dim of at most {most}"
                )
