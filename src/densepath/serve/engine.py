"""The batching engine: requests of many clients are scored together, in fair order, on one thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from densepath.data.encode import Encoded
from densepath.errors import NumericalError
from densepath.rewards.dense import DenseReward
from densepath.serve.errors import ApiError
from densepath.serve.queue import RequestQueue

logger = logging.getLogger(__name__)

_LONGEST_RETRY = 60
_RATE_MEMORY = 0.8


class Scored(NamedTuple):
    """One completion's (completion tokens,) tensors, nats; `ref_logprobs` is None where no reference is used."""

    rewards: Tensor
    sft_logprobs: Tensor
    ref_logprobs: Tensor | None


class Unit(NamedTuple):
    """Items of one request that are scored in one go: neighbours with the same prompt, which is computed once."""

    items: tuple[int, ...]
    tokens: int


class Observer(Protocol):
    """Who is told of each batch."""

    def batch(self, items: int, tokens: int, seconds: float) -> None:
        """A batch was scored."""


@dataclass(eq=False)
class _Request:
    """What one client waits for."""

    pairs: Sequence[Encoded]
    units: deque[Unit]
    trained_on: bool
    future: asyncio.Future[list[Scored]]
    results: list[Scored] = field(default_factory=list)


class ScoringEngine(RequestQueue):
    """Scores what concurrent requests bring, batch after batch, each of about `batch_tokens` tokens.

    A batch takes one unit (items of one prompt, at most a batch's worth) from each request in turn, so a large request
    does not hold up small ones that come after it; what is trained on makes batches of its own. Nothing waits for a
    batch to fill: what has come in while one batch is scored makes the next. The values do not depend on what else is
    in the batch, up to float rounding.

    All bookkeeping is done on the event loop. The models are touched by one thread alone, and so is the tokenizer
    (`read`): neither is made for several.

    Args:
        reward: the reward.
        eos_token_ids: ids that end a completion; only `inverse_bellman` asks whether one did.
        max_queue_size: requests that may be waiting or in work at once.
        request_timeout: seconds from acceptance to answer.
        batch_tokens: tokens of one batch; the reward's token budget if None.
        observer: told of each batch.
    """

    def __init__(
        self,
        reward: DenseReward,
        *,
        eos_token_ids: Sequence[int] = (),
        max_queue_size: int = 512,
        request_timeout: float = 60.0,
        batch_tokens: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(max_queue_size=max_queue_size, request_timeout=request_timeout)
        self.reward = reward
        self.eos_token_ids = tuple(eos_token_ids)
        self.batch_tokens = reward.token_budget if batch_tokens is None else batch_tokens
        self.observer = observer
        self.queued_tokens = 0
        """Tokens of accepted requests that are not scored yet."""
        self._waiting: deque[_Request] = deque()
        self._rate = 0.0
        self._loop_task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    async def start(self) -> None:
        """Accept requests."""
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._loop_task = asyncio.create_task(self._score_batches())
        await super().start()

    async def stop(self) -> None:
        """Answer what was accepted, then end the threads."""
        await super().stop()
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
            self._scorer.shutdown(wait=True, cancel_futures=True)

    def retry_after(self) -> int:
        """Whole seconds after which the queue will have shrunk, by the rate of the last batches."""
        seconds = self.queued_tokens / self._rate if self._rate else 1.0
        return max(1, min(_LONGEST_RETRY, round(seconds)))

    async def score(self, pairs: Sequence[Encoded], *, trained_on: bool = False) -> list[Scored]:
        """Scores of prompts with completions, in their order.

        When the caller is cancelled, what was not scored yet leaves the queue.

        Args:
            pairs: the prompts with completions.
            trained_on: whether a policy learns from them: every completion is then taken as ended, since
                `inverse_bellman` would train it away from a cut.

        Raises:
            ApiError: 500 where the models fail on one of them.
        """
        if not pairs:
            return []
        future: asyncio.Future[list[Scored]] = asyncio.get_running_loop().create_future()
        request = _Request(pairs, units(pairs, self.batch_tokens), trained_on, future)
        self.queued_tokens += sum(unit.tokens for unit in request.units)
        self._waiting.append(request)
        self._wake.set()
        try:
            return await request.future
        finally:
            self.queued_tokens -= sum(unit.tokens for unit in request.units)
            request.units.clear()

    # -- batches ---------------------------------------------------------------------------------------------------

    async def _score_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = self._next_batch()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            pairs = [request.pairs[index] for request, unit in batch for index in unit.items]
            tokens = sum(unit.tokens for _, unit in batch)
            started = time.perf_counter()
            outcomes = iter(await loop.run_in_executor(self._scorer, self._score, pairs, batch[0][0].trained_on))
            seconds = time.perf_counter() - started
            rate = tokens / max(seconds, 1e-6)
            self._rate = _RATE_MEMORY * self._rate + (1 - _RATE_MEMORY) * rate if self._rate else rate
            self.queued_tokens -= tokens
            for request, unit in batch:
                _deliver(request, [next(outcomes) for _ in unit.items])
            if self.observer is not None:
                self.observer.batch(len(pairs), tokens, seconds)

    def _next_batch(self) -> list[tuple[_Request, Unit]]:
        """One unit of each waiting request in turn, until the batch is full; at least one if any waits.

        What is trained on and what is not are never in one batch.
        """
        batch: list[tuple[_Request, Unit]] = []
        room = self.batch_tokens
        while self._waiting:
            request = self._waiting[0]
            if (
                request.units
                and batch
                and (request.units[0].tokens > room or request.trained_on != batch[0][0].trained_on)
            ):
                break  # it is the first of the next batch
            self._waiting.popleft()
            if not request.units:
                continue  # its client is gone, or its time is over
            unit = request.units.popleft()
            batch.append((request, unit))
            room -= unit.tokens
            if request.units:
                self._waiting.append(request)
        return batch

    def _score(self, pairs: Sequence[Encoded], trained_on: bool) -> list[Scored | ApiError]:
        """Scores, or the failure of the items that fail: one alone never spoils the others of its batch."""
        try:
            scores = self.reward.score_ids(
                [pair.prompt_ids for pair in pairs],
                [pair.completion_ids for pair in pairs],
                eos_token_ids=None if trained_on else self.eos_token_ids,
            )
        except Exception as error:
            if len(pairs) > 1:
                return [outcome for pair in pairs for outcome in self._score([pair], trained_on)]
            if isinstance(error, NumericalError):
                return [ApiError(500, f"the models cannot score this: {error}")]
            logger.exception("scoring failed")
            return [ApiError(500, f"scoring failed ({type(error).__name__}); the server's log says more")]
        refs: Sequence[Tensor | None] = scores.ref_logprobs or [None] * len(pairs)
        return [Scored(*values) for values in zip(scores.rewards, scores.sft_logprobs, refs, strict=True)]


def _deliver(request: _Request, outcomes: Sequence[Scored | ApiError]) -> None:
    """Hand a request the outcomes of its next items: units are scored in their order."""
    if request.future.done():
        return
    for outcome in outcomes:
        if isinstance(outcome, ApiError):
            request.future.set_exception(outcome)
            return
        request.results.append(outcome)
    if len(request.results) == len(request.pairs):
        request.future.set_result(request.results)


def units(pairs: Sequence[Encoded], most_tokens: int) -> deque[Unit]:
    """Cut a request into units: runs of items with the same prompt, of at most `most_tokens` tokens if of several."""
    found: deque[Unit] = deque()
    items: list[int] = []
    tokens = 0
    for index, pair in enumerate(pairs):
        cost = len(pair.completion_ids)
        same_prompt = bool(items) and pairs[items[-1]].prompt_ids == pair.prompt_ids
        if items and (not same_prompt or tokens + cost > most_tokens):
            found.append(Unit(tuple(items), tokens))
            items, tokens = [], 0
        tokens += cost if items else cost + len(pair.prompt_ids)
        items.append(index)
    if items:
        found.append(Unit(tuple(items), tokens))
    return found
