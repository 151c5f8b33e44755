"""Prompts as questions, and a model's answers to them as rows that every other command reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from densepath.data.context import check_context, room_for_prompts
from densepath.data.encode import encode_row_prompt
from densepath.data.rows import Row, is_conversational, prompt_of
from densepath.data.spans import read_tokens
from densepath.errors import DataError, ModelError
from densepath.evals.generation import Completion, Decoding, generate
from densepath.evals.verifiers import Verifier, verdict_on
from densepath.records.benchmark import Question
from densepath.records.completion import completion_of

OWN_COLUMNS = ("row", "sample", "generator", "prompt", "completion", "text", "truncated", "metric", "sampled")
"""What a row of answers holds in place of the source's columns of these names."""
_OF_THE_SOURCE = ("messages", "conversations", "turns", "output", "choices", "completions")
"""Columns of a source that hold the prompt in another form, or answers that are not the model's."""


@dataclass(frozen=True)
class Asked:
    """One prompt to answer.

    Attributes:
        id: of the prompt.
        row: its columns; the prompt in any of TRL's formats.
        number: of the row in its source, from 1.
        temperature: at which it is answered; 0 is greedy.
        follow_ups: what the user says after each answer but the last.
    """

    id: str
    row: Row
    number: int
    temperature: float
    follow_ups: tuple[str, ...] = ()


def asked_of(question: Question, temperature: float) -> Asked:
    """A question of a benchmark as a prompt to answer at that temperature."""
    category = {"category": question.category} if question.category else {}
    return Asked(
        question.id,
        {**category, "prompt": question.conversation()},
        question.index + 1,
        temperature,
        question.turns[1:],
    )


def check_room(asked: Sequence[Asked], tokenizer: Any, context: int, max_completion_length: int, source: str) -> None:
    """Refuse prompts that leave no room for an answer to each of their turns.

    Raises:
        DataError, ModelError: the first such row, or one that cannot be encoded.
        ConfigError: no prompt at all would fit.
    """
    room_for_prompts(context, max_completion_length)
    for each in asked:
        follow_ups = [{"prompt": [{"role": "user", "content": text}]} for text in each.follow_ups]
        place = f"{source}, row {each.number}"
        try:
            tokens = sum(len(encode_row_prompt(row, tokenizer)) for row in (each.row, *follow_ups))
        except (DataError, ModelError) as error:
            raise type(error)(f"{place}: {error}") from error
        before = len(each.follow_ups) * max_completion_length
        check_context(tokens + before, context, place, max_completion_length=max_completion_length)


@dataclass(frozen=True)
class Answerer:
    """A model that answers prompts.

    Attributes:
        model: causal LM.
        tokenizer: its tokenizer.
        decoding: how prompts are answered; each prompt's own temperature counts.
        generator: what the rows call the model.
        verifier: gives each row a `metric`, of the last turn; None gives none.
    """

    model: Any
    tokenizer: Any
    decoding: Decoding
    generator: str = ""
    verifier: Verifier | None = None

    def rows(self, asked: Sequence[Asked], on_progress: Callable[[int], None] | None = None) -> list[dict[str, Any]]:
        """Answers as rows: the source's own columns, `OWN_COLUMNS`, and each token with its log-probability.

        A second turn is asked behind the model's own first answer.

        Args:
            asked: the prompts.
            on_progress: called with the number of turns that were answered since the last call.

        Returns:
            `num_generations` rows a prompt, in the order of the prompts.

        Raises:
            DataError: a prompt that cannot be encoded, or a row that the verifier cannot check.
        """
        samples = self.decoding.num_generations
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for temperature in sorted({each.temperature for each in asked}):
            places = [place for place, each in enumerate(asked) if each.temperature == temperature]
            mine = [asked[place] for place in places]
            for index, completions in enumerate(self._conversations(mine, temperature, on_progress)):
                at, sample = divmod(index, samples)
                row = _row(mine[at], completions, self.generator, self.tokenizer)
                if samples > 1:
                    row["sample"] = sample
                if self.verifier is not None:
                    row["metric"] = _metric(self.verifier, completions[-1], mine[at])
                found[places[at], sample] = row
        return [found[key] for key in sorted(found)]

    def _conversations(
        self, asked: Sequence[Asked], temperature: float, on_progress: Callable[[int], None] | None
    ) -> list[list[Completion]]:
        """The completions of every turn, for each sample of each prompt in turn."""
        decoding = replace(self.decoding, temperature=temperature)
        seed = _seed(decoding, asked[0].number, 0)
        prompts: list[Row] = [each.row for each in asked]
        found = [[each] for each in self._answers(prompts, replace(decoding, seed=seed), on_progress)]
        of = [asked[place // decoding.num_generations] for place in range(len(found))]
        for turn in range(1, max(len(each.follow_ups) for each in asked) + 1):
            going = [place for place, each in enumerate(of) if len(each.follow_ups) >= turn]
            prompts = [_next_prompt(of[place], found[place]) for place in going]
            how = replace(decoding, seed=_seed(decoding, asked[0].number, turn), num_generations=1)
            for place, completion in zip(going, self._answers(prompts, how, on_progress), strict=True):
                found[place].append(completion)
        return found

    def _answers(
        self, prompts: Sequence[Row], decoding: Decoding, on_progress: Callable[[int], None] | None
    ) -> list[Completion]:
        """The completions of one turn."""
        done = 0

        def told(completed: int, _: int) -> None:
            nonlocal done
            if on_progress is not None:
                on_progress(completed - done)
            done = completed

        return generate(self.model, self.tokenizer, prompts, decoding, on_progress=told)


def _seed(decoding: Decoding, number: int, turn: int) -> int:
    """A stream of random numbers for every turn and temperature of the prompts that begin with that row."""
    text = f"{decoding.seed} {decoding.temperature:g} {number} {turn}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _next_prompt(asked: Asked, completions: Sequence[Completion]) -> dict[str, Any]:
    """The row that asks the next turn, behind the model's own answers."""
    turns = [*prompt_of(asked.row)]
    for completion, follow_up in zip(completions, asked.follow_ups, strict=False):
        turns += [{"role": "assistant", "content": completion.text}, {"role": "user", "content": follow_up}]
    return {**asked.row, "prompt": turns}


def _metric(verifier: Verifier, completion: Completion, asked: Asked) -> float:
    try:
        return verdict_on(verifier, completion.text, asked.row)
    except DataError as error:
        raise DataError(f"row {asked.number}: {error}") from error


def _row(asked: Asked, completions: Sequence[Completion], generator: str, tokenizer: Any) -> dict[str, Any]:
    """The columns of the source without an answer of its own, and the model's answer in the prompt's own form."""
    prompt = prompt_of(asked.row)
    texts = [completion.text for completion in completions]
    completion: Any = texts[0]
    if is_conversational(prompt):
        said = [*_next_prompt(asked, completions)["prompt"], {"role": "assistant", "content": texts[-1]}]
        completion = said[len(prompt) :]
    others = {key: v for key, v in asked.row.items() if key not in (*OWN_COLUMNS, *_OF_THE_SOURCE, "id")}
    return {
        "id": asked.id,
        "row": asked.number,
        "generator": generator,
        "prompt": prompt,
        "completion": completion,
        "text": texts[0] if not asked.follow_ups else texts,
        "truncated": any(each.truncated for each in completions),
        **others,
        "sampled": [_sampled(each, tokenizer) for each in completions],
    }


def _sampled(completion: Completion, tokenizer: Any) -> dict[str, Any]:
    """The tokens, with log pi of each as its reward: what `densepath view` colours."""
    logprobs = [float(f"{value:.6g}") for value in completion.logprobs]
    read = read_tokens(completion.completion_ids, tokenizer)
    return completion_of(read, logprobs, truncated=completion.truncated).to_json()
