"""The HTTP server: ``fuxictr-mm-serve DIR``."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fuxictr_mm_serving.deadline import DeadlineError, until
from fuxictr_mm_serving.errors import DamagedError, ServingError
from fuxictr_mm_serving.export import REASONS
from fuxictr_mm_serving.hosts import is_expected
from fuxictr_mm_serving.new_items import NewItem
from fuxictr_mm_serving.requests import (
    BatchRequest,
    HttpError,
    ScoreRequest,
    T,
    check_limits,
    decode,
    is_msgpack,
    named,
    openapi,
    read_body,
)
from fuxictr_mm_serving.service import Service, blank_context, exact
from fuxictr_mm_serving.settings import Settings

logger = logging.getLogger("fuxictr_mm_serving")

R = TypeVar("R")

#: Paths that need no token.
OPEN_PATHS = ("/health", "/ready", "/", "/docs", "/openapi.json")

#: Characters of an error: it may quote a value of the request.
ERROR_LENGTH = 500


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
        self.failed = prometheus_client.Counter(
            "fuxictr_mm_failed_switches", "Exports that could not be loaded after the first", registry=own
        )
        self.users = prometheus_client.Counter(
            "fuxictr_mm_users_reads", "Changed files of users that were read", registry=own
        )
        self.failed_users = prometheus_client.Counter(
            "fuxictr_mm_failed_users_reads", "Changed files of users that could not be read", registry=own
        )
        self.titles = prometheus_client.Counter(
            "fuxictr_mm_titles_reads", "Changed files of titles that were read", registry=own
        )
        self.failed_titles = prometheus_client.Counter(
            "fuxictr_mm_failed_titles_reads", "Changed files of titles that could not be read", registry=own
        )

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

    def check(self) -> None:
        """Refuse a request, 503, if too many are waiting."""
        if self._pending >= self._limit:
            raise HttpError(503, "too many requests are waiting; try again", **{"Retry-After": "1"})

    async def run(self, work: Callable[[], Any]) -> Any:
        """Return the result of the work.

        Raises
        ------
        HttpError
            503 where the queue is full, 504 after the time limit.
        """
        self.check()
        self._pending += 1
        deadline = time.monotonic() + self._timeout

        def timed() -> Any:
            with until(deadline):
                return work()

        future = asyncio.get_running_loop().run_in_executor(self._pool, timed)
        # What runs into the time limit occupies its thread until it next looks at the time, and is counted until then.
        future.add_done_callback(self._end)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._timeout)
        except (asyncio.TimeoutError, DeadlineError):
            raise HttpError(
                504, f"no scores within {self._timeout:g} seconds; try again, or send fewer candidates"
            ) from None

    def _end(self, future: asyncio.Future[Any]) -> None:
        self._pending -= 1
        if not future.cancelled():
            future.exception()  # that of a request that was given up is not logged

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Server:
    """The paths of a worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.service = Service(
            settings.folder,
            users=settings.users,
            user_column=settings.user_column,
            titles=settings.titles,
            title_column=settings.title_column,
            threads=settings.threads,
            cache_bytes=settings.cache_mib * 2**20,
        )
        self.metrics, self.gate = Metrics(), Gate(settings)
        self.routes = [
            Route("/score", self.score, methods=["POST"]),
            Route("/score_batch", self.score_batch, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.read_metrics),
            Route("/", self.page),
            Route("/docs", self.page),
            Route("/openapi.json", self.describe),
            Route("/page_data", self.page_data),
            Route("/titles", self.titles_of, methods=["POST"]),
        ]
        self._paths = {route.path for route in self.routes}

    async def observe(self, request: Request, call_next: Callable[[Request], Any]) -> Response:
        """Check host and token, count and log."""
        started = time.perf_counter()
        # That by which the request is routed: request.url holds the Host header, which a client writes.
        token, path = self.settings.token, request.scope["path"]
        hosts = self.settings.hosts
        if hosts is not None and not is_expected(request.headers.get("host", ""), hosts):
            response: Response = answer(
                421, "the Host header has a name that this server does not expect; start it with --allow-host NAME"
            )
        elif token and path not in OPEN_PATHS and not has_token(request, token):
            response = answer(401, "a bearer token is needed", **{"WWW-Authenticate": "Bearer"})
        else:
            try:
                response = await call_next(request)
            except Exception as error:  # its message may hold data of a user
                logger.error(json.dumps({"error": type(error).__name__, "at": place_of(error)}))
                response = answer(500, "the server failed on this request; its log has the reason")
        seconds = time.perf_counter() - started
        # Paths that do not exist share a label, or anyone could make as many as there is memory for.
        path = path if path in self._paths else "other"
        self.metrics.requests.labels(path, response.status_code).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        line = {"method": request.method, "path": path, "status": response.status_code, "ms": round(seconds * 1e3, 2)}
        logger.info(json.dumps({**line, **getattr(request.state, "sizes", {})}))
        return response

    async def score(self, request: Request) -> Response:
        """Score candidates for one user."""
        return reply(request, (await self._handle(request, ScoreRequest, lambda one: [one]))[0])

    async def score_batch(self, request: Request) -> Response:
        """Score candidates for several users."""
        return reply(request, {"responses": await self._handle(request, BatchRequest, lambda many: many.requests)})

    async def _handle(
        self, request: Request, model: type[T], requests_of: Callable[[T], list[ScoreRequest]]
    ) -> list[dict[str, Any]]:
        body = await read_body(request, self.settings)
        self.gate.check()  # to decode what is refused would take the time of what is not
        requests = requests_of(decode(body, request.headers.get("content-type", ""), model, self.settings))
        places = [f"requests.{number}" if model is BatchRequest else "" for number in range(len(requests))]
        for place, one in zip(places, requests, strict=True):
            with named(place):
                check_limits(one, self.settings)
        request.state.sizes = {"users": len(requests), "candidates": sum(len(r.candidates) for r in requests)}
        return await self.gate.run(lambda: self._score_all(requests, places))

    def _score_all(self, requests: list[ScoreRequest], places: list[str]) -> list[dict[str, Any]]:
        loaded, found = self.service.loaded, []  # all of an answer by one export
        for place, r in zip(places, requests, strict=True):
            with named(place):
                scores = self.service.score(
                    user=r.user,
                    context=r.context,
                    history=r.history,
                    candidates=r.candidates,
                    new_items=[NewItem(item.embeddings, item.codes, item.numbers) for item in r.new_items],
                    explain=r.explain,
                    loaded=loaded,
                )
            found.append(asdict(scores))
        self.metrics.candidates.inc(sum(len(r.candidates) + len(r.new_items) for r in requests))
        hits, misses = loaded.cache.new_counts()
        self.metrics.cache.labels("yes").inc(hits)
        self.metrics.cache.labels("no").inc(misses)
        return found

    async def health(self, _: Request) -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Whether an export is loaded, and which."""
        loaded = self.service.loaded
        if loaded.damage:
            return answer(503, loaded.damage)
        names = ("experiment", "model", "created", "precision")
        manifest = {name: getattr(loaded.export.manifest, name) for name in names}
        failed = {"switch": "failed"} if self.service.has_refused else {}
        failed |= {"users": "failed"} if self.service.has_refused_users else {}
        failed |= {"titles": "failed"} if self.service.has_refused_titles else {}
        return JSONResponse({"status": "ready", "version": loaded.version, **manifest, **failed})

    async def read_metrics(self, _: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(self.metrics.text(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def page(self, request: Request) -> Response:
        """The page on which one ranks candidates, or the one that describes the requests."""
        name = "docs.html" if request.scope["path"] == "/docs" else "page.html"
        return HTMLResponse(files("fuxictr_mm_serving").joinpath(name).read_text(encoding="utf-8"))

    async def describe(self, _: Request) -> Response:
        """Requests and answers by OpenAPI."""
        return JSONResponse(openapi())

    async def page_data(self, _: Request) -> Response:
        """What the page offers: users, candidates, columns of the context."""
        service, loaded = self.service, self.service.loaded
        export = loaded.export
        users = loaded.users.some(200) if loaded.users else []
        items = service.titles.some(100) if service.titles else export.items.some(100)
        content = {
            "users": exact(users),
            "items": exact(items),
            "text_ids": export.items.ids is not None and not export.items.ids.is_integer,
            "context": blank_context(export),
            "experiment": export.manifest.experiment,
            "explains": export.explains,
        }
        return JSONResponse(content)

    async def titles_of(self, request: Request) -> Response:
        """Titles of items, for the page."""
        # The page asks for the candidates and what each attends to.
        limit = self.settings.max_candidates * (1 + REASONS)
        settings = dataclasses.replace(self.settings, max_candidates=limit)
        ids = decode(await read_body(request, settings), "json", ScoreRequest, settings).candidates
        return JSONResponse(self.service.titles.of(ids) if self.service.titles else [""] * len(ids))


def make_app(settings: Settings) -> Starlette:
    """Return the application of a worker."""
    server = Server(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watcher = asyncio.create_task(watch(server.service, server.metrics, settings.reload))
        yield
        watcher.cancel()
        server.gate.close()

    async def on_http_error(_: Request, error: Any) -> Response:
        return answer(error.status, str(error), **error.headers)

    async def on_path_error(_: Request, error: Any) -> Response:
        headers = error.headers or {}
        sentences = {404: "there is no such path; /docs has those that there are"}
        sentences[405] = f"the path takes {headers.get('Allow', 'other methods')} only"
        return answer(error.status_code, sentences.get(error.status_code, error.detail), **headers)

    async def on_serving_error(_: Request, error: Any) -> Response:
        return answer(503 if isinstance(error, DamagedError) else 422, str(error))

    app = Starlette(
        routes=server.routes,
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=server.observe)],
        exception_handlers={
            HttpError: on_http_error,
            HTTPException: on_path_error,
            ServingError: on_serving_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # to a URL of the Host header, which a client writes
    app.state.service = server.service
    return app


def answer(status: int, message: str, **headers: str) -> Response:
    """Return an error: one sentence."""
    text = " ".join(message.split()).encode(errors="replace").decode()  # surrogates are not UTF-8
    text = text if len(text) <= ERROR_LENGTH else text[:ERROR_LENGTH] + "..."
    return JSONResponse({"error": text}, status_code=status, headers=headers)


def reply(request: Request, content: Any) -> Response:
    """Return an answer in the format that is accepted."""
    if is_msgpack(request.headers.get("accept", "")):
        import msgpack

        # Texts of integers beyond 64 bits: unknown candidates that were numbers of JSON.
        return Response(msgpack.packb(content, default=str), media_type="application/msgpack")
    return JSONResponse(content)


def has_token(request: Request, token: str) -> bool:
    """Whether a request has the bearer token."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    # Starlette decodes headers as Latin-1.
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())


def place_of(error: BaseException) -> str:
    """Return the file and line that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


async def in_daemon_thread(work: Callable[[], R]) -> R:
    """Return the result of work that the end of the process does not wait for: to read an export may take minutes."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(settled: Callable[[], object]) -> None:
        if not future.done():  # it may be cancelled
            settled()

    def run() -> None:
        settled: Callable[[], object]
        try:
            settled = partial(future.set_result, work())
        except BaseException as error:
            settled = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, settled)

    threading.Thread(target=run, daemon=True, name="export").start()
    return await future


async def watch(service: Service, metrics: Metrics, seconds: float) -> None:
    """Check what the start left unchecked, then load another export, changed users and titles, if there are any."""
    try:
        await in_daemon_thread(service.check)
    except Exception as error:
        logger.error(json.dumps({"check": "failed", "reason": f"{type(error).__name__}: {error}"}))
    looks = (
        _Look("switch", service.switch, metrics.switches, metrics.failed),
        _Look("users", service.refresh_users, metrics.users, metrics.failed_users),
        _Look("titles", service.refresh_titles, metrics.titles, metrics.failed_titles),
    )
    while True:
        await asyncio.sleep(seconds)
        for look in looks:
            if await look.take():
                of_export = {"switched_to": service.loaded.version}
                logger.info(json.dumps(of_export if look.name == "switch" else {look.name: "read"}))


@dataclasses.dataclass
class _Look:
    """A look for something else to load, whose failure is logged and counted once."""

    name: str
    load: Callable[[], bool]
    loads: prometheus_client.Counter
    failures: prometheus_client.Counter
    logged: str = ""

    async def take(self) -> bool:
        """Return whether something was loaded."""
        reason, level, is_loaded = "", logging.WARNING, False
        try:
            is_loaded = await in_daemon_thread(self.load)
            self.loads.inc(is_loaded)
        except ServingError as error:  # perhaps it is being written: the next look finds it
            reason = str(error)
        except Exception as error:  # whatever it is, what is there next may be good
            reason, level = f"{type(error).__name__}: {error}", logging.ERROR
        if reason and reason != self.logged:  # not at every look
            self.failures.inc()
            logger.log(level, json.dumps({self.name: "failed", "reason": reason}))
        self.logged = reason
        return is_loaded
