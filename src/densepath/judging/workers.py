"""Asynchronous jobs, several at once, from code that is not: their results come in order."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Halt:
    """Says that no new work is begun; what is under way is finished. For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Begin no new work."""
        self._event.set()

    async def sleep(self, seconds: float) -> None:
        """Wait so long, or until nothing new is begun."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except asyncio.TimeoutError:
            return


AHEAD = 4
"""Results for each job under way that may wait to be read: who stops reading does not pay for the rest."""

Job = Callable[[int, Halt], Awaitable[T]]
"""(number, halt) -> result."""


class _Loop(threading.Thread):
    """An event loop in a thread of its own that does jobs 0, 1, ... and puts what comes of each into a queue."""

    def __init__(self, job: Job[T], count: int, concurrency: int, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(name="densepath-judge", daemon=True)
        self.done: queue.SimpleQueue[tuple[int, T | None, BaseException | None] | None] = queue.SimpleQueue()
        self._job, self._count, self._concurrency, self._close = job, count, concurrency, close
        self._loop = asyncio.new_event_loop()
        self._halt = Halt()
        self._room = asyncio.Semaphore(AHEAD * concurrency)
        self._task: asyncio.Task[None] | None = None

    def run(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._task = self._loop.create_task(self._all())
                self._loop.run_until_complete(self._task)
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()
            self.done.put(None)

    async def _end(self) -> None:
        """End what a library left behind when its call was broken off."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    async def _all(self) -> None:
        numbers = iter(range(self._count))

        async def work() -> None:
            while True:
                await self._room.acquire()
                number = next(numbers, None)
                if number is None or self._halt:
                    self._room.release()  # whoever else waits ends too
                    return
                try:
                    self.done.put((number, await self._job(number, self._halt), None))
                except Exception as error:  # raised again where the results are read
                    self._stop()
                    self.done.put((number, None, error))

        try:
            await asyncio.gather(*(work() for _ in range(min(self._concurrency, self._count))))
        finally:
            await self._close()

    def read(self) -> None:
        """One more result was read."""
        self._tell(self._room.release)

    def halt(self) -> None:
        """Begin no new job."""
        self._tell(self._stop)

    def _stop(self) -> None:
        self._halt.set()
        self._room.release()

    def cancel(self) -> None:
        """Break off what is under way."""
        self.halt()  # a library may take a cancelled call for one that failed, which would be sent again
        self._tell(lambda: self._task.cancel() if self._task else None)

    def _tell(self, what: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop has ended
            return


def in_order(job: Job[T], count: int, concurrency: int, close: Callable[[], Awaitable[None]]) -> Iterator[T]:
    """Results of the jobs 0 to `count` - 1, each as soon as it and all before it are there.

    A job's error ends it: no further job begins, those under way are finished, and then it is raised. So does closing
    the iterator; an interrupt breaks them off.

    Args:
        job: (number, halt) -> result; looks at `halt` before it begins anything that takes long.
        count: of jobs.
        concurrency: jobs under way at once.
        close: called in the event loop at the end.
    """
    loop = _Loop(job, count, concurrency, close)
    loop.start()
    ready: dict[int, T] = {}
    errors: list[BaseException] = []
    following = 0
    try:
        while (done := loop.done.get()) is not None:
            number, result, error = done
            if error is not None:
                errors.append(error)
            else:
                ready[number] = result  # type: ignore[assignment]
            while following in ready:
                yield ready.pop(following)
                loop.read()
                following += 1
        if errors:
            raise errors[0]
    except GeneratorExit:
        loop.halt()
        loop.join()
        raise
    except BaseException:
        loop.cancel()
        loop.join()
        raise
