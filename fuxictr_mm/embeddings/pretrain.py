"""Embeddings of ids and contents, pretrained to predict the next item: the first stage of SEMINAR.

Shapes: I items, P components of all modalities, D dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from fuxictr_mm.checking import Settings
from fuxictr_mm.embeddings.item_files import JoinedEmbeddings, Source
from fuxictr_mm.embeddings.sequences import NextItems, Sequences
from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    from fuxictr_mm.embeddings.early_stopping import TrainingResult
    from fuxictr_mm.embeddings.search_unit import Pretrained


class PretrainOptions(Settings):
    """The search unit and its training."""

    dim: PositiveInt = Field(64, description="dim of each of the pretrained embeddings")
    components: PositiveInt = Field(256, description="maximum number of principal components of a modality")
    num_heads: PositiveInt = Field(1, description="heads of the attention; must divide the dim")
    max_len: PositiveInt = Field(100, description="items before the next one that the attention reads, the newest")
    negatives: PositiveInt = Field(4, description="sampled items per next item")
    align_weight: NonNegativeFloat = Field(
        0.1, allow_inf_nan=False, description="weight of the alignment of ids and modalities"
    )
    temperature: float = Field(0.05, gt=0, allow_inf_nan=False, description="temperature of the alignment")
    batch_size: PositiveInt = Field(256, description="next items per batch")
    steps: PositiveInt = Field(2000, description="maximum number of steps")
    evaluate_every: PositiveInt = Field(100, description="steps between evaluations")
    patience: PositiveInt = Field(3, description="evaluations without a better AUC before training stops")
    learning_rate: float = Field(2e-3, gt=0, allow_inf_nan=False, description="learning rate of AdamW")
    weight_decay: NonNegativeFloat = Field(
        1.0, allow_inf_nan=False, description="weight decay of the projections, towards the PCA"
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="fraction of users that are held out for evaluation")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, held-out users, positions and negatives")


def check_options(sources: Sequence[Source], options: PretrainOptions) -> None:
    """Raise a ConfigError for names of modalities and dims that the search unit cannot have."""
    from fuxictr_mm.embeddings.search_unit import ID

    if any(source.name == ID for source in sources):
        raise ConfigError(f"a modality has the name '{ID}', which is reserved for the ids; use another name")
    if options.dim % options.num_heads:
        raise ConfigError(f"pretrain: dim is {options.dim}, expected a multiple of num_heads {options.num_heads}")


def pretrain(
    sources: Sequence[Source], sequences: Sequences, options: PretrainOptions | None = None, verbose: int = 1
) -> tuple[Pretrained, TrainingResult]:
    """Train the search unit.

    Memory is that of the components, ``(I, P)`` float32, 24 bytes for each number of the embeddings of clicked ids, and
    some copies of the clicks; not of the embeddings.

    Parameters
    ----------
    sources : sequence of Source
        The modalities, raw or reduced embeddings.
    sequences : Sequences
        The clicks of each user.
    options : PretrainOptions, optional
        The unit and its training.
    verbose : int
        0 shows no progress bar.

    Returns
    -------
    pretrained : Pretrained
        To apply to these and to new items.
    result : TrainingResult
        AUC of held-out users' next items before and after training.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        Embeddings or clicks are wrong, or have too few items in common.
    UserError
        Training diverges.
    """
    import torch
    from torch.nn.functional import pad

    from fuxictr_mm.embeddings.content_inputs import by_modality, fit_inputs, mean_squares, read_inputs
    from fuxictr_mm.embeddings.contrastive import start_matrix
    from fuxictr_mm.embeddings.search_unit import ItemFields, Pretrained, SearchUnit, train_unit

    options = options or PretrainOptions()
    check_options(sources, options)
    with JoinedEmbeddings(sources) as joined:
        parts = fit_inputs(joined, options.components)
        item_ids, inputs = read_inputs(joined, parts)
    data = NextItems(sequences, item_ids, options.held_out, options.max_len, options.negatives, options.seed)
    trained = np.unique(data.pool)
    ids = torch.zeros(len(item_ids), dtype=torch.int64)
    ids[torch.from_numpy(trained)] = torch.arange(1, len(trained) + 1)
    starts = {}
    for name, x in by_modality(inputs, parts).items():
        start = start_matrix([(mean_squares(x), options.dim)])
        starts[name] = pad(start, (0, 0, 0, options.dim - len(start)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)  # torch.manual_seed reseeds GPUs as well
        unit = SearchUnit(ItemFields(starts, len(trained)), options.num_heads)
    result = train_unit(unit, inputs, parts, ids, data, options, verbose)
    numbering = sources[0].numbering
    fields = unit.fields.requires_grad_(False)
    return Pretrained(tuple(parts), fields, numbering.ids(item_ids[trained])), result
