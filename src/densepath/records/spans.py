"""Where a completion is worst: the runs of neighbouring tokens with the lowest summed reward. No torch."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class RewardSpan(NamedTuple):
    """Tokens `start` .. `end` - 1 of a completion, and the sum of their rewards in nats."""

    start: int
    end: int
    reward: float


def worst_spans(
    rewards: Sequence[float], count: int, *, margin: float = 0.0, max_tokens: int | None = None
) -> list[RewardSpan]:
    """The `count` disjoint spans of lowest summed reward, worst first.

        span_1 = argmin over start < end of  sum_{start <= t < end} (r_t + margin)
        span_j = the same over the spans that share no token with span_1 .. span_{j-1}

    Only spans whose sum is below zero count, so there may be fewer than `count`. Of equal sums the shorter span
    comes first, then the earlier one.

    Args:
        rewards: (tokens,) nats, finite.
        count: how many spans at most.
        margin: nats, at least 0. A neighbour joins a span only where its reward is below -margin on balance; 0 gives
            the lowest sum as it stands, which takes in every faintly negative neighbour.
        max_tokens: longest span; None for any length.

    Returns:
        The spans with their summed rewards (without the margin).

    Raises:
        ValueError: a reward that is not finite, a negative margin, or max_tokens below 1.

    Source: derived. O(count * tokens): for each end the best start is the largest prefix sum in a sliding window.

    >>> worst_spans([1.0, -2.0, -1.0, 3.0, -0.5], 2)
    [RewardSpan(start=1, end=3, reward=-3.0), RewardSpan(start=4, end=5, reward=-0.5)]
    """
    if not all(map(math.isfinite, rewards)):
        raise ValueError("rewards must be finite to find the worst spans")
    if margin < 0 or (max_tokens is not None and max_tokens < 1):
        raise ValueError(f"margin={margin} must be at least 0, and max_tokens={max_tokens} at least 1")
    longest = len(rewards) if max_tokens is None else max_tokens
    shifted = [reward + margin for reward in rewards]
    found: list[RewardSpan] = []
    # The best span of each stretch of untaken tokens; taking one leaves a stretch on either side.
    candidates = [(*_lowest(shifted, 0, len(shifted), longest), 0, len(shifted))]
    while candidates and len(found) < count:
        total, length, start, low, high = heapq.heappop(candidates)
        if total >= 0:
            break
        end = start + length
        found.append(RewardSpan(start, end, math.fsum(rewards[start:end])))
        for left, right in ((low, start), (end, high)):
            heapq.heappush(candidates, (*_lowest(shifted, left, right, longest), left, right))
    return found


def _lowest(values: Sequence[float], low: int, high: int, longest: int) -> tuple[float, int, int]:
    """(sum, length, start) of the lowest span in `values[low:high]`; a sum of 0 where there is none below zero."""
    best = (0.0, 0, low)
    prefix = {low: 0.0}
    starts: deque[int] = deque()  # possible starts, by falling prefix sum; of equal ones the latest
    for end in range(low + 1, high + 1):
        start = end - 1
        while starts and prefix[starts[-1]] <= prefix[start]:
            starts.pop()
        starts.append(start)
        if starts[0] < end - longest:
            starts.popleft()
        prefix[end] = prefix[start] + values[start]
        first = starts[0]
        length = end - first
        if (prefix[end] - prefix[first], length, first) < best:
            best = (math.fsum(values[first:end]), length, first)
    return best if best[0] < 0 else (0.0, 0, low)
