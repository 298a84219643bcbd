"""Tiny models with random weights, saved as their libraries save real ones."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "the", "big", "red", "fox", "runs", "over", "lazy", "dog", "heat", "toy", "story"]


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Let no test ask the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def save_wordpiece(folder: Path) -> int:
    from transformers import BertTokenizer

    words = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)
    return len(words)


def save_bpe(folder: Path) -> dict[str, int]:
    from transformers import CLIPTokenizer

    special = ["fo", "fox</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *special])}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nf o\nfo x</w>\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=20).save_pretrained(folder)
    return vocabulary


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[[str], str]:
    """Give the folder of a tiny model: bert, gpt2, fnet, clip, siglip, vit or resnet."""
    hf = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("PIL")

    root = tmp_path_factory.mktemp("models")
    block = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    picture = {"image_size": 32, "patch_size": 8, **block}
    square = {"size": {"height": 32, "width": 32}}
    size = {"size": {"shortest_edge": 32}}

    def bert(folder: Path) -> Any:
        return hf.BertModel(hf.BertConfig(vocab_size=save_wordpiece(folder), max_position_embeddings=32, **block))

    def gpt2(folder: Path) -> Any:
        size = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
        return hf.GPT2Model(hf.GPT2Config(vocab_size=save_wordpiece(folder), bos_token_id=3, eos_token_id=3, **size))

    def fnet(folder: Path) -> Any:
        size = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "max_position_embeddings": 32}
        return hf.FNetModel(hf.FNetConfig(vocab_size=save_wordpiece(folder), **size))

    def clip(folder: Path) -> Any:
        vocabulary = save_bpe(folder)
        hf.CLIPImageProcessor(crop_size=square["size"], **size).save_pretrained(folder)
        start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
        ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
        text = {"vocab_size": len(vocabulary), "max_position_embeddings": 20, **ids, **block}
        return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=picture, projection_dim=12))

    def siglip(folder: Path) -> Any:
        text = {"vocab_size": save_wordpiece(folder), "max_position_embeddings": 24, "projection_size": 16, **block}
        hf.SiglipImageProcessor(**square).save_pretrained(folder)
        return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=picture))

    def vit(folder: Path) -> Any:
        hf.ViTImageProcessor(**square).save_pretrained(folder)
        return hf.ViTModel(hf.ViTConfig(**picture))

    def resnet(folder: Path) -> Any:
        hf.ConvNextImageProcessor(**size).save_pretrained(folder)
        return hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1]))

    make = {f.__name__: f for f in (bert, gpt2, fnet, clip, siglip, vit, resnet)}

    def give(name: str) -> str:
        folder = root / name
        if not folder.exists():
            torch.manual_seed(7)
            make[name](folder).save_pretrained(folder)
        return str(folder)

    return give


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Make the bytes of an image file of noise."""
    import io

    from PIL import Image

    def make(seed: int, form: str = "PNG", width: int = 40, height: int = 30) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, form)
        return stream.getvalue()

    return make
