"""Vision models: against one forward pass per image."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fuxictr_mm.embeddings.encoders import BrokenImage, ImageEncoder, decode_image
from fuxictr_mm.errors import ConfigError, DataError

SIZES = [(40, 30), (32, 32), (1, 1), (3, 50), (64, 9)]


def pixel_values(folder: str, files: list[bytes]) -> torch.Tensor:
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
def test_vectors_are_those_of_one_image_at_a_time(tiny, files, name):
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
    assert vectors.shape == (5, encoder.width)
    assert vectors.dtype == np.float32


@torch.no_grad()
def test_pooling_over_patches_and_normalising(tiny, files):
    from transformers import AutoModel

    hidden = AutoModel.from_pretrained(tiny("vit")).eval()(pixel_values(tiny("vit"), files)).last_hidden_state
    for pooling, expected in (("cls", hidden[:, 0]), ("mean", hidden.mean(1)), ("max", hidden.amax(1))):
        np.testing.assert_allclose(ImageEncoder(tiny("vit"), pooling=pooling).encode(files)[0], expected, atol=1e-5)
    vectors, _ = ImageEncoder(tiny("clip"), normalize=True).encode(files)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_pooler_without_weights_is_not_asked(tiny, tmp_path, files):
    folder = tmp_path / "vit"
    shutil.copytree(tiny("vit"), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    encoder = ImageEncoder(str(folder))
    assert encoder.pooling == "cls"
    assert np.array_equal(encoder.encode(files)[0], ImageEncoder(tiny("vit"), pooling="cls").encode(files)[0])
    save_file({k: v for k, v in weights.items() if "embed" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"weights lack .* would be random"):
        ImageEncoder(str(folder))


def test_broken_images_get_zeros_and_a_reason_and_harm_no_other(tiny, picture):
    good = [picture(seed) for seed in range(4)]
    mixed = [good[0], b"", good[1], b"no image", good[2][:200], BrokenImage("because"), good[3]]
    encoder = ImageEncoder(tiny("clip"), batch_size=3)
    told: list[int] = []
    vectors, broken = encoder.encode(iter(mixed), told.append)
    assert broken[1] == "empty file"
    assert broken[3] == "no JPEG, PNG or WebP image"
    assert broken[4].startswith("cannot be decoded")
    assert broken[5] == "because"
    assert sum(told) == 7
    assert not vectors[[1, 3, 4, 5]].any()
    np.testing.assert_allclose(vectors[[0, 2, 6]], encoder.encode([good[0], good[1], good[3]])[0], atol=1e-6)
    everything, reasons = encoder.encode([b""] * 5)
    assert everything.shape == (5, 12)
    assert len(reasons) == 5


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_by_the_header(monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_image(picture(0, width=40, height=30)) == BrokenImage("40 x 30 pixels, more than 1000")
    found = decode_image(picture(0, width=400, height=300))
    assert isinstance(found, BrokenImage)
    assert "\n" not in found.reason
    assert decode_image(picture(0, width=20, height=30)).size == (20, 30)


def test_pictures_of_other_modes_become_rgb():
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1", "I;16"):
        stream = io.BytesIO()
        Image.new(mode, (5, 4)).save(stream, "JPEG" if mode == "CMYK" else "PNG")
        assert decode_image(stream.getvalue()).mode == "RGB", mode


def test_exif_turns_the_picture():
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(stream, "JPEG", exif=exif)
    assert decode_image(stream.getvalue()).size == (10, 20)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip", {"pooling": "cls"}, "image tower projects to a vector itself"),
        ("vit", {"pooling": "last"}, "expected one of cls, mean, max for images"),
        ("vit", {"workers": 0}, "workers 0, expected 1 or more"),
        ("bert", {}, "takes no images"),
    ],
)
def test_options_are_checked(tiny, name, options, message):
    with pytest.raises(ConfigError, match=message):
        ImageEncoder(tiny(name), **options)


def test_a_folder_without_a_processor_is_one_line(tiny, tmp_path):
    shutil.copytree(tiny("vit"), tmp_path / "vit")
    (Path(tmp_path) / "vit/preprocessor_config.json").unlink()
    with pytest.raises(DataError, match="the image processor cannot be loaded"):
        ImageEncoder(str(tmp_path / "vit"))
