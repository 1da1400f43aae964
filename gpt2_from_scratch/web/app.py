"""The server's application: routes, security headers, limits and errors.

One computation runs at a time, in a worker thread, so that memory stays flat and the event loop stays
free. A request whose client has left is dropped before it is computed: a page that asks at every
keystroke leaves many of them.
"""

import asyncio
import inspect
import ipaddress
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2_from_scratch.errors import DataError, GPT2Error, UsageError, is_out_of_resources
from gpt2_from_scratch.web.models import Model
from gpt2_from_scratch.web.operations import MOST_BYTES, OPERATIONS, Operation, openapi

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
BODY_SECONDS = 10.0  # in which a body must arrive
MOST_WAITING = 200  # requests that are computed or wait for it
HEADERS = {
    # scripts, styles and requests of this server only; nothing inline
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Refused(UsageError):
    """A request that is not answered, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def make_app(
    models: Mapping[str, Model], host: str = "127.0.0.1", *, body_seconds: float = BODY_SECONDS
) -> Starlette:
    """Make the application that serves the page and the API.

    Args:
        models: The classifiers by name; the first is the default.
        host: The host name that the server is asked for. Requests for other names are refused;
            addresses and `localhost` are always allowed.
        body_seconds: The time in which a request's body must arrive.
    """
    desk = Desk(models, body_seconds)
    described = as_json(openapi())

    async def describe(request: Request) -> Response:
        return described

    async def show_page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    routes: list[Any] = [
        Route(operation.path, desk.endpoint(operation), methods=[operation.method])
        for operation in OPERATIONS
    ]
    routes += [
        Route("/openapi.json", describe),
        Route("/", show_page),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error}
    return Starlette(
        routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, host=host)]
    )


class Desk:
    """Receives requests, and has them answered one after another."""

    def __init__(self, models: Mapping[str, Model], body_seconds: float):
        self.models = models
        self.body_seconds = body_seconds
        self.turn = asyncio.Semaphore(1)
        self.waiting = 0

    def endpoint(self, operation: Operation) -> Any:
        """Make the function that answers requests for an operation."""

        async def answer(request: Request) -> Response:
            try:
                if operation.method == "GET":  # known facts, even while another request is computed
                    return as_json(operation.answer(self.models))
                values = operation.values(await self._body(request), self.models)
                return await self._answered(request, operation, values)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except asyncio.CancelledError:  # the time for running requests is over after Ctrl-C
                return as_json({"error": "the server has been stopped"}, 503)
            except Exception as error:
                return _error(error)

        return answer

    async def _body(self, request: Request) -> Any:
        """Read and parse a body. Raises Refused if it is too large, too slow, or not JSON."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # forms of other websites cannot send this type
            raise Refused(415, "send the body as Content-Type: application/json")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > MOST_BYTES:
            raise Refused(413, _too_large())
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise Refused(413, _too_large())
        except TimeoutError:
            raise Refused(
                408, f"the body did not arrive within {self.body_seconds:g} seconds"
            ) from None
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except RecursionError:
            raise Refused(400, "the body is nested too deeply") from None
        except ValueError as error:  # of JSON, of UTF-8, or a number with thousands of digits
            raise Refused(400, f"the body is not JSON: {error}"[:300]) from None

    async def _answered(
        self, request: Request, operation: Operation, values: dict[str, Any]
    ) -> Response:
        """Compute the answer in a worker thread when it is this request's turn."""
        if self.waiting >= MOST_WAITING:
            raise Refused(503, "too many requests are waiting; try again later")
        self.waiting += 1
        try:
            found: Any = None
            steps: Iterator[Any] | None = None
            while True:
                async with self.turn:
                    if await request.is_disconnected():
                        raise ClientDisconnect
                    if steps is None:
                        found = await run_in_threadpool(operation.answer, self.models, **values)
                        steps = found if inspect.isgenerator(found) else None
                        ended = steps is None
                    else:
                        step = await run_in_threadpool(next, steps, steps)
                        ended = step is steps
                        found = found if ended else step
                if ended:
                    break
        finally:
            self.waiting -= 1
        if operation.media == "application/json":
            return as_json(found)
        return Response(found, media_type=operation.media)


def _too_large() -> str:
    return f"the body is too large; at most {MOST_BYTES:,} bytes are allowed"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Make a response of JSON in ASCII, which can express halves of characters too."""
    content = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(content, status, headers, media_type="application/json")


def _error(error: Exception) -> Response:
    """Make the response that says what is wrong."""
    status, message = 500, str(error)
    if isinstance(error, Refused):
        status = error.status
    elif isinstance(error, (UsageError, DataError)):
        status = 422
    elif is_out_of_resources(error):
        status, message = 503, "not enough memory for this request"
    elif not isinstance(error, GPT2Error):
        log.error("a request failed", exc_info=error)
        message = f"a bug: {type(error).__name__}. The terminal shows where."
    # after 413 the rest of the body is received and dropped, so that its sender sees the answer
    return as_json({"error": message}, status, {"Connection": "close"} if status == 408 else None)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer unknown addresses and methods in JSON."""
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    words = {
        404: f"there is nothing at {path:.200}; /openapi.json lists the API",
        405: f"{request.method} is not allowed at {path:.200}",
    }
    return as_json({"error": words.get(status, error.detail)}, status, error.headers)


class Guard:
    """Refuse requests for foreign host names, and add security headers to every response.

    A website can make its own name point to this computer (DNS rebinding). Its pages could then read
    what this server answers. The name is in the Host header, so only addresses, `localhost` and the
    name that the server was started with are allowed.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app = app
        self.names = {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self.app
        host = Headers(scope=scope).get("host", "")
        if not self.allows(host):
            app = as_json({"error": f"this server does not answer for the host {host!r:.80}"}, 421)
        await app(scope, receive, with_headers)

    def allows(self, host: str) -> bool:
        """Whether a Host header names this server: `localhost:8124`, `[::1]`, `127.0.0.1`."""
        name = host.lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
