"""`DenseScores`: what grading completions token by token gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from densepath.core.masks import lengths_to_mask
from densepath.core.rewards import position_z_scores
from densepath.data.spans import ReadTokens, read_tokens
from densepath.errors import UsageError
from densepath.records.completion import ScoredCompletion, completion_of

_MOST_IN_NOTEBOOK, _MOST_IN_REPR = 20, 5


@dataclass(frozen=True)
class DenseScores:
    """Per-token rewards with what they were made from; one entry a completion.

    Attributes:
        rewards: (completion tokens,) float, dense reward of each token in nats, EOS included where it is there.
        sft_logprobs: likewise, log pi_SFT.
        ref_logprobs: likewise, log pi_ref, of several references their mean; empty list where none is used.
        sft_entropies: likewise, entropy of pi_SFT at each state, nats.
        completion_ids: ids of the tokens.
        read: text, tokens and offsets of each completion; filled by `DenseReward.score`.
    """

    rewards: list[Tensor]
    sft_logprobs: list[Tensor]
    ref_logprobs: list[Tensor]
    sft_entropies: list[Tensor]
    completion_ids: list[list[int]] = field(default_factory=list)
    read: list[ReadTokens] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        tokens = sum(map(len, self.rewards))
        if not tokens:
            return f"DenseScores({len(self)} completions)"
        mean = float(torch.cat(self.rewards).mean())
        sums = ", ".join(f"{value:+.3g}" for value in self.sums[:_MOST_IN_REPR].tolist())
        more = ", …" if len(self) > _MOST_IN_REPR else ""
        return f"DenseScores({len(self)} completions, {tokens} tokens, {mean:+.3g} nats per token, sums {sums}{more})"

    @property
    def texts(self) -> list[str]:
        """Text of each completion without its final EOS; empty where they were scored as ids."""
        return [read.text for read in self.read]

    @property
    def offsets(self) -> list[list[tuple[int, int]]]:
        """(start, end) of each token in its text, characters; tokens that share a character share its range.

        A final EOS has an empty range at the end.
        """
        return [read.offsets for read in self.read]

    @property
    def sums(self) -> Tensor:
        """(completions,) float: reward of each whole completion, nats. Longer ones tend to have more."""
        return torch.stack([values.sum() for values in self.rewards]) if self.rewards else torch.zeros(0)

    @property
    def means(self) -> Tensor:
        """(completions,) float: mean reward of a token of each completion, nats per token."""
        return torch.stack([values.mean() for values in self.rewards]) if self.rewards else torch.zeros(0)

    def z_scores(self) -> list[Tensor]:
        """Each reward against those of the other completions at its position, without a unit; to look at only.

        Returns:
            (completion tokens,) tensors; see `core.rewards.position_z_scores`.
        """
        if not self.rewards:
            return []
        lengths = torch.tensor([len(values) for values in self.rewards])
        padded = pad_sequence(self.rewards, batch_first=True)
        z = position_z_scores(padded, lengths_to_mask(lengths, padded.shape[1]))
        return [row[:length] for row, length in zip(z, lengths.tolist(), strict=True)]

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the first completions as heat maps; None where there is no text (`score_ids`)."""
        if not self.rewards or len(self.read) != len(self.rewards):
            return None
        from densepath import view_scores  # the package's front door: this room knows nothing of pages

        return view_scores(self, limit=_MOST_IN_NOTEBOOK)._repr_html_()

    def completion(self, index: int, tokenizer: Any = None, *, logprobs: bool = True) -> ScoredCompletion:
        """One completion as a record: what files hold, the server answers with and pages show.

        Args:
            index: which completion.
            tokenizer: that of the models; needed where the scores were made from ids.
            logprobs: with log pi_SFT and log pi_ref.

        Raises:
            UsageError: scores without text and no tokenizer.
        """
        if tokenizer is None and len(self.read) != len(self):
            raise UsageError("these scores were made from token ids and hold no text; give the tokenizer as well")
        return completion_of(
            read_tokens(self.completion_ids[index], tokenizer) if tokenizer is not None else self.read[index],
            shortest_floats(self.rewards[index]),
            sft_logprobs=shortest_floats(self.sft_logprobs[index]) if logprobs else None,
            ref_logprobs=shortest_floats(self.ref_logprobs[index]) if logprobs and self.ref_logprobs else None,
        )


def shortest_floats(values: Tensor) -> list[float]:
    """Numbers whose shortest decimal form is that of the tensor's type: 0.1 and not 0.10000000149011612."""
    return [float(text) for text in np.asarray(values.cpu()).astype(str)]
