"""What every application of ours does with a request: drop it when its client is gone, say errors in one shape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from densepath.serve.errors import ApiError

T = TypeVar("T")

_TAGS = {"text", "chat", "str", "constrained-str"}
_LONGEST_PLACE = 80


async def unless_gone(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work of a request, and drop it when its client goes away.

    Raises:
        ApiError: 499, which nobody reads, where the client is gone; what `work` raises.
    """
    task = asyncio.ensure_future(work())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client is gone")
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def add_error_handlers(app: FastAPI) -> None:
    """Every error of an application in the one JSON shape."""

    def answer(error: ApiError) -> Response:
        return Response(error.body(), error.status, headers=error.headers, media_type="application/json")

    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return answer(validation_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        messages = {404: "there is nothing at this path; see /docs", 405: f"this path does not take {request.method}"}
        message = messages.get(error.status_code, str(error.detail))
        return answer(ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> Response:
        return answer(ApiError(500, "a fault of the server; its log says more"))


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's complaints in one line, with its place as clients write it: `items[3].prompt`."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(422, f"not JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    place = ""
    for part in first["loc"][1:]:
        if part in _TAGS or str(part).startswith("function-"):
            continue  # pydantic's names of the members of a union
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    place = place[:_LONGEST_PLACE]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ApiError(422, f"{place or 'the body'}: {first['msg']}{more}", param=place or None)
