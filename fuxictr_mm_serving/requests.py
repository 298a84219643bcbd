"""Requests and answers: what they hold, how they are read, and the description of both for ``/openapi.json``."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator, model_validator
from pydantic.json_schema import models_json_schema
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from fuxictr_mm_serving import __version__
from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.settings import Settings

#: Bytes of a body that is too large that are read, and forgotten: many clients send all of it before they read why not.
DISCARDED = 64 * 2**20

#: Columns of an item, and of the context, that a request may give.
COLUMNS = 1000

#: What JSON may write half a surrogate pair by: an escape, its UTF-8, or an encoding of other bytes. To check the text
#: of every large body would take longer than to read it.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\0")

Id = int | str


class _Body(BaseModel):
    """A request, or part of one: validation stops at its first error, however many there are."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check(cls, content: Any) -> Any:
        if isinstance(content, dict):
            if unknown := next((name for name in content if name not in cls.model_fields), None):
                raise ValueError(f"{str(unknown)[:100]!r} is not expected, only {', '.join(cls.model_fields)}")
            for name, value in content.items():
                if isinstance(value, dict) and len(value) > COLUMNS:
                    raise ValueError(f"{name} has {len(value)} columns, expected {COLUMNS} or fewer")
                if name not in ("context", "explain") and _has_booleans(value):  # which would be the numbers 1 and 0
                    raise ValueError(f"{name} holds true or false, expected ids or numbers")
        return content


def _has_booleans(value: Any) -> bool:
    entries = value.values() if isinstance(value, dict) else [value]
    return any(bool in (map(type, e) if isinstance(e, list) else [type(e)]) for e in entries)


T = TypeVar("T", bound=_Body)


class NewItemRequest(_Body):
    """An item that the export does not hold."""

    model_config = ConfigDict(title="NewItem")
    embeddings: dict[str, Annotated[list[float], FailFast()]] = Field(
        {}, description="column of the item files to its embedding"
    )
    codes: dict[str, Annotated[list[Id], FailFast()]] = Field(
        {}, description="column of the item files to its ids, as many as in training or fewer"
    )
    numbers: dict[str, float] = Field({}, description="column of the item files to its number")


class ScoreRequest(_Body):
    """One user and the candidates to score."""

    user: Id | None = Field(None, description="an id of the server's file of users")
    context: dict[str, Any] = Field({}, description="value of each context column")
    history: list[Id] | None = Field(None, fail_fast=True, description="item ids, oldest first")
    candidates: list[Id] = Field([], fail_fast=True, description="item ids")
    new_items: Annotated[list[NewItemRequest], FailFast()] = Field(
        [], description="items that the export does not hold, scored after the candidates"
    )
    explain: bool = Field(False, description="whether to name the history items that each candidate attends to most")

    @field_validator("context")
    @classmethod
    def _is_flat(cls, context: dict[str, Any]) -> dict[str, Any]:
        for column, value in context.items():
            if {dict, list} & {*map(type, value if isinstance(value, list) else [value])}:
                raise ValueError(f"{column[:100]!r} is not a value or a list of values")
        return context


class BatchRequest(_Body):
    """Several users."""

    requests: Annotated[list[ScoreRequest], Field(min_length=1), FailFast()]


class Reason(BaseModel):
    """A history item, and its share of a candidate's attention to the history."""

    item: Id
    share: float


class ScoreResponse(BaseModel):
    """Predictions in the order of candidates and new items."""

    scores: list[float] | dict[str, list[float]] = Field(description="of several labels: by the name of the label")
    unknown: list[Id] = Field([], description="candidates that the export does not hold")
    version: str = Field(description="of the export; the same for all scores of an answer")
    reasons: list[list[Reason]] = Field([], description="of each candidate, where they were asked for")


class BatchResponse(BaseModel):
    """Answers in the order of the requests."""

    responses: list[ScoreResponse]


class ErrorResponse(BaseModel):
    """Why there is no answer."""

    error: str


class HttpError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


@contextmanager
def named(place: str) -> Iterator[None]:
    """Begin errors within by which of several requests they are of."""
    try:
        yield
    except (HttpError, ServingError) as error:
        if place:
            error.args = (f"{place}: {error}",)
        raise


async def read_body(request: Request, settings: Settings) -> bytes:
    """Return the body.

    Raises
    ------
    HttpError
        415 for a body that is compressed, 413 for one that is too large, 408 for one that does not arrive, 400 where
        the client has gone.
    """
    if (encoding := request.headers.get("content-encoding", "").lower()) not in ("", "identity"):
        raise HttpError(415, f"the body has the encoding {encoding}, which is not supported; send it as it is")
    too_large = HttpError(413, f"the body has more than {settings.max_body} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max(settings.max_body, DISCARDED):
        raise too_large
    body = bytearray()

    async def read() -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size <= settings.max_body:
                body.extend(part)
            elif size > DISCARDED:
                break
        if size > settings.max_body:
            raise too_large

    try:
        await asyncio.wait_for(read(), settings.timeout)
    except asyncio.TimeoutError:
        raise HttpError(408, f"the body did not arrive within {settings.timeout:g} seconds") from None
    except ClientDisconnect:
        raise HttpError(400, "the client left before its body had arrived") from None
    return bytes(body)


def is_msgpack(header: str) -> bool:
    """Whether a header names MessagePack."""
    return "msgpack" in header


def decode(body: bytes, content_type: str, model: type[T], settings: Settings) -> T:
    """Return a body, JSON or MessagePack, as a checked request.

    Raises
    ------
    HttpError
        400 if the body cannot be decoded, 422 if it is not such a request.
    """
    try:
        if is_msgpack(content_type):
            import msgpack

            content = msgpack.unpackb(body, object_pairs_hook=_no_duplicates)
        else:
            content = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except Exception as error:  # msgpack raises many types
        kind = "MessagePack" if is_msgpack(content_type) else "JSON"
        raise HttpError(
            400, f"the body is not valid {kind} ({(str(error) or type(error).__name__).splitlines()[0][:100]})"
        ) from None
    check_lengths(content, settings)
    if not is_msgpack(content_type) and SURROGATE.search(body):
        check_text(content)
    try:
        return model.model_validate(content, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = first["loc"]
        place = place[:-1] if place[-1:] == ("int",) else place  # of the two types of an id, the first
        message = _problem_of(first)
        where = ".".join(map(str, place))[:200] or "body"
        raise HttpError(422, f"{where}: {message}") from None


#: What is expected where pydantic finds an error of a type, by the first word of its name.
_EXPECTED = {
    "int": "an integer or a text", "string": "an integer or a text", "float": "a number", "list": "a list",
    "dict": "an object", "model": "an object", "bool": "true or false", "too": "one or more",
}  # fmt: skip


def _problem_of(error: ErrorDetails) -> str:
    """Return what is wrong with an entry: what it is, and what was expected."""
    if (expected := _EXPECTED.get(error["type"].split("_")[0])) is None:
        return error["msg"].removeprefix("Value error, ")
    value = error["input"]
    if isinstance(value, list | dict):
        found = "empty" if error["type"] == "too_short" else "a list" if isinstance(value, list) else "an object"
    else:
        found = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)[:100]
    return f"is {found}, expected {expected}"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[Any] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{str(name)[:50]!r} is given more than once")
    return found


def check_text(content: Any) -> None:
    """Refuse, 422, halves of surrogate pairs, which JSON can write and no text can hold."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HttpError(422, "the body holds half a surrogate pair, which is not text") from None
    except RecursionError:
        raise HttpError(422, "the body has too many lists or objects within each other") from None


def check_lengths(content: Any, settings: Settings) -> None:
    """Refuse, 422, lists that are too long before their entries are looked at."""
    limits = {
        "requests": settings.max_users,
        "candidates": settings.max_candidates,
        "new_items": settings.max_candidates,
        "history": settings.max_history,
    }
    if not isinstance(content, dict):
        return
    for name, limit in limits.items():
        value = content.get(name)
        if isinstance(value, list) and len(value) > limit:
            raise HttpError(422, f"{name}: are {len(value)}, expected {limit} or fewer")
    if isinstance(requests := content.get("requests"), list):
        for number, one in enumerate(requests):
            if isinstance(one, dict):
                with named(f"requests.{number}"):
                    check_lengths({name: value for name, value in one.items() if name != "requests"}, settings)


def check_limits(request: ScoreRequest, settings: Settings) -> None:
    """Refuse, 422, a request with too much in it, or nothing."""
    count = len(request.candidates) + len(request.new_items)
    if count == 0:
        raise HttpError(422, "candidates: are missing, expected one or more item ids")
    if count > settings.max_candidates:
        raise HttpError(422, f"candidates: are {count}, expected {settings.max_candidates} or fewer")
    for number, item in enumerate(request.new_items):
        if not (item.embeddings or item.codes or item.numbers):
            raise HttpError(422, f"new_items.{number}: is empty, expected content of the item")
    if request.user is None and request.history is None:
        raise HttpError(422, "history: is missing; give a history (it may be empty), or a user")


#: What ``/openapi.json`` describes: method, path, what it does, model of the body and of the answer.
ROUTES: tuple[tuple[str, str, str, type[BaseModel] | None, type[BaseModel] | None], ...] = (
    ("post", "/score", "Score candidates for one user", ScoreRequest, ScoreResponse),
    ("post", "/score_batch", "Score candidates for several users", BatchRequest, BatchResponse),
    ("get", "/health", "Whether the process answers", None, None),
    ("get", "/ready", "Whether an export is loaded, and which", None, None),
    ("get", "/metrics", "Metrics for Prometheus", None, None),
)


@cache
def openapi() -> dict[str, Any]:
    """Return the description of the server by OpenAPI."""
    models = {model for route in ROUTES for model in route[3:] if model is not None} | {ErrorResponse}
    ordered = sorted(models, key=lambda model: model.__name__)
    schemas, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )

    def content(model: type[BaseModel] | None) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schemas[model, "validation"]}}} if model else {}

    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, body, response in ROUTES:
        answers = {
            "200": {"description": "Success", **content(response)},
            "default": {"description": "Error", **content(ErrorResponse)},
        }
        operation: dict[str, Any] = {"summary": summary, "responses": answers}
        if body:
            operation["requestBody"] = {"required": True, **content(body)}
        paths[path] = {method: operation}
    info = {"title": "fuxictr-mm-serving", "version": __version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": definitions["$defs"]}}
