"""What `densepath judge-eval` found, in a terminal and as a page."""

from __future__ import annotations

from densepath.records.estimates import Interval
from densepath.records.judge_eval import JudgeEvaluation
from densepath.report.document import Column, Document, Notice, Paragraph, Part, Row, Section, Table, present
from densepath.report.next_step import after_judge_eval
from densepath.report.reward_eval import figure_parts
from densepath.report.words import interval, number, short


def judge_eval_parts(found: JudgeEvaluation) -> tuple[Part, ...]:
    """The headline or why there is none, a table of each figure, and what the judge goes by."""
    return present([answer(found), *figure_parts(found.figures), _leanings(found)])


def answer(found: JudgeEvaluation) -> Notice:
    """What the judge is worth."""
    if found.headline is not None:
        return Notice(found.headline, (f"Better than chance (p = {number(found.p)}).",), "better", headline=True)
    value = found.figures[0].measures[0].value
    words = {"worse": "worse than chance"}.get(found.verdict.value, "no better than chance, as far as can be told")
    return Notice(
        "No headline: this judge is " + words,
        (
            f"It agrees with {short(interval(value))} of {found.rows} labels (p = {number(found.p)}). "
            "No figure that it gives elsewhere means anything.",
        ),
        "unknown",
        headline=True,
    )


def _leanings(found: JudgeEvaluation) -> Table | None:
    """Position and noise; None where neither is known."""
    rows = []
    if found.position is not None:
        rows.append(
            Row(("follows the place: the two orders prefer the same one", _share(found.position.follows_place)))
        )
        rows.append(Row(("mean preference for the first place (.5: none)", _share(found.position.first_place))))
    if found.noise is not None:
        noise = found.noise
        rows.append(Row((f"error from the judge's own chance ({noise.repeats} repeats)", number(noise.of_judge))))
        rows.append(Row(("error from the pairs", number(noise.of_prompts))))
    if found.invalid:
        rows.append(Row(("judgements without a verdict", str(found.invalid))))
    return Table((Column("what the judge goes by"), Column("value", numeric=True)), tuple(rows)) if rows else None


def _share(value: Interval) -> str:
    return short(interval(value))


def judge_eval_page(found: JudgeEvaluation, source: str) -> Document:
    """The page."""
    notice, *parts = judge_eval_parts(found)
    aside = f"{len(found.set_aside)} rows set aside" if found.set_aside else ""
    return Document(
        brand="densepath judge-eval",
        title=found.judge,
        facts=tuple((name, value) for name, value in (("pairs", source), ("left out", aside)) if value),
        sections=(
            Section("summary", "", (notice,), link="Summary"),
            Section("figures", "Figures", (*parts, Paragraph(found.interval, "muted"))),
        ),
        footer="Written by densepath judge-eval; the JSON beside it holds the same data.",
        next=after_judge_eval(found, source),
    )
