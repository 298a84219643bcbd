"""What the names of columns tell of their integers: ids and codes, or quantities."""

from __future__ import annotations

import re

#: Integers of more distinct values are numbers, unless their column is named as one of ids.
FEW_VALUES = 100

#: Names of columns whose digits are no quantity, beside those that end in id.
CODES = (
    r"(?i)(?:^|_)(?:zip|zip_?code|post_?code|postal(?:_?code)?|plz|ean|gtin|upc|barcode|phone|phone_?number|mobile|tel"
    r"|telephone|(?:account|customer|kunden|konto)_?(?:no|nr|num|number|nummer))$"
)

#: Names of quantities, also with a unit or currency behind; integers of such a column are no ids.
QUANTITY = (
    r"(?:^|_)(?:views?|plays?|clicks|likes|streams|downloads|votes|count|counts|cnt|anzahl|amount|amt|betrag|total|sum"
    r"|value|\w*preis|price|cost|costs|fee|rent|tax|revenue|umsatz|sales|salary|income|budget|turnover|gross|spent"
    r"|quantity|qty|size|length|duration|dauer|runtime|time|playtime|elapsed|distance|mileage|odometer|kilometers?"
    r"|population|followers|subscribers|bytes|cents)"
    r"(?:_?(?:ns|us|ms|s|sec|seconds|m|km|kb|mb|bytes|cents|usd|eur|gbp|jpy|inr|idr|krw|vnd|total|sum|mean|avg|max"
    r"|min|\d+d?))*$"
)


def is_named_as_id(name: str) -> bool:
    """Whether a name such as ``shop_id`` or ``zip`` is one of ids or codes."""
    return name.lower().endswith("id") or re.search(CODES, name) is not None


def is_named_as_quantity(name: str) -> bool:
    """Whether a name such as ``viewCount``, ``price_idr`` or ``Amount (EUR)`` is one of a quantity."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", "_", name).lower().strip("_")
    return re.search(QUANTITY, words) is not None
