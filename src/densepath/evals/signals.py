"""What tokens are scored by: the dense reward and the baselines that it must beat; as sum, mean or lowest token.

A *signal* is a number for each token; a *measure* is a number for each piece of text (a completion, a step) made from
it. Higher always means better. Measures that read no model stand beside them: length, and nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from densepath.data.encode import Encoded
from densepath.errors import ConfigError
from densepath.models.compat import eos_token_ids
from densepath.rewards.dense import DenseReward, RewardKind
from densepath.rewards.frozen import FrozenPolicy

REWARD, SFT, REF, BASE = "reward", "sft_logprob", "ref_logprob", "base_logprob"
RANDOM, SHORTER, LONGER = "random", "shorter", "longer"

Floats: TypeAlias = NDArray[np.float64]
Signals: TypeAlias = dict[str, list[Floats]]
"""Name -> one (completion tokens,) array for each completion, nats."""


class Aggregation(str, Enum):
    """How the tokens' numbers become one number of a piece of text."""

    SUM = "sum"
    MEAN = "mean"
    MIN = "min"

    @classmethod
    def of(cls, value: Aggregation | str) -> Aggregation:
        """The member of that value.

        Raises:
            ConfigError: there is none.
        """
        try:
            return cls(value)
        except ValueError:
            known = ", ".join(member.value for member in cls)
            raise ConfigError(f"aggregation={value} is not one of {known}") from None


class Piece(NamedTuple):
    """Tokens `start` .. `end` - 1 of a completion: at least one."""

    completion: int
    start: int
    end: int


def token_signals(
    reward: DenseReward,
    completions: Sequence[Encoded],
    *,
    base: FrozenPolicy | None = None,
    tokenizer: Any = None,
    on_progress: Callable[[int], None] | None = None,
) -> Signals:
    """The dense reward of each token, log pi_SFT, and the log-probability under the model before SFT.

    Args:
        reward: the dense reward.
        completions: what is scored, as ids.
        base: the model before SFT. Without it the reference's log-probability takes its place, if there is one; a
            reward that is log pi_SFT itself is not listed twice.
        tokenizer: names the EOS token; that of the reward if None.
        on_progress: called with the number of completions that each forward pass finished, `signal_passes` times for
            each completion.

    Returns:
        Signals in the order in which they are shown, the reward first.
    """
    prompts = [pair.prompt_ids for pair in completions]
    ids = [pair.completion_ids for pair in completions]
    tokenizer = reward.tokenizer if tokenizer is None else tokenizer
    scores = reward.score_ids(
        prompts, ids, eos_token_ids=eos_token_ids(reward.sft.model, tokenizer), on_progress=on_progress
    )
    found = {REWARD: scores.rewards}
    if reward.kind is not RewardKind.LOGPROB:
        found[SFT] = scores.sft_logprobs
    if base is not None and base in reward.refs and len(reward.refs) == 1:
        found[BASE] = scores.ref_logprobs
    elif base is not None:
        found[BASE] = base.score(prompts, ids, reward.token_budget, on_progress).logprobs
    elif scores.ref_logprobs:
        found[REF] = scores.ref_logprobs
    return {name: [values.double().cpu().numpy() for values in tensors] for name, tensors in found.items()}


def signal_passes(reward: DenseReward, base: FrozenPolicy | None) -> int:
    """How many models `token_signals` scores."""
    return reward.passes + (base is not None and not (base in reward.refs and len(reward.refs) == 1))


def aggregate(values: Floats, how: Aggregation) -> float:
    """Sum (nats), mean (nats per token) or lowest (nats) of the tokens of one piece."""
    if how is Aggregation.SUM:
        return float(values.sum())
    return float(values.mean() if how is Aggregation.MEAN else values.min())


def piece_measures(signals: Signals, pieces: Sequence[Piece]) -> dict[str, Floats]:
    """Every measure of pieces of text: `signal/aggregation`, and the baselines without a model.

    `random` is the same for all, so that every comparison is a tie: what guessing earns on average, without its noise.

    Returns:
        Name -> (pieces,) float; higher is better.
    """
    measures = {
        f"{name}/{how.value}": np.array([aggregate(values[p.completion][p.start : p.end], how) for p in pieces])
        for name, values in signals.items()
        for how in Aggregation
    }
    lengths = np.array([piece.end - piece.start for piece in pieces], dtype=np.float64)
    return {**measures, SHORTER: -lengths, LONGER: lengths, RANDOM: np.zeros(len(pieces))}
