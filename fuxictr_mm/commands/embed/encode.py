"""``fuxictr-mm embed encode``: titles and images to embeddings."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.commands.embed.options import add_output, add_settings, flag, given_settings
from fuxictr_mm.data.ids import Numbering
from fuxictr_mm.embeddings.encode import CHUNK_ROWS, EncodeOptions, encode_images, encode_texts
from fuxictr_mm.embeddings.encoders import ImageOptions, TextOptions
from fuxictr_mm.encoding.text_encodings import Encoding
from fuxictr_mm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``fuxictr-mm embed encode``."""
    add_examples(
        parser,
        "fuxictr-mm embed encode --texts item_feature.parquet --template '{item_title}' \\",
        "    --model bert-base-multilingual-cased --column txt_emb_BERT --out text.parquet",
        "fuxictr-mm embed encode --images covers.zip --items item_feature.parquet \\",
        "    --model google/siglip-base-patch16-224 --column img_emb_SigLIP --out image.parquet --report image.json",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--texts", metavar="FILE", help="Parquet, CSV or JSON lines file with item_id and texts")
    what.add_argument("--images", metavar="PATH", help="folder, .zip or .tar(.gz) of ID.jpg, .jpeg, .png or .webp")
    parser.add_argument("--model", required=True, help="folder with safetensors, or an id of the Hugging Face hub")
    parser.add_argument("--out", required=True, metavar="FILE", help="Parquet file to write")
    parser.add_argument("--column", help="name of the column (default: txt_emb_ or img_emb_ and the model's name)")
    parser.add_argument("--template", help="texts: columns in braces (default: '{item_title}', or '{title}')")
    parser.add_argument(
        "--items", metavar="FILE", help="images: Parquet, CSV or JSON lines file with the items to write"
    )
    parser.add_argument(
        "--encoding",
        metavar="NAME",
        help="encoding of a CSV or JSON lines file of --texts or --items, such as cp1252 or gb18030 (default: utf-8, "
        "or that of a byte order mark)",
    )
    parser.add_argument("--image-column", metavar="COLUMN", help="images: column of --items with file names")
    add_settings(parser, TextOptions)
    add_settings(parser, ImageOptions, without=list(TextOptions.model_fields))
    parser.add_argument("--chunk-rows", type=int, default=CHUNK_ROWS, help="items between checkpoints (default: 1024)")
    parser.add_argument("--report", metavar="FILE", help="JSON file to write with all items without an embedding")
    parser.add_argument("--restart", action="store_true", help="discard the chunks of an interrupted run")
    add_output(parser)


def main_from_args(parsed: argparse.Namespace, numbering: Numbering) -> None:
    """Run ``fuxictr-mm embed encode``."""
    own = {"texts": ("template", "max_tokens"), "images": ("items", "image_column", "workers")}
    kind, other = ("texts", "images") if parsed.texts is not None else ("images", "texts")
    for name in own[other]:
        if getattr(parsed, name) is not None:
            raise ConfigError(f"{flag(name)} is for --{other}, but --{kind} was given; leave it out")
    names = ("model", "column", "chunk_rows", "overwrite", "restart", "report")
    given = {name: getattr(parsed, name) for name in names}
    options = EncodeOptions(
        **given, verbose=0 if parsed.quiet else 1, numbering=numbering, encoding=Encoding(parsed.encoding, "--encoding")
    )
    if kind == "texts":
        settings = given_settings(parsed, TextOptions)
        done = encode_texts(parsed.texts, parsed.out, options, template=parsed.template, **settings)
    else:
        settings = given_settings(parsed, ImageOptions) | {"items": parsed.items, "image_column": parsed.image_column}
        done = encode_images(parsed.images, parsed.out, options, **settings)
    show(parsed, asdict(done), "\n".join(done.lines()))
