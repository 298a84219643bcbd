"""What options may be, known without torch."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.runtime import device_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

#: From one vector per token to one per item; ``last`` is the last token that is no padding, as decoders are trained.
POOLINGS = ("cls", "mean", "max", "last")


#: Of the arithmetic; vectors are float32.
PRECISIONS = ("fp32", "bf16")


#: Larger files are no pictures of items; not read, so that no member of an archive can fill the memory.
MAX_IMAGE_BYTES = 64 << 20


@dataclass(frozen=True)
class BrokenImage:
    """An image that cannot be used.

    Parameters
    ----------
    reason : str
        For the report.
    """

    reason: str


def decode_image(data: bytes) -> Image | BrokenImage:
    """Return an RGB image, turned as its EXIF entry says, the first frame of several.

    More pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) are refused by the header, before they are decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    # Decoders raise what they like for a broken file (OSError, SyntaxError, struct.error, zlib.error, ...): any of it
    # means that this one image cannot be used, and the run goes on.
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            pixels = image.width * image.height
            if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
                return BrokenImage(f"{image.width} x {image.height} pixels, more than {Image.MAX_IMAGE_PIXELS}")
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:
        if isinstance(error, UnidentifiedImageError):
            return BrokenImage("no JPEG, PNG or WebP image" if data else "empty file")
        return BrokenImage(f"cannot be decoded ({next(iter(str(error).splitlines()), type(error).__name__)})")


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
    >>> from fuxictr_mm.embeddings.encoders import POOLINGS
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


def check_precision(precision: str, batch_size: int) -> None:
    """Raise ConfigError for a precision that is not known or a batch of nothing."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}', expected one of {', '.join(PRECISIONS)}")
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}, expected 1 or more")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context in which matrix products are taken in bfloat16, for ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


#: What is read of a model's repository beside its weights.
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*_Dense/*.safetensors"]


#: One of these holds a tokenizer's vocabulary.
VOCABULARIES = ["tokenizer.json", "vocab.txt", "vocab.json", "*.model"]


def require_extra(*modules: str) -> None:
    """Raise where the libraries of the extra ``[encode]`` are not installed.

    Raises
    ------
    ConfigError
        One is missing; the message tells what to install.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ConfigError(f'encoding needs {module}, which is missing: pip install "fuxictr-mm[encode]"') from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error that may have many, or its kind where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def model_stem(name: str) -> str:
    """Return the last part of a folder or hub id, as a part of a column's name.

    Examples
    --------
    >>> model_stem("sentence-transformers/all-MiniLM-L6-v2")
    'all_MiniLM_L6_v2'
    """
    folder = Path(name).expanduser()
    return re.sub(r"\W", "_", folder.resolve().name if folder.is_dir() else name.rpartition("/")[2])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the library's bars and reports off the terminal: what matters of them becomes an error of ours."""
    from transformers.utils import logging as their_logging

    level, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity(logging.CRITICAL)
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()


@dataclass(frozen=True)
class Pretrained:
    """Where a model lies.

    Parameters
    ----------
    name : str
        A folder, or an id of the hub such as ``google/siglip-base-patch16-224``.
    folder : Path
        Its configuration, tokenizer and processor files; of a hub id, in the cache.
    revision : str or None
        Branch, tag or commit of a hub id.
    """

    name: str
    folder: Path
    revision: str | None = None

    @classmethod
    def find(cls, name: str, revision: str | None = None) -> Pretrained:
        """Find a folder, or fetch the small files of a hub id.

        Raises
        ------
        MissingFileError
            No such folder, and the hub cannot be reached or has no such model.
        """
        folder = Path(name).expanduser()
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise MissingFileError(f"{folder}: holds no config.json, expected a folder of save_pretrained")
            return cls(str(folder), folder)
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
            raise MissingFileError(f"model '{name}': no such folder, and no id of the Hugging Face hub (OWNER/NAME)")
        require_extra("huggingface_hub")
        import huggingface_hub

        try:
            found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=SMALL_FILES)
        except (OSError, ValueError) as error:
            raise MissingFileError(
                f"model '{name}': no such folder here, and as an id of the Hugging Face hub it cannot be had "
                f"({first_line(error)}); give a local folder with config.json, a tokenizer or processor and "
                "model.safetensors, or fill the cache where there is a network (hf download "
                f"{name}), copy it here, point HF_HOME to it and set HF_HUB_OFFLINE=1"
            ) from None
        return cls(name, Path(found), revision)

    def load_model(self) -> tuple[nn.Module, list[str]]:
        """Return the model in float32, in evaluation mode, and the names of the parameters that its file lacks.

        Raises
        ------
        DataError
            No safetensors, an unknown architecture, a model that wants code of its own, or damaged weights.
        """
        from transformers import AutoModel

        if self.name == str(self.folder):
            self._require_safetensors()
        model, report = self._load(
            AutoModel, "the model", self.name, use_safetensors=True, revision=self.revision, output_loading_info=True
        )
        if report.get("mismatched_keys"):
            names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"])
            raise DataError(f"model '{self.name}': weights of another shape than config.json says: {names[0]}")
        # Newer releases keep the file's own type; half precision is a matter of --precision alone.
        return model.float().eval(), sorted(report["missing_keys"])

    def load_tokenizer(self) -> Any:
        """Return the tokenizer; raises DataError where there is none."""
        from transformers import AutoTokenizer

        # Without a vocabulary, newer releases hand out a tokenizer to which every word is unknown.
        if not any(file for pattern in VOCABULARIES for file in self.folder.glob(pattern)):
            raise DataError(
                f"model '{self.name}': no tokenizer in {self.folder}, expected one of {', '.join(VOCABULARIES)}"
            )
        return self._load(AutoTokenizer, "the tokenizer", str(self.folder))

    def load_image_processor(self) -> Any:
        """Return the image processor, the one that works on PIL images; raises DataError where there is none."""
        import transformers
        from transformers import AutoImageProcessor

        # One way of resizing whatever is installed: torchvision's rounds otherwise than PIL's.
        major = int(transformers.__version__.partition(".")[0])
        backend: dict[str, Any] = {"backend": "pil"} if major >= 5 else {"use_fast": False}
        return self._load(AutoImageProcessor, "the image processor", str(self.folder), **backend)

    def _require_safetensors(self) -> None:
        if any(self.folder.glob("*.safetensors")):
            return
        pickled = sorted(file.name for suffix in ("bin", "pt", "ckpt") for file in self.folder.glob(f"*.{suffix}"))
        said = f"only {pickled[0]}, which is a pickle and is not loaded" if pickled else "no weights"
        raise DataError(
            f"{self.folder}: holds {said}; expected model.safetensors (written by save_pretrained, or found on the hub "
            "under --revision refs/pr/NUMBER of a conversion)"
        )

    def _load(self, auto_class: Any, what: str, name: str, **options: Any) -> Any:
        # Whatever a third party's loader raises means the same to the user: this folder does not hold what it should.
        try:
            with quiet_transformers():
                return auto_class.from_pretrained(name, trust_remote_code=False, **options)
        except Exception as error:
            raise DataError(f"model '{self.name}': {what} cannot be loaded ({first_line(error)})") from error


def weights_digest(model: nn.Module) -> str:
    """Return a digest of all parameters and buffers, by which a changed model is told."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def files_digest(folder: Path) -> str:
    """Return a digest of the small files of a model: configuration, tokenizer, processor."""
    digest = hashlib.sha256()
    for pattern in SMALL_FILES:
        for file in sorted(folder.glob(pattern)) + sorted(folder.glob(f"[0-9]_*/{pattern}")):
            digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def features_of(output: Any) -> Tensor:
    """Return ``(B, D)``: the tensor itself, or ``pooler_output`` where a newer release wraps it."""
    return output if isinstance(output, Tensor) else output.pooler_output


def refuse_missing(names: Sequence[str], model: str) -> None:
    """Raise where weights would be random.

    Raises
    ------
    DataError
        The model's file lacks parameters that the vectors depend on.
    """
    if names:
        raise DataError(
            f"model '{model}': its weights lack {len(names)} parameters, first '{names[0]}', which would be random; "
            "expected a file that fits its config.json"
        )


def token_sequence(hidden: Tensor) -> Tensor:
    """Return ``(B, T, D)``; the places of a feature map ``(B, D, height, width)`` count as tokens."""
    return hidden if hidden.dim() == 3 else hidden.flatten(2).transpose(1, 2)


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


#: Keys of a pooling configuration that say the mode by a flag each.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


#: Activations of projections.
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid)
}


@dataclass(frozen=True)
class SentenceModules:
    """What follows the transformer.

    Parameters
    ----------
    pooling : str or None
        One of ``POOLINGS``; None where the folder does not say.
    dense : sequence of Module
        Projections after pooling, in their order.
    normalize : bool
        Whether vectors are brought to length 1 at the end.
    max_tokens : int or None
        Longest text in tokens.
    lower_case : bool
        Whether texts are put into lower case first.
    """

    pooling: str | None = None
    dense: nn.Sequential = field(default_factory=nn.Sequential)
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False


def read_sentence_modules(folder: Path, pooling: str | None = None) -> SentenceModules:
    """Read ``modules.json`` and what it names; a folder without it says nothing.

    Parameters
    ----------
    folder : Path
        Of the model.
    pooling : str, optional
        Taken instead of what the folder says.

    Raises
    ------
    DataError
        A module or a pooling that is not known here: to leave it out would give other vectors than the model's.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return SentenceModules(pooling)
    normalize, dense = False, nn.Sequential()
    for module in _read(file):
        kind = str(module.get("type", "")).rpartition(".")[2]
        path = folder / str(module.get("path", ""))
        if kind == "Pooling":
            pooling = pooling or _pooling(path / "config.json")
        elif kind == "Dense":
            dense.append(_dense(path))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise DataError(
                f"{file}: module '{kind}' is not known here, expected Transformer, Pooling, Dense and Normalize; "
                "use another model, or remove modules.json and give --pooling"
            )
    settings: dict[str, Any] = {}
    if (folder / "sentence_bert_config.json").is_file():
        settings = _read(folder / "sentence_bert_config.json")
    return SentenceModules(
        pooling, dense.eval(), normalize, settings.get("max_seq_length"), bool(settings.get("do_lower_case", False))
    )


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({first_line(error)})") from None


def _pooling(file: Path) -> str:
    settings = _read(file)
    named = settings.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else list(named)
        modes = [{"lasttoken": "last"}.get(mode, mode) for mode in modes]
    else:
        modes = [_FLAGS.get(k, k) for k, v in settings.items() if k.startswith("pooling_mode_") and v is True]
    if len(modes) != 1 or modes[0] not in _FLAGS.values():
        raise DataError(f"{file}: pooling {modes}, expected one of cls, mean, max and lasttoken; give --pooling")
    return modes[0]


def _dense(path: Path) -> nn.Module:
    from safetensors.torch import load_file

    settings = _read(path / "config.json")
    activation = str(settings.get("activation_function", "Identity")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise DataError(f"{path / 'config.json'}: activation '{activation}', expected one of {', '.join(_ACTIVATIONS)}")
    linear = nn.Linear(settings["in_features"], settings["out_features"], bias=settings.get("bias", True))
    try:
        weights = load_file(path / "model.safetensors")
        with torch.no_grad():
            linear.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in weights.items()})
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{path}: model.safetensors of this projection cannot be loaded ({first_line(error)})"
        ) from None
    return nn.Sequential(linear, _ACTIVATIONS[activation]())


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
