"""What stands before the application: who may call, and how much and how slowly a client may send."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from hashlib import sha256

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from densepath.serve.errors import ApiError
from densepath.serve.settings import Access, Limits

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def send_error(error: ApiError, send: Send) -> None:
    """Answer with an error, from outside of the application."""
    body = error.body()
    headers = {**_HEADERS, "content-type": "application/json", "content-length": str(len(body)), **error.headers}
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class Guard:
    """ASGI middleware: checks host, origin and token, then reads the body within its bounds, before all else.

    Args:
        app: what it guards.
        access: who may call.
        limits: `max_request_bytes` and `read_timeout`.
        public_paths: paths that need no token.
    """

    def __init__(self, app: ASGIApp, *, access: Access, limits: Limits, public_paths: Collection[str]) -> None:
        self.app = app
        self.access = access
        self.limits = limits
        self.public_paths = frozenset(public_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
            receive = await self._with_body(scope, receive)
        except ApiError as error:
            await send_error(error, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_safely)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.allows(hosts[0]):
            raise ApiError(
                400, "this server is not known by that name (Host); use its IP address, or list it in allowed_hosts"
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none").lower()
        if origin is not None and not self.access.trusts(origin, hosts[0]):
            raise ApiError(
                403, "pages of other sites and ports may not call this server (Origin); list theirs in allowed_hosts"
            )
        if origin is None and site not in ("none", "same-origin"):
            raise ApiError(403, "pages of other sites and ports may not call this server (Sec-Fetch-Site)")
        if self.access.api_key is not None and _path(scope) not in self.public_paths:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not _equal(token.strip(), self.access.api_key):
                raise ApiError(
                    401, "send Authorization: Bearer and this server's key", headers={"WWW-Authenticate": "Bearer"}
                )

    async def _with_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the whole body; the application is handed it in one piece, and hears of a disconnect after it."""
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0").lstrip("0") or "0"
        most = str(self.limits.max_request_bytes)
        if (len(length), length) > (len(most), most):  # as numbers, whatever was sent
            raise self._too_large()
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "compressed bodies (Content-Encoding) are not read; send plain JSON")
        try:
            body = await asyncio.wait_for(self._read(receive), self.limits.read_timeout)
        except asyncio.TimeoutError:
            raise ApiError(
                408,
                f"the request did not arrive within {self.limits.read_timeout:g} s (read_timeout)",
                headers={"Connection": "close"},
            ) from None
        if body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "send JSON, with Content-Type: application/json")
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ApiError(499, "the client is gone")
            body += message.get("body", b"")
            if len(body) > self.limits.max_request_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the request body is longer than {self.limits.max_request_bytes} bytes; send less at once"
        )


def _path(scope: Scope) -> str:
    """The path below `root_path`."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _equal(given: str, expected: str) -> bool:
    """Comparison whose time tells nothing about `expected`, not even its length."""
    digests = [sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, expected)]
    return hmac.compare_digest(*digests)
