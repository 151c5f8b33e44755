"""The answer in plain words, and what to be wary of: computed from the numbers, never from hope."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.report.records import Curve, PairedRow, Results, Selection, Verdict
from densepath.report.words import interval_text

KL_WATCH = 1.5
"""Nats per completion: most collapses of the prototype came above it (one came at 0.4). Ours."""

TRUNCATED_WATCH = 0.05
LENGTH_WATCH = 1.3
NLL_WATCH = 0.1
"""Share cut off; length over SFT's; rise of held-out NLL in nats per token. Ours: they flag, they do not judge."""

_WORDS = {"better": "better", "worse": "worse", "tie": "no difference shown"}


def verdict(results: Results | None, selection: Selection | None) -> Verdict:
    """What the paired comparisons of the main arm (DPR where there is one) say together."""
    none_helps = selection is not None and selection.chosen_reference is None and bool(selection.rows)
    if results is None or not results.paired:
        if none_helps:
            return Verdict("none-helps", "No candidate reference beat SFT on validation, so none was chosen.")
        if results is None:
            return Verdict("unknown", "Not evaluated: this run says nothing yet about which model is better.")
        return Verdict("unknown", "No paired comparison was made: the intervals below are per arm only.")
    main = "dpr" if any(row.arm == "dpr" for row in results.paired) else results.paired[0].arm
    every = [row for row in results.paired if row.arm == main]
    rows = [row for row in every if row.primary] or every
    details = tuple(_sentence(row, results) for row in rows)
    kind, headline = _headline(results.label(main), rows, results)
    if none_helps:
        details += ("No candidate reference beat SFT on validation.",)
    return Verdict(kind, headline, details)


def _headline(label: str, rows: Sequence[PairedRow], results: Results) -> tuple[str, str]:
    counts = {word: sum(row.verdict == word for row in rows) for word in _WORDS}
    name = results.metric.name
    others = list(dict.fromkeys(results.label(row.against) for row in rows))
    against = _join(others)
    if counts["better"] == len(rows):
        return "better", f"{label} does better than {against} on {name}."
    if counts["worse"] == len(rows):
        return "worse", f"{label} does worse than {against} on {name}."
    if counts["tie"] == len(rows):
        return "tie", f"No difference shown between {label} and {against} on {name}."
    verbs = {"better": "does better in", "worse": "does worse in", "tie": "shows no difference in"}
    said = [f"{verbs[word]} {count}" for word, count in counts.items() if count]
    unknown = len(rows) - sum(counts.values())
    said += [f"is undecided in {unknown}"] if unknown else []
    if unknown == len(rows):
        return "unknown", f"The comparisons of {label} on {name} came to no verdict."
    return "mixed", f"Mixed on {name}: of {len(rows)} comparisons, {label} {_join(said)}."


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _sentence(row: PairedRow, results: Results) -> str:
    direction = "" if results.metric.higher_is_better else " (lower is better)"
    change = interval_text(row.difference, signed=True, missing="an unknown amount")
    words = _WORDS.get(row.verdict, "undecided")
    return (
        f"{results.label(row.arm)} against {results.label(row.against)}, {row.decoding}: {words}; "
        f"{results.metric.name} changes by {change}{direction}."
    )


def alarms(results: Results | None, curves: Sequence[Curve]) -> list[str]:
    """Signs that came with failed runs. Their absence proves nothing, and a rising reward is not among them."""
    found: list[str] = []
    if results is not None:
        found += _result_alarms(results)
    for curve in curves:
        known = [value for value in curve.values if value is not None]
        if len(known) < 2 or curve.stage == "sft":
            continue
        if curve.metric == "kl_sequence" and known[-1] > KL_WATCH:
            found.append(
                f"{curve.stage}: KL to SFT ended at {known[-1]:.2f} nats per completion; "
                f"most collapses came above {KL_WATCH}."
            )
    return found


def _result_alarms(results: Results) -> list[str]:
    found = []
    nll = {row.arm: row.nll.mean for row in results.rows if row.nll}
    for arm, value in nll.items():
        if "sft" in nll and value > nll["sft"] + NLL_WATCH:
            found.append(
                f"{arm}: the NLL of held-out demonstrations is {value:.3f} nats per token against "
                f"{nll['sft']:.3f} for SFT: the model moved away from them."
            )
    sft_length = {row.decoding: row.length.mean for row in results.rows if row.arm == "sft" and row.length}
    for row in results.rows:
        name = f"{row.label}, {row.decoding}"
        if row.truncated is not None and row.truncated > TRUNCATED_WATCH:
            found.append(
                f"{name}: {row.truncated:.1%} of the completions were cut off at the length limit; "
                "a truncated completion has no EOS reward."
            )
        base = sft_length.get(row.decoding)
        if row.arm != "sft" and row.length and base and row.length.mean > LENGTH_WATCH * base:
            found.append(
                f"{name}: completions are {row.length.mean / base:.1f} times as long as SFT's; "
                "the dense reward mildly rewards length."
            )
    for pair in results.paired:
        change = pair.difference
        if change is None or change.low is None or change.high is None or pair.verdict not in ("better", "worse"):
            continue
        if change.low <= 0 <= change.high:
            found.append(
                f"{pair.arm} against {pair.against}, {pair.decoding}: called {pair.verdict}, "
                "yet its interval holds zero."
            )
    return found
