"""Everything a client can be told, in one JSON shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from densepath.errors import DensepathError

TYPES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "read_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "queue_full",
    499: "client_gone",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}
"""Status -> `type` of the error, for programs to tell errors apart by."""


class ApiError(DensepathError):
    """A request that is not answered as asked.

    Args:
        status: HTTP status, one of `TYPES`.
        message: one line: what is wrong, and what to do.
        param: which part of the request, as in `items[3].prompt`.
        headers: further headers of the response.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON that says so; ASCII, so that no text of a client's can break it."""
        return error_body(self.status, str(self), self.param)


def error_record(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error in the one shape that all have."""
    kind = TYPES.get(status, "internal_error" if status >= 500 else "bad_request")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    """`error_record` as ASCII JSON."""
    return json.dumps(error_record(status, message, param)).encode("ascii")
