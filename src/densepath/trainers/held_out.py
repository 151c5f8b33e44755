"""Demonstrations that training never sees, and how likely the policy finds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator

from densepath.data.context import check_context
from densepath.data.encode import Encoded, encode_pairs
from densepath.errors import ConfigError, DataError
from densepath.models.scoring import score_completions
from densepath.rewards.frozen import FrozenPolicy

Rows = Iterable[Mapping[str, Any]]


class HeldOutDemonstrations:
    """Demonstrations that training never sees, and how likely models find them.

    Args:
        rows: in any of TRL's formats; those without a completion are left out.
        tokenizer: that of the models.
        chat_template_kwargs: further arguments of the chat template.
        max_length: the models' context, tokens.

    Raises:
        DataError: a row that cannot be tokenised, or exceeds the context.
        ModelError: a tokenizer or chat template that does not fit.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: Any,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        max_length: float = math.inf,
    ) -> None:
        self.pairs: list[Encoded] = []
        for number, row in enumerate(rows, start=1):
            if row.get("completion") is None:
                continue
            try:
                pairs = encode_pairs(row, tokenizer, chat_template_kwargs=chat_template_kwargs)
            except DataError as error:
                raise DataError(f"eval_dataset, row {number}: {error}") from None
            longest = max(len(pair.prompt_ids) + len(pair.completion_ids) for pair in pairs)
            check_context(longest, max_length, f"eval_dataset, row {number}")
            self.pairs += pairs

    def nll(self, model: Any, accelerator: Accelerator, token_budget: int) -> float:
        """Negative log-likelihood of their actions: `-sum log pi(y_t | x, y_<t) / tokens`, EOS included.

        The demonstrations are shared out among the processes; every process gets the whole result.

        Args:
            model: causal LM.
            accelerator: joins the processes.
            token_budget: tokens in one forward pass.

        Returns:
            Nats per token.

        Raises:
            NumericalError: the model gave NaN or infinity.
        """
        mine = self.pairs[accelerator.process_index :: accelerator.num_processes]
        scores = score_completions(
            model,
            [pair.prompt_ids for pair in mine],
            [pair.completion_ids for pair in mine],
            token_budget=token_budget,
        )
        total = sum(float(values.double().sum()) for values in scores.logprobs)
        count = sum(len(values) for values in scores.logprobs)
        sums = torch.tensor([total, float(count)], device=accelerator.device)
        logprob, tokens = accelerator.reduce(sums, reduction="sum").tolist()
        return float(-logprob / tokens)


class HeldOutNLL:
    """NLL of the demonstrations among evaluation rows, beside that of the SFT model; each data set is read once.

    Args:
        sft: the SFT policy.
        accelerator: joins the processes.
        token_budget: tokens in one forward pass.
        alone: whether nothing else is measured in an evaluation.
        reading: how `HeldOutDemonstrations` reads rows: its other arguments.
    """

    def __init__(
        self, sft: FrozenPolicy, accelerator: Accelerator, token_budget: int, alone: bool, **reading: Any
    ) -> None:
        self.sft, self.accelerator, self.token_budget, self.alone = sft, accelerator, token_budget, alone
        self.reading = reading
        self._read: dict[int, tuple[Rows, HeldOutDemonstrations]] = {}
        self._sft_nll: dict[int, float] = {}

    def read(self, dataset: Rows) -> HeldOutDemonstrations:
        """The rows with a completion, tokenised.

        Raises:
            DataError: a row that cannot be used.
            ConfigError: no row has a completion, and nothing else is to be measured.
        """
        if id(dataset) not in self._read:
            found = HeldOutDemonstrations(dataset, **self.reading)
            if not found.pairs and self.alone:
                raise ConfigError(
                    "predict_with_generate=False measures the NLL of demonstrations alone, and no row of eval_dataset "
                    "has a completion: add it, or leave predict_with_generate out"
                )
            self._read[id(dataset)] = (dataset, found)  # the data set too, so that its id stays its own
        return self._read[id(dataset)][1]

    def metrics(self, dataset: Rows, policy: Any) -> dict[str, float]:
        """`nll` of the policy, and by how much it exceeds that of the SFT model, nats per token."""
        demonstrations = self.read(dataset)
        if not demonstrations.pairs:
            return {}
        if id(dataset) not in self._sft_nll:
            with self.sft.active() as sft:
                self._sft_nll[id(dataset)] = demonstrations.nll(sft, self.accelerator, self.token_budget)
        nll = demonstrations.nll(policy, self.accelerator, self.token_budget)
        return {"nll": nll, "nll_increase": nll - self._sft_nll[id(dataset)]}
