"""What a benchmark asks, what was answered, and how the benchmark has its answers made and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from densepath.records.brief import brief


@dataclass(frozen=True)
class Question:
    """One prompt of a benchmark.

    Attributes:
        id: as the benchmark names it; one question has it.
        category: as the benchmark sorts its prompts; empty where it does not.
        turns: what the user says, one text a turn; the model answers each.
        row: its number in the file, from 1.
        references: right answers by turn, None for a turn without one; None where the question has none at all.
        context: what stands before the first turn, as (role, text): a system turn, or a conversation.
        index: its place among the rows of all files, from 0.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    row: int
    references: tuple[str | None, ...] | None = None
    context: tuple[tuple[str, str], ...] = ()
    index: int = 0

    __repr__ = brief

    def conversation(self, answers: Sequence[str] = ()) -> list[dict[str, str]]:
        """The turns up to the one that is answered next, in the form that chat templates take.

        Args:
            answers: to the turns before it, one a turn.
        """
        said = [{"role": role, "content": text} for role, text in self.context]
        for turn, answer in zip(self.turns, answers, strict=False):
            said += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
        if len(answers) < len(self.turns):
            said.append({"role": "user", "content": self.turns[len(answers)]})
        return said


@dataclass(frozen=True)
class Answer:
    """What one model answered to one question.

    Attributes:
        id: of the question.
        generator: name of the model.
        turns: its answer to each turn.
        row: its number in the file, from 1.
        prompt: what the user says, one text a turn, where the file repeats it; None else.
    """

    id: str
    generator: str
    turns: tuple[str, ...]
    row: int
    prompt: tuple[str, ...] | None = None

    __repr__ = brief


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark has its answers made and judged. A key "" of a mapping stands for every other category.

    Attributes:
        name: as `--benchmark` takes it.
        prompts: how many the published one has; 0 for a file of one's own.
        turns: of each question; 0 where each has its own.
        mode: "pair" judges an answer against the baseline's, "single" grades it alone, where the user does not say.
        table: the statistics that it publishes: "alpaca_eval", "arena_hard", "mt_bench", or "win_rate", ours.
        templates: mode -> name of the judge's prompt template.
        baselines: category -> generator that the others are compared with; empty where it has none.
        temperatures: category -> temperature of the answers; empty where the benchmark leaves it to each model.
        hub: repository and file of its questions on the hub; None where there is none.
        referenced: categories whose answers are judged beside a right one; empty for all that have one.
        left_out: content hashes of prompts that are passed over, since models were trained on them.
    """

    name: str
    prompts: int = 0
    turns: int = 1
    mode: str = "pair"
    table: str = "win_rate"
    templates: Mapping[str, str] = field(default_factory=lambda: {"pair": "pair", "single": "grade"})
    baselines: Mapping[str, str] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    hub: tuple[str, str] | None = None
    referenced: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    __repr__ = brief

    def shows_reference(self, question: Question) -> bool:
        """Whether a right answer to that question is shown to the judge."""
        return not self.referenced or question.category in self.referenced

    def baseline(self, category: str) -> str | None:
        """The generator to compare with; None where the benchmark has none."""
        return self.baselines.get(category, self.baselines.get(""))

    def temperature(self, category: str) -> float | None:
        """Of the answers; None where it is left to each model."""
        return self.temperatures.get(category, self.temperatures.get(""))


@dataclass(frozen=True)
class BenchmarkRows:
    """A benchmark as it was read.

    Attributes:
        benchmark: how its answers are made and judged.
        source: where its questions are.
        questions: in the order of the file.
        answers: that came with them, one generator after the other in any order: those of the baseline.
        notes: what a reader of the figures must know: prompts left out, a number of prompts that is not the published.
    """

    benchmark: Benchmark
    source: str
    questions: tuple[Question, ...]
    answers: tuple[Answer, ...] = ()
    notes: tuple[str, ...] = ()
