"""The questions of a benchmark, from the file that its authors publish, from the hub, or from any file of prompts.

    alpaca_eval   [{"instruction", "output", "generator", "dataset"}, ...]: the outputs are the baseline's answers
    arena_hard    {"uid", "category", "subcategory", "prompt"} of v2.0
                  {"question_id", "cluster", "turns": [{"content"}]} of v0.1
    mt_bench      {"question_id", "category", "turns" or "prompt": [text, text], "reference": [text, text]}
    lima          {"conversations": [text]}
    a file        prompts in any of TRL's formats, and whichever there are of "id", "category", "turns",
                  "reference_turns", and "references", answers by the name of their generator

`--benchmark NAME` reads the hub, `NAME:FILE` a file of that benchmark, `FILE` prompts of one's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from densepath.data.convert import converted
from densepath.data.formats import check_row
from densepath.data.rows import Row, prompt_of, short, turn_text
from densepath.data.splits import content_hash
from densepath.data.streaming import RowStream, SourceRow
from densepath.errors import DataError, MissingFileError
from densepath.records.benchmark import Answer, Benchmark, BenchmarkRows, Question

T = TypeVar("T")

_COLD, _WARM, _BRIEF = 0.0, 0.7, 0.1
_MT_BENCH_TEMPERATURES = {
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), _COLD),
    **dict.fromkeys(("writing", "roleplay"), _WARM),
    **dict.fromkeys(("stem", "humanities"), _BRIEF),
    "": _WARM,
}
"""FastChat's temperatures of the answers, by category."""
_IN_LIMA_TRAINING = "666c0b9f6ed8ab3932ea05e6291c41397f21c9b96c34cf54ce4ec922c70d08d2"
"""`content_hash` of the one test prompt of LIMA that its training set has too."""
_FIRST_PROMPTS = {
    "ff3d07330a5dc85cc5743cd446a6a129b42f7c2062eebe3147815a51e71de71d": "alpaca_eval",
    "fb84a79300305cc985c58d3c2b0c465717b5eb8c820a9f70650fc451a4f5c395": "arena_hard",
    "ba9cc767a72f5153647f8b8c5fafb103699558bebaa715cca1e154edbda16f04": "mt_bench",
    "cbc68dcfc43db8a04a669188b44f0da53aad6b28a68f4548425b339b8596aec7": "lima",
}
"""`content_hash` of the first prompt of each published file, by which a file of another benchmark is told."""
_CATEGORIES = {
    **dict.fromkeys(("helpful_base", "koala", "oasst", "selfinstruct", "vicuna"), "alpaca_eval"),
    **dict.fromkeys(("hard_prompt", "creative_writing", "arena-hard-v0.1"), "arena_hard"),
}
"""Categories that are those of one benchmark alone."""
_OLD_ARENA = Benchmark(
    "arena_hard",
    prompts=500,
    table="arena_hard",
    templates={"pair": "arena_hard"},
    baselines={"": "gpt-4-0314"},
    temperatures={"": _COLD},
)
"""Arena-Hard v0.1, which is told by its rows."""
BENCHMARKS: Mapping[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark(
            "alpaca_eval",
            prompts=805,
            table="alpaca_eval",
            templates={"pair": "alpaca_eval"},
            baselines={"": "gpt4_1106_preview"},
            hub=("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json"),
        ),
        Benchmark(
            "arena_hard",
            prompts=750,
            table="arena_hard",
            templates={"pair": "arena_hard"},
            baselines={"": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"},
            temperatures={"": _COLD},
            hub=("lmarena-ai/arena-hard-auto", "data/arena-hard-v2.0/question.jsonl"),
        ),
        Benchmark(
            "mt_bench",
            prompts=80,
            turns=2,
            mode="single",
            table="mt_bench",
            templates={"single": "mt_bench", "pair": "mt_bench_pair"},
            temperatures=_MT_BENCH_TEMPERATURES,
            referenced=("math", "reasoning", "coding"),
            hub=("HuggingFaceH4/mt_bench_prompts", "raw/question.jsonl"),
        ),
        Benchmark(
            "lima",
            prompts=299,
            temperatures={"": _WARM},
            hub=("GAIR/lima", "test.jsonl"),
            left_out=(_IN_LIMA_TRAINING,),
        ),
    )
}
"""The benchmarks by name; `mt_bench` graded in pairs takes the baseline that the user names."""


def read_benchmark(name: str) -> BenchmarkRows:
    """The questions of a benchmark, and the answers that come with them.

    Args:
        name: a key of `BENCHMARKS`, `KEY:FILE`, or a file, folder or hub id of prompts.

    Raises:
        MissingFileError: there is no such file, or the hub does not give it.
        DataError: a row without a question, a question twice, or a file of another benchmark; file and row are named.
    """
    key, _, file = name.partition(":")
    preset = BENCHMARKS.get(key)
    source = name if preset is None else (file or _hub_file(preset))
    prefix = key if preset else Path(source).stem
    places: dict[str, SourceRow] = {}

    def parse(row: Row, place: SourceRow) -> tuple[Question, list[Answer]]:
        question = _question(row, place, prefix)
        if key in _NUMBERED and len(question.turns) == BENCHMARKS[key].turns and not question_id(row):
            raise DataError(f"no id, by which answers to {key} are found; give its question_id or uid")
        _check_id(question.id, place, places)
        if preset is not None and not preset.shows_reference(question):
            question = replace(question, references=None)
        return question, list(_own_answers(row, question))

    found = parsed(source, parse)
    questions, answers = [question for question, _ in found], [answer for _, own in found for answer in own]
    if preset is None:
        return BenchmarkRows(Benchmark(name, turns=0), source, tuple(questions), tuple(answers))
    _check_benchmark(preset, questions, source)
    if preset.table == "arena_hard" and not {each.category for each in questions} & _NEW_ARENA:
        preset = _OLD_ARENA
    kept, notes = _without_left_out(preset, questions)
    if len(kept) != preset.prompts:
        notes += (f"{len(kept)} prompts where {preset.name} has {preset.prompts}: not the published benchmark",)
    return BenchmarkRows(preset, source, kept, tuple(answers), notes)


_NUMBERED = ("arena_hard", "mt_bench")
"""Benchmarks whose published questions have ids."""
_NEW_ARENA = frozenset(("hard_prompt", "creative_writing"))
"""The categories of Arena-Hard v2.0."""


def parsed(source: str, parse: Callable[[Row, SourceRow], T]) -> list[T]:
    """What `parse` makes of each row of a source, as it is written there.

    Raises:
        DataError: a row that cannot be read, or that `parse` refuses; file and row are named.
    """
    found = []
    for row in RowStream(source, as_written=True):
        try:
            if row.row is None:
                raise DataError(row.error)
            found.append(parse(row.row, row))
        except DataError as error:
            raise DataError(f"{row.place}: {error}") from None
    if not found:
        raise DataError(f"{source}: no rows; give at least one")
    return found


def _hub_file(preset: Benchmark) -> str:
    from huggingface_hub import hf_hub_download

    assert preset.hub is not None
    repository, file = preset.hub
    try:
        return str(hf_hub_download(repository, file, repo_type="dataset"))
    except Exception as error:  # the hub client raises a dozen kinds; the reason travels in the message
        raise MissingFileError(
            f"no {preset.name}: the hub did not give {file} of {repository} ({type(error).__name__}: "
            f"{short(str(error), 120)}); check the connection and the access, or give a file as {preset.name}:FILE"
        ) from error


def _question(row: Row, place: SourceRow, prefix: str) -> Question:
    """The question of a row in any of the layouts."""
    context, turns = _turns(row)
    if not turns or not all(turn.strip() for turn in turns):
        raise DataError("a turn of the prompt is empty; give the text to answer")
    category = next((row[key] for key in ("cluster", "category", "dataset") if row.get(key) is not None), "")
    return Question(
        question_id(row) or f"{prefix}-{place.index}",
        str(category),
        turns,
        place.number,
        references_of(row, len(turns)),
        context,
        place.index,
    )


def question_id(row: Row) -> str:
    """The id of the question that a row asks or answers; empty where it has none."""
    return next((str(row[key]) for key in ("uid", "question_id", "id", "prompt_id") if row.get(key) is not None), "")


def _turns(row: Row) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """What stands before, and the user's turns."""
    said = row.get("turns")
    if said is None and is_texts(row.get("prompt")):
        said = row["prompt"]
    if said is None and is_texts(row.get("conversations")):
        said = row["conversations"][:1]  # LIMA's training rows have the answer behind the prompt
    if said is not None:
        return (), texts_of(said, "turns")
    prompt = prompt_to_answer(row)
    if isinstance(prompt, str):
        return (), (prompt,)
    *before, last = ((str(turn["role"]), turn_text(turn)) for turn in prompt)
    if last[0] != "user":
        raise DataError(f"the prompt ends with a turn of the {last[0]}; end it with the user's")
    return tuple(before), (last[1],)


def prompt_to_answer(row: Row) -> str | list[dict[str, Any]]:
    """The prompt of a row in any format, beside whatever other columns.

    Raises:
        DataError: there is none, or one that is neither text nor turns.
    """
    found = converted(row)
    if found.get("prompt") is not None:
        found = {"prompt": found["prompt"]}
    check_row(found, "prompts")
    return prompt_of(found)


def is_texts(value: Any) -> bool:
    """Whether it is a list of texts, and not empty."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, str) for each in value)


def texts_of(turns: Any, column: str) -> tuple[str, ...]:
    """Texts of a list of texts, or of objects that have a "content".

    Raises:
        DataError: it is neither.
    """
    if not isinstance(turns, (list, tuple)):
        raise DataError(f'"{column}" is {short(repr(turns))}; give a list of texts')
    found = [turn.get("content") if isinstance(turn, Mapping) else turn for turn in turns]
    texts = tuple(each for each in found if isinstance(each, str))
    if len(texts) != len(found):
        raise DataError(f'"{column}" is {short(repr(turns))}; give a text for each turn')
    return texts


def references_of(row: Row, turns: int) -> tuple[str | None, ...] | None:
    """The right answers that a row gives, by turn; a reference for the first turn alone is none for the others.

    Args:
        row: of a benchmark, of prompts or of preferences: they stand in `reference_turns`, or in `reference`.
        turns: number of turns that are answered.

    Returns:
        A text, or None, for each turn; None where the row has none at all.

    Raises:
        DataError: they are no texts, or more than there are turns.
    """
    given = next((row[key] for key in ("reference_turns", "reference") if row.get(key) is not None), None)
    if given is None or given in ("", [], ()):
        return None
    said = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(said) > turns or not all(isinstance(each, (str, type(None))) for each in said):
        raise DataError(f"the reference is {short(repr(given))}; give a text for each of its {turns} turns")
    return tuple([each or None for each in said] + [None] * (turns - len(said)))


def _own_answers(row: Row, question: Question) -> Iterator[Answer]:
    """Answers that stand beside a question: AlpacaEval's outputs, or texts by the name of their generator."""
    given = row.get("references")
    named = dict(given) if isinstance(given, Mapping) else {}
    if isinstance(row.get("output"), str) and row.get("generator") and row.get("text") is None:
        named[str(row["generator"])] = row["output"]
    for generator, text in named.items():
        said = (text,) if isinstance(text, str) else texts_of(text, f"references.{generator}")
        yield Answer(question.id, str(generator), said, question.row, question.turns[:1])


def _check_id(key: str, place: SourceRow, places: dict[str, SourceRow]) -> None:
    """Raise for a second question of that id, whichever file it is in."""
    if (first := places.setdefault(key, place)) is not place:
        there = f"row {first.number}" if first.file == place.file else first.place
        raise DataError(f"the id {short(key)!r} is that of {there} too; give each question an id of its own")


def _check_benchmark(preset: Benchmark, questions: list[Question], source: str) -> None:
    """Raise for a file of another benchmark: by its turns, its first prompt, or its categories, where all are known.

    A file that none of these tells may be a part of any benchmark: it is read, and a note says that it is not whole.
    """
    _check_turns(preset, questions, source)
    hashes = (content_hash({"prompt": question.turns[0]}) for question in questions)
    known = {_FIRST_PROMPTS[each] for each in hashes if each in _FIRST_PROMPTS}
    known = known or {_CATEGORIES.get(question.category, preset.name) for question in questions}
    if preset.name not in known:
        other = sorted(known)[0]
        raise DataError(
            f"{source}: its prompts are those of {other}, and not of {preset.name}; give the file of {preset.name}, "
            f"or {other}:{source}"
        )


def _check_turns(preset: Benchmark, questions: list[Question], source: str) -> None:
    """Raise for questions in which the user speaks more or less often than in the benchmark's."""
    for question in questions:
        if len(question.turns) != preset.turns:
            counts = Counter(len(each.turns) for each in questions)
            raise DataError(
                f"{source}, row {question.row}: {len(question.turns)} turns where {preset.name} has {preset.turns} "
                f"({counts[preset.turns]} of {len(questions)} rows have them); give the file of {preset.name}"
            )


def _without_left_out(preset: Benchmark, questions: list[Question]) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """The questions that models were not trained on, and a note for each that is passed over."""
    kept, notes = [], []
    for question in questions:
        if preset.left_out and content_hash({"prompt": question.turns[0]}) in preset.left_out:
            notes.append(f"row {question.row} ({question.id}) is left out: {preset.name}'s training set has it too")
        else:
            kept.append(question)
    return tuple(kept), tuple(notes)
