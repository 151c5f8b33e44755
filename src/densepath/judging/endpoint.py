"""A model behind an endpoint as judge: asked several at a time, patiently, within a budget, and nothing twice."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from densepath.errors import ConfigError, JudgeError, UsageError
from densepath.judging.budget import Budget, BudgetSpent, Pace, Prices, likely_tokens, most_tokens
from densepath.judging.cache import Asked, ReplyCache
from densepath.judging.client import Access, Client, Refused, Unwell
from densepath.judging.ledger import Ledger
from densepath.judging.protocol import JudgeRequest
from densepath.judging.templates import Template
from densepath.judging.verdicts import REFUSED, Letters, Reply, invalid
from densepath.judging.workers import Halt, Job, in_order
from densepath.records.judging import Judgement, Spending

_OURS = ("messages", "model", "n", "stream")
_LENGTHS = ("max_completion_tokens", "max_tokens")
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
_LONGEST_PAUSE = 60.0  # seconds between two tries
_LONGEST_WAIT = 600.0  # seconds that an endpoint may ask to wait
_FIRST_TRIES = 2  # retries while nothing was ever answered: what is not there is said soon
_FAILURES = 8  # requests in a row without a reply after which the endpoint is given up


@dataclass(frozen=True)
class EndpointSettings:
    """How an endpoint is asked.

    Attributes:
        model: its name at the endpoint.
        access: where the endpoint is.
        parameters: of each call, on top of the template's; None takes one of these away.
        concurrency: calls under way at once.
        timeout: seconds for a whole call.
        retries: of a call that failed and may work later.
        backoff: seconds before the first retry; doubled for each later one.
        per_minute: calls at most in a minute; None for no limit.
        max_calls: calls at most with one cache, by all processes and commands; None for no limit.
        max_cost: their cost at most, in the unit of the prices; None for no limit.
        prices: None where they are not known.
    """

    model: str
    access: Access
    parameters: Mapping[str, Any]
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    per_minute: float | None = None
    max_calls: int | None = None
    max_cost: float | None = None
    prices: Prices | None = None


class EndpointJudge:
    """Any model behind an endpoint that speaks OpenAI's protocol.

    What it says is kept in a cache before anything else is done with it: a run that was killed pays nothing twice. A
    request that fails again and again is invalid, and asked again by the next run, as is one whose reply says nothing.

    Args:
        template: what is asked, and how the reply is read.
        settings: how it is asked.
        cache: where replies are kept.

    Raises:
        ConfigError: `openai` is not installed, parameters that are not the user's to choose, or a limit of the cost
            that cannot be held.
    """

    def __init__(self, template: Template, settings: EndpointSettings, cache: ReplyCache) -> None:
        self.template, self.settings, self.cache = template, settings, cache
        self.parameters = call_parameters(template, settings.parameters)
        ledger = Ledger(cache.folder)
        self._budget = Budget(ledger, settings.max_calls, settings.max_cost, settings.prices)
        self._most = self._longest_reply()
        self._pace = Pace(settings.per_minute)
        self._cached = 0
        self._heard: set[str] = set()  # keys of what was said to this judge
        self._failed_in_a_row = 0
        self._has_spoken = self._told_first = False
        self._busy = threading.Lock()

    @property
    def name(self) -> str:
        """The model and the template."""
        return f"{self.settings.model} ({self.template.name})"

    @property
    def num_answers(self) -> tuple[int, ...]:
        """As many as the template shows."""
        return (self.template.num_answers,)

    @property
    def spent(self) -> Spending:
        """What was charged until now, and what the cache had."""
        return self._budget.spent(self._cached)

    def estimate(self, requests: Sequence[JudgeRequest]) -> Spending:
        """Calls, tokens and cost of what the cache has not: four bytes of text a token, and the longest replies.

        Without a limit of the replies nobody knows the cost.
        """
        asked = [each for each in map(self._asked, requests) if _is_text(each)]
        different = {each.key: each for each in asked}
        missing = [each for each in different.values() if self._kept(each) is None]
        tokens = [likely_tokens(each.messages, self._most or 0) for each in missing]
        prices = self.settings.prices
        return Spending(
            calls=len(missing),
            cached=len(different) - len(missing),
            prompt_tokens=sum(each.prompt_tokens for each in tokens),
            completion_tokens=sum(each.completion_tokens for each in tokens),
            cost=None if prices is None or self._most is None else sum(map(prices.cost, tokens)),
            shared=len(asked) - len(different),
        )

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[Judgement]:
        """A judgement of each request, in their order; see `Judge`.

        Raises:
            UsageError: the key, the model or the endpoint is wrong, or it tells no log-probabilities and the template
                reads them.
            JudgeError: it keeps failing, or a limit would be passed; what it has said is in the cache.
            StorageError: the cache cannot be written.
            DataError: a request that the template does not fit.
        """
        asked = [self._asked(request) for request in requests]
        if not self._busy.acquire(blocking=False):
            raise UsageError(f"{self.name} is judging already; read its judgements to the end first")
        try:
            yield from map(self._read, in_order(*self._jobs(asked)), asked)
        except BudgetSpent as error:
            raise JudgeError(
                f"{self.name}: stopped at {error}; what was said is kept: raise the limit and run it again"
            ) from None
        finally:
            self._busy.release()

    def _asked(self, request: JudgeRequest) -> Asked:
        access, model = self.settings.access, self.settings.model
        messages = tuple(self.template.messages(request))
        return Asked(access.base_url, model, messages, self.parameters, request.repeat)

    def _jobs(
        self, asked: Sequence[Asked]
    ) -> tuple[Job[Reply | str], int, int, Callable[[], Coroutine[None, None, None]]]:
        """The arguments of `in_order`: two requests that are the same wait for one another, so one is paid for."""
        client = Client(self.settings.access, self.settings.timeout)
        keys = [each.key for each in asked]
        locks = {key: asyncio.Lock() for key, count in Counter(keys).items() if count > 1}

        async def job(number: int, halt: Halt) -> Reply | str:
            async with locks.get(keys[number], nullcontext()):
                if not _is_text(asked[number]):
                    return "the request holds half of a surrogate pair, which cannot be sent"
                reply = self._kept(asked[number])
                if reply is None:
                    return await self._ask(client, asked[number], halt)
                self._cached += 1
                return reply

        return job, len(asked), self.settings.concurrency, client.close

    def _kept(self, asked: Asked) -> Reply | None:
        """The reply in the cache; None where there is none, or one without a verdict from before this judge."""
        reply = self.cache.get(asked)
        if reply is None or asked.key in self._heard or self.template.read(reply).invalid is None:
            return reply
        return None

    async def _ask(self, client: Client, asked: Asked, halt: Halt) -> Reply | str:
        """The reply, which is then in the cache; or why there is none."""
        tries = 0
        while True:
            try:
                reply = await self._call(client, asked, halt)
            except Refused as error:
                # Where anything was ever said the key is right, and the request is refused: `max_invalid` counts it.
                known = self._has_spoken or not self.cache.is_empty()
                return str(error) if known else self._failure(str(error))
            except Unwell as error:
                tries += 1
                early = not (error.promising or self._has_spoken)
                if tries > (min(self.settings.retries, _FIRST_TRIES) if early else self.settings.retries):
                    return self._failure(f"{error} ({tries} times){self._doubt() if early else ''}")
                await halt.sleep(self._pause(error, tries))
                if halt:
                    raise
            else:
                self._has_spoken, self._failed_in_a_row = True, 0
                return reply

    def _doubt(self) -> str:
        """What to look at where nothing was ever answered."""
        access, model = self.settings.access, self.settings.model
        return f"; nothing was ever answered: check that {access.base_url} runs, and has the model {model!r}"

    async def _call(self, client: Client, asked: Asked, halt: Halt) -> Reply:
        """One call, held and settled."""
        most = most_tokens(asked.messages, self._most or 0)
        await self._pace.turn(halt)
        if halt:
            raise Unwell("no more is asked", charged=False)
        await self._budget.hold(most, halt)
        charged, reply = False, None
        try:
            reply = await client.call(asked.model, asked.messages, asked.parameters)
            charged = True
            self.cache.put(asked, reply)
            self._heard.add(asked.key)
            return reply
        except (Unwell, asyncio.CancelledError) as error:
            charged = getattr(error, "charged", True)
            raise
        finally:
            self._budget.settle(most, charged=charged, usage=None if reply is None else reply.usage)

    def _pause(self, error: Unwell, tries: int) -> float:
        """Seconds until the next try: twice as long each time, drawn apart, and what the endpoint asks for at least.

        Raises:
            JudgeError: it asks for too long.
        """
        drawn = min(_LONGEST_PAUSE, self.settings.backoff * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)
        if error.wait is None:
            return drawn
        if error.wait > _LONGEST_WAIT:
            raise JudgeError(
                f"{self.settings.access.base_url} asks to wait {error.wait:.0f} s ({error}); run the same command "
                "again after that"
            )
        self._pace.pause(error.wait)
        return max(error.wait, drawn)

    def _failure(self, reason: str) -> str:
        """The reason, counted.

        Raises:
            JudgeError: nothing but failures for a while.
        """
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _FAILURES:
            raise JudgeError(
                f"{self.name}: no reply to {self._failed_in_a_row} requests in a row, at last: {reason}; what was "
                "said is kept: run the same command again"
            )
        return reason

    def _read(self, reply: Reply | str, asked: Asked) -> Judgement:
        if isinstance(reply, str):
            return invalid(None, reply)
        reads_first = isinstance(self.template.reading, Letters) and reply.text and reply.finish != REFUSED
        if reads_first and reply.first is None and not self._tells_first(asked):
            raise UsageError(
                f"{self.name}: the endpoint tells no log-probabilities, which this template reads; choose another "
                "judge_template, such as pair"
            )
        return self.template.read(reply)

    def _tells_first(self, asked: Asked) -> bool:
        """Whether the endpoint ever told what might have come first: then a reply that does not is an exception."""
        self._told_first = self._told_first or self.cache.any_first(asked)
        return self._told_first

    def _longest_reply(self) -> int | None:
        """Tokens that a reply may have; None where the parameters set no limit.

        Raises:
            ConfigError: none, and the cost is limited.
        """
        limits = [self.parameters[name] for name in _LENGTHS if name in self.parameters]
        if not limits and self.settings.max_cost is not None:
            raise ConfigError("max_cost needs max_tokens in judge_parameters, to know what a reply may cost")
        return max(limits, default=None)  # of two, which one an endpoint keeps to is its own affair


def _is_text(asked: Asked) -> bool:
    """Whether a request can be sent: half of a surrogate pair cannot."""
    return not any(_HALF.search(turn["content"]) for turn in asked.messages)


def call_parameters(template: Template, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of each call: the template's with the user's on top, without those that are None.

    Raises:
        ConfigError: one that is not the user's to choose, or a length that is no number.
    """
    wrong = sorted(set(_OURS) & set(given))
    if wrong:
        raise ConfigError(f"judge_parameters hold {', '.join(wrong)}, which the judge sets itself; remove it")
    found = {name: value for name, value in {**template.parameters, **given}.items() if value is not None}
    for name in _LENGTHS:
        if name in found and (type(found[name]) is not int or found[name] < 1):
            raise ConfigError(f"judge_parameters: {name} is {found[name]!r}; give a number of tokens")
    return found
