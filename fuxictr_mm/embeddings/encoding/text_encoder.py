"""Texts to vectors with a text model, a sentence encoder or the text tower of a CLIP-like model.

Shape letters: B texts of a batch, N texts, T tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_mm.device import device_of
from fuxictr_mm.embeddings.encoding.choices import POOLINGS
from fuxictr_mm.embeddings.encoding.pooling import pool_tokens
from fuxictr_mm.embeddings.encoding.precision import autocast, check_precision
from fuxictr_mm.embeddings.encoding.pretrained import (
    Pretrained,
    files_digest,
    quiet_transformers,
    require_extra,
    weights_digest,
)
from fuxictr_mm.embeddings.encoding.sentence_modules import read_sentence_modules
from fuxictr_mm.embeddings.encoding.towers import features_of, refuse_missing
from fuxictr_mm.errors import ConfigError

#: Texts are cut here where neither the model nor ``max_tokens`` says less.
MOST_TOKENS = 512


class TextEncoder:
    """A pretrained model that gives a vector per text.

    A model with ``get_text_features`` (CLIP, SigLIP) gives what its text tower projects. Any other is pooled: as its
    ``modules.json`` says if it is a sentence encoder, else by the mean of its tokens.

    Parameters
    ----------
    model : str
        A folder with safetensors, or an id of the Hugging Face hub.
    revision : str, optional
        Branch, tag or commit of a hub id.
    pooling : str, optional
        ``cls``, ``mean``, ``max`` or ``last``, instead of the model's own.
    normalize : bool, optional
        Bring vectors to length 1, or not, instead of what the model says.
    max_tokens : int, optional
        Cut texts to so many tokens, special ones included.
    batch_size : int
        Texts at once.
    precision : str
        ``fp32`` or ``bf16`` (autocast; vectors are float32 in either case).
    gpu : int
        Index of a GPU; -1 is the CPU.

    Attributes
    ----------
    width : int
        D.
    digest : str
        Tells this model, tokenizer and these options from others.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option that the model cannot honour; a folder that holds no such model.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        max_tokens: int | None = None,
        batch_size: int = 64,
        precision: str = "fp32",
        gpu: int = -1,
    ) -> None:
        require_extra("transformers")
        check_precision(precision, batch_size)
        self.device, self.precision, self.batch_size = device_of(gpu), precision, batch_size
        if pooling is not None and pooling not in POOLINGS:
            raise ConfigError(f"pooling '{pooling}', expected one of {', '.join(POOLINGS)}")
        found = Pretrained.find(model, revision)
        modules = read_sentence_modules(found.folder, pooling)
        network, missing = found.load_model()
        self.name = found.name
        self._tokenizer = found.load_tokenizer()
        configuration: Any = network.config
        self._tower: Callable[..., Any] | None = getattr(network, "get_text_features", None)
        # A tokenizer may give more than the tower takes, such as token types.
        self._tower_inputs = {"input_ids", "attention_mask"}
        if self._tower is not None:
            self._tower_inputs |= set(inspect.signature(self._tower).parameters)
        if self._tower is not None and pooling is not None:
            raise ConfigError(f"model '{model}': its text tower projects to a vector itself; leave --pooling out")
        if self._tower is None and hasattr(network, "get_image_features"):
            raise ConfigError(f"model '{model}' has no text tower, expected a text model or one like CLIP")
        if configuration.is_encoder_decoder:
            get_encoder: Any = network.get_encoder
            network = get_encoder()
        # Only the last hidden state is pooled: a pooler that the file lacks is never asked.
        refuse_missing([name for name in missing if self._tower is not None or "pooler" not in name], model)
        self._network = network.to(self.device)
        self._dense = modules.dense.to(self.device)
        self.pooling = None if self._tower is not None else modules.pooling or "mean"
        self.normalize = modules.normalize if normalize is None else normalize
        self._lower_case = modules.lower_case
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._configuration = getattr(configuration, "text_config", configuration)
        # SigLIP has learned from texts padded to one length, without a mask, and pools the last place.
        self._fixed_length = configuration.model_type.startswith("siglip")
        self.max_tokens = self._longest(max_tokens, modules.max_tokens)
        self.digest = f"{weights_digest(network)} {weights_digest(self._dense)} {files_digest(found.folder)}"
        self.width = self.encode(["text"]).shape[1]

    def _longest(self, asked: int | None, of_modules: int | None) -> int:
        limits = [self._tokenizer.model_max_length, getattr(self._configuration, "max_position_embeddings", None)]
        most = min(limit for limit in [*limits, 10**6] if isinstance(limit, int) and limit > 0)
        if asked is not None and not 3 <= asked <= most:
            raise ConfigError(f"max_tokens {asked}, expected 3 to {most}, what model '{self.name}' can take")
        if self._fixed_length:
            if asked not in (None, most):
                raise ConfigError(
                    f"max_tokens {asked}: model '{self.name}' takes {most} always; leave --max-tokens out"
                )
            return most
        return asked or min(most, of_modules or MOST_TOKENS)

    def encode(self, texts: Sequence[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """Return vectors ``(N, D)`` float32.

        Texts are taken in the order of their lengths, so that little is padded.

        Parameters
        ----------
        texts : sequence of str
            N texts.
        advance : callable, optional
            Called with the number of texts of each finished batch.
        """
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        prepared = [text.lower() for text in texts] if self._lower_case else list(texts)
        tokens = self._tokenizer(prepared, truncation=True, max_length=self.max_tokens, padding=False)
        lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        vectors: np.ndarray | None = None
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch = {key: [values[place] for place in places] for key, values in tokens.items()}
            found = self._encode_batch(batch).cpu().numpy()
            if vectors is None:
                vectors = np.empty((len(texts), found.shape[1]), dtype=np.float32)
            vectors[places] = found
            if advance is not None:
                advance(len(places))
        assert vectors is not None
        return vectors

    @torch.inference_mode()
    def _encode_batch(self, batch: dict[str, Any]) -> Tensor:
        padding = {"padding": "max_length", "max_length": self.max_tokens} if self._fixed_length else {"padding": True}
        with quiet_transformers():  # transformers 4 warns that tokenizing and padding are two steps here
            inputs = dict(self._tokenizer.pad(batch, return_tensors="pt", **padding))
        mask = inputs["attention_mask"].to(self.device)
        if self._fixed_length:
            del inputs["attention_mask"]
        if self._tower is not None:
            inputs = {key: value for key, value in inputs.items() if key in self._tower_inputs}
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        with autocast(self.device, self.precision):
            if self._tower is not None:
                vectors = features_of(self._tower(**inputs))
            else:
                hidden = self._network(**inputs).last_hidden_state
        if self._tower is None:
            assert self.pooling is not None
            vectors = self._dense(pool_tokens(hidden, mask, self.pooling))
        vectors = vectors.float()
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
