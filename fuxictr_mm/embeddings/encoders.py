"""Pretrained text and image encoders, from a folder or from the Hugging Face hub.

Shape letters: N texts or images, B items of a batch, T tokens or patches, D dim.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from fuxictr_mm.checking import Settings
from fuxictr_mm.embeddings.pretrained import (
    find_model,
    folder_digest,
    loading,
    quiet,
    refuse_missing,
    require_extra,
)
from fuxictr_mm.errors import ConfigError, DataError, first_line

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

#: Larger files are not decoded, so that no member of an archive can fill the memory.
MAX_IMAGE_BYTES = 64 << 20

#: Texts are cut here where neither the model nor ``max_tokens`` sets a lower limit.
MAX_TOKENS = 512

#: One of these holds a tokenizer's vocabulary.
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")

_SAMPLE_TEXTS = ("a", "two texts of different lengths in one batch: the shorter one is padded")


class EncoderOptions(Settings):
    """Settings of both kinds of encoders."""

    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    normalize: bool | None = Field(None, description="scale embeddings to length 1 (default: the model's own)")
    batch_size: PositiveInt = Field(64, description="items per batch")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of matrix products; embeddings are always float32")
    gpu: int = Field(-1, description="index of a GPU; -1 is the CPU")


class TextOptions(EncoderOptions):
    """Settings of ``TextEncoder``; ``last`` is the last token that is not padding, as decoders are trained."""

    pooling: Literal["cls", "mean", "max", "last"] | None = Field(None, description="instead of the model's own")
    max_tokens: int | None = Field(
        None, description="texts: maximum length in tokens, including special ones (default: the model's limit)"
    )


class ImageOptions(EncoderOptions):
    """Settings of ``ImageEncoder``; pooling is over the last hidden state."""

    pooling: Literal["cls", "mean", "max"] | None = Field(None, description="instead of the model's own")
    workers: PositiveInt = Field(4, description="images: threads that decode and resize the next batch")


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    import torch

    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


class TextEncoder:
    """A pretrained model that gives an embedding per text, by sentence-transformers.

    A sentence encoder (a folder with ``modules.json``) follows its files: default prompt, pooling, projections,
    normalization. A model with ``get_text_features`` (CLIP, SigLIP) gives its projected features. Any other gives the
    mean of its tokens. The embedding of a text does not depend on the other texts of its batch: padding is on the
    right, and for a model that depends on padding nevertheless, a batch holds texts of one length only.

    Parameters
    ----------
    model : str
        A folder with safetensors, or an id of the Hugging Face hub.
    **settings
        Of ``TextOptions``.

    Attributes
    ----------
    dim : int
        D.
    prompt : str
        Default prompt of the model, put before every text.
    settings : dict
        Files, options and libraries that the embeddings depend on.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        require_extra("transformers", "sentence_transformers")
        from fuxictr_mm.runtime import device_of

        options = TextOptions.read(settings, "encode")
        self._device, self._precision, self._batch_size = device_of(options.gpu), options.precision, options.batch_size
        folder = find_model(model, options.revision)
        self._model = self._load(model, folder)
        self._transformer: Any = self._model[0]
        own_pooling = (folder / "modules.json").is_file()
        pooling = options.pooling or (None if own_pooling else "mean")
        self.pooling = self._set_pooling(model, pooling, options.pooling is not None)
        self.normalize = self._set_normalize(options.normalize)
        self.prompt = self._model.prompts.get(self._model.default_prompt_name or "") or ""
        self.max_tokens = self._set_max_tokens(model, folder, options.max_tokens)
        self._set_padding()
        self._model.to(self._device)
        self._one_length = False
        with loading("the text model", model):
            alone = np.concatenate([self._forward([text]) for text in _SAMPLE_TEXTS])
            together = self._forward(list(_SAMPLE_TEXTS))
        tolerance = (2e-2 if options.precision == "bf16" else 1e-3) * float(np.abs(alone).max())
        self._one_length = not np.allclose(alone, together, rtol=0, atol=tolerance)
        self.dim = alone.shape[1]
        self.settings = {
            "model": folder_digest(folder),
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "normalize": self.normalize,
            **_run_settings(options, self._device, "torch", "transformers", "sentence_transformers"),
        }

    @staticmethod
    def _load(model: str, folder: Path) -> SentenceTransformer:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Transformer

        # Without a vocabulary, transformers hands out a tokenizer to which every word is unknown.
        if not any(file for pattern in VOCABULARIES for file in folder.rglob(pattern)):
            raise DataError(f"model '{model}': no tokenizer in {folder}, expected one of {', '.join(VOCABULARIES)}")
        weights = {"use_safetensors": True, "dtype": torch.float32}
        with loading("the text model", model):
            found = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=weights)
        transformer: Any = found[0]
        if not isinstance(transformer, Transformer) or "text" not in transformer.modality_config:
            raise ConfigError(f"model '{model}' has no text tower, expected a text model or one like CLIP")
        projects = transformer.module_output_name == "sentence_embedding"
        # Only token states are pooled: a pooler that the file does not have is never asked.
        refuse_missing(transformer.model, model, pooler=projects)
        if transformer.config.is_encoder_decoder and hasattr(transformer.model, "get_encoder"):
            transformer.model = transformer.model.get_encoder()
        if not (folder / "modules.json").is_file():
            transformer.modality_config.pop("message", None)  # a title is a text, not a message of a chat
        return found.eval()

    def _set_pooling(self, model: str, pooling: str | None, asked: bool) -> str | None:
        from sentence_transformers.sentence_transformer.modules import Pooling

        layer = next((module for module in self._model if isinstance(module, Pooling)), None)
        if layer is None:
            if asked:
                raise ConfigError(f"model '{model}': it has its own projection to an embedding; remove --pooling")
            return None
        if pooling is not None:
            layer.pooling_mode = "lasttoken" if pooling == "last" else pooling
        modes = layer.pooling_mode if isinstance(layer.pooling_mode, tuple) else (layer.pooling_mode,)
        return "+".join(modes).replace("lasttoken", "last")

    def _set_normalize(self, normalize: bool | None) -> bool:
        from sentence_transformers.sentence_transformer.modules import Normalize

        own = [number for number, module in enumerate(self._model) if isinstance(module, Normalize)]
        if normalize is False:
            for number in reversed(own):
                del self._model[number]
        return bool(own) if normalize is None else normalize

    def _set_max_tokens(self, model: str, folder: Path, asked: int | None) -> int:
        tokenizer, transformer = self._model.tokenizer, self._transformer
        own = min(tokenizer.model_max_length, 10**6)  # of a sentence encoder, the length that it was trained with
        file, limit = folder / "tokenizer_config.json", own
        if file.is_file():
            limit = json.loads(file.read_text(encoding="utf-8")).get("model_max_length", own)
        positions = getattr(transformer.config.get_text_config(), "max_position_embeddings", None)
        most = min(n for n in (limit, positions, 10**6) if isinstance(n, int) and n > 0)
        if asked is not None and not 3 <= asked <= most:
            raise ConfigError(f"max_tokens {asked}, expected 3 to {most}, the limit of model '{model}'")
        if transformer.config.model_type.startswith("siglip"):
            # It was trained on texts padded to one length, without a mask, and pools the last position.
            if asked not in (None, most):
                raise ConfigError(f"max_tokens {asked}: model '{model}' always uses {most}; remove --max-tokens")
            transformer.processing_kwargs = {"text": {"padding": "max_length", "return_attention_mask": False}}
            asked = most
        elif "attention_mask" not in tokenizer.model_input_names:
            tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
        default = own if (folder / "modules.json").is_file() else MAX_TOKENS
        tokenizer.model_max_length = asked or min(most, default)
        return tokenizer.model_max_length

    def _set_padding(self) -> None:
        tokenizer = self._model.tokenizer
        # GPT-2 and BERT count positions from the left, padding included; with a mask, no model needs it on the left.
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:  # under the mask, any token will do
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)

    def encode(self, texts: Sequence[str], advance: Callable[[int], object] = lambda items: None) -> np.ndarray:
        """Return embeddings ``(N, D)`` float32; ``advance`` is called with the number of texts of each finished batch.

        Texts are taken in the order of their lengths, so that little is padded.
        """
        embeddings = np.zeros((len(texts), self.dim), dtype=np.float32)
        for rows in self._batches(texts):
            embeddings[rows] = self._forward([texts[row] for row in rows])
            advance(len(rows))
        return embeddings

    def _batches(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the rows of each batch, longest texts first."""
        if not texts:
            return
        with quiet():
            tokens = self._model.tokenizer([self.prompt + text for text in texts], truncation=True)["input_ids"]
        lengths = np.array([len(ids) for ids in tokens])
        order = np.argsort(-lengths, kind="stable")
        # Groups of one length where padding would change the result.
        for rows in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if self._one_length else [order]:
            for start in range(0, len(rows), self._batch_size):
                yield rows[start : start + self._batch_size]

    def _forward(self, texts: list[str]) -> np.ndarray:
        with quiet(), _autocast(self._device, self._precision):
            found = self._model.encode(
                texts, batch_size=len(texts), normalize_embeddings=self.normalize, show_progress_bar=False
            )
        return found.astype(np.float32)


def _run_settings(options: EncoderOptions, device: torch.device, *libraries: str) -> dict[str, Any]:
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in libraries]
    run = options.model_dump(include={"batch_size", "precision"})
    return {**run, "device": device.type, "libraries": ", ".join(versions)}


@dataclass(frozen=True)
class BrokenImage:
    """An image that cannot be used."""

    reason: str  #: For the report.


def decode_image(data: bytes) -> Image | BrokenImage:
    """Return an RGB image of 8 bits, rotated by its EXIF orientation; of several frames the first.

    More pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) are refused by the header, before they are decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    # Decoders raise all kinds of errors for a broken file (OSError, SyntaxError, struct.error, zlib.error, ...). Any of
    # them means that this one image cannot be used; the run continues.
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            pixels = image.width * image.height
            if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
                return BrokenImage(f"{image.width} x {image.height} pixels, more than {Image.MAX_IMAGE_PIXELS}")
            return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        return BrokenImage("not a JPEG, PNG or WebP image" if data else "empty file")
    except Exception as error:
        return BrokenImage(f"cannot be decoded ({first_line(error)})")


def to_rgb(image: Image) -> Image | BrokenImage:
    """Return an image as RGB of 8 bits, on white where it is transparent.

    ``Image.convert`` alone makes a white page of 16 bits, and shows the colours below transparent pixels.

    An image of another mode than RGB, greys of 16 bits (also as 32-bit integers, as older Pillow gives them) and what
    Pillow converts is a ``BrokenImage``: the range of floating-point pixels, for one, is not known.
    """
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        if grey.min(initial=0) < 0 or grey.max(initial=0) >= 1 << 16:
            return BrokenImage(f"mode {image.mode} with values of more than 16 bits")
        image = Image.fromarray((grey >> 8).astype(np.uint8))  # the upper byte, as Pillow takes it of colours
    elif image.mode == "F":
        return BrokenImage("mode F, floating-point pixels of unknown range")
    elif image.has_transparency_data:
        # Shown as on a white page; the colours that a file stores below it are often black.
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class ImageEncoder:
    """A pretrained model that gives an embedding per image.

    A model with ``get_image_features`` (CLIP, SigLIP) gives its projected features; any other its pooled output
    (ViT, ResNet), or the classification token where its file has no weights for a pooler.

    Parameters
    ----------
    model : str
        As for ``TextEncoder``.
    **settings
        Of ``ImageOptions``.

    Attributes
    ----------
    dim : int
        D.
    settings : dict
        As of ``TextEncoder``.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        require_extra("transformers", "PIL")
        import torch
        from PIL import Image
        from transformers import AutoImageProcessor, AutoModel

        from fuxictr_mm.runtime import device_of

        options = ImageOptions.read(settings, "encode")
        self._device, self._precision, self._batch_size = device_of(options.gpu), options.precision, options.batch_size
        self._workers, self.normalize = options.workers, bool(options.normalize)
        folder = find_model(model, options.revision)
        with loading("the model", model):
            network: Any = AutoModel.from_pretrained(str(folder), use_safetensors=True, dtype=torch.float32).eval()
        self._projects = hasattr(network, "get_image_features")
        if self._projects and options.pooling is not None:
            raise ConfigError(f"model '{model}': it has its own projection to an embedding; remove --pooling")
        if not self._projects and getattr(network, "main_input_name", "") != "pixel_values":
            raise ConfigError(f"model '{model}' does not take images, expected a vision model or one like CLIP")
        missing = refuse_missing(network, model, pooler=self._projects)
        self.pooling = options.pooling or ("cls" if missing else None)
        with loading("the image processor", model):
            # torchvision's processors round otherwise: embeddings do not depend on whether it is installed.
            self._processor = AutoImageProcessor.from_pretrained(str(folder), backend="pil")
        self._network = network.to(self._device)
        with loading("the model", model):
            square, wide = (self._prepare(Image.new("RGB", size)) for size in ((32, 32), (64, 32)))
            if isinstance(square, BrokenImage) or isinstance(wide, BrokenImage):
                raise ConfigError(
                    f"model '{model}': its image processor does not take images; see preprocessor_config.json"
                )
            if any(wide[key].shape != values.shape for key, values in square.items()):
                raise ConfigError(
                    f"model '{model}': its image processor keeps the aspect ratio of images, expected one that crops "
                    "them or resizes all to one size; see preprocessor_config.json"
                )
            self.dim = self._forward([square]).shape[1]
        self.settings = {
            "model": folder_digest(folder),
            "pooling": self.pooling,
            "normalize": self.normalize,
            **_run_settings(options, self._device, "torch", "transformers"),
        }

    def encode(
        self, images: Iterable[Any], advance: Callable[[int], object] = lambda items: None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Return embeddings ``(N, D)`` float32, and the reason of each image that cannot be used by its row.

        An image is a PIL image, the bytes of an image file, or a ``BrokenImage`` (a zero embedding); only two batches
        of them are held at once. ``advance`` is called with the number of images of each finished batch.
        """
        parts, broken, rows = [np.zeros((0, self.dim), dtype=np.float32)], {}, 0
        for prepared in self._prepared_batches(images):
            bad = {row: image.reason for row, image in enumerate(prepared) if isinstance(image, BrokenImage)}
            embeddings = np.zeros((len(prepared), self.dim), dtype=np.float32)
            if len(bad) < len(prepared):
                usable = [image for image in prepared if not isinstance(image, BrokenImage)]
                embeddings[[row for row in range(len(prepared)) if row not in bad]] = self._forward(usable)
            parts.append(embeddings)
            broken.update({rows + row: reason for row, reason in bad.items()})
            rows += len(prepared)
            advance(len(prepared))
        return np.concatenate(parts), broken

    def _prepared_batches(self, images: Iterable[Any]) -> Iterator[list[dict[str, Tensor] | BrokenImage]]:
        """Yield batches, while threads prepare the next one."""
        with ThreadPoolExecutor(self._workers) as pool:
            current: list[Future[Any]] = []
            following: list[Future[Any]] = []
            for image in images:
                if len(following) == self._batch_size:
                    if current:
                        yield [future.result() for future in current]
                    current, following = following, []
                following.append(pool.submit(self._prepare, image))
            for futures in (current, following):
                if futures:
                    yield [future.result() for future in futures]

    def _prepare(self, image: Any) -> dict[str, Tensor] | BrokenImage:
        if not isinstance(image, BrokenImage):
            image = decode_image(image) if isinstance(image, bytes) else to_rgb(image)
        if isinstance(image, BrokenImage):
            return image
        try:
            # Of an image one pixel high, the axis of the colours would be guessed.
            return dict(self._processor(images=image, return_tensors="pt", input_data_format="channels_last"))
        except (ValueError, OverflowError, ZeroDivisionError) as error:
            return BrokenImage(f"cannot be resized ({first_line(error)})")

    def _forward(self, prepared: Sequence[Any]) -> np.ndarray:
        import torch

        inputs = {key: torch.cat([image[key] for image in prepared]).to(self._device) for key in prepared[0]}
        with torch.inference_mode():
            with _autocast(self._device, self._precision):
                output = self._network.get_image_features(**inputs) if self._projects else self._network(**inputs)
            embeddings = self._pool(output).float()
            if self.normalize:
                embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
        return embeddings.cpu().numpy()

    def _pool(self, output: Any) -> Tensor:
        if self._projects:
            return getattr(output, "pooler_output", output)
        if self.pooling is None and getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)
        hidden = output.last_hidden_state.float()
        if hidden.dim() == 4:  # (B, D, height, width) of a convolutional network
            hidden = hidden.flatten(2).transpose(1, 2)
        if self.pooling == "cls":
            return hidden[:, 0]
        return hidden.amax(1) if self.pooling == "max" else hidden.sum(1) / hidden.shape[1]
