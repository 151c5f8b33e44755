"""`FrozenPolicy`: a model that is only scored, on its own or as one adapter of a base that others use too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from densepath.models.adapters import active_adapter, adapter_view
from densepath.models.compat import context_length
from densepath.models.scoring import (
    DEFAULT_TOKEN_BUDGET,
    CompletionScores,
    completion_hidden_states,
    score_completions,
)


@dataclass(frozen=True)
class FrozenPolicy:
    """A model that is only scored: on its own, or one adapter of a PEFT model that others use too.

    Attributes:
        model: causal LM, or the PEFT model that holds the adapter.
        adapter: adapter to switch to while scoring; "" scores the model as it stands, None the bare base.
    """

    model: Any
    adapter: str | None = ""

    @property
    def name(self) -> str:
        """What the model was loaded from; of one that was made in memory its class."""
        return getattr(getattr(self.model, "config", None), "_name_or_path", None) or type(self.model).__name__

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its completion that it scores."""
        return context_length(self.model)

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        """The model, with the adapter switched on for the block."""
        if self.adapter == "":
            yield self.model
        else:
            with active_adapter(self.model, self.adapter):
                yield self.model

    @contextlib.contextmanager
    def beside(self) -> Iterator[Any]:
        """Something to call while another adapter of the same base is active: to sample from two models in turn."""
        if self.adapter == "":
            yield self.model
        else:
            with adapter_view(self.model, self.adapter) as view:
                yield view

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_progress: Callable[[int], None] | None = None,
        keep_hidden: Collection[int] = (),
    ) -> CompletionScores:
        """Log-probabilities and entropies of the completions; see `score_completions`."""
        with self.active() as model:
            return score_completions(
                model,
                prompt_ids,
                completion_ids,
                token_budget=token_budget,
                keep_hidden=keep_hidden,
                on_progress=on_progress,
            )

    def hidden_states(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        token_budget: int = DEFAULT_TOKEN_BUDGET,
    ) -> list[Tensor]:
        """Last hidden states where the completions' tokens are predicted; see `completion_hidden_states`."""
        with self.active() as model:
            return completion_hidden_states(model, prompt_ids, completion_ids, token_budget=token_budget)
