"""TRL's reward functions inside of DPR: checked, one number a completion or one a token.

A function takes what `GRPOTrainer` gives it (`prompts`, `completions`, `completion_ids`, the data set's columns, ...)
and returns a list with, for each completion, a number or a list of one number per token of `completion_ids`. It may be
async. A reward model is TRL's own affair: it gives one number a completion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import get_callable_name, get_config_model_id, is_async_callable

from densepath.core.masks import keep
from densepath.core.rewards import on_last_token
from densepath.errors import ConfigError, DataError, NumericalError
from densepath.trainers.rollout import FunctionRewards, Scored, pad_rows

DENSE_REWARD = "dense_reward_sum"
"""Name of the dense reward among TRL's reward functions, hence of its metrics."""
CALL = "densepath_call"
"""Column in which each reward function is handed the `Call`; the user's own do not see it."""


@dataclass(frozen=True)
class Call:
    """One round of calls of the reward functions.

    Attributes:
        scored: the batch that they are asked about.
        per_token: by function, what it returned for each token; each function's wrapper puts its own here, since TRL
            takes one number a completion.
    """

    scored: Scored
    per_token: dict[int, list[Tensor]] = field(default_factory=dict)


def dense_reward_sum(**columns: Any) -> list[float]:
    """Dense reward of each completion, nats: what TRL logs as `reward`."""
    call: Call = columns[CALL][0]
    return call.scored.sums()


class RewardFunctions:
    """The reward functions of a trainer, in TRL's order.

    Args:
        functions: one or several of TRL's reward functions: callables, reward models, or their names.
        weights: TRL's `reward_weights`, one a function; None: 1 each.
        taken: a name that no function may have, as the metrics of two would mix.

    Raises:
        ConfigError: two functions of one name, or another number of weights than of functions.
    """

    def __init__(self, functions: Any, weights: Sequence[float] | None = None, *, taken: str = "") -> None:
        given = [] if functions is None else list(functions) if isinstance(functions, (list, tuple)) else [functions]
        given = [str(function) if isinstance(function, Path) else function for function in given]  # as TRL takes it
        if weights is not None and len(weights) != len(given):
            raise ConfigError(f"reward_weights has {len(weights)} numbers for {len(given)} reward functions")
        names = [_name(function) for function in given]
        for index, name in enumerate(names):
            if name == taken or name in names[:index]:
                raise ConfigError(
                    f"two reward functions are called {name!r}: their metrics would mix; rename one "
                    "(a reward model is called by the last part of its path)"
                )
        self.weights = [1.0] * len(given) if weights is None else [float(weight) for weight in weights]
        self.wrapped: list[Any] = [
            self._checked(index, function) if _is_plain(function) else function for index, function in enumerate(given)
        ]

    def __len__(self) -> int:
        return len(self.wrapped)

    def external(self, rewards: FunctionRewards, names: Sequence[str], mask: Tensor) -> Tensor:
        """Weighted sum of the functions' rewards: numbers on the last token, per-token ones where they are.

        Args:
            rewards: what they returned.
            names: the functions' names, for messages.
            mask: (completions, tokens) bool, True = counts.

        Returns:
            (completions, tokens) float, zero where the mask is False.

        Raises:
            NumericalError: a reward model gave NaN or infinity.
        """
        total = torch.zeros(mask.shape, device=mask.device)
        own, per_completion = len(self.weights), rewards.own
        environments = per_completion.shape[1] - own  # those rewards come last, and are NaN elsewhere than in theirs
        per_completion = torch.cat([per_completion[:, :own], per_completion[:, own:].nan_to_num(nan=0.0)], dim=1)
        for index, weight in enumerate([*self.weights, *[1.0] * environments]):
            column = per_completion[:, index]
            if not bool(torch.isfinite(column).all()):
                row = int((~torch.isfinite(column)).nonzero()[0])
                raise NumericalError(f"reward function {names[index]!r}, completion {row}: {float(column[row])}")
            if index in rewards.per_token:
                values = keep(pad_rows(rewards.per_token[index], mask), mask)
            else:
                values = on_last_token(column.to(total), mask)
            total = total + weight * values
        return total

    def _checked(self, index: int, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under its own name, its values checked; those per token go to the `Call`, their sum to TRL."""
        name = get_callable_name(function)

        def summed(output: Any, prompts: Any, completion_ids: Any, call: Call) -> list[float]:
            numbers, per_token = _check(name, output, prompts, completion_ids)
            if per_token is None:
                return numbers
            call.per_token[index] = call.scored.sampled.own_tokens(per_token)
            return [float(row.sum()) for row in call.per_token[index]]

        if is_async_callable(function):

            async def run_async(prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
                (call, *_) = kwargs.pop(CALL)
                output = await function(
                    prompts=prompts, completions=completions, completion_ids=completion_ids, **kwargs
                )
                return summed(output, prompts, completion_ids, call)

            run_async.__name__ = name
            return run_async

        def run(prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
            (call, *_) = kwargs.pop(CALL)
            output = function(prompts=prompts, completions=completions, completion_ids=completion_ids, **kwargs)
            return summed(output, prompts, completion_ids, call)

        run.__name__ = name
        return run


def _is_plain(function: Any) -> bool:
    """Whether it is a callable of the user's, not a reward model or the name of one."""
    return callable(function) and not isinstance(function, (str, nn.Module))


def _name(function: Any) -> str:
    """What TRL calls it in its metrics: of a reward model the last part of its path."""
    if _is_plain(function):
        return str(get_callable_name(function))
    name = function if isinstance(function, str) else get_config_model_id(getattr(function, "config", None))
    return str(name).split("/")[-1]


def _check(name: str, output: Any, prompts: Any, completion_ids: Any) -> tuple[list[float], list[Tensor] | None]:
    """One number a completion and None; or, where the function returned rewards per token, nothing and those."""
    values = _as_list(output)
    if values is None:
        raise DataError(f"reward function {name!r} returned {type(output).__name__}: a list of numbers is needed")
    if len(values) != len(completion_ids):
        raise DataError(
            f"reward function {name!r} returned {len(values)} rewards for {len(completion_ids)} completions: "
            "return one for each"
        )
    rows = [_as_list(value) for value in values]
    per_token = [row is not None for row in rows]
    if any(per_token) and not all(per_token):
        odd = per_token.index(not per_token[0])
        raise DataError(
            f"reward function {name!r}{_place(odd, prompts)}: a number here and a list elsewhere: "
            "return one number for every completion, or one list of a number a token"
        )
    for index, (value, row) in enumerate(zip(values, rows, strict=True)):
        if row is None:
            _check_number(name, value, index, prompts)
            continue
        if len(row) != len(completion_ids[index]):
            raise DataError(
                f"reward function {name!r}{_place(index, prompts)}: {len(row)} rewards for "
                f"{len(completion_ids[index])} tokens; return one for each id in completion_ids, EOS included"
            )
        for token, number in enumerate(row):
            _check_number(name, number, index, prompts, token)
    if not any(per_token):
        return [float(value) for value in values], None
    return [], [torch.tensor([float(number) for number in row or ()]) for row in rows]


def _check_number(name: str, value: Any, index: int, prompts: Any, token: int | None = None) -> None:
    where = _place(index, prompts) + ("" if token is None else f", token {token}")
    if value is None:
        raise DataError(f"reward function {name!r}{where}: None; return 0.0 where it does not apply")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"reward function {name!r}{where}: {value!r} is no number") from None
    if not math.isfinite(number):
        raise NumericalError(f"reward function {name!r}{where}: {number}; return finite numbers alone")


def _place(index: int, prompts: Any) -> str:
    prompt = prompts[index]
    text = prompt if isinstance(prompt, str) else " ".join(str(turn.get("content")) for turn in prompt[-1:])
    text = " ".join(text.split())
    return f", completion {index} (prompt {text[:40] + '...' if len(text) > 40 else text!r})"


def _as_list(value: Any) -> list[Any] | None:
    """A list of a list, tuple, tensor or array with a length; None of a single number."""
    if isinstance(value, (list, tuple)):
        return list(value)
    tolist = getattr(value, "tolist", None)
    if tolist is not None and getattr(value, "ndim", 0) >= 1:
        found: list[Any] = tolist()
        return found
    return None
