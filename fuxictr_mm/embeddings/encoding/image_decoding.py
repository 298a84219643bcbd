"""Bytes of an image file to a picture, or the reason why not."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

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
