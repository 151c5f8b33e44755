"""A uvicorn server that bounds slow and many connections, speaks JSON in its errors, and stops in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from densepath.errors import UsageError
from densepath.serve.errors import ApiError, error_body
from densepath.serve.guard import send_error
from densepath.serve.settings import Limits

_ANSWER_SECONDS = 5
"""Time to write the answers of the last requests when the server stops."""
_PROBE_SECONDS = 0.2
"""Between two questions to a client that has closed its half of the connection."""


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 whose clients must send a request's head, and read its answer, within `read_timeout`."""

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; one connection too many is answered with 503."""
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.max_connections:
            self.app = _too_many_connections
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        for timer in (self._head_timer, self._write_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first bytes of a request's head, stop it with the last."""
        super().data_received(data)
        self._watch_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that sends no more may still read: it gets its answer, and is asked whether it is there."""
        if not self._in_request() or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        self._probe()
        return True

    def _probe(self) -> None:
        """Write what HTTP/1.1 clients pass over: to one that is gone it fails, which ends the connection."""
        if not self._in_request() or self.transport.is_closing():
            return
        if not self.cycle.response_started and self.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        self._probe_timer = self.loop.call_later(_PROBE_SECONDS, self._probe)

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch_head(self) -> None:
        if self._in_request():
            if self._head_timer is not None:
                self._head_timer.cancel()
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.read_timeout, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._in_request():
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads too slowly: give it a little time."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.read_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        body = error_body(400, "not a valid HTTP request")
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode("ascii") + body)
        self.transport.close()


async def _too_many_connections(scope: Scope, receive: Receive, send: Send) -> None:
    message = "too many connections (max_connections); try again later"
    await send_error(ApiError(503, message, headers={"Connection": "close", "Retry-After": "1"}), send)


class Server(uvicorn.Server):
    """A uvicorn server that a signal ends with exit code 0, once what was accepted is answered."""

    def __init__(self, config: uvicorn.Config, engine: Any, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.engine = engine
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Accept nothing more; a second interrupt does not wait."""
        self.engine.refuse()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket for the server, bound before the models are loaded, so that a taken port is told at once.

    Raises:
        UsageError: no such host, or a port that cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}; choose another host or port") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """The address of a bound socket as a browser takes it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(
    app: FastAPI,
    *,
    limits: Limits,
    root_path: str = "",
    access_log: bool = False,
    on_ready: Callable[[], None] = lambda: None,
) -> Server:
    """A server for an application; `server.run(sockets=[bind(...)])` serves until a signal (SIGINT, SIGTERM) comes.

    It then accepts nothing more, answers what it accepted, and returns; after a second interrupt at once
    (`server.force_exit`).

    Args:
        app: from `create_app`.
        limits: as given to `create_app`.
        root_path: path that a proxy in front takes off.
        access_log: log a line for each request.
        on_ready: called once requests are accepted.
    """
    config = uvicorn.Config(
        app,
        http=type("LimitedProtocol", (BoundedProtocol,), {"limits": limits}),
        ws="none",
        lifespan="on",
        log_config=uvicorn.config.LOGGING_CONFIG if access_log else None,
        root_path=root_path.rstrip("/"),
        access_log=access_log,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(limits.request_timeout + limits.read_timeout + _ANSWER_SECONDS),
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return Server(config, app.state.engine, on_ready)
