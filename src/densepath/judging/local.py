"""A causal LM in memory as judge: log-probabilities of the letters of its answer; nothing is generated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from densepath.data.context import check_context
from densepath.data.encode import Encoded, encode_pair
from densepath.errors import ModelError
from densepath.judging.here import JudgeHere
from densepath.judging.protocol import JudgeRequest
from densepath.judging.templates import Template, letters_of
from densepath.judging.verdicts import judgement_of
from densepath.models.compat import context_length
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET
from densepath.records.judging import Judgement
from densepath.rewards.frozen import FrozenPolicy


class LocalJudge(JudgeHere[Encoded]):
    """A causal LM that is asked for a letter: what each letter is worth, weighted by its probability as first token.

    Args:
        model: causal LM.
        tokenizer: its tokenizer, with a chat template.
        template: one that is read by letters.
        name: what records call the judge.
        token_budget: tokens in one forward pass.

    Raises:
        ConfigError: the template is not read by letters.
    """

    def __init__(
        self, model: Any, tokenizer: Any, template: Template, name: str, token_budget: int = DEFAULT_TOKEN_BUDGET
    ) -> None:
        super().__init__(f"{name} ({template.name})", (template.num_answers,))
        self.template = template
        self._letters = letters_of(template)
        self._policy = model if isinstance(model, FrozenPolicy) else FrozenPolicy(model)
        self._tokenizer, self._token_budget = tokenizer, token_budget
        self._context = context_length(self._policy.model)

    def prepare(self, request: JudgeRequest) -> list[Encoded]:
        """The request's ids with the first token of each letter."""
        firsts = letter_pairs(self.template.messages(request), self._letters.letters, self._tokenizer, self.name)
        check_context(max(len(pair.prompt_ids) + 1 for pair in firsts), self._context)
        return firsts

    def score(self, pairs: Sequence[Encoded]) -> list[float]:
        """Log-probability of each letter, nats."""
        prompts, letters = [pair.prompt_ids for pair in pairs], [pair.completion_ids for pair in pairs]
        return [float(each[0]) for each in self._policy.score(prompts, letters, self._token_budget).logprobs]

    def read(self, logprobs: Sequence[float]) -> Judgement:
        """What the letters are worth by their log-probabilities, nats."""
        told = dict(zip(self._letters.letters, logprobs, strict=True))
        return judgement_of(self._letters.worth(told), self.template.num_answers)


def letter_pairs(
    messages: Sequence[Mapping[str, str]], letters: Iterable[str], tokenizer: Any, name: str
) -> list[Encoded]:
    """The ids of what is asked, with the first token of each letter behind them.

    What the chat template writes before every answer (thoughts that are empty, a channel) belongs to what is asked.

    Args:
        messages: turns that the judge is shown.
        letters: that it may say.
        tokenizer: with a chat template.
        name: of the judge, for messages.

    Raises:
        ModelError: no chat template, or two letters with the same first token.
    """
    said = [encode_pair(messages, [{"role": "assistant", "content": each}], tokenizer) for each in letters]
    columns = zip(*(pair.completion_ids for pair in said), strict=False)
    before = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    firsts = [pair.completion_ids[len(before) : len(before) + 1] for pair in said]
    if len(set(firsts)) < len(firsts):
        raise ModelError(
            f"{name}: the letters {', '.join(letters)} begin with the same token for this tokenizer; choose other "
            "letters in a judge_template"
        )
    return [Encoded((*pair.prompt_ids, *before), first) for pair, first in zip(said, firsts, strict=True)]
