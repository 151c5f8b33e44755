"""What gives an answer a score as judge: a sequence-classification reward model, and a `DenseReward`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from densepath.data.context import check_context
from densepath.data.encode import Encoded
from densepath.data.rows import template_arguments
from densepath.data.tokenizer_calls import as_ints, render, tokenise
from densepath.errors import DataError, ModelError, NumericalError
from densepath.judging.here import JudgeHere
from densepath.judging.protocol import JudgeRequest
from densepath.models.compat import context_length, eos_token_ids
from densepath.models.load import DTYPES, device_of
from densepath.models.locate import adapter_base, explained, is_adapter, locate
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET
from densepath.records.completion import prompt_text
from densepath.rewards.dense import DenseReward


def load_reward_model(name_or_path: str, *, dtype: str, device: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """A reward model and its tokenizer.

    Args:
        name_or_path: hub id or folder.
        dtype: of the weights, a key of `DTYPES`.
        device: "auto" takes CUDA where there is one.
        trust_remote_code: run Python code that comes with the weights.

    Raises:
        MissingFileError, ModelError: it cannot be loaded, or has no trained head.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    check_reward_model(name_or_path, trust_remote_code=trust_remote_code)
    source = locate(name_or_path)
    with explained(source, "reward model"):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            source,
            dtype=DTYPES.get(dtype, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            use_safetensors=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if found["missing_keys"]:
        raise ModelError(
            f"{source}: {min(found['missing_keys'])} is not in its files and would be random: it is no reward model; "
            "for a language model write local: before it"
        )
    return model.eval().to(device_of(device)), tokenizer


def check_reward_model(name_or_path: str, *, trust_remote_code: bool) -> None:
    """Refuse from its configuration alone what is no reward model.

    Args:
        name_or_path: hub id or folder.
        trust_remote_code: run Python code that comes with it.

    Raises:
        MissingFileError: there is none.
        ModelError: a language model, an adapter of one, or another number of labels than one.
    """
    from transformers import AutoConfig

    source = locate(name_or_path)
    base = adapter_base(source) if is_adapter(source) else source
    with explained(base, "reward model"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    if any(each.endswith(("ForCausalLM", "LMHeadModel")) for each in config.architectures or ()):
        if base != source:
            raise ModelError(
                f"{source} is an adapter of the language model {base}, which has no head for a reward: load it by "
                "PEFT with num_labels=1, merge_and_unload, and give the folder of the whole model"
            )
        raise ModelError(f"{source} is a language model: it is no reward model; write local: before it")
    _check_labels(config, name_or_path)


def _check_labels(config: Any, name: str) -> None:
    if config.num_labels != 1:
        raise ModelError(f"{name} tells {config.num_labels} classes apart; a reward model has one label")


class RewardModelJudge(JudgeHere[Mapping[str, list[int]]]):
    """A model with one number at its end, as TRL's RewardTrainer makes it: it grades, or prefers the higher score.

    Args:
        model: sequence-classification model with one label.
        tokenizer: its tokenizer; without a chat template, prompt and answer are its pair of texts.
        name: what records call the judge.
        token_budget: tokens in one forward pass, padding included.

    Raises:
        ModelError: another number of labels.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, token_budget: int = DEFAULT_TOKEN_BUDGET) -> None:
        _check_labels(model.config, name)
        super().__init__(name)
        self._model, self._tokenizer, self._token_budget = model, tokenizer, token_budget
        self._context = context_length(model)

    def prepare(self, request: JudgeRequest) -> list[Mapping[str, list[int]]]:
        """Ids of the conversation with each answer, and what else the tokenizer says of each, token by token."""
        rows = [self._inputs(request, answer) for answer in range(len(request.answers))]
        for row in rows:
            check_context(len(row["input_ids"]), self._context)
        return rows

    def _inputs(self, request: JudgeRequest, answer: int) -> Mapping[str, list[int]]:
        turns = request.conversation(answer)
        if self._tokenizer.chat_template:
            text = render(turns, self._tokenizer, template_arguments(request.row or {}))
            return {"input_ids": tokenise(text, self._tokenizer)}
        pair = self._tokenizer(prompt_text(turns[:-1]), turns[-1]["content"])
        return {name: as_ints(pair[name]) for name in ("input_ids", "token_type_ids") if name in pair}

    @torch.no_grad()
    def score(self, rows: Sequence[Mapping[str, list[int]]]) -> list[float]:
        """The model's number for each row; rows of like length share a pass, padded on the right."""
        scores = [0.0] * len(rows)
        pad = self._model.config.get_text_config().pad_token_id
        lengths = [len(row["input_ids"]) for row in rows]
        for batch in _batches(lengths, self._token_budget if pad is not None else 0):
            inputs = {name: _padded([rows[index][name] for index in batch]) for name in rows[batch[0]]}
            mask = _padded([[1] * lengths[index] for index in batch])
            inputs["input_ids"][mask == 0] = pad or 0
            device = self._model.device
            inputs = {name: each.to(device) for name, each in inputs.items()}
            logits = self._model(**inputs, attention_mask=mask.to(device)).logits
            for index, score in zip(batch, logits.float().reshape(-1).tolist(), strict=True):
                scores[index] = score
        if not all(map(math.isfinite, scores)):
            raise NumericalError(f"{self.name} gives a score that is not finite; check its weights for NaN")
        return scores


def _padded(rows: Sequence[list[int]]) -> torch.Tensor:
    """(rows, tokens) of rows of several lengths, 0 behind each."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of rows that fit a pass together, the longest rows first; a row alone always does."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class DenseRewardJudge(JudgeHere[Encoded]):
    """A dense reward: an answer's score is the sum of its tokens' rewards, in nats; of several turns, the last one's.

    Plain text is read as plain text, as the reward reads such a row.

    Args:
        reward: with a tokenizer.
        name: what records call the judge.
    """

    def __init__(self, reward: DenseReward, name: str) -> None:
        super().__init__(name)
        self._reward = reward
        self._ends = eos_token_ids(reward.sft.model, reward.tokenizer)

    def prepare(self, request: JudgeRequest) -> list[Encoded]:
        """The conversation's ids with each answer's last turn."""
        found = []
        for answer in range(len(request.answers)):
            *turns, last = request.conversation(answer)
            if not last["content"]:
                raise DataError("an empty answer has no token to score")
            prompt = turns[0]["content"] if request.plain else turns
            found.append(self._reward.encode(prompt, last["content"], template_arguments(request.row or {})))
            check_context(len(found[-1].prompt_ids) + len(found[-1].completion_ids), self._reward.context)
        return found

    def score(self, pairs: Sequence[Encoded]) -> list[float]:
        """Sum of the tokens' rewards of each, nats."""
        prompts, completions = [pair.prompt_ids for pair in pairs], [pair.completion_ids for pair in pairs]
        scores = self._reward.score_ids(prompts, completions, eos_token_ids=self._ends)
        return list(map(float, scores.sums))
