"""The queue of a server's requests: how many may be in work, for how long, and how it comes to rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from densepath.serve.errors import ApiError

T = TypeVar("T")


class RequestQueue:
    """Counts the requests in work, bounds their number and time, and gives them one thread to read on.

    All bookkeeping is done on the event loop.

    Args:
        max_queue_size: requests that may be waiting or in work at once.
        request_timeout: seconds from acceptance to answer.
    """

    def __init__(self, *, max_queue_size: int = 512, request_timeout: float = 60.0) -> None:
        self.max_queue_size = max_queue_size
        self.request_timeout = request_timeout
        self.accepted = 0
        """Requests accepted and not answered yet."""
        self.refusing: str | None = (
            "the server is starting (one that is mounted needs its lifespan run: docs/serve.md); try again"
        )
        """Why nothing new is accepted; None while it is."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._reader: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Accept requests."""
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self.refusing = None

    def refuse(self) -> None:
        """Accept nothing more; what was accepted is still answered. Safe in a signal handler."""
        self.refusing = "the server is shutting down; ask another one, or try again later"

    async def stop(self) -> None:
        """Answer what was accepted, then end the thread."""
        self.refuse()
        await self._idle.wait()
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)

    def check_open(self) -> None:
        """Whether a request would be accepted now.

        Raises:
            ApiError: 503 where the server starts or stops, 429 where the queue is full.
        """
        if self.refusing is not None:
            raise ApiError(503, self.refusing, headers={"Retry-After": "5"})
        if self.accepted >= self.max_queue_size:
            raise ApiError(
                429,
                f"{self.accepted} requests are waiting, as many as may (max_queue_size); try again later",
                headers={"Retry-After": str(self.retry_after())},
            )

    def retry_after(self) -> int:
        """Whole seconds after which to come back."""
        return 1

    async def accept(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do a request's work as one that is in the queue: counted, and within the time.

        Args:
            work: awaits `read` and `score`. It is cancelled when the time is over or the caller is.

        Raises:
            ApiError: 429, 503 (`check_open`), or 504 when the time is over; what `work` raises.
        """
        self.check_open()
        self.accepted += 1
        self._idle.clear()
        try:
            return await asyncio.wait_for(work(), self.request_timeout)
        except asyncio.TimeoutError:
            raise ApiError(
                504,
                f"not answered within {self.request_timeout:g} s (request_timeout); send less at once, or try later",
                headers={"Retry-After": str(self.retry_after())},
            ) from None
        finally:
            self.accepted -= 1
            if not self.accepted:
                self._idle.set()

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something that uses the tokenizer, on the one thread that does."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, function, *arguments)
