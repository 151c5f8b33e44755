"""The record of `densepath diagnose` as a document: advice, previews with their intervals, the reward's histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from densepath import __version__
from densepath.report import parse
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
from densepath.report.words import Run, Words, interval, interval_text, number, share, short, verdict

HEADLINES = {
    "candidate": "Run DPR: reference {reference}, beta {beta:g}.",
    "none": "Keep the SFT model: do not run DPR on this.",
    "cannot_tell": "It cannot be told.",
    "train_on": "Train on first: SFT is not finished.",
}
_KINDS = {"candidate": "better", "none": "worse", "cannot_tell": "tie", "train_on": "tie"}
_NEXT = {
    "candidate": "densepath run with --reference {reference} --beta {beta:g}, and see whether DPR beats its control.",
    "none": "longer SFT or other demonstrations; then densepath diagnose again.",
    "cannot_tell": "more prompts or a verifier (--verifier); then densepath diagnose again.",
    "train_on": "more steps of SFT (--max_steps, or sft_max_steps of a run); then densepath diagnose again.",
}
_AGREEMENT = {
    "preference": ("accuracy", "preference pairs"),
    "verifier": ("AUROC", "right against wrong"),
    "altered": ("signal-to-noise", "altered numbers"),
    "samples": ("signal-to-noise", "SFT's own answers"),
}
_MEASURED = "Mean ± standard deviation, nats."
_OWN_SAMPLES = "dense reward of SFT's own samples, nats: mean ± standard deviation"


def headline(record: Mapping[str, Any]) -> str:
    """The decision in one sentence."""
    decision = record["decision"]
    text = HEADLINES[decision["answer"]].format(**decision)
    if decision["answer"] in ("cannot_tell", "train_on") and decision["reference"] is not None:
        text += f" The reference to try is {decision['reference']}."
    return text


def diagnosis_page(record: Mapping[str, Any]) -> Document:
    """The page; its JSON twin is the record."""
    record = parse.clean(record)
    advice = record["decision"]
    facts = {"run": record.get("run_dir"), "rows": record.get("dataset_name"), "prompts": record["prompts"]}
    facts["verifier"] = record["verifier"] or "none"
    sections = [
        Section("recommendation", "", _advice(record), link="Advice"),
    ]
    if record["sft"]:
        title = "Answers: SFT, and what DPR would converge to"
        sections.append(Section("answers", title, _answers(record), link="Answers"))
        sections.append(Section("reward", "The reward of SFT's own answers", _rewards(record), link="Reward"))
    agreement = _agreement_table(record)
    if agreement is not None:
        sections.append(Section("agreement", "Does the reward agree with what is known?", (agreement,)))
    if record["likelihoods"]:
        table = _likelihoods_table(record, caption="Negative log-likelihood, nats per token.")
        sections.append(Section("likelihood", "Held-out demonstrations", (table,)))
    return Document(
        brand="densepath diagnose",
        title=headline(record),
        heading="Will DPR help?",
        facts=tuple((name, str(value)) for name, value in facts.items()),
        sections=tuple(sections),
        footer=f"Written by densepath {__version__}. No model was trained for this page.",
        next=_NEXT[advice["answer"]].format(**advice),
    )


def diagnosis_parts(record: Mapping[str, Any]) -> tuple[Part, ...]:
    """For a terminal of 80 columns: the tables, then the recommendation."""
    agreement = _agreement_table(record)
    title = "negative log-likelihood of held-out demonstrations, nats per token"
    likelihoods = _likelihoods_table(record, title=title) if record["likelihoods"] else None
    answered = [_brief_answers(record), _rewards_table(record, title=_OWN_SAMPLES)] if record["sft"] else []
    return present([*answered, agreement, likelihoods, *_advice(record)])


def _advice(record: Mapping[str, Any]) -> tuple[Part, ...]:
    advice = record["decision"]
    found = Notice(headline(record), tuple(advice["reasons"]), _KINDS[advice["answer"]], headline=True)
    return present(
        [found, Notice("Be wary of", tuple(advice["warnings"]), "warnings") if advice["warnings"] else None]
    )


# --- Answers ---------------------------------------------------------------------------------------------------------


def _answers(record: Mapping[str, Any]) -> tuple[Part, ...]:
    words = (
        "Previews are contrastive decoding against a reference, with strength 1/β. They must beat SFT at its best "
        "decoding: one that wins at temperature 1 alone has only sharpened it."
    )
    plots = _lead_plots(record) if record["verifier"] is not None else ()
    return present([Paragraph(words, "muted"), Beside(plots) if plots else None, _answers_table(record)])


def _answers_table(record: Mapping[str, Any]) -> Table:
    judged = record["verifier"] is not None
    figures = [Column("length", "tokens", numeric=True), Column("cut off", numeric=True), Column("KL", numeric=True)]
    judgement = [Column("right", numeric=True), Column("lead over SFT's best", numeric=True), Column("verdict")]
    rows = []
    for answers in (*record["sft"], *record["candidates"]):
        cells: list[Words] = [_label(answers)]
        if judged:
            lead = answers["against_best"]
            cells.append(interval(parse.estimate(answers["value"])))
            cells.append(interval(parse.estimate(lead and lead["difference"]), signed=True))
            cells.append("" if lead is None else verdict(lead["verdict"]))
        cells += [interval(parse.estimate(answers["length"]), 1), share(answers["truncated"])]
        cells.append(interval(parse.estimate(answers["kl"]), 2))
        rows.append(Row(tuple(cells), chosen=_advised(answers, record["decision"])))
    caption = (
        "95 % intervals over prompts, before correction; the verdict is after Holm's correction for all candidates. "
        "KL to SFT in nats per completion, at temperature 1."
    )
    return Table((Column("answers"), *(judgement if judged else []), *figures), tuple(rows), caption=caption)


def _brief_answers(record: Mapping[str, Any]) -> Table:
    """A row for SFT and for each preview; the lead is that of its better decoding, the verdict corrected for all."""
    judged = record["verifier"] is not None
    temperatures = [answers["temperature"] for answers in record["sft"]] if judged else []
    names = [
        *map(_brief_decoding, temperatures),
        *(("lead on SFT's best", "") if judged else ()),
        "tokens",
        "cut",
        "KL",
    ]
    prompts = record["prompts"]
    what = f"share of {prompts} validation prompts answered rightly" if judged else f"{prompts} validation prompts"
    together: dict[tuple[Any, float], list[Mapping[str, Any]]] = {}
    for answers in (*record["sft"], *record["candidates"]):
        together.setdefault((answers["reference"], answers["alpha"]), []).append(answers)
    rows = []
    for (reference, alpha), row in together.items():
        found = {answers["temperature"]: answers for answers in row}
        at_one = found[max(found)]
        cells: list[Words] = ["SFT", "-"] if reference is None else [reference, f"{1 / alpha:g}"]
        cells += ["-" if t not in found else short(number(found[t]["value"]["mean"])) for t in temperatures]
        cells += _brief_lead(row) if judged else []
        cells += [number(at_one["length"]["mean"], ".1f"), f"{at_one['truncated']:.0%}"]
        cells.append("-" if at_one["kl"] is None else number(at_one["kl"]["mean"], ".2f"))
        rows.append(Row(tuple(cells)))
    columns = (Column("ref."), *(Column(name, numeric=True) for name in ("beta", *names)))
    return Table(columns, tuple(rows), title=f"{what}: SFT, and previews by reference")


def _brief_lead(row: Sequence[Mapping[str, Any]]) -> list[Words]:
    """`+.20 [+.15, +.25]` and the verdict, of the better decoding."""
    leads = [answers["against_best"] for answers in row if answers["against_best"] is not None]
    if not leads:
        return ["-", ""]
    best = max(leads, key=lambda lead: float(lead["difference"]["mean"]))
    return [short(interval(parse.estimate(best["difference"]), 2, signed=True)), best["verdict"]]


def _decoding(temperature: float) -> str:
    """`greedy` or `temperature 0.5`."""
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def _brief_decoding(temperature: float) -> str:
    return "greedy" if temperature == 0 else short(f"T={temperature:g}")


def _label(answers: Mapping[str, Any]) -> str:
    who = (
        answers["policy"] or "SFT"
        if answers["reference"] is None
        else f"reference {answers['reference']}, β {1 / answers['alpha']:g}"
    )
    return f"{who}, {_decoding(answers['temperature']).replace('temperature', 'T =')}"


def _advised(answers: Mapping[str, Any], advice: Mapping[str, Any]) -> bool:
    return (
        answers["reference"] is not None
        and answers["reference"] == advice["reference"]
        and advice["beta"] is not None
        and f"{1 / answers['alpha']:g}" == f"{advice['beta']:g}"
    )


def _lead_plots(record: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The number that decides, of every candidate at each temperature, on a common axis."""
    leads = [one["against_best"]["difference"] for one in record["candidates"]]
    ends = [0.0, *(lead[end] for lead in leads for end in ("low", "high"))]
    pad = 0.05 * (max(ends) - min(ends) or 1.0)
    found = []
    for temperature in dict.fromkeys(one["temperature"] for one in record["candidates"]):
        rows = [
            Whisker(_label(one).rpartition(", ")[0], estimate, _arm(one, record["decision"]))
            for one in record["candidates"]
            if one["temperature"] == temperature and (estimate := parse.estimate(one["against_best"]["difference"]))
        ]
        xlabel = f"lead over SFT at its best: {record['verifier']}, {record['prompts']} prompts"
        drawing = Whiskers(tuple(rows), xlabel, zero=0.0, limits=(min(ends) - pad, max(ends) + pad))
        found.append(Figure(_decoding(temperature).capitalize(), drawing, "Dashed: no difference to SFT at its best"))
    return tuple(found)


def _arm(answers: Mapping[str, Any], advice: Mapping[str, Any]) -> str:
    """SFT and the advised preview have colours of their own."""
    return "sft" if answers["reference"] is None else "dpr" if _advised(answers, advice) else ""


# --- The reward ------------------------------------------------------------------------------------------------------


def _rewards(record: Mapping[str, Any]) -> tuple[Part, ...]:
    words = (
        "log π_SFT − log π_ref, sampled at temperature 1. "
        "Its size is no evidence; whether it tells right from wrong is."
    )
    figures = []
    for reward in record["rewards"]:
        edges, counts = reward["histogram"]
        drawing = Histogram(tuple(edges), tuple(counts), "nats per completion")
        figures.append(Figure(f"Reference {reward['reference']}", drawing, "Completions by their summed reward"))
    return (Paragraph(words, "muted"), Beside(tuple(figures), "panels"), _rewards_table(record, caption=_MEASURED))


def _spread(value: Mapping[str, Any], form: str) -> str:
    return f"{number(value['mean'], form)} ± {number(value['sd'], '.2f')}"


def _rewards_table(record: Mapping[str, Any], *, title: str = "", caption: str = "") -> Table:
    names = ("per token", "below 0", "per completion", "corr. with length")
    rows = []
    for reward in record["rewards"]:
        token, completion = reward["per_token"], reward["per_completion"]
        cells = (reward["reference"], _spread(token, "+.3f"), f"{token['negative']:.0%}", _spread(completion, "+.2f"))
        rows.append(Row((*cells, number(reward["length_correlation"], "+.2f"))))
    return Table((Column("reference"), *(Column(name, numeric=True) for name in names)), tuple(rows), title, caption)


def _agreement_table(record: Mapping[str, Any]) -> Table | None:
    """One row a reference, one column a criterion; the best of each column is marked."""
    found: dict[str, dict[str, Any]] = {}
    for one in record["agreement"]:
        found.setdefault(one["criterion"], {})[one["reference"]] = one["value"]
    if not found:
        return None
    best = {name: max(values, key=lambda each: float(values[each]["mean"])) for name, values in found.items()}
    rows = []
    for reference in dict.fromkeys(one["reference"] for one in record["agreement"]):
        cells: list[Words] = [reference]
        for name, values in found.items():
            text = interval_text(parse.estimate(values[reference]), 2)
            chosen = best[name] == reference
            cells.append(Run(text + (" *" if chosen else "  "), "bold" if chosen else ""))
        rows.append(Row(tuple(cells)))
    columns = (Column("reference"), *(Column(*_AGREEMENT[name], numeric=True) for name in found))
    title = "agreement of the mean reward with what is known; chance is 0.5, of a signal-to-noise 0"
    return Table(columns, tuple(rows), title=title)


def _likelihoods_table(record: Mapping[str, Any], *, title: str = "", caption: str = "") -> Table:
    columns = (Column("model"), Column("NLL", numeric=True), Column("less SFT's", numeric=True))
    rows = []
    for one in record["likelihoods"]:
        nll = parse.estimate(one["nll"])
        value = interval(nll) if caption else number(nll.mean if nll else None)
        rows.append(Row((_model(one), value, interval(parse.estimate(one["change"]), signed=True))))
    return Table(columns, tuple(rows), title, caption)


def _model(one: Mapping[str, Any]) -> str:
    """`SFT`, `reference 0.5` or `preview 0.5, beta 1`."""
    if one["reference"] is None:
        return "SFT"
    if one["alpha"] is None:
        return f"reference {one['reference']}"
    return f"preview {one['reference']}, beta {1 / one['alpha']:g}"
