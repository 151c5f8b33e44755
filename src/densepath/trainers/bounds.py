"""What the numbers and words of a training's arguments may be: TRL and transformers check few of them.

What they let through ends in a traceback, in a training that never ends, or in none at all, without a word.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from densepath.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """Numbers that an argument may be.

    Attributes:
        least: the lowest.
        most: the highest; None for any finite number.
        open_least: `least` itself is not among them.
        open_most: `most` itself is not among them.
        also: a number outside that has a meaning of its own.
        hint: what to do instead; empty for nothing.
    """

    least: float = -math.inf
    most: float | None = None
    open_least: bool = False
    open_most: bool = False
    also: float | None = None
    hint: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is among them; NaN never is."""
        if value == self.also:
            return True
        if self.most is None and not math.isfinite(value):
            return False
        most = math.inf if self.most is None else self.most
        above = value > self.least if self.open_least else value >= self.least
        return above and (value < most if self.open_most else value <= most)

    def __str__(self) -> str:
        """What a message says that the number must be."""
        if self.most is not None and self.most < math.inf:
            opens, closes = "(" if self.open_least else "[", ")" if self.open_most else "]"
            said = f"must lie in {opens}{self.least:.15g}, {self.most:.15g}{closes}"
        elif self.least == -math.inf:
            said = "must be a finite number"
        else:
            said = f"must be {'above' if self.open_least else 'at least'} {self.least:.15g}"
            said += ", and finite" if self.most is None else ""
        return said + (f"; {self.hint}" if self.hint else "")


_FINITE = Bound()
_COUNT, _NOT_NEGATIVE, _POSITIVE = Bound(least=1), Bound(least=0), Bound(least=0, open_least=True)
_ANY_AMOUNT = Bound(least=0, most=math.inf)
"""Of what infinity says that nothing is cut."""
_SEED = Bound(least=0, most=2**32 - 1)
"""What numpy takes."""
_MOST_STEPS, _MOST_EPOCHS = 10**9, 10**6
"""At a thousand steps a second the first would take twelve days: more never ends."""

BOUNDS: Mapping[str, Bound] = {
    "seed": _SEED,
    "data_seed": _SEED,
    "max_steps": Bound(least=1, most=_MOST_STEPS, also=-1, hint="-1 counts epochs"),
    "num_train_epochs": Bound(least=0, most=_MOST_EPOCHS, open_least=True),
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "adam_beta1": Bound(least=0, most=1, open_most=True),
    "adam_beta2": Bound(least=0, most=1, open_most=True),
    "adam_epsilon": Bound(least=0, most=1),  # far above the roots of second moments no weight moves
    "max_grad_norm": _ANY_AMOUNT,
    "label_smoothing_factor": Bound(least=0, most=1, open_most=True),
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    "save_steps": dataclasses.replace(_POSITIVE, hint="save_strategy=no keeps no checkpoints"),
    "eval_steps": _POSITIVE,
    "eval_delay": _NOT_NEGATIVE,
    "logging_steps": _NOT_NEGATIVE,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _COUNT,
    "ddp_timeout": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "score_token_budget": _COUNT,
    "epsilon": _ANY_AMOUNT,  # infinity clips no update
    "epsilon_high": _ANY_AMOUNT,
    "vllm_importance_sampling_clip_max": _ANY_AMOUNT,
    "vllm_gpu_memory_utilization": Bound(least=0, most=1, open_least=True),
    "vllm_server_timeout": _POSITIVE,
    "vllm_tensor_parallel_size": _COUNT,
}
"""Argument -> what it may be, for TRL's configs and those that are made of them. Any other float must be finite."""


def check_bounds(kind: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse numbers that no training could use, and words that transformers lists no use of.

    Args:
        kind: dataclass of the arguments.
        values: argument -> value, of its type; None and whatever is neither number nor word is not looked at.
        prefix: put before names in messages, such as "sft_".

    Raises:
        ConfigError: the first such value.
    """
    metadata = {field.name: field.metadata for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            bound = BOUNDS.get(name, _FINITE)
            if not bound.holds(value):
                raise ConfigError(f"{prefix}{name}={value} {bound}")
            if isinstance(value, int) and value > sys.maxsize:  # no row can have such a number
                raise ConfigError(f"{prefix}{name}={value} must be at most {sys.maxsize}")
        choices = metadata[name].get("choices") if name in metadata else None
        if choices and value is not None and value not in list(choices):
            raise ConfigError(f"{prefix}{name}={value!r} does not exist; choose one of: {', '.join(choices)}")
