"""The record of `densepath diagnose` as a document: advice, previews with their intervals, the reward's histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath import __version__
from densepath.records.choice import Agreement, Answer, Answers, Criterion, Decision, Findings, Likelihood, Spread
from densepath.records.estimates import Interval
from densepath.report.document import (
    Beside,
    Column,
    Document,
    Figure,
    Notice,
    Paragraph,
    Part,
    Row,
    Section,
    Table,
    present,
)
from densepath.report.drawings import Histogram, Whisker, Whiskers
from densepath.report.next_step import after_diagnosis
from densepath.report.parse import clean
from densepath.report.words import Run, Words, interval, interval_text, nats, number, share, short, verdict

HEADLINES = {
    Answer.CANDIDATE: "Run DPR: reference {reference}{strength}.",
    Answer.NONE: "Keep the SFT model: do not run DPR on this.",
    Answer.CANNOT_TELL: "It cannot be told.",
    Answer.TRAIN_ON: "Train on first: SFT is not finished.",
}
_KINDS = {Answer.CANDIDATE: "better", Answer.NONE: "worse", Answer.CANNOT_TELL: "tie", Answer.TRAIN_ON: "tie"}
_AGREEMENT = {
    Criterion.PREFERENCE: ("accuracy", "preference pairs"),
    Criterion.VERIFIER: ("AUROC", "right against wrong"),
    Criterion.ALTERED: ("signal-to-noise", "altered numbers"),
    Criterion.SAMPLES: ("signal-to-noise", "SFT's own answers"),
}
_HEALTH = (
    "Negative log-likelihood, nats per token: a health check, which favours what imitates and says nothing of answers."
)
_MEASURED = "Mean ± standard deviation, nats."
_OWN_SAMPLES = "dense reward of SFT's own samples, nats: mean ± standard deviation"


def headline(decision: Decision) -> str:
    """The decision in one sentence."""
    capped = ", with the capped reward" if decision.capped else ""
    strength = capped or ("" if decision.beta is None else f", beta {decision.beta:g}")
    text = HEADLINES[decision.answer].format(reference=decision.reference, strength=strength)
    if decision.answer in (Answer.CANNOT_TELL, Answer.TRAIN_ON) and decision.reference is not None:
        text += f" The reference to try is {decision.reference}{capped}."
    return text


def diagnosis_page(
    found: Findings,
    decision: Decision,
    run_dir: str,
    rows: str | Path,
    recipe: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Document:
    """The page.

    Args:
        found: what was measured.
        decision: what follows.
        run_dir: folder of the SFT run.
        rows: name of the validation rows.
        recipe: what SFT was made with, and its model as `sft`, for the command to type.
        asked: what `after_diagnosis` is told of the check and the rows, for the same.
    """
    facts = {"run": run_dir, "rows": rows, "prompts": found.prompts, "verifier": found.verifier or "none"}
    sections = [Section("recommendation", "", _advice(decision), link="Advice")]
    if found.sft:
        title = "Answers: SFT, and what DPR would converge to"
        sections.append(Section("answers", title, _answers(found, decision), link="Answers"))
        sections.append(Section("reward", "The reward of SFT's own answers", _rewards(found), link="Reward"))
    agreement = _agreement_table(found.agreement)
    if agreement is not None:
        sections.append(Section("agreement", "Does the reward agree with what is known?", (agreement,)))
    if found.likelihoods:
        table = _likelihoods_table(found.likelihoods, caption=_HEALTH)
        sections.append(Section("likelihood", "Held-out demonstrations", (table,)))
    return Document(
        brand="densepath diagnose",
        title=headline(decision),
        heading="Will DPR help?",
        facts=tuple((name, clean(str(value))) for name, value in facts.items()),
        sections=tuple(sections),
        footer=f"Written by densepath {__version__}. No model was trained for this page.",
        next=after_diagnosis(decision, run_dir, recipe or {}, asked or {}, found.prompts),
    )


def diagnosis_parts(found: Findings, decision: Decision) -> tuple[Part, ...]:
    """For a terminal of 80 columns: the tables, then the recommendation."""
    title = "negative log-likelihood of held-out demonstrations, nats per token"
    likelihoods = _likelihoods_table(found.likelihoods, title=title) if found.likelihoods else None
    answered = [_brief_answers(found), _rewards_table(found, title=_OWN_SAMPLES)] if found.sft else []
    return present([*answered, _agreement_table(found.agreement), likelihoods, *_advice(decision)])


def _advice(decision: Decision) -> tuple[Part, ...]:
    found = Notice(headline(decision), decision.reasons, _KINDS[decision.answer], headline=True)
    return present([found, Notice("Be wary of", decision.warnings, "warnings") if decision.warnings else None])


# --- Answers ---------------------------------------------------------------------------------------------------------


def _answers(findings: Findings, decision: Decision) -> tuple[Part, ...]:
    words = (
        "Previews are contrastive decoding against a reference, with strength 1/β. They must beat SFT at its best "
        "decoding: one that wins at temperature 1 alone has only sharpened it."
    )
    plots = _lead_plots(findings, decision) if findings.verifier is not None else ()
    return present([Paragraph(words, "muted"), Beside(plots) if plots else None, _answers_table(findings, decision)])


def _answers_table(findings: Findings, decision: Decision) -> Table:
    judged = findings.verifier is not None
    figures = [Column("length", "tokens", numeric=True), Column("cut off", numeric=True), Column("KL", numeric=True)]
    judgement = [Column("right", numeric=True), Column("lead over SFT's best", numeric=True), Column("verdict")]
    rows = []
    for answers in (*findings.sft, *findings.candidates):
        cells: list[Words] = [_label(answers)]
        if judged:
            lead = answers.against_best
            cells.append(interval(answers.value))
            cells.append(interval(None if lead is None else lead.difference, signed=True))
            cells.append("" if lead is None else verdict(lead.verdict.value))
        cells += [interval(answers.length, 1), share(answers.truncated)]
        cells.append(interval(answers.kl, 2))
        rows.append(Row(tuple(cells), chosen=_advised(answers, decision)))
    caption = (
        "95 % intervals over prompts, before correction; the verdict is after Holm's correction for all candidates. "
        "KL to SFT in nats per completion, at temperature 1."
    )
    return Table((Column("answers"), *(judgement if judged else []), *figures), tuple(rows), caption=caption)


def _brief_answers(findings: Findings) -> Table:
    """A row for SFT and for each preview; the lead is that of its better decoding, the verdict corrected for all."""
    judged = findings.verifier is not None
    temperatures = [answers.temperature for answers in findings.sft] if judged else []
    names = [
        *map(_brief_decoding, temperatures),
        *(("lead on SFT's best", "") if judged else ()),
        "tokens",
        "cut",
        "KL",
    ]
    prompts = findings.prompts
    what = f"share of {prompts} validation prompts answered rightly" if judged else f"{prompts} validation prompts"
    together: dict[tuple[str | None, float, float], list[Answers]] = {}
    for answers in (*findings.sft, *findings.candidates):
        together.setdefault((answers.reference, answers.alpha, answers.taken), []).append(answers)
    rows = []
    for (reference, *_), row in together.items():
        found = {answers.temperature: answers for answers in row}
        at_one = found[max(found)]
        strength = "capped" if at_one.capped else f"{at_one.beta:g}" if reference else "-"
        cells: list[Words] = [reference or "SFT", strength]
        cells += ["-" if t not in found else _right(found[t]) for t in temperatures]
        cells += _brief_lead(row) if judged else []
        cells += [number(at_one.length.mean, ".1f"), f"{at_one.truncated:.0%}"]
        cells.append("-" if at_one.kl is None else number(at_one.kl.mean, ".2f"))
        rows.append(Row(tuple(cells)))
    columns = (Column("ref."), *(Column(name, numeric=True) for name in ("beta", *names)))
    return Table(columns, tuple(rows), title=f"{what}: SFT, and previews by reference")


def _right(answers: Answers) -> str:
    return short(number(None if answers.value is None else answers.value.mean))


def _brief_lead(row: Sequence[Answers]) -> list[Words]:
    """`+.20 [+.15, +.25]` and the verdict, of the better decoding."""
    leads = [answers.against_best for answers in row if answers.against_best is not None]
    if not leads:
        return ["-", ""]
    best = max(leads, key=lambda lead: lead.difference.mean)
    return [short(interval(best.difference, 2, signed=True)), best.verdict.value]


def _brief_decoding(temperature: float) -> str:
    return "greedy" if temperature == 0 else short(f"T={temperature:g}")


def _label(answers: Answers) -> str:
    return (
        answers.label.replace(", beta ", ", β ").replace("temperature", "T =")
        if answers.policy is None
        else answers.label
    )


def _advised(answers: Answers, decision: Decision) -> bool:
    return (
        answers.reference is not None
        and answers.reference == decision.reference
        and decision.beta is not None
        and (f"{answers.beta:g}", answers.capped) == (f"{decision.beta:g}", decision.capped)
    )


def _lead_plots(findings: Findings, decision: Decision) -> tuple[Figure, ...]:
    """The number that decides, of every candidate at each temperature, on a common axis."""
    leads = [(one, one.against_best.difference) for one in findings.candidates if one.against_best is not None]
    ends = [0.0, *(end for _, lead in leads for end in (lead.low, lead.high))]
    pad = 0.05 * (max(ends) - min(ends) or 1.0)
    xlabel = f"lead over SFT at its best: {findings.verifier}, {findings.prompts} prompts"
    figures = []
    for decoding in dict.fromkeys(one.decoding for one, _ in leads):
        rows = tuple(
            Whisker(_label(one).rpartition(", ")[0], lead, "dpr" if _advised(one, decision) else "")
            for one, lead in leads
            if one.decoding == decoding
        )
        drawing = Whiskers(rows, xlabel, zero=0.0, limits=(min(ends) - pad, max(ends) + pad))
        figures.append(Figure(decoding.capitalize(), drawing, "Dashed: no difference to SFT at its best"))
    return tuple(figures)


# --- The reward ------------------------------------------------------------------------------------------------------


def _rewards(findings: Findings) -> tuple[Part, ...]:
    words = (
        "log π_SFT − log π_ref, sampled at temperature 1. "
        "Its size is no evidence; whether it tells right from wrong is."
    )
    figures = []
    for reward in findings.rewards:
        edges, counts = reward.histogram
        drawing = Histogram(edges, counts, "nats per completion")
        figures.append(Figure(f"Reference {reward.reference}", drawing, "Completions by their summed reward"))
    return (Paragraph(words, "muted"), Beside(tuple(figures), "panels"), _rewards_table(findings, caption=_MEASURED))


def _spread(value: Spread, form: str) -> str:
    return f"{nats(value.mean, form)} ± {nats(value.sd, '.2f')}"


def _rewards_table(findings: Findings, *, title: str = "", caption: str = "") -> Table:
    names = ("per token", "below 0", "per completion", "corr. with length")
    rows = []
    for reward in findings.rewards:
        token, completion = reward.per_token, reward.per_completion
        cells = (reward.reference, _spread(token, "+.3f"), f"{token.negative:.0%}", _spread(completion, "+.2f"))
        rows.append(Row((*cells, number(reward.length_correlation, "+.2f"))))
    return Table((Column("reference"), *(Column(name, numeric=True) for name in names)), tuple(rows), title, caption)


def _agreement_table(agreement: Sequence[Agreement]) -> Table | None:
    """One row a reference, one column a criterion; the best of each column is marked."""
    found: dict[Criterion, dict[str, Interval]] = {}
    for one in agreement:
        found.setdefault(one.criterion, {})[one.reference] = one.value
    if not found:
        return None
    best = {name: max(values, key=lambda each: values[each].mean) for name, values in found.items()}
    rows = []
    for reference in dict.fromkeys(one.reference for one in agreement):
        cells: list[Words] = [reference]
        for name, values in found.items():
            text = interval_text(values[reference], 2)
            chosen = best[name] == reference
            cells.append(Run(text + (" *" if chosen else "  "), "bold" if chosen else ""))
        rows.append(Row(tuple(cells)))
    columns = (Column("reference"), *(Column(*_AGREEMENT[name], numeric=True) for name in found))
    title = "agreement of the mean reward with what is known; chance is 0.5, of a signal-to-noise 0"
    return Table(columns, tuple(rows), title=title)


def _likelihoods_table(likelihoods: Sequence[Likelihood], *, title: str = "", caption: str = "") -> Table:
    columns = (Column("model"), Column("NLL", numeric=True), Column("less SFT's", numeric=True))
    rows = []
    for one in likelihoods:
        value = interval(one.nll) if caption else number(one.nll.mean)
        rows.append(Row((_model(one), value, interval(one.change, signed=True))))
    return Table(columns, tuple(rows), title, caption)


def _model(one: Likelihood) -> str:
    """`SFT`, `reference 0.5` or `preview 0.5, beta 1`."""
    if one.reference is None:
        return "SFT"
    if one.alpha is None:
        return f"reference {one.reference}"
    return f"preview {one.reference}, beta {1 / one.alpha:g}"
