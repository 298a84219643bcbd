"""Checks of the columns of a file: those that are missing, and those of a type that models cannot read."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.check_data.arrays import is_number, is_number_list, is_text, split_lists
from fuxictr_mm.check_data.checks import ERROR, WARNING, Fault, Report, declare
from fuxictr_mm.check_data.files import SPLITS, DataFile
from fuxictr_mm.check_data.translation import LABEL, USER_ID
from fuxictr_mm.data.arrow_types import is_bytes, is_list
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ

#: How the column of a role is named, where it has another name than the checks'.
OPTIONS = {
    LABEL: "--label NAME",
    ITEM_ID: "--roles target=NAME",
    ITEM_SEQ: "--roles history=NAME",
    USER_ID: "--roles user=NAME",
}

MISSING_COLUMN = declare("missing-column", ERROR, "no such column", "the columns of the challenge's layout")
COLUMN_TYPE = declare("column-type", ERROR, "a column of a type that models cannot read", "numbers, or lists of them")


def require(file: DataFile, wanted: dict[str, str], report: Report, lists: Collection[str] = ()) -> list[str]:
    """Return the columns among ``wanted`` (with what they should hold) that can be read; report the others.

    Those in ``lists`` should hold lists of numbers.
    """
    usable = []
    for name, expected in wanted.items():
        if name not in file.schema.names:
            text = f"no such column (columns: {', '.join(file.schema.names)})"
            asked = f"{expected}; if the column has another name, add {OPTIONS[name]}" if name in OPTIONS else ""
            report.add(MISSING_COLUMN, Fault(file.file, name, found=text, expected=asked))
            continue
        kind = file.schema.field(name).type
        if is_number_list(kind) or pa.types.is_null(kind) if name in lists else is_number(kind):
            usable.append(name)
        else:
            report.add(COLUMN_TYPE, Fault(file.file, name, found=f"holds {kind}", expected=expected))
    return usable


def check_types(file: DataFile, known: Collection[str], report: Report) -> list[str]:
    """Report columns that models cannot read; return those (``file: column (type)``) that no check looks at.

    Numbers as bytes are an error, and numbers as text a warning: they are meant to be read, as numbers. Lists of
    anything else are a warning. Text is read as categories; times and other types may be there for something else.
    Columns that are ``known`` are checked by their names.
    """
    not_checked = []
    in_split = file.name in SPLITS
    for column in file.schema:
        kind, text = column.type, is_text(column.type)
        if column.name in known or is_number(kind) or (is_number_list(kind) and not in_split):
            continue
        form = "" if is_number_list(kind) else _hidden_numbers(file.first_chunk(column.name))
        # Categories may be text, and so may lists of them of items; context columns hold no lists.
        text = text or (is_list(kind) and is_text(kind.value_type) and not in_split)
        if form:
            severity = WARNING if text else ERROR
            report.add(COLUMN_TYPE, Fault(file.file, column.name, found=f"holds {form}", severity=severity))
        elif pa.types.is_null(kind) or (is_list(kind) and not is_number_list(kind) and not text):
            report.add(COLUMN_TYPE, Fault(file.file, column.name, found=f"holds {kind}", severity=WARNING))
        else:
            not_checked.append(f"{file.file}: {column.name} ({kind})")
    return not_checked


def _hidden_numbers(array: pa.Array | None) -> str:
    """Return the form of the numbers in an array that models cannot read; empty without numbers."""
    if array is None:
        return ""
    sample = split_lists(array)[0] if is_list(array.type) else array
    sample = (sample.dictionary_decode() if pa.types.is_dictionary(sample.type) else sample).drop_null()
    if pa.types.is_decimal(sample.type) or is_number(sample.type):
        return f"numbers as {array.type}"
    if is_bytes(sample.type):
        return "embeddings as bytes" if _are_embeddings(sample) else ""
    try:
        return f"numbers as {array.type}" if is_text(sample.type) and len(sample.cast(pa.float64())) else ""
    except pa.ArrowInvalid:
        return ""


def _are_embeddings(array: pa.Array) -> bool:
    """Whether bytes are those of embeddings: of one length, and long, or small numbers when read as numbers."""
    lengths = pc.unique(pc.binary_length(array)).to_pylist()
    if len(array) < 2 or len(lengths) > 1 or lengths[0] < 16:
        return False
    data = b"".join(array.slice(0, 1000).to_pylist())
    forms = [form for form in ("<f2", "<f4", "<f8") if len(data) % np.dtype(form).itemsize == 0]
    # Up to 64 bytes it may be a hash.
    return lengths[0] > 64 or any((np.abs(np.frombuffer(data, form)) < 1e4).all() for form in forms)


def compare_types(splits: Iterable[DataFile], report: Report) -> None:
    """Report context columns that are text in one split and numbers in another."""
    texts: dict[str, DataFile] = {}
    numbers: dict[str, DataFile] = {}
    for split in splits:
        named = {USER_ID, ITEM_ID, ITEM_SEQ, LABEL, split.translation.roles.time}
        with report.reading(split.path):
            for column in split.schema:
                if column.name not in named:
                    kinds = texts if is_text(column.type) else numbers if is_number(column.type) else {}
                    kinds.setdefault(column.name, split)
    for name in sorted(texts.keys() & numbers.keys()):
        found = f"holds text, but {numbers[name].file} holds numbers"
        report.add(COLUMN_TYPE, Fault(texts[name].file, name, found=found, expected="one type in all splits"))
