"""What an endpoint may be asked: calls, cost and pace, held before a call is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from densepath.errors import ConfigError
from densepath.judging.workers import Halt
from densepath.records.judging import Spending, Usage

_TOKENS_OF_A_TURN = 16  # what a chat template may add to a message


@dataclass(frozen=True)
class Prices:
    """What tokens cost, in any unit.

    Attributes:
        prompt: of a million tokens that are read.
        completion: of a million tokens that are written.

    Raises:
        ConfigError: a negative price.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        if not (self.prompt >= 0 and self.completion >= 0):
            raise ConfigError(f"prices are {self.prompt} and {self.completion}; they are 0 or more")

    def cost(self, usage: Usage) -> float:
        """Of a call."""
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


def most_tokens(messages: Sequence[Mapping[str, str]], max_tokens: int) -> Usage:
    """The most that a call can be charged for: no tokenizer makes more tokens of a text than it has bytes."""
    return Usage(sum(len(turn["content"].encode()) + _TOKENS_OF_A_TURN for turn in messages), max_tokens)


def likely_tokens(messages: Sequence[Mapping[str, str]], max_tokens: int) -> Usage:
    """What a call will be charged for, at four bytes of English a token and with the longest reply."""
    return Usage(sum(len(turn["content"].encode()) // 4 + _TOKENS_OF_A_TURN for turn in messages), max_tokens)


class BudgetSpent(Exception):
    """A call that would pass what was allowed, and was not sent; the message says which limit."""


class Budget:
    """Counts calls and tokens, and lets none through that might pass a limit. For one event loop.

    Args:
        max_calls: calls at most, those that fail and are sent again included; None for no limit.
        max_cost: cost at most, in the unit of the prices; None for no limit.
        prices: of tokens; None where they are not known.

    Raises:
        ConfigError: a limit of the cost without prices.
    """

    def __init__(
        self, max_calls: int | None = None, max_cost: float | None = None, prices: Prices | None = None
    ) -> None:
        if max_cost is not None and prices is None:
            raise ConfigError("max_cost needs prices: give judge_prompt_price and judge_completion_price")
        self.max_calls, self.max_cost, self.prices = max_calls, max_cost, prices
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self._cost = self._held = 0.0
        self._under_way = 0
        self._waiting: list[asyncio.Future[None]] = []

    def spent(self, cached: int = 0) -> Spending:
        """Until now; a call of which nothing is known is taken to have cost the most that it could."""
        cost = None if self.prices is None else self._cost
        return Spending(self.calls, cached, self.prompt_tokens, self.completion_tokens, cost)

    async def hold(self, most: Usage) -> None:
        """Let a call through, once it fits beside what is under way.

        Args:
            most: what it can be charged for.

        Raises:
            BudgetSpent: it does not fit.
        """
        if self.max_calls is not None and self.calls >= self.max_calls:
            raise BudgetSpent(f"max_calls={self.max_calls} calls were made")
        if self.prices is not None and self.max_cost is not None:
            cost = self.prices.cost(most)
            while self._cost + self._held + cost > self.max_cost:
                if not self._under_way:
                    raise BudgetSpent(
                        f"max_cost={self.max_cost:g}: {self._cost:.4g} was spent, the next call may cost {cost:.4g}"
                    )
                freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(freed)
                await freed
            self._held += cost
            self._under_way += 1
        self.calls += 1

    def settle(self, most: Usage, *, charged: bool, usage: Usage | None = None) -> None:
        """Book a call that was let through.

        Args:
            most: as it was held.
            charged: whether the endpoint may charge for it.
            usage: what it says that it charges for; None where it says nothing: it is taken for the most.
        """
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
        if self.prices is None:
            return
        self._cost += self.prices.cost(usage or most) if charged else 0.0
        if self.max_cost is not None:
            self._under_way -= 1
            self._held = self._held - self.prices.cost(most) if self._under_way else 0.0
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)


class Pace:
    """Keeps calls apart, and holds all of them back where an endpoint asks to wait. For one event loop.

    Args:
        per_minute: calls at most; None for no limit.
    """

    def __init__(self, per_minute: float | None = None) -> None:
        self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = self._resume = 0.0

    async def turn(self, halt: Halt) -> None:
        """Wait until a call may be sent, or no more are to be."""
        while not halt:
            now = time.monotonic()
            start = max(self._next, self._resume)
            if start <= now:
                self._next = now + self._gap
                return
            await halt.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Let no call go before so many seconds."""
        self._resume = max(self._resume, time.monotonic() + seconds)
