"""Answers to a benchmark's questions, in the layouts in which the benchmarks' own tools keep them.

AlpacaEval        [{"instruction", "output", "generator"}, ...]; told apart by the text of the instruction
Arena-Hard v0.1   {"question_id", "model_id", "choices": [{"turns": [{"content"}]}]}
Arena-Hard v2.0   {"uid", "model", "messages": [..., {"role": "assistant", "content": text or {"answer"}}]}
MT-Bench          {"question_id", "model_id", "choices": [{"turns": [text, text]}]}
densepath         {"id", "generator", "text" (of several turns a list) or "turns"}, and "prompt" beside it
a benchmark       {"id", "references": {generator: text}}
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from densepath.data.benchmarks import is_texts, parsed, prompt_to_answer, question_id, texts_of
from densepath.data.reading import file_suffix, is_readable
from densepath.data.rows import Row, short, turn_text
from densepath.data.splits import normalise_text
from densepath.data.streaming import SourceRow
from densepath.errors import DataError
from densepath.records.benchmark import Answer, Question


def read_answers(source: str) -> tuple[Answer, ...]:
    """All answers of a file in any of the layouts, of one generator or several.

    An answer whose row names no question has the id "" and a prompt; `answers_to` finds its question.

    Args:
        source: a file, folder or hub id; its name without a file's suffix is the generator's where rows do not say it.

    Raises:
        MissingFileError: there is none.
        DataError: a row that holds no answer; file and row are named.
    """
    path = Path(source)
    name = path.name[: -len(file_suffix(path))] if is_readable(path) else path.name
    return tuple(answer for own in parsed(source, lambda row, at: list(_answers(row, at, name))) for answer in own)


def generators(answers: Sequence[Answer]) -> tuple[str, ...]:
    """Their names, in the order in which they appear."""
    return tuple(dict.fromkeys(answer.generator for answer in answers))


def answers_to(
    questions: Sequence[Question], answers: Sequence[Answer], source: str, generator: str | None = None
) -> tuple[Answer, ...]:
    """One generator's answers, one to each question, in their order. Those to others (`answers_to_none`) are left out.

    Args:
        questions: of the benchmark.
        answers: of one generator, or of several where `generator` names one.
        source: where the answers are, for messages.
        generator: its name; None where there is but one.

    Raises:
        DataError: several generators, a question without its answer or with two, an answer to another text or with
            another number of turns; file and row are named.
    """
    names = generators(answers)
    if generator is None and len(names) > 1:
        raise DataError(f"{source}: answers of {short(', '.join(names), 100)}; name one of them")
    mine = [answer for answer in answers if generator in (None, answer.generator)]
    if not mine:
        raise DataError(f"{source}: no answers of {generator!r}; there are those of {short(', '.join(names), 100)}")
    found = _by_question(questions, mine, source)
    return tuple(_checked(question, found.get(question.id), mine, source) for question in questions)


def answers_to_none(questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """The answers to questions that are none of these."""
    question_of = _finder(questions)
    return tuple(answer for answer in answers if not question_of(answer))


def check_not_empty(answers: Sequence[Answer], source: str, remedy: str) -> None:
    """Refuse answers in which a turn holds nothing but spaces.

    Args:
        answers: that were read.
        source: where they are, for the message.
        remedy: what to do.

    Raises:
        DataError: the first such answer; file and row are named.
    """
    if empty := empty_answers(answers):
        raise DataError(f"{source}, row {empty[0].row}: the answer to {short(empty[0].id)} is empty; {remedy}")


def empty_answers(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """Those in which a turn holds nothing but spaces."""
    return tuple(answer for answer in answers if not all(text.strip() for text in answer.turns))


def with_references(questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[Question, ...]:
    """The questions with answers as their right ones; those without one keep their own."""
    right = {answer.id: answer.turns for answer in answers}
    return tuple(replace(each, references=right.get(each.id, each.references)) for each in questions)


def alpaca_eval_rows(questions: Sequence[Question], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The answers as AlpacaEval keeps a model's outputs, in a list of one JSON file."""
    return [
        {
            "dataset": each.category,
            "instruction": each.turns[0],
            "output": answer.turns[0],
            "generator": answer.generator,
        }
        for each, answer in zip(questions, answers, strict=True)
    ]


def arena_hard_rows(
    questions: Sequence[Question], answers: Sequence[Answer], *, old: bool = False
) -> list[dict[str, Any]]:
    """The answers as Arena-Hard v2.0 keeps them, or v0.1 (`old`), one object a line.

    Counts of tokens and of Markdown, by which its style control goes, are added by Arena-Hard's own script.
    """
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        own_id = hashlib.sha256(f"{answer.generator}\n{question.id}".encode()).hexdigest()[:22]
        if old:
            turns = [{"content": text} for text in answer.turns]
            choices = [{"index": 0, "turns": turns}]
            row = {"question_id": question.id, "answer_id": own_id, "model_id": answer.generator, "choices": choices}
        else:
            said = question.conversation(answer.turns)
            messages = [
                {**turn, "content": {"answer": turn["content"]}} if turn["role"] == "assistant" else turn
                for turn in said
            ]
            row = {"uid": question.id, "ans_id": own_id, "model": answer.generator, "messages": messages}
        rows.append(row)
    return rows


def _answers(row: Row, at: SourceRow, name: str) -> Iterator[Answer]:
    """The answers of one row."""
    named = row.get("references")
    if isinstance(named, Mapping) and row.get("text") is None:
        for each, said in named.items():
            turns = (said,) if isinstance(said, str) else texts_of(said, f"references.{each}")
            yield Answer(question_id(row), str(each), turns, at.number, _prompt(row))
        return
    model = next((str(row[key]) for key in ("generator", "model", "model_id") if row.get(key)), name)
    key, prompt = question_id(row), _prompt(row)
    if not key and prompt is None:
        raise DataError('neither an id nor a prompt; give the "id" of the question that this answers')
    yield Answer(key, model, _answer_turns(row), at.number, prompt)


def _answer_turns(row: Row) -> tuple[str, ...]:
    """The texts that a row answers, by turn."""
    if isinstance(row.get("text"), str):
        return (row["text"],)
    if row.get("text"):
        return texts_of(row["text"], "text")
    if isinstance(row.get("output"), str):  # of AlpacaEval's model; beside a text it is the data set's own answer
        return (row["output"],)
    if row.get("choices"):
        first = row["choices"][0] if isinstance(row["choices"], (list, tuple)) else None
        if not isinstance(first, Mapping):
            raise DataError(f'"choices" is {short(repr(row["choices"]))}; give [{{"turns": [...]}}]')
        return texts_of(first.get("turns"), "choices[0].turns")
    if row.get("messages"):
        turns = _turns(row["messages"], "messages")
        return tuple(_said(turn) for turn in turns if turn.get("role") == "assistant")
    if row.get("turns") is not None:
        return texts_of(row["turns"], "turns")
    completion = row.get("completion")
    if isinstance(completion, str):
        return (completion,)
    if completion:
        return (_said(_turns(completion, "completion")[-1]),)
    raise DataError('no answer; give it as "text", "output", "completion", "choices" or "messages"')


def _turns(turns: Any, column: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f'"{column}" is {short(repr(turns))}; give turns, {{"role": ..., "content": ...}}')
    return turns


def _said(turn: Mapping[str, Any]) -> str:
    """Text of a turn, Arena-Hard's {"answer"} among them; empty where it calls tools without a word."""
    content = turn.get("content")
    text = content.get("answer") if isinstance(content, Mapping) else content
    if not isinstance(text, (str, list, tuple, type(None))):
        raise DataError(f"a turn has the content {short(repr(content))}; give a text")
    return turn_text({"content": text})


def _prompt(row: Row) -> tuple[str, ...] | None:
    """What the user says, one text a turn, where the answer's row repeats it."""
    if row.get("messages"):
        turns = _turns(row["messages"], "messages")
    elif is_texts(row.get("prompt")):
        return tuple(row["prompt"])
    elif isinstance(row.get("instruction"), str) or row.get("prompt") is not None:
        prompt = prompt_to_answer(row)
        if isinstance(prompt, str):
            return (prompt,)
        turns = prompt
    else:
        return None
    return tuple(_said(turn) for turn in turns if turn.get("role") == "user") or None


def _by_question(questions: Sequence[Question], answers: Sequence[Answer], source: str) -> dict[str, Answer]:
    """Question's id -> its answer: by id, and by the text of the prompt where the answer names no id."""
    question_of = _finder(questions)
    found: dict[str, Answer] = {}
    for answer in answers:
        own = question_of(answer)
        if own and own in found:
            raise DataError(
                f"{source}, row {answer.row}: a second answer of {answer.generator} to {short(own)}, after row "
                f"{found[own].row}; keep one"
            )
        if own:
            found[own] = replace(answer, id=own)
    return found


def _finder(questions: Sequence[Question]) -> Callable[[Answer], str]:
    """The id of the question that an answer is to; empty for none of them."""
    ids = {question.id for question in questions}
    by_text = {asked: question.id for question in questions for asked in _ways_to_ask(question)}
    return lambda answer: answer.id if answer.id in ids else by_text.get(_normal(answer.prompt or ()), "")


def _normal(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(normalise_text, texts))


def _ways_to_ask(question: Question) -> list[tuple[str, ...]]:
    """What an answer may repeat of a question: its first turn or all, with or without what the user said before."""
    before = tuple(text for role, text in question.context if role == "user")
    turns = question.turns
    return [_normal(each) for each in (turns[:1], turns, before + turns[:1], before + turns)]


def _without_context(question: Question, answer: Answer) -> Answer:
    """The answer without the assistant's turns that stand in the question: Arena-Hard's layout repeats them."""
    given = tuple(text for role, text in question.context if role == "assistant")
    repeats = len(answer.turns) == len(given) + len(question.turns) and answer.turns[: len(given)] == given
    return replace(answer, turns=answer.turns[len(given) :]) if given and repeats else answer


def _checked(question: Question, answer: Answer | None, all_of: Sequence[Answer], source: str) -> Answer:
    if answer is None:
        answered = {each.id for each in all_of}
        raise DataError(
            f"{source}: no answer of {all_of[0].generator} to {short(question.id)} ({short(question.turns[0])!r}, row "
            f"{question.row} of the benchmark); it answers {len(answered)} questions: make the missing answers, or "
            "give the version of the benchmark that they are of"
        )
    where = f"{source}, row {answer.row}"
    if answer.prompt is not None and _normal(answer.prompt) not in (ways := _ways_to_ask(question)):
        theirs, ours = (" / ".join(texts) for texts in (_normal(answer.prompt), ways[2]))
        raise DataError(
            f"{where}: it answers {short(theirs)!r}, where {short(question.id)} asks {short(ours)!r}; "
            "give answers to this version of the benchmark"
        )
    answer = _without_context(question, answer)
    if len(answer.turns) != len(question.turns):
        raise DataError(
            f"{where}: {len(answer.turns)} answers to {len(question.turns)} turns of {short(question.id)}; answer each"
        )
    return answer
