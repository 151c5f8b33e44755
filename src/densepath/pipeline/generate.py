"""`densepath generate`: a model's answers to prompts or a benchmark, as rows; `eval` and `judge` ask this way too.

Prompts are answered in windows of `WINDOW`, each of which is whole on disk or not there: a call after a kill goes on,
and comes to the same answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densepath.config.answers import AnswerArguments, GenerateArguments
from densepath.config.mixins import CONSTRAINED, TEXT_TASKS
from densepath.data.answers import alpaca_eval_rows, arena_hard_rows
from densepath.data.benchmarks import question_id, read_benchmark
from densepath.data.formats import row_order
from densepath.data.outputs import check_outputs, rows_read
from densepath.data.rows import canonical_json
from densepath.data.sources import load_rows
from densepath.errors import ConfigError, DataError
from densepath.evals.answering import Answerer, Asked, asked_of, check_room
from densepath.evals.generation import Decoding, decoding_name
from densepath.evals.verifiers import get_verifier
from densepath.judging.identity import verifier_inputs
from densepath.models.identity import model_identity
from densepath.models.load import load_frozen, load_tokenizer, model_context
from densepath.progress import StageProgress
from densepath.records.arm import TRUNCATED_WATCH
from densepath.records.benchmark import Answer, BenchmarkRows, Question
from densepath.rewards.vllm_policy import load_vllm_policies
from densepath.scoring.parts import Parts
from densepath.scoring.tables import json_line
from densepath.terminal import Console, say, warn

WINDOW = 32
"""Prompts answered together: a kill loses one window at most."""
_FREE = ("dataset_name", "dataset_train_split", "device", "token_budget", "vllm_gpu_memory_utilization")
"""Arguments that decide no answer; the prompts themselves are compared."""


@dataclass(frozen=True)
class AnswerJob:
    """What is asked of which model.

    Attributes:
        arguments: the model, how it is loaded and how it answers.
        asked: the prompts.
        source: where they are from, for messages.
        title: of the progress bar.
        verifier: checks each answer; None for none.
        layout: in which the answers are written, as `--output_format` names it.
    """

    arguments: AnswerArguments
    asked: Sequence[Asked]
    source: str
    title: str = "generate"
    verifier: str | None = None
    layout: str = "rows"

    @property
    def windows(self) -> int:
        """Number of windows."""
        return -(-len(self.asked) // WINDOW)

    def window(self, number: int) -> Sequence[Asked]:
        """The prompts of one window."""
        return self.asked[number * WINDOW : (number + 1) * WINDOW]

    @property
    def generator(self) -> str:
        """What the answers' rows call the model."""
        return self.arguments.generator or generator_name(self.arguments.model_name_or_path)

    def description(self, chat_template: Any) -> dict[str, Any]:
        """All that decides the file of the answers."""
        shared = {name: getattr(self.arguments, name) for name in AnswerArguments.__dataclass_fields__}
        asked = canonical_json([asdict(each) for each in self.asked])
        return {
            "settings": {key: value for key, value in shared.items() if key not in _FREE}
            | {"verifier": self.verifier},
            "model": model_identity(self.arguments.model_name_or_path),
            "chat template": _digest(canonical_json(chat_template or "")),
            "prompts": f"{len(self.asked)} prompts, {_digest(asked)}",
            "layout": self.layout,
            **verifier_inputs(self.verifier),
        }


def run_generate_command(arguments: GenerateArguments, console: Console) -> Path:
    """Write a model's answers, and say how long they are; goes on after a kill.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    questions: tuple[Question, ...] = ()
    if arguments.benchmark is not None:
        found = read_benchmark(arguments.benchmark)
        for note in found.notes:
            warn(console, note)
        questions, source = found.questions[: arguments.max_samples], found.source
        asked = benchmark_prompts(found, arguments.temperature, arguments.max_samples)
    else:
        source = arguments.dataset_name
        asked = file_prompts(arguments, arguments.max_samples, arguments.temperature or 0.0, draw=False)
    check_answers_file(arguments.output_file, source, arguments.dataset_train_split)
    job = AnswerJob(arguments, asked, source, layout=arguments.output_format)
    temperatures = ", ".join(decoding_name(each) for each in sorted({each.temperature for each in asked}))
    say(console, f"{job.generator} answers {len(asked)} prompts of {source}: {temperatures}")

    def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        answers = [answer_of(row) for row in rows] if questions else []
        path.write_bytes(_in_format(job.layout, questions, answers, rows))

    path = Path(arguments.output_file)
    result = write_answers(job, path, console, conclude=lengths, write=write)
    count = result["answers"]
    mean, cut = result["tokens"] / count, result["truncated"] / count
    say(console, lengths_text(count, mean, cut, arguments.max_completion_length))
    say(console, f"answers: {path.resolve()}")
    return path


def check_answers_file(output: str, source: str, split: str) -> None:
    """Refuse an output that is a file of the prompts, with a `UsageError`."""
    check_outputs({"output_file": output}, {"the prompts": rows_read(source, split)})


def lengths_text(answers: int, tokens: float, cut: float, limit: int) -> str:
    """How long answers are, and what to do where more than a few were cut off.

    Args:
        answers: how many there are.
        tokens: of one on average.
        cut: share of them without EOS.
        limit: tokens of the longest that was let.

    >>> lengths_text(12, 64.0, 1.0, 64)
    '12 answers, 64.0 tokens on average, 100.0 % cut off at max_completion_length=64: raise it'
    """
    remedy = ": raise it" if cut > TRUNCATED_WATCH else ""
    text = f"{answers} answers, {tokens:.1f} tokens on average, {100 * cut:.1f} % cut off"
    return f"{text} at max_completion_length={limit}{remedy}"


def write_answers(
    job: AnswerJob,
    output: Path,
    console: Console,
    *,
    conclude: Callable[[Sequence[Mapping[str, Any]]], Any],
    write: Callable[[Path, Sequence[Mapping[str, Any]]], object] | None = None,
) -> Any:
    """Ask what was not asked yet, and write the answers once all are there.

    Args:
        job: what is asked.
        output: the file of the answers; its parts lie beside it until then.
        console: where progress goes.
        conclude: makes of the rows what the manifest keeps as the job's result.
        write: writes the rows at a path; None: one JSON object a line.

    Returns:
        The result.

    Raises:
        DensepathError: a model or prompts that cannot be used, or an output of another job.
    """
    arguments = job.arguments
    if arguments.num_generations > 1 and any(each.temperature == 0 for each in job.asked):
        raise ConfigError(
            f"num_generations={arguments.num_generations} at temperature 0: all would be the same; set temperature"
        )
    tokenizer = load_tokenizer(arguments.model_name_or_path, **arguments.tokenizer_options())
    context = model_context(arguments.model_name_or_path, arguments.trust_remote_code)
    check_room(job.asked, tokenizer, context, arguments.max_completion_length, job.source)
    parts, description = Parts(output), job.description(tokenizer.chat_template)
    if parts.open(description):
        say(console, f"{output} is there already: nothing to do")
        return parts.result
    with parts.lock("answers"):
        todo = [window for window in range(job.windows) if not parts.has(window)]
        if todo:
            _answer_windows(job, todo, tokenizer, parts, console)
        rows = parts.read_rows(job.windows)
        result = conclude(rows)
        put = write or (lambda path, rows: path.write_bytes(b"".join(map(json_line, rows))))
        parts.finish(description, result, lambda path: put(path, rows))
    return result


def _answer_windows(job: AnswerJob, todo: Sequence[int], tokenizer: Any, parts: Parts, console: Console) -> None:
    """Answer the windows that are not done."""
    arguments = job.arguments
    decoding = Decoding(
        temperature=0.0,
        max_completion_length=arguments.max_completion_length,
        num_generations=arguments.num_generations,
        seed=arguments.seed,
        token_budget=arguments.token_budget,
    )
    verifier = None if job.verifier is None else get_verifier(job.verifier)
    model = _loaded(arguments)
    answerer = Answerer(model, tokenizer, decoding, job.generator, verifier)
    turns = [arguments.num_generations * sum(1 + len(e.follow_ups) for e in job.window(w)) for w in range(job.windows)]
    with StageProgress(console, f"{job.title}: {job.generator}", sum(turns), "answer") as progress:
        progress.start_at(sum(turns) - sum(turns[window] for window in todo))
        for window in todo:
            try:
                rows = answerer.rows(job.window(window), progress.advance)
            except DataError as error:
                raise DataError(f"{job.source}, {error}") from error
            parts.write_rows(window, rows)
            progress.advance(0, tokens=sum(map(answer_length, rows)))


def _loaded(arguments: AnswerArguments) -> Any:
    """The model that answers, in the engine that was asked for."""
    if not arguments.use_vllm:
        return load_frozen(arguments, arguments.model_name_or_path, arguments.device)
    (policy,) = load_vllm_policies(
        [arguments.model_name_or_path],
        device=arguments.device,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
        gpu_memory_utilization=arguments.vllm_gpu_memory_utilization,
    )
    return policy


def answer_length(row: Mapping[str, Any]) -> int:
    """Tokens of a row's answer, EOS included; of all its turns."""
    return sum(len(turn["token_ids"]) for turn in row["sampled"])


def lengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Number of answers, their tokens together, and how many were cut off."""
    cut = sum(row["truncated"] for row in rows)
    return {"answers": len(rows), "tokens": sum(map(answer_length, rows)), "truncated": cut}


# --- what is asked ---------------------------------------------------------------------------------------------------


def file_prompts(
    arguments: AnswerArguments, limit: int | None, temperature: float, *, draw: bool
) -> tuple[Asked, ...]:
    """Prompts of a data set in the order of their rows.

    Args:
        arguments: `dataset_name`, its split, and the seed.
        limit: at most so many; None for all.
        temperature: at which they are answered.
        draw: whether the limit takes rows by the seed; else the first ones.
    """
    source, split = arguments.dataset_name, arguments.dataset_train_split
    if source.removeprefix(CONSTRAINED) == TEXT_TASKS:
        rows = load_rows(source, split, "prompts", limit=limit, seed=arguments.seed, tasks={"error_rate": 0.0})
        chosen = list(range(len(rows)))
    else:
        rows = load_rows(source, split, "prompts", limit=None, seed=None)
        chosen = sorted(row_order(len(rows), arguments.seed if draw else None, limit))
    stem = Path(source).stem
    return tuple(
        Asked(question_id(rows[index]) or f"{stem}-{index}", rows[index], index + 1, temperature) for index in chosen
    )


def benchmark_prompts(found: BenchmarkRows, temperature: float | None, limit: int | None) -> tuple[Asked, ...]:
    """Questions of a benchmark, the first ones; without a temperature each has that of its category, or is greedy."""

    def of(question: Question) -> float:
        own = found.benchmark.temperature(question.category)
        return temperature if temperature is not None else (own or 0.0)

    return tuple(asked_of(question, of(question)) for question in found.questions[:limit])


def generator_name(model: str) -> str:
    """What a model is called: its folder, or the one above where that is a run's `model`.

    >>> generator_name("runs/mine/dpr/model"), generator_name("org/Name-1B"), generator_name("sft/")
    ('dpr', 'Name-1B', 'sft')
    """
    names = [name for name in Path(model).parts if name != "model"]
    return names[-1] if names else model


# --- layouts ---------------------------------------------------------------------------------------------------------


def answer_of(row: Mapping[str, Any]) -> Answer:
    """What a row of answers says."""
    texts = row["text"]
    return Answer(row["id"], row["generator"], (texts,) if isinstance(texts, str) else tuple(texts), row["row"])


def _in_format(
    name: str, questions: Sequence[Question], answers: Sequence[Answer], rows: Sequence[Mapping[str, Any]]
) -> bytes:
    """The bytes of a file in that layout."""
    if name == "alpaca_eval":
        if several := next((each for each in questions if len(each.turns) > 1), None):
            raise DataError(f"row {several.row}: AlpacaEval's layout holds one turn; choose arena_hard or rows")
        return canonical_list(alpaca_eval_rows(questions, answers))
    if name != "rows":
        rows = arena_hard_rows(questions, answers, old=name == "arena_hard_v01")
    return b"".join(map(json_line, rows))


def canonical_list(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A JSON list of objects, one a line."""
    return b"[\n" + b",\n".join(json_line(row).rstrip(b"\n") for row in rows) + b"\n]\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
