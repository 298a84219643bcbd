"""Images to vectors with a vision model or the image tower of a CLIP-like model.

Shape letters: B images of a batch, N images, T patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_mm.device import device_of
from fuxictr_mm.embeddings.encoding.image_decoding import BrokenImage, decode_image
from fuxictr_mm.embeddings.encoding.pooling import pool_tokens
from fuxictr_mm.embeddings.encoding.precision import autocast, check_precision
from fuxictr_mm.embeddings.encoding.pretrained import Pretrained, files_digest, require_extra, weights_digest
from fuxictr_mm.embeddings.encoding.towers import features_of, refuse_missing, token_sequence
from fuxictr_mm.errors import ConfigError

#: An image, its file's bytes, or why there is none.
ImageLike = Any


class ImageEncoder:
    """A pretrained model that gives a vector per image.

    A model with ``get_image_features`` (CLIP, SigLIP) gives what its image tower projects; any other its pooled output
    (ViT, ResNet), or the classification token where its file has no weights for a pooler.

    Parameters
    ----------
    model : str
        A folder with safetensors, or an id of the Hugging Face hub.
    revision : str, optional
        Branch, tag or commit of a hub id.
    pooling : str, optional
        ``cls``, ``mean`` or ``max`` over the last hidden state, instead of the pooled output.
    normalize : bool
        Bring vectors to length 1.
    batch_size : int
        Images at once.
    precision : str
        ``fp32`` or ``bf16`` (autocast; vectors are float32 in either case).
    gpu : int
        Index of a GPU; -1 is the CPU.
    workers : int
        Threads that decode and resize the next batch meanwhile.

    Attributes
    ----------
    width : int
        D.
    digest : str
        Tells this model, processor and these options from others.

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
        normalize: bool = False,
        batch_size: int = 64,
        precision: str = "fp32",
        gpu: int = -1,
        workers: int = 4,
    ) -> None:
        require_extra("transformers", "PIL")
        from PIL import Image

        check_precision(precision, batch_size)
        if workers < 1:
            raise ConfigError(f"workers {workers}, expected 1 or more")
        if pooling is not None and pooling not in ("cls", "mean", "max"):
            raise ConfigError(f"pooling '{pooling}', expected one of cls, mean, max for images")
        self.device, self.precision, self.batch_size = device_of(gpu), precision, batch_size
        self.normalize, self._workers = normalize, workers
        found = Pretrained.find(model, revision)
        network, missing = found.load_model()
        self.name = found.name
        self._tower: Callable[..., Any] | None = getattr(network, "get_image_features", None)
        if self._tower is not None and pooling is not None:
            raise ConfigError(f"model '{model}': its image tower projects to a vector itself; leave --pooling out")
        if self._tower is None and getattr(network, "main_input_name", "") != "pixel_values":
            raise ConfigError(f"model '{model}' takes no images, expected a vision model or one like CLIP")
        if self._tower is None and pooling is None and any("pooler" in name for name in missing):
            pooling = "cls"
        refuse_missing([name for name in missing if self._tower is not None or "pooler" not in name], model)
        self.pooling = pooling
        self._processor = found.load_image_processor()
        self._network = network.to(self.device)
        self.digest = f"{weights_digest(network)} {files_digest(found.folder)}"
        self.width = next(iter(self._vectors([Image.new("RGB", (32, 32))])))[0].shape[1]

    def encode(
        self, images: Iterable[ImageLike], advance: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Return vectors ``(N, D)`` float32, and for each image that cannot be used its place and why.

        Parameters
        ----------
        images : iterable
            N times a PIL image, the bytes of an image file, or a ``BrokenImage`` (a zero vector). Only two batches of
            them are held at once.
        advance : callable, optional
            Called with the number of images of each finished batch.
        """
        parts, broken, start = [np.zeros((0, self.width), dtype=np.float32)], {}, 0
        for vectors, reasons in self._vectors(images):
            parts.append(vectors)
            broken.update({start + place: reason for place, reason in reasons.items()})
            start += len(vectors)
            if advance is not None:
                advance(len(vectors))
        return np.concatenate(parts), broken

    def _vectors(self, images: Iterable[ImageLike]) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        with ThreadPoolExecutor(self._workers) as pool:
            waiting: list[Future[Any]] = []
            for futures in self._submitted(images, pool):
                if waiting:
                    yield self._encode_batch([future.result() for future in waiting])
                waiting = futures
            if waiting:
                yield self._encode_batch([future.result() for future in waiting])

    def _submitted(self, images: Iterable[ImageLike], pool: ThreadPoolExecutor) -> Iterator[list[Future[Any]]]:
        futures: list[Future[Any]] = []
        for image in images:
            futures.append(pool.submit(self._prepare, image))
            if len(futures) == self.batch_size:
                yield futures
                futures = []
        if futures:
            yield futures

    def _prepare(self, image: ImageLike) -> dict[str, Tensor] | BrokenImage:
        if isinstance(image, bytes):
            image = decode_image(image)
        if isinstance(image, BrokenImage):
            return image
        try:
            # Of an image one pixel high, transformers 4 takes the wrong axis for the colours.
            return dict(self._processor(images=image, return_tensors="pt", input_data_format="channels_last"))
        except (ValueError, OverflowError, ZeroDivisionError) as error:
            return BrokenImage(f"cannot be resized ({error})")

    @torch.inference_mode()
    def _encode_batch(self, prepared: list[dict[str, Tensor] | BrokenImage]) -> tuple[np.ndarray, dict[int, str]]:
        reasons = {place: image.reason for place, image in enumerate(prepared) if isinstance(image, BrokenImage)}
        usable = [image for image in prepared if not isinstance(image, BrokenImage)]
        if not usable:
            return np.zeros((len(prepared), self.width), dtype=np.float32), reasons
        inputs = {key: torch.cat([image[key] for image in usable]).to(self.device) for key in usable[0]}
        found = self._forward(inputs).cpu().numpy()
        vectors = np.zeros((len(prepared), found.shape[1]), dtype=np.float32)
        vectors[[place for place in range(len(prepared)) if place not in reasons]] = found
        return vectors, reasons

    def _forward(self, inputs: dict[str, Tensor]) -> Tensor:
        with autocast(self.device, self.precision):
            output = self._tower(**inputs) if self._tower is not None else self._network(**inputs)
        if self._tower is not None:
            vectors = features_of(output)
        elif self.pooling is None and getattr(output, "pooler_output", None) is not None:
            vectors = output.pooler_output.flatten(1)
        else:
            hidden = token_sequence(output.last_hidden_state)
            everything = torch.ones(hidden.shape[:2], device=hidden.device)
            vectors = pool_tokens(hidden, everything, self.pooling or "mean")
        vectors = vectors.float()
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
