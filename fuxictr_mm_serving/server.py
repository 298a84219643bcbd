"""The HTTP server: ``fuxictr-mm-serve DIR``."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import prometheus_client
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.service import Service, Titles

logger = logging.getLogger("fuxictr_mm_serving")

Id = int | str
T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Settings:
    """What the command line says, for every worker.

    Parameters
    ----------
    folder : str
        The export.
    users, titles : str, optional
        Parquet files of users and of titles.
    user_column : str
        Column of ids in the file of users.
    threads : int
        Threads of a graph.
    cache_mib : int
        Size of the cache of user states, in MiB.
    concurrency, queue : int
        Requests that are scored at a time, and that may wait; a further one gets 503.
    timeout : float
        Seconds until a request is given up, 504, and for its body to arrive, 408.
    max_body : int
        Bytes of a body.
    max_candidates, max_history, max_users : int
        Candidates of a user, history items, and users of a ``/score_batch``.
    reload : float
        Seconds between looks for another export in the folder.
    token : str, optional
        The bearer token that requests must have, except those to ``/health`` and ``/ready``.
    """

    folder: str
    users: str | None = None
    titles: str | None = None
    user_column: str = "user_id"
    threads: int = 1
    cache_mib: int = 256
    concurrency: int = 2
    queue: int = 64
    timeout: float = 10.0
    max_body: int = 4 * 2**20
    max_candidates: int = 500
    max_history: int = 10000
    max_users: int = 64
    reload: float = 2.0
    token: str | None = None


class NewItem(BaseModel):
    """An item that the export does not hold."""

    model_config = ConfigDict(extra="forbid")
    embeddings: dict[str, list[float]] = Field(description="field name to its embedding, as in the item files")


class ScoreRequest(BaseModel):
    """One user and the candidates to score."""

    model_config = ConfigDict(extra="forbid")
    user: Id | None = Field(None, description="an id of the server's file of users")
    context: dict[str, Any] = Field({}, description="value of each context column")
    history: list[Id] | None = Field(None, description="item ids, oldest first")
    candidates: list[Id] = Field([], description="item ids")
    new_items: list[NewItem] = Field([], description="items that the export does not hold, scored after the candidates")


class BatchRequest(BaseModel):
    """Several users."""

    model_config = ConfigDict(extra="forbid")
    requests: Annotated[list[ScoreRequest], Field(min_length=1)]


class ScoreResponse(BaseModel):
    """Predictions in the order of candidates and new items."""

    scores: list[float]
    unknown: list[Id] = Field([], description="candidates that the export does not hold")
    version: str = Field(description="of the export; the same for all scores of an answer")


class BatchResponse(BaseModel):
    """Answers in the order of the requests."""

    responses: list[ScoreResponse]


class HttpError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Metrics:
    """Prometheus metrics of a process, or of all workers where ``PROMETHEUS_MULTIPROC_DIR`` is set."""

    def __init__(self) -> None:
        several = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self.registry = prometheus_client.CollectorRegistry()
        if several:
            from prometheus_client import multiprocess

            multiprocess.MultiProcessCollector(self.registry)
        own = prometheus_client.CollectorRegistry() if several else self.registry
        self.requests = prometheus_client.Counter(
            "fuxictr_mm_requests", "Requests by path and status", ["path", "status"], registry=own
        )
        self.seconds = prometheus_client.Histogram(
            "fuxictr_mm_request_seconds",
            "Seconds of a request",
            ["path"],
            registry=own,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
        self.candidates = prometheus_client.Counter("fuxictr_mm_candidates", "Candidates scored", registry=own)
        self.cache = prometheus_client.Counter(
            "fuxictr_mm_user_states", "User states by whether they were held", ["held"], registry=own
        )
        self.switches = prometheus_client.Counter("fuxictr_mm_switches", "Exports loaded after the first", registry=own)

    def text(self) -> bytes:
        """Return the text that Prometheus reads."""
        return prometheus_client.generate_latest(self.registry)


class Gate:
    """Runs work in threads; refuses it when too much is waiting."""

    def __init__(self, settings: Settings) -> None:
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="score")
        self._limit = settings.concurrency + settings.queue
        self._timeout = settings.timeout
        self._pending = 0

    async def run(self, work: Callable[[], Any]) -> Any:
        """Return the result of the work.

        Raises
        ------
        HttpError
            503 where the queue is full, 504 after the time limit.
        """
        if self._pending >= self._limit:
            raise HttpError(503, "too many requests are waiting; try again", **{"Retry-After": "1"})
        self._pending += 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, work)
        # What runs into the time limit still occupies its thread, so it is counted until it ends.
        future.add_done_callback(self._end)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._timeout)
        except asyncio.TimeoutError:
            raise HttpError(504, f"no scores after {self._timeout:g} seconds; send fewer candidates") from None

    def _end(self, future: asyncio.Future[Any]) -> None:
        self._pending -= 1
        if not future.cancelled():
            future.exception()  # that of a request that was given up is not logged

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def read_body(request: Request, settings: Settings) -> bytes:
    """Return the body.

    Raises
    ------
    HttpError
        413 for a body that is too large, 408 for one that does not arrive.
    """
    too_large = HttpError(413, f"the body has more than {settings.max_body} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > settings.max_body:
        raise too_large
    body = bytearray()

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > settings.max_body:
                raise too_large

    try:
        await asyncio.wait_for(read(), settings.timeout)
    except asyncio.TimeoutError:
        raise HttpError(408, f"the body did not arrive within {settings.timeout:g} seconds") from None
    return bytes(body)


def is_msgpack(header: str) -> bool:
    """Whether a header names MessagePack."""
    return "msgpack" in header


def decode(body: bytes, content_type: str, model: type[T]) -> T:
    """Return a body, JSON or MessagePack, as a checked request.

    Raises
    ------
    HttpError
        400 for what cannot be decoded, 422 for what is no such request.
    """
    try:
        if is_msgpack(content_type):
            import msgpack

            content = msgpack.unpackb(body)
        else:
            content = json.loads(body, parse_constant=_no_constant)
    except Exception as error:  # msgpack raises many types
        kind = "MessagePack" if is_msgpack(content_type) else "JSON"
        raise HttpError(400, f"the body is not valid {kind} ({str(error).splitlines()[0][:100]})") from None
    try:
        return model.model_validate(content, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise HttpError(422, f"{where}: {first['msg']}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def check_limits(request: ScoreRequest, settings: Settings) -> None:
    """Refuse a request with too much in it, or nothing.

    Raises
    ------
    HttpError
        422.
    """
    count = len(request.candidates) + len(request.new_items)
    if count == 0:
        raise HttpError(422, "candidates: are missing, expected one or more item ids")
    if count > settings.max_candidates:
        raise HttpError(422, f"candidates: are {count}, expected {settings.max_candidates} or fewer")
    if len(request.history or []) > settings.max_history:
        raise HttpError(
            422, f"history: has {len(request.history or [])} items, expected {settings.max_history} or fewer"
        )
    if request.user is None and request.history is None:
        raise HttpError(422, "history: is missing; give a history (it may be empty), or a user")


def make_app(settings: Settings) -> FastAPI:
    """Return the application of a worker.

    Raises
    ------
    ServingError
        The folder holds no export.
    """
    service = Service(
        settings.folder,
        users=settings.users,
        user_column=settings.user_column,
        threads=settings.threads,
        cache_bytes=settings.cache_mib * 2**20,
    )
    titles = None if settings.titles is None else Titles(settings.titles)
    metrics, gate = Metrics(), Gate(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watcher = asyncio.create_task(watch(service, metrics, settings.reload))
        yield
        watcher.cancel()
        gate.close()

    app = FastAPI(title="fuxictr-mm-serving", lifespan=lifespan)
    app.state.service = service

    @app.middleware("http")
    async def observe(request: Request, call_next: Callable[[Request], Any]) -> Response:
        started = time.perf_counter()
        open_paths = ("/health", "/ready")
        if settings.token and request.url.path not in open_paths and not has_token(request, settings.token):
            response: Response = answer(401, "a bearer token is needed", **{"WWW-Authenticate": "Bearer"})
        else:
            response = await call_next(request)
        seconds = time.perf_counter() - started
        # Paths that do not exist share a label, or anyone could make as many as there is memory for.
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        metrics.requests.labels(path, response.status_code).inc()
        metrics.seconds.labels(path).observe(seconds)
        line = {"method": request.method, "path": path, "status": response.status_code, "ms": round(seconds * 1e3, 2)}
        logger.info(json.dumps({**line, **getattr(request.state, "sizes", {})}))
        return response

    @app.exception_handler(HttpError)
    async def on_http_error(_: Request, error: HttpError) -> Response:
        return answer(error.status, str(error), **error.headers)

    @app.exception_handler(ServingError)
    async def on_serving_error(_: Request, error: ServingError) -> Response:
        return answer(422, str(error))

    @app.exception_handler(Exception)
    async def on_bug(_: Request, error: Exception) -> Response:
        logger.error(json.dumps({"error": type(error).__name__, "message": str(error)[:500]}))
        return answer(500, "the server failed on this request; its log has the reason")

    def score_all(requests: list[ScoreRequest]) -> list[dict[str, Any]]:
        loaded = service.loaded  # all of an answer by one export
        hits, misses = loaded.cache.hits, loaded.cache.misses
        found = [
            asdict(
                service.score(
                    user=r.user,
                    context=r.context,
                    history=r.history,
                    candidates=r.candidates,
                    new_items=[item.embeddings for item in r.new_items],
                    loaded=loaded,
                )
            )
            for r in requests
        ]
        metrics.candidates.inc(sum(len(one["scores"]) for one in found))
        metrics.cache.labels("yes").inc(max(loaded.cache.hits - hits, 0))
        metrics.cache.labels("no").inc(max(loaded.cache.misses - misses, 0))
        return found

    async def handle(request: Request, model: type[T], requests_of: Callable[[T], list[ScoreRequest]]) -> Any:
        body = await read_body(request, settings)
        requests = requests_of(decode(body, request.headers.get("content-type", ""), model))
        if len(requests) > settings.max_users:
            raise HttpError(422, f"requests: are {len(requests)}, expected {settings.max_users} or fewer")
        for one in requests:
            check_limits(one, settings)
        request.state.sizes = {"users": len(requests), "candidates": sum(len(r.candidates) for r in requests)}
        return await gate.run(lambda: score_all(requests))

    def reply(request: Request, content: Any) -> Response:
        if is_msgpack(request.headers.get("accept", "")):
            import msgpack

            return Response(msgpack.packb(content), media_type="application/msgpack")
        return JSONResponse(content)

    @app.post("/score", response_model=ScoreResponse, openapi_extra=body_schema(ScoreRequest))
    async def score(request: Request) -> Response:
        """Score candidates for one user."""
        return reply(request, (await handle(request, ScoreRequest, lambda one: [one]))[0])

    @app.post("/score_batch", response_model=BatchResponse, openapi_extra=body_schema(BatchRequest))
    async def score_batch(request: Request) -> Response:
        """Score candidates for several users."""
        return reply(request, {"responses": await handle(request, BatchRequest, lambda many: many.requests)})

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether an export is loaded, and which."""
        manifest = service.loaded.export.manifest
        names = ("experiment", "model", "created", "precision")
        return {"status": "ready", "version": service.loaded.version, **{name: manifest[name] for name in names}}

    @app.get("/metrics")
    async def read_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return files("fuxictr_mm_serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/page_data", include_in_schema=False)
    async def page_data() -> dict[str, Any]:
        """Return what the page offers: users, candidates, columns of the context."""
        export = service.loaded.export
        users = service.users.some(200) if service.users else []
        items = titles.some(100) if titles else export.items.some(100)
        context = [f.column for f in export.context if not f.is_computed]
        return {"users": users, "items": items, "context": context, "experiment": export.manifest["experiment"]}

    @app.post("/titles", include_in_schema=False)
    async def titles_of(request: Request) -> list[str]:
        """Return the titles of items, for the page."""
        ids = decode(await read_body(request, settings), "json", ScoreRequest).candidates
        return titles.of(ids) if titles else [""] * len(ids)

    return app


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the part of the OpenAPI page that describes a body that the server reads itself, to bound its size."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    if model is BatchRequest:
        schema["properties"]["requests"]["items"] = {**ScoreRequest.model_json_schema(), "$defs": {}}
    schema = json.loads(json.dumps(schema).replace('{"$ref": "#/components/schemas/NewItem"}', '{"type": "object"}'))
    schema = json.loads(json.dumps(schema).replace('{"$ref": "#/$defs/NewItem"}', '{"type": "object"}'))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answer(status: int, message: str, **headers: str) -> Response:
    """Return an error: one sentence."""
    return JSONResponse({"error": " ".join(message.split())}, status_code=status, headers=headers)


def has_token(request: Request, token: str) -> bool:
    """Whether a request has the bearer token."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


async def watch(service: Service, metrics: Metrics, seconds: float) -> None:
    """Load another export when there is one in the folder."""
    while True:
        await asyncio.sleep(seconds)
        try:
            if await asyncio.to_thread(service.switch):
                metrics.switches.inc()
                logger.info(json.dumps({"switched_to": service.loaded.version}))
        except ServingError as error:  # perhaps it is being written: the next look finds it
            logger.warning(json.dumps({"switch": "failed", "reason": str(error)}))


#: The settings of a worker, which uvicorn starts by the name of a function without arguments.
SETTINGS = "FUXICTR_MM_SERVING_SETTINGS"


def app_of_worker() -> FastAPI:
    """Return the application by the settings in the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return make_app(Settings(**json.loads(os.environ[SETTINGS])))


def read_token(path: str | None) -> str | None:
    """Return the bearer token: of a file, else of the variable ``FUXICTR_MM_TOKEN``.

    Raises
    ------
    ServingError
        The file cannot be read or is empty.
    """
    if path is None:
        return os.environ.get("FUXICTR_MM_TOKEN") or None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"{path}: cannot be read as a token ({error})") from None
    if not token:
        raise ServingError(f"{path}: is empty, expected a token")
    return token
