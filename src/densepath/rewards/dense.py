"""`DenseReward`: an SFT model and a reference as one object that grades every token of a completion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from densepath.core.masks import lengths_to_mask
from densepath.core.rewards import baseline_relative, inverse_bellman, logprob
from densepath.errors import ModelError
from densepath.models.adapters import active_adapter
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET, CompletionScores, score_completions


class RewardKind(str, Enum):
    """How a pair of models is read; see `densepath.core.rewards`."""

    BASELINE_RELATIVE = "baseline_relative"
    LOGPROB = "logprob"
    INVERSE_BELLMAN = "inverse_bellman"


@dataclass(frozen=True)
class FrozenPolicy:
    """A model that is only scored: on its own, or one adapter of a PEFT model that others use too.

    Attributes:
        model: causal LM, or the PEFT model that holds the adapter.
        adapter: adapter to switch to while scoring; "" scores the model as it stands, None the bare base.
    """

    model: Any
    adapter: str | None = ""

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        """The model, with the adapter switched on for the block."""
        if self.adapter == "":
            yield self.model
        else:
            with active_adapter(self.model, self.adapter):
                yield self.model

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_progress: Callable[[int], None] | None = None,
    ) -> CompletionScores:
        """Log-probabilities and entropies of the completions; see `score_completions`."""
        with self.active() as model:
            return score_completions(
                model, prompt_ids, completion_ids, token_budget=token_budget, on_progress=on_progress
            )


@dataclass(frozen=True)
class DenseScores:
    """Per-token rewards with what they were made from; lists of (completion tokens,) tensors, nats.

    Attributes:
        rewards: dense reward of each token, EOS included where it was sampled.
        sft_logprobs: log pi_SFT of each token.
        ref_logprobs: log pi_ref of each token; empty list when no reference is used.
        sft_entropies: entropy of pi_SFT at each state.
    """

    rewards: list[Tensor]
    sft_logprobs: list[Tensor]
    ref_logprobs: list[Tensor]
    sft_entropies: list[Tensor]

    @property
    def sums(self) -> Tensor:
        """(sequences,) float: reward of each whole completion, nats."""
        return torch.stack([values.sum() for values in self.rewards]) if self.rewards else torch.zeros(0)


class DenseReward:
    """The token-level reward hidden in an SFT model: `log pi_SFT - log pi_ref` on given token ids.

    Args:
        sft: the SFT policy.
        ref: the reference: an earlier checkpoint of the same run, the model before SFT, or any model with the
            same tokenizer. Needed by `baseline_relative` alone.
        kind: which reading; `baseline_relative` is the method's.
        token_budget: tokens in one forward pass.

    Raises:
        ModelError: `baseline_relative` without a reference, or models with different vocabularies.
    """

    def __init__(
        self,
        sft: FrozenPolicy | Any,
        ref: FrozenPolicy | Any | None = None,
        *,
        kind: RewardKind | str = RewardKind.BASELINE_RELATIVE,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
    ) -> None:
        self.sft = sft if isinstance(sft, FrozenPolicy) else FrozenPolicy(sft)
        self.ref = ref if ref is None or isinstance(ref, FrozenPolicy) else FrozenPolicy(ref)
        self.kind = RewardKind(kind)
        self.token_budget = token_budget
        if self.ref is None and self.kind is RewardKind.BASELINE_RELATIVE:
            raise ModelError("the baseline_relative reward needs a reference model; name one, or use reward=logprob")
        if self.ref is not None:
            sizes = [p.model.get_input_embeddings().weight.shape[0] for p in (self.sft, self.ref)]
            if sizes[0] != sizes[1]:
                raise ModelError(
                    f"the SFT model has a vocabulary of {sizes[0]} tokens, the reference of {sizes[1]}: "
                    "both must share one tokenizer; choose a checkpoint of the same model family"
                )

    def score_ids(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        eos_token_ids: Sequence[int] = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> DenseScores:
        """Rewards of completions given as the very token ids that were sampled or demonstrated.

        Args:
            prompt_ids: ids of each prompt.
            completion_ids: ids of each completion, EOS included.
            eos_token_ids: ids that end a completion; only `inverse_bellman` asks whether one did.
            on_progress: called with the number of sequences that each forward pass finished.

        Raises:
            NumericalError: NaN or infinity, with its place.
        """
        sft = self.sft.score(prompt_ids, completion_ids, self.token_budget, on_progress)
        if self.kind is RewardKind.INVERSE_BELLMAN:
            return self._inverse_bellman(prompt_ids, completion_ids, sft, eos_token_ids)
        masks = [torch.ones_like(values, dtype=torch.bool) for values in sft.logprobs]
        if self.kind is RewardKind.LOGPROB or self.ref is None:
            rewards = [logprob(values, mask) for values, mask in zip(sft.logprobs, masks, strict=True)]
            return DenseScores(rewards, sft.logprobs, [], sft.entropies)
        ref = self.ref.score(prompt_ids, completion_ids, self.token_budget, on_progress)
        rewards = [baseline_relative(a, b, mask) for a, b, mask in zip(sft.logprobs, ref.logprobs, masks, strict=True)]
        return DenseScores(rewards, sft.logprobs, ref.logprobs, sft.entropies)

    def _inverse_bellman(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        sft: CompletionScores,
        eos_token_ids: Sequence[int],
    ) -> DenseScores:
        # V of the state after the last token is read where one more token would be predicted; which one that
        # is does not matter to the normaliser.
        longer = [[*ids, 0] for ids in completion_ids]
        values = self.sft.score(prompt_ids, longer, self.token_budget).log_normalizers
        rewards = []
        for ids, logprobs, state_values in zip(completion_ids, sft.logprobs, values, strict=True):
            mask = lengths_to_mask(torch.tensor([len(ids)]), len(ids))
            ended = torch.tensor([bool(ids) and ids[-1] in set(eos_token_ids)])
            logits = logprobs + state_values[:-1]
            rewards.append(inverse_bellman(logits.unsqueeze(0), state_values.unsqueeze(0), mask, ended)[0])
        return DenseScores(rewards, sft.logprobs, [], sft.entropies)
