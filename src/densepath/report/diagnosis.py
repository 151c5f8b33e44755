"""The record of `densepath diagnose` as terminal tables and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from densepath.report import parse
from densepath.report.table import format_interval
from densepath.terminal import Table, plain_table

HEADLINES = {
    "candidate": "Run DPR: reference {reference}, beta {beta:g}.",
    "none": "Keep the SFT model: do not run DPR on this.",
    "cannot_tell": "It cannot be told.",
}


def headline(record: Mapping[str, Any]) -> str:
    """The decision in one sentence."""
    decision = record["decision"]
    text = HEADLINES[decision["answer"]].format(**decision)
    if decision["answer"] == "cannot_tell" and decision["reference"] is not None:
        text += f" The one to try is reference {decision['reference']}, beta {decision['beta']:g}."
    return text


def decision_text(record: Mapping[str, Any]) -> Text:
    """The decision with its reasons and warnings."""
    advice = record["decision"]
    text = Text(headline(record), style="bold")
    for reason in advice["reasons"]:
        text.append(f"\n- {reason}", style="not bold")
    for warning in advice["warnings"]:
        text.append(f"\n! {warning}", style="not bold yellow")
    return text


def diagnosis_tables(record: Mapping[str, Any]) -> Iterator[Table]:
    """Answers of SFT and of the previews, the reward, its agreement with truth, the likelihood of demonstrations."""
    if record["sft"]:
        yield _answers_table(record)
        yield _rewards_table(record)
    if record["agreement"]:
        yield _agreement_table(record)
    if record["likelihoods"]:
        yield _likelihoods_table(record)


def _table(title: str, first: str, *columns: str) -> Table:
    table = plain_table(title)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _answers_table(record: Mapping[str, Any]) -> Table:
    """A row for SFT and for each preview; the lead is that of its better decoding, the verdict corrected for all."""
    judged = record["verifier"] is not None
    temperatures = [answers["temperature"] for answers in record["sft"]]
    shares = [_decoding(temperature) for temperature in temperatures] if judged else []
    leads = ("lead on SFT's best", "") if judged else ()
    prompts = record["prompts"]
    what = f"share of {prompts} validation prompts answered rightly" if judged else f"{prompts} validation prompts"
    title = f"{what}: SFT, and previews by reference"
    table = _table(title, "ref.", "beta", *shares, *leads, "tokens", "cut", "KL")
    rows: dict[tuple[Any, float], list[Mapping[str, Any]]] = {}
    for answers in (*record["sft"], *record["candidates"]):
        rows.setdefault((answers["reference"], answers["alpha"]), []).append(answers)
    for (reference, alpha), row in rows.items():
        found = {answers["temperature"]: answers for answers in row}
        at_one = found[max(found)]
        cells = ["-" if reference is None else f"{1 / alpha:g}"]
        if judged:
            cells += ["-" if t not in found else short_share(found[t]["value"]["mean"], 3) for t in temperatures]
            cells += _lead(row)
        cells += [f"{at_one['length']['mean']:.1f}", f"{at_one['truncated']:.0%}"]
        cells.append("-" if at_one["kl"] is None else f"{at_one['kl']['mean']:.2f}")
        table.add_row(Text("SFT" if reference is None else reference), *cells)
    return table


def likelihood_name(one: Mapping[str, Any]) -> str:
    """`SFT`, `reference 0.5` or `preview 0.5, beta 1`."""
    if one["reference"] is None:
        return "SFT"
    if one["alpha"] is None:
        return f"reference {one['reference']}"
    return f"preview {one['reference']}, beta {1 / one['alpha']:g}"


def decoding_text(temperature: float) -> str:
    """`greedy` or `temperature 0.5`."""
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def _decoding(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T={temperature:g}".replace("0.", ".")


def short_share(value: float, digits: int) -> str:
    """A share without the 0 before the point, so that a row fits 80 columns."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if value < 1 else f"{value:.{digits - 1}f}"


def _lead(row: Sequence[Mapping[str, Any]]) -> list[str]:
    """`+.20 [+.15, +.25]` and the verdict, of the better decoding."""
    leads = [answers["against_best"] for answers in row if answers["against_best"] is not None]
    if not leads:
        return ["-", ""]
    best = max(leads, key=lambda lead: lead["difference"]["mean"])
    text = format_interval(parse.estimate(best["difference"]), 2, signed=True)
    return [re.sub(r"(?<![0-9])0\.", ".", text), best["verdict"]]


def _rewards_table(record: Mapping[str, Any]) -> Table:
    table = _table(
        "dense reward of SFT's own samples, nats: mean ± standard deviation",
        "reference",
        "per token",
        "below 0",
        "per completion",
        "corr. with length",
    )
    for reward in record["rewards"]:
        token, completion, related = reward["per_token"], reward["per_completion"], reward["length_correlation"]
        table.add_row(
            Text(reward["reference"]),
            f"{token['mean']:+.3f} ± {token['sd']:.2f}",
            f"{token['negative']:.0%}",
            f"{completion['mean']:+.2f} ± {completion['sd']:.2f}",
            "-" if related is None else f"{related:+.2f}",
        )
    return table


AGREEMENT = {
    "verifier": "AUROC, right against wrong",
    "preference": "accuracy, preference pairs",
    "altered": "signal-to-noise, altered numbers",
    "samples": "signal-to-noise, SFT's samples",
}


def _agreement_table(record: Mapping[str, Any]) -> Table:
    """One row a reference, one column a criterion; the best of each column is marked."""
    found: dict[str, dict[str, Any]] = {}
    for one in record["agreement"]:
        found.setdefault(one["criterion"], {})[one["reference"]] = one["value"]
    table = _table("agreement of the reward with what is known; chance is 0.5, of a signal-to-noise 0", "reference")
    for name in found:
        table.add_column(Text(AGREEMENT[name].replace(", ", "\n")), justify="right", no_wrap=True)
    for reference in dict.fromkeys(one["reference"] for one in record["agreement"]):
        cells = []
        for values in found.values():
            best = max(values, key=lambda name: values[name]["mean"]) == reference
            text = format_interval(parse.estimate(values[reference]), 2)
            cells.append(Text(text + (" *" if best else "  "), style="bold" if best else ""))
        table.add_row(Text(reference), *cells)
    return table


def _likelihoods_table(record: Mapping[str, Any]) -> Table:
    table = _table("negative log-likelihood of held-out demonstrations, nats per token", "model", "NLL", "less SFT's")
    for one in record["likelihoods"]:
        change = "-" if one["change"] is None else format_interval(parse.estimate(one["change"]), 3, signed=True)
        table.add_row(Text(likelihood_name(one)), f"{one['nll']['mean']:.3f}", change)
    return table
