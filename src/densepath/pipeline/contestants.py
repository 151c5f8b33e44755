"""Who is judged: models and files with answers by distinct names, each answer beside that of its baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densepath.data.answers import (
    answers_to,
    answers_to_none,
    check_not_empty,
    empty_answers,
    generators,
    read_answers,
)
from densepath.data.benchmarks import parsed
from densepath.data.rows import short
from densepath.errors import ConfigError, DataError, UsageError
from densepath.judging.games import Match
from densepath.judging.protocol import JudgeRequest, right_answers
from densepath.pipeline.generate import generator_name
from densepath.records.benchmark import Answer, BenchmarkRows, Question


@dataclass(frozen=True)
class Contestant:
    """Whose answers are judged, or compared with.

    Attributes:
        name: distinct among all.
        source: the model, or the file of its answers.
        answers: question's id -> answer; None where the model is still to be asked.
        passed_over: answers of its file to questions that the benchmark lacks.
    """

    name: str
    source: str
    answers: Mapping[str, Answer] | None
    passed_over: tuple[Answer, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of its answers."""
        notes = []
        if other := self.passed_over:
            what = short(other[0].id or " / ".join(other[0].prompt or ()))
            notes.append(
                f"{self.source}: answers of {self.name} to questions that the benchmark lacks are passed over: "
                f"{len(other)}, the first in row {other[0].row}, to {what!r}"
            )
        if empty := empty_answers((self.answers or {}).values()):
            notes.append(f"{self.name}: {len(empty)} of {len(self.answers or {})} answers are empty")
        return tuple(notes)


@dataclass(frozen=True)
class Contest:
    """Models, and the baseline that each question's answers are compared with.

    Attributes:
        models: whose answers are judged.
        baselines: by name; empty where answers are graded alone.
        of_category: category -> name of its baseline; "" is any other category.
    """

    models: tuple[Contestant, ...]
    baselines: Mapping[str, Contestant]
    of_category: Mapping[str, str]

    def baseline(self, question: Question) -> Contestant | None:
        """What answers to that question are compared with."""
        if not self.baselines:
            return None
        return self.baselines[self.of_category.get(question.category, self.of_category.get("", ""))]

    @property
    def everyone(self) -> tuple[Contestant, ...]:
        """Models and baselines."""
        return (*self.models, *self.baselines.values())

    def answered(self, ask: Callable[[Contestant], Mapping[str, Answer]]) -> Contest:
        """The same with the answers of those who were still to be asked."""

        def of(each: Contestant) -> Contestant:
            return each if each.answers is not None else replace(each, answers=ask(each))

        return replace(
            self,
            models=tuple(map(of, self.models)),
            baselines={name: of(each) for name, each in self.baselines.items()},
        )


@dataclass(frozen=True)
class Entries:
    """Where contestants come from.

    Attributes:
        found: the benchmark, with the questions that are asked.
        questions: all that it has.
        allow_empty: whether an answer of a file may be empty.
    """

    found: BenchmarkRows
    questions: Sequence[Question]
    allow_empty: bool = False

    def of(self, source: str, of_category: Mapping[str, str]) -> Iterator[Contestant]:
        """Those whom a word of the command means: all generators of a file, or one model.

        Args:
            source: the word.
            of_category: category -> name of its baseline, which needs no answers to questions of others.

        Raises:
            DataError: answers that are missing, empty, or of other questions; file and row are named.
        """
        if Path(source).expanduser().is_file():
            answers = read_answers(source)
            for name in generators(answers):
                own = [answer for answer in answers if answer.generator == name]
                one = self._read(name, answers, source, of_category)
                yield replace(one, passed_over=answers_to_none(self.questions, own))
        elif source in generators(self.found.answers):
            yield self._read(source, self.found.answers, self.found.source, of_category)
        else:
            yield Contestant(generator_name(source), source, None)

    def _read(self, name: str, answers: Sequence[Answer], where: str, of_category: Mapping[str, str]) -> Contestant:
        asked = self.found.questions
        if name in of_category.values():
            asked = tuple(each for each in asked if of_category.get(each.category) == name)
        mine = answers_to(asked, answers, where, name)
        if not self.allow_empty:
            check_not_empty(mine, where, f"give its text, leave {name} out, or give allow_empty to judge it as it is")
        return Contestant(name, where, {each.id: each for each in mine})


def contest(models: Sequence[str], baseline: Sequence[str], entries: Entries) -> Contest:
    """Who is compared with whom.

    Args:
        models: hub ids, folders, files with answers, or generators whose answers come with the benchmark.
        baseline: the same; empty for the benchmark's own.
        entries: the benchmark, and which answers are let in.

    Raises:
        DataError: answers that are missing, empty, or of other questions; file and row are named.
        ConfigError: no baseline where the benchmark has none of its own.
        UsageError: two of one name, or one model twice.
    """
    found = entries.found
    of_category = _of_category(baseline, found)
    wanted = set(of_category.values())
    chosen = [each for source in baseline or sorted(wanted) for each in entries.of(source, of_category)]
    if not baseline and of_category:
        _check_own(chosen, found)
    if len(chosen) == 1 and baseline:  # of all categories, even where the benchmark has it for one of them
        chosen = list(entries.of(baseline[0], {}))
        of_category = {"": chosen[0].name}
    elif baseline and not of_category:
        names = ", ".join(each.name for each in chosen)
        raise ConfigError(f"baseline: {found.benchmark.name} compares with one, and these are {names}; give one")
    elif missing := sorted(set(of_category.values()) - {each.name for each in chosen}):
        raise ConfigError(f"baseline: {found.benchmark.name} compares with {missing[0]} too; give its answers as well")
    judged = _distinct([each for source in models for each in entries.of(source, {})], chosen)
    return Contest(judged, {each.name: each for each in chosen}, of_category)


def _of_category(baseline: Sequence[str], found: BenchmarkRows) -> dict[str, str]:
    """Category -> name of its baseline, as the benchmark has it; empty where answers are graded alone."""
    own = {each.category: found.benchmark.baseline(each.category) for each in found.questions}
    if not baseline:
        if found.benchmark.mode == "single":
            return {}
        if None in own.values():
            raise ConfigError(
                f"{found.benchmark.name} has no baseline of its own: give baseline, a model or a file with answers"
            )
    return {category: name for category, name in own.items() if name is not None}


def _check_own(chosen: Sequence[Contestant], found: BenchmarkRows) -> None:
    """Refuse a benchmark whose baseline's answers did not come with it."""
    for each in chosen:
        if each.answers is None:
            raise ConfigError(
                f"the answers of {each.name}, which {found.benchmark.name} compares with, did not come with "
                f"{found.source}: give baseline, a file with them or another model"
            )


def _distinct(models: Sequence[Contestant], baselines: Sequence[Contestant]) -> tuple[Contestant, ...]:
    """The models under names of their own: a name that is taken with the folders above, so the first one keeps it.

    A baseline and a generator of a file keep theirs wherever they stand.
    """
    fixed = [*baselines, *(each for each in models if each.answers is not None)]
    asked: set[Path] = set()
    named: list[Contestant] = []
    for each in models:
        above = Path(each.source).parts[-3:]
        if each.answers is None:
            place = Path(each.source).expanduser().resolve()
            if place in asked:
                raise UsageError(f"{each.source} is given twice among models: leave one out")
            asked.add(place)
            if len(above) > 1 and any(each.name == other.name for other in (*fixed, *named)):
                each = replace(each, name="/".join(above))
        named.append(each)
    for each in (*named, *baselines):
        same = [other for other in (*named, *baselines) if other.name == each.name]
        if len(same) > 1:
            raise UsageError(f"{same[0].source} and {same[1].source} are both called {each.name}: leave one out")
    return tuple(named)


def matches_of(contest: Contest, found: BenchmarkRows) -> list[Match]:
    """What is judged: every turn of every question, each model's answer alone or beside its baseline's."""
    rows = _rows(found)
    matches = []
    for model in contest.models:
        for question in found.questions:
            other = contest.baseline(question)
            sides = [model] if other is None else [model, other]
            texts = [_texts(side, question) for side in sides]
            for turn in range(1, len(question.turns) + 1):
                request = JudgeRequest(
                    prompt=tuple(question.conversation()),
                    answers=tuple(each[:turn] for each in texts),
                    follow_ups=question.turns[1:turn],
                    reference=right_answers(question.references, turn),
                    row={**rows.get(question.index, {}), "id": question.id, "category": question.category},
                )
                matches.append(Match(question.id, model.name, None if other is None else other.name, request))
    return matches


def _texts(contestant: Contestant, question: Question) -> tuple[str, ...]:
    assert contestant.answers is not None
    return contestant.answers[question.id].turns


def _rows(found: BenchmarkRows) -> dict[int, dict[str, Any]]:
    """The questions' rows as they are written, which programs read; by their place among all."""
    try:
        return dict(parsed(found.source, lambda row, at: (at.index, dict(row))))
    except DataError:
        return {}
