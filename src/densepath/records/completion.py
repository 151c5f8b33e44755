"""The one layout of a scored completion: what files hold, the server answers with, and pages show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from densepath.errors import DataError
from densepath.records.brief import brief
from densepath.records.codec import Json, to_json


@dataclass(frozen=True)
class Span:
    """A run of tokens that decode to whole characters only together; `rewards` and `logprobs` are nats per token."""

    text: str
    token_ids: tuple[int, ...]
    rewards: tuple[float, ...]
    logprobs: tuple[float, ...] = ()

    __repr__ = brief

    @property
    def reward(self) -> float:
        """The sum of the rewards of the span, in nats."""
        return sum(self.rewards)


@dataclass(frozen=True)
class ScoredCompletion:
    """A completion with the dense reward of each token; all lists have one entry a token, a final EOS included.

    Attributes:
        text: the completion as its tokens decode, without a final EOS.
        token_ids: ids of its tokens.
        tokens: text of each token; tokens that share a character repeat it, and EOS has its name.
        offsets: (start, end) of each token in `text`, in code points; tokens that share a character share its range,
            and a final EOS has an empty one at the end.
        rewards: dense reward of each token, nats.
        sum: of the rewards, nats.
        mean: of the rewards, nats per token.
        sft_logprobs: log pi_SFT of each token, nats; None where it was not asked for.
        ref_logprobs: log pi_ref of each token, nats; None where it was not asked for, or there is no reference.
        metric: what a verifier says of it; None where nothing checks.
        truncated: whether it was cut off at the length limit, before its EOS; None where that is not known.

    Raises:
        DataError: lists of different lengths, or no token.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    rewards: tuple[float, ...]
    sum: float
    mean: float
    sft_logprobs: tuple[float, ...] | None = None
    ref_logprobs: tuple[float, ...] | None = None
    metric: float | None = None
    truncated: bool | None = None

    __repr__ = brief

    def __post_init__(self) -> None:
        lists = (self.token_ids, self.tokens, self.offsets, self.rewards, self.sft_logprobs, self.ref_logprobs)
        sizes = [len(each) for each in lists if each is not None]
        if len(set(sizes)) != 1 or not sizes[0]:
            raise DataError(f"a scored completion has lists of {sizes} entries; give one entry a token, at least one")

    @property
    def spans(self) -> tuple[Span, ...]:
        """Its runs of tokens with whole characters, in order."""
        ends = [at for at in range(1, len(self.tokens)) if not self._shares(at)]
        spans = []
        for start, end in zip([0, *ends], [*ends, len(self.tokens)], strict=True):
            logprobs = () if self.sft_logprobs is None else self.sft_logprobs[start:end]
            spans.append(Span(self.tokens[start], self.token_ids[start:end], self.rewards[start:end], logprobs))
        return tuple(spans)

    def _shares(self, at: int) -> bool:
        """Whether a token shares its character with the one before."""
        start, end = self.offsets[at]
        return self.offsets[at - 1] == (start, end) and start != end

    def to_json(self) -> dict[str, Json]:
        """As JSON types, without what is not known."""
        return {name: value for name, value in to_json(self).items() if value is not None}


def completion_of(
    read: tuple[str, Sequence[int], Sequence[str], Sequence[tuple[int, int]]],
    rewards: Sequence[float],
    *,
    sft_logprobs: Sequence[float] | None = None,
    ref_logprobs: Sequence[float] | None = None,
    metric: float | None = None,
    truncated: bool | None = None,
) -> ScoredCompletion:
    """A completion with the sum and the mean of its rewards.

    Args:
        read: its text, token ids, tokens and offsets, as `densepath.data.read_tokens` gives them.
        rewards: of each token, nats.
        sft_logprobs: of each token, nats.
        ref_logprobs: of each token, nats.
        metric: what a verifier says of it.
        truncated: whether it was cut off.

    Raises:
        DataError: lists of different lengths, or no token.
    """
    text, ids, tokens, offsets = read
    total = math.fsum(rewards)
    return ScoredCompletion(
        text=text,
        token_ids=tuple(ids),
        tokens=tuple(tokens),
        offsets=tuple(offsets),
        rewards=tuple(rewards),
        sum=total,
        mean=total / max(1, len(rewards)),
        sft_logprobs=None if sft_logprobs is None else tuple(sft_logprobs),
        ref_logprobs=None if ref_logprobs is None else tuple(ref_logprobs),
        metric=metric,
        truncated=truncated,
    )


@dataclass(frozen=True)
class Sample:
    """A held-out prompt with each arm's completion: a line of a run's `samples.jsonl`."""

    id: str
    prompt: str
    answer: str | None
    category: str | None
    completions: Mapping[str, ScoredCompletion]

    __repr__ = brief

    @property
    def differs(self) -> bool:
        """Whether the arms differ: in the metric where each has one, in their text otherwise."""
        metrics = [completion.metric for completion in self.completions.values()]
        if metrics and all(metric is not None for metric in metrics):
            return len(set(metrics)) > 1
        return len({completion.text for completion in self.completions.values()}) > 1

    def to_json(self) -> dict[str, Json]:
        """As JSON types, the completions without what is not known."""
        return to_json(self) | {"completions": {arm: item.to_json() for arm, item in self.completions.items()}}


@dataclass(frozen=True)
class ScoredRow:
    """A row that `densepath score` graded, or a text typed in: its turns with their rewards.

    `number` counts the rows of the file from 1; `prompt` is the text before the first turn, where it is known.
    """

    number: int
    id: str | None
    prompt: str | None
    category: str | None
    turns: tuple[ScoredCompletion, ...]

    __repr__ = brief

    @property
    def label(self) -> str:
        """What the row is called on a page."""
        return f"row {self.number}" if self.id is None else self.id

    @property
    def spans(self) -> tuple[Span, ...]:
        """The runs of all turns, in order."""
        return tuple(span for turn in self.turns for span in turn.spans)

    @property
    def num_tokens(self) -> int:
        """Scored tokens of all turns."""
        return sum(len(turn.rewards) for turn in self.turns)

    @property
    def reward(self) -> float:
        """Sum of the rewards of all tokens, nats."""
        return sum(turn.sum for turn in self.turns)

    @property
    def reward_per_token(self) -> float:
        """Mean reward of a token, nats per token; 0 where nothing was scored."""
        return self.reward / self.num_tokens if self.num_tokens else 0.0

    @property
    def lowest(self) -> float:
        """The lowest reward of a single token, nats; 0 where nothing was scored."""
        return min((min(turn.rewards) for turn in self.turns), default=0.0)


def asked_text(row: Mapping[str, Any]) -> str | None:
    """A row's prompt as text for a reader: of a conversation what comes before the first answer; None without one."""
    prompt, messages = row.get("prompt"), row.get("messages")
    if prompt is None and isinstance(messages, list):
        answers = (isinstance(turn, Mapping) and turn.get("role") == "assistant" for turn in messages)
        prompt = messages[: next((place for place, answer in enumerate(answers) if answer), None)]
    return prompt_text(prompt)


def prompt_text(value: Any) -> str | None:
    """A prompt as text: several turns become `role: content` paragraphs."""
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], Mapping) and value[0].get("role") == "user":
            return str(value[0].get("content"))
        return "\n\n".join(
            f"{turn.get('role')}: {turn.get('content')}" if isinstance(turn, Mapping) else str(turn) for turn in value
        )
    return None if value is None else str(value)
