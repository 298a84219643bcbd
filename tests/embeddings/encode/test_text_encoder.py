"""Text models: against one forward pass per text, without padding."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fuxictr_mm.embeddings.encoders import TextEncoder
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError

TEXTS = ["a fox", "the lazy dog runs over the big red fox", "heat", "zebra", "toy story", "the", "dog dog dog dog dog"]


def hidden_states(folder: str) -> list[torch.Tensor]:
    """Return (T, D) of each text, one at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]


@pytest.mark.parametrize(
    ("pooling", "formula"),
    [
        ("cls", lambda h: h[0]),
        ("mean", lambda h: h.sum(0) / len(h)),
        ("max", lambda h: h.max(0).values),
        ("last", lambda h: h[-1]),
    ],
)
def test_bert_pools_its_tokens_and_no_padding(tiny, pooling, formula):
    encoder = TextEncoder(tiny("bert"), pooling=pooling, batch_size=3)
    expected = torch.stack([formula(h) for h in hidden_states(tiny("bert"))])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert encoder.width == 16


def test_padding_on_the_left_changes_nothing(tiny, tmp_path):
    folder = tmp_path / "left"
    shutil.copytree(tiny("bert"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    # BERT counts positions from the left, so only lists of one length can agree: the pooling is what is looked at.
    texts = ["a fox", "the dog"]
    for pooling in ("cls", "mean", "max", "last"):
        right = TextEncoder(tiny("bert"), pooling=pooling).encode(texts)
        np.testing.assert_allclose(TextEncoder(str(folder), pooling=pooling).encode(texts), right, atol=1e-6)


def test_the_default_is_the_mean(tiny):
    assert np.array_equal(
        TextEncoder(tiny("bert")).encode(TEXTS), TextEncoder(tiny("bert"), pooling="mean").encode(TEXTS)
    )


def test_clip_gives_its_projected_text_features(tiny):
    from transformers import AutoTokenizer, CLIPModel

    tokenizer, model = AutoTokenizer.from_pretrained(tiny("clip")), CLIPModel.from_pretrained(tiny("clip")).eval()
    with torch.no_grad():
        inputs = [tokenizer(text, truncation=True, max_length=20, return_tensors="pt") for text in TEXTS]
        towers = [model.text_model(**one) for one in inputs]
        expected = torch.cat([model.text_projection(tower.pooler_output) for tower in towers])
    encoder = TextEncoder(tiny("clip"), batch_size=2)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert encoder.width == 12


def test_siglip_pads_to_the_length_it_was_trained_with(tiny):
    from transformers import AutoTokenizer, SiglipModel

    tokenizer, model = AutoTokenizer.from_pretrained(tiny("siglip")), SiglipModel.from_pretrained(tiny("siglip")).eval()
    with torch.no_grad():
        ids = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
        expected = model.text_model(input_ids=ids).pooler_output
    np.testing.assert_allclose(TextEncoder(tiny("siglip"), batch_size=2).encode(TEXTS), expected, atol=1e-5)


def test_siglip_cannot_be_cut_otherwise(tiny):
    with pytest.raises(ConfigError, match="takes 24 always; leave --max-tokens out"):
        TextEncoder(tiny("siglip"), max_tokens=8)


def sentence_folder(source: str, folder: Path, *modules: tuple[str, dict]) -> Path:
    shutil.copytree(source, folder)
    listed = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, settings) in enumerate(modules, start=1):
        path = folder / f"{number}_{kind}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(settings))
        listed.append({"idx": number, "path": path.name, "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def test_a_sentence_encoder_is_pooled_and_normalised_as_it_says(tiny, tmp_path):
    folder = sentence_folder(tiny("bert"), tmp_path / "st", ("Pooling", CLS), ("Normalize", {}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6, "do_lower_case": False}))
    encoder = TextEncoder(str(folder))
    short = [text for text in TEXTS if len(text.split()) < 4 and text != "zebra"]
    plain = TextEncoder(tiny("bert"), pooling="cls").encode(short)
    np.testing.assert_allclose(encoder.encode(short), plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == ("cls", True, 6)
    asked = TextEncoder(str(folder), pooling="max", normalize=False, max_tokens=10)
    np.testing.assert_allclose(asked.encode(short), TextEncoder(tiny("bert"), pooling="max").encode(short), atol=1e-6)
    assert asked.max_tokens == 10


def test_newer_pooling_settings_name_the_mode(tiny, tmp_path):
    folder = sentence_folder(tiny("bert"), tmp_path / "st", ("Pooling", {"pooling_mode": "lasttoken"}))
    assert TextEncoder(str(folder)).pooling == "last"


def test_a_projection_after_pooling_is_applied(tiny, tmp_path):
    settings = {
        "in_features": 16,
        "out_features": 5,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    folder = sentence_folder(tiny("bert"), tmp_path / "st", ("Pooling", CLS), ("Dense", settings))
    weight, bias = torch.randn(5, 16), torch.randn(5)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
    plain = torch.from_numpy(TextEncoder(tiny("bert"), pooling="cls").encode(TEXTS))
    np.testing.assert_allclose(TextEncoder(str(folder)).encode(TEXTS), torch.tanh(plain @ weight.T + bias), atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([("Pooling", CLS), ("WeightedLayerPooling", {})], "module 'WeightedLayerPooling' is not known"),
        ([("Pooling", {"pooling_mode_weightedmean_tokens": True})], "pooling .*weightedmean.* expected one of cls"),
        ([("Pooling", {**CLS, "pooling_mode_mean_tokens": True})], r"pooling \['cls', 'mean'\]"),
        ([("Dense", {"in_features": 2, "out_features": 2, "activation_function": "os.system"})], "activation 'system'"),
    ],
)
def test_modules_that_are_not_known_are_refused(tiny, tmp_path, modules, message):
    with pytest.raises(DataError, match=message):
        TextEncoder(str(sentence_folder(tiny("bert"), tmp_path / "st", *modules)))


def test_long_texts_are_cut(tiny):
    long = "fox " * 100
    encoder = TextEncoder(tiny("bert"), max_tokens=8)
    np.testing.assert_allclose(encoder.encode([long]), encoder.encode(["fox " * 6]), atol=1e-6)
    assert TextEncoder(tiny("bert")).max_tokens == 24
    for asked in (2, 25):
        with pytest.raises(ConfigError, match=f"max_tokens {asked}, expected 3 to 24"):
            TextEncoder(tiny("bert"), max_tokens=asked)


def test_bf16_is_near_and_float32(tiny):
    exact, near = (TextEncoder(tiny("bert"), precision=p).encode(TEXTS) for p in ("fp32", "bf16"))
    assert near.dtype == np.float32
    assert 0 < np.abs(exact - near).max() < 0.1


def test_a_file_in_half_precision_is_computed_in_full(tiny, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny("bert"), folder)
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    encoder = TextEncoder(str(folder))
    assert encoder.encode(TEXTS).dtype == np.float32
    np.testing.assert_allclose(encoder.encode(TEXTS), TextEncoder(tiny("bert")).encode(TEXTS), atol=1e-2)


def test_no_texts_give_no_vectors(tiny):
    assert TextEncoder(tiny("bert")).encode([]).shape == (0, 16)


def copy_without(source: str, folder: Path, *names: str) -> str:
    shutil.copytree(source, folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)  # what is there depends on the version of transformers
    return str(folder)


def test_weights_that_lack_are_not_made_up(tiny, tmp_path):
    weights = load_file(Path(tiny("bert")) / "model.safetensors")
    folder = Path(copy_without(tiny("bert"), tmp_path / "lacking", "model.safetensors"))
    no_pooler = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(no_pooler, folder / "model.safetensors", {"format": "pt"})
    np.testing.assert_allclose(TextEncoder(str(folder)).encode(TEXTS), TextEncoder(tiny("bert")).encode(TEXTS))
    lacking = {name: tensor for name, tensor in no_pooler.items() if "layer.1.output.dense.bias" not in name}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"weights lack 1 parameters, first 'encoder\.layer\.1\.output\.dense\.bias'"):
        TextEncoder(str(folder))


def test_a_pickle_is_not_loaded(tiny, tmp_path):
    folder = copy_without(tiny("bert"), tmp_path / "pickled", "model.safetensors")
    with pytest.raises(DataError, match=r"holds no weights; expected model\.safetensors"):
        TextEncoder(folder)
    torch.save({}, Path(folder) / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"only pytorch_model\.bin, which is a pickle and is not loaded"):
        TextEncoder(folder)


def test_a_damaged_folder_is_one_line(tiny, tmp_path):
    folder = copy_without(tiny("bert"), tmp_path / "damaged")
    (Path(folder) / "model.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(DataError, match="the model cannot be loaded") as caught:
        TextEncoder(folder)
    assert "\n" not in str(caught.value)
    folder = copy_without(tiny("bert"), tmp_path / "speechless", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    with pytest.raises(DataError, match=r"no tokenizer in .*, expected one of tokenizer\.json, vocab\.txt"):
        TextEncoder(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "median"}, "pooling 'median', expected one of cls, mean, max, last"),
        ({"precision": "fp8"}, "precision 'fp8', expected one of fp32, bf16"),
        ({"batch_size": 0}, "batch_size 0, expected 1 or more"),
        ({"gpu": 99}, "--gpu 99"),
    ],
)
def test_options_are_checked(tiny, options, message):
    with pytest.raises(ConfigError, match=message):
        TextEncoder(tiny("bert"), **options)


def test_a_model_that_cannot_be_had_is_one_line(tmp_path):
    with pytest.raises(
        MissingFileError, match=r"no such folder here, .* hub .*give a local folder .* HF_HUB_OFFLINE=1"
    ):
        TextEncoder("nobody/no-such-model")
    with pytest.raises(MissingFileError, match="no such folder, and no id"):
        TextEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(MissingFileError, match=r"holds no config\.json"):
        TextEncoder(str(tmp_path))


def test_models_without_the_tower_are_refused(tiny):
    with pytest.raises(ConfigError, match="text tower projects to a vector itself; leave --pooling out"):
        TextEncoder(tiny("clip"), pooling="mean")
    with pytest.raises((ConfigError, DataError), match="vit"):
        TextEncoder(tiny("vit"))
