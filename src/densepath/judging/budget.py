"""What an endpoint may be asked: calls, cost and pace, held before a call is sent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from densepath.errors import ConfigError
from densepath.judging.ledger import Ledger, Paid, this_process
from densepath.judging.workers import Halt
from densepath.records.judging import Spending, Usage

_LOOK_AGAIN = 0.05  # seconds until a call that does not fit beside what is under way is tried again
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
    return Usage(sum(_bytes_of(turn) + _TOKENS_OF_A_TURN for turn in messages), max_tokens)


def likely_tokens(messages: Sequence[Mapping[str, str]], max_tokens: int) -> Usage:
    """What a call will be charged for, at four bytes of English a token and with the longest reply."""
    return Usage(sum(_bytes_of(turn) // 4 + _TOKENS_OF_A_TURN for turn in messages), max_tokens)


def _bytes_of(turn: Mapping[str, str]) -> int:
    return len(turn["content"].encode("utf-8", "surrogatepass"))


class BudgetSpent(Exception):
    """A call that would pass what was allowed, and was not sent; the message says which limit."""


class Budget:
    """Counts calls and tokens, and lets none through that might pass a limit. For one event loop at a time.

    The limits are of everything that was paid with one cache, by other processes and earlier commands too.

    Args:
        ledger: of the cache.
        max_calls: calls at most, those that fail and are sent again included; None for no limit.
        max_cost: cost at most, in the unit of the prices; None for no limit.
        prices: of tokens; None where they are not known.

    Raises:
        ConfigError: a limit of the cost without prices.
    """

    def __init__(self, ledger: Ledger, max_calls: int | None, max_cost: float | None, prices: Prices | None) -> None:
        if max_cost is not None and prices is None:
            raise ConfigError("max_cost needs prices: give judge_prompt_price and judge_completion_price")
        self.max_calls, self.max_cost, self.prices = max_calls, max_cost, prices
        self._ledger = ledger
        self._spent = Spending(cost=None if prices is None else 0.0)
        self._under_way = 0

    @property
    def _me(self) -> str:
        return f"{this_process()}:{id(self)}"

    def spent(self, cached: int) -> Spending:
        """By this judge until now; a call of which nothing is known is taken to have cost the most that it could."""
        return replace(self._spent, cached=cached)

    async def hold(self, most: Usage, halt: Halt) -> None:
        """Let a call through, once it fits beside what is under way.

        Args:
            most: what it can be charged for.
            halt: ends the waiting.

        Raises:
            BudgetSpent: it does not fit.
            JudgeError, StorageError: the ledger cannot be read or written.
        """
        cost = 0.0 if self.prices is None else self.prices.cost(most)
        while not self._held(cost):
            await halt.sleep(_LOOK_AGAIN)
            if halt:
                raise BudgetSpent("no more is asked")

    def _held(self, cost: float) -> bool:
        """Whether the call was let through; False where what is under way may leave room for it."""
        with self._ledger.open() as entry:
            paid = entry.paid
            if self.max_calls is not None and paid.calls >= self.max_calls:
                raise BudgetSpent(f"max_calls={self.max_calls}: {paid.calls} calls were made")
            if self.max_cost is not None and paid.cost + sum(paid.held.values()) + cost > self.max_cost:
                if paid.held:
                    return False
                raise BudgetSpent(
                    f"max_cost={self.max_cost:g}: {paid.cost:.4g} was spent, and the next call may cost {cost:.4g}"
                )
            held = {**paid.held, self._me: paid.held.get(self._me, 0.0) + cost}
            entry.paid = replace(paid, calls=paid.calls + 1, held=held)
        self._under_way += 1
        self._spent = replace(self._spent, calls=self._spent.calls + 1)
        return True

    def settle(self, most: Usage, *, charged: bool, usage: Usage | None = None) -> None:
        """Book a call that was let through.

        Args:
            most: as it was held.
            charged: whether the endpoint may charge for it.
            usage: what it says that it charges for; None where it says nothing: it is taken for the most.
        """
        cost = self.prices.cost(usage or most) if self.prices is not None and charged else 0.0
        tokens = usage or Usage(0, 0)
        self._under_way -= 1
        with self._ledger.open() as entry:
            held = dict(entry.paid.held)
            left = held.pop(self._me, 0.0) - (0.0 if self.prices is None else self.prices.cost(most))
            if self._under_way:  # else what is left is rounding
                held[self._me] = max(0.0, left)
            entry.paid = Paid(*_sums(entry.paid, tokens, cost), held)
        spent = self._spent
        calls, prompt, completion, total = _sums(spent, tokens, cost)
        self._spent = Spending(calls, 0, prompt, completion, None if self.prices is None else total)


def _sums(before: Paid | Spending, tokens: Usage, cost: float) -> tuple[int, int, int, float]:
    """Calls, tokens read, tokens written and cost, with those of one more settled call."""
    prompt, completion = (
        before.prompt_tokens + tokens.prompt_tokens,
        before.completion_tokens + tokens.completion_tokens,
    )
    return before.calls, prompt, completion, (before.cost or 0.0) + cost


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
