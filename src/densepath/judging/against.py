"""A judge where a verifier stands: each answer against one fixed answer to the same prompt, in both orders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from densepath.data.benchmarks import references_of
from densepath.data.rows import Row, prompt_of
from densepath.errors import DataError
from densepath.evals.generation import Decoding, generate
from densepath.judging.games import Match, PlannedGame, plan_games, play, said_of_pair
from densepath.judging.protocol import Judge, JudgeRequest, right_answers
from densepath.records.judging import Game, Preference, Spending


@dataclass(frozen=True)
class Expected:
    """What judging is expected to take.

    Attributes:
        games: judgements.
        spending: calls, tokens and cost of an endpoint; none of a judge that runs here.
    """

    games: int
    spending: Spending


@dataclass(frozen=True)
class AgainstAnswers:
    """Says how much a judge prefers answers to fixed ones: the mean over prompts is a win rate, and theirs is 1/2.

    An answer that is the fixed one, letter by letter, is a tie that nobody is asked about.

    Attributes:
        judge: who compares.
        fixed: `prompt_key` of a row -> the answer that others are compared with.
        both_orders: whether each pair is shown in both orders.
        repeats: how often each is judged.
        max_invalid: share of judgements that may be invalid.
        shows_reference: whether the judge is shown a row's right answer; else `reference` may hold anything.
    """

    judge: Judge
    fixed: Mapping[str, str]
    both_orders: bool = True
    repeats: int = 1
    max_invalid: float = 0.2
    shows_reference: bool = True

    @property
    def __name__(self) -> str:
        return self.judge.name

    def judged(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Preference]:
        """The preference for each answer.

        Args:
            answers: texts.
            rows: the row of each.

        Raises:
            JudgeError: too many invalid judgements, or the judge's own.
            DataError: a prompt without a fixed answer, or with a `reference` to be shown that is no text.
        """
        found = [Preference(0.5)] * len(answers)
        planned = self._planned(answers, rows)
        games: dict[str, list[Game]] = {each.match.question: [] for each in planned}
        for game in play(self.judge, planned, max_invalid=self.max_invalid):
            games[game.question].append(game)
        for question, of in games.items():
            found[int(question)] = said_of_pair(of)
        return found

    def estimate(self, answers: Sequence[str], rows: Sequence[Row]) -> Expected:
        """What `judged` would take, about; asks nobody.

        Args:
            answers: texts, as long as those that are to be judged.
            rows: the row of each.

        Raises:
            DataError: as `judged`.
        """
        planned = self._planned(answers, rows)
        return Expected(len(planned), self.judge.estimate([each.request for each in planned]))

    def _planned(self, answers: Sequence[str], rows: Sequence[Row]) -> list[PlannedGame]:
        """The games of all answers that are not the fixed ones."""
        pairs = enumerate(zip(answers, rows, strict=True))
        matches = [self._match(number, text, row) for number, (text, row) in pairs]
        asked = [match for match in matches if match.request.answers[0] != match.request.answers[1]]
        return plan_games(asked, both_orders=self.both_orders, repeats=self.repeats)

    def _match(self, number: int, text: str, row: Row) -> Match:
        key = prompt_key(row)
        if key not in self.fixed:
            raise DataError(f"prompt {number}: the SFT model has no answer to compare with; begin in a new folder")
        right = right_answers(references_of(row, 1), 1) if self.shows_reference else None
        answers, plain = ((text,), (self.fixed[key],)), isinstance(prompt_of(row), str)
        request = JudgeRequest(turns_of(row), answers, reference=right, row=row, plain=plain)
        return Match(str(number), "answer", "fixed", request)


def answers_by_prompt(model: Any, tokenizer: Any, rows: Sequence[Row], decoding: Decoding) -> dict[str, str]:
    """What a model answers: `prompt_key` of each row -> its text; of rows with one prompt, the first one's.

    Args:
        model: causal LM.
        tokenizer: its tokenizer.
        rows: with a prompt.
        decoding: how it answers.
    """
    answers = generate(model, tokenizer, rows, decoding)
    return {prompt_key(rows[each.row]): each.text for each in reversed(answers)}


def prompt_key(row: Row) -> str:
    """What tells prompts apart: the turns or the text, as JSON."""
    return json.dumps(prompt_of(row), sort_keys=True, ensure_ascii=False)


def turns_of(row: Row) -> tuple[dict[str, Any], ...]:
    """The prompt of a row as turns; plain text is one of the user's."""
    prompt = prompt_of(row)
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
