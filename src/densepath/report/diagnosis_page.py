"""The record of `densepath diagnose` as one page: advice, previews with their intervals, the reward's histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from densepath import __version__
from densepath.report import parse, plots
from densepath.report.diagnosis import AGREEMENT, decoding_text, headline, likelihood_name
from densepath.report.html import asset, interval, make_environment

KINDS = {"candidate": "better", "none": "worse", "cannot_tell": "tie"}


def diagnosis_html(record: Mapping[str, Any]) -> str:
    """The page as text: one file, no network, no script. Its JSON twin is the record."""
    record = parse.clean(record)
    advice = record["decision"]
    judged = record["verifier"] is not None
    environment = make_environment(interval=interval, estimate=parse.estimate)
    return environment.get_template("diagnosis.html").render(
        css=Markup(asset("page.css")),
        headline=headline(record),
        kind=KINDS[advice["answer"]],
        reasons=advice["reasons"],
        warnings=advice["warnings"],
        facts=[
            ("run", record.get("run_dir")),
            ("rows", record.get("dataset_name")),
            ("prompts", str(record["prompts"])),
            ("verifier", record["verifier"] or "none"),
        ],
        judged=judged,
        answers=[_answers_row(answers, advice) for answers in (*record["sft"], *record["candidates"])],
        lead_plots=_lead_plots(record) if judged and plots.available() else [],
        rewards=record["rewards"],
        reward_plots=_reward_plots(record) if plots.available() else [],
        agreement=_agreement(record),
        likelihoods=[(likelihood_name(one), one) for one in record["likelihoods"]],
        version=__version__,
    )


def _agreement(record: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Title of each criterion with the value of each reference."""
    found: dict[str, dict[str, Any]] = {}
    for one in record["agreement"]:
        found.setdefault(AGREEMENT[one["criterion"]], {})[one["reference"]] = one["value"]
    return list(found.items())


def _label(answers: Mapping[str, Any]) -> str:
    who = (
        answers["policy"] or "SFT"
        if answers["reference"] is None
        else f"reference {answers['reference']}, β {1 / answers['alpha']:g}"
    )
    return f"{who}, {decoding_text(answers['temperature']).replace('temperature', 'T =')}"


def _advised(answers: Mapping[str, Any], advice: Mapping[str, Any]) -> bool:
    return (
        answers["reference"] is not None
        and advice["beta"] is not None
        and answers["reference"] == advice["reference"]
        and f"{1 / answers['alpha']:g}" == f"{advice['beta']:g}"
    )


def _answers_row(answers: Mapping[str, Any], advice: Mapping[str, Any]) -> dict[str, Any]:
    lead = answers["against_best"]
    return {
        "label": _label(answers),
        "advised": _advised(answers, advice),
        "lead": None if lead is None else parse.estimate(lead["difference"]),
        "verdict": None if lead is None else lead["verdict"],
        "truncated": answers["truncated"],
        **{name: parse.estimate(answers[name]) for name in ("value", "length", "kl")},
    }


def _lead_plots(record: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """(decoding, SVG): the number that decides, of every candidate at one temperature, on a common axis."""
    leads = [one["against_best"]["difference"] for one in record["candidates"]]
    ends = [0.0, *(lead[end] for lead in leads for end in ("low", "high"))]
    pad = 0.05 * (max(ends) - min(ends) or 1.0)
    found = []
    for temperature in dict.fromkeys(one["temperature"] for one in record["candidates"]):
        rows = [
            plots.Whisker(_label(one).rpartition(", ")[0], estimate, _arm(one, record["decision"]))
            for one in record["candidates"]
            if one["temperature"] == temperature and (estimate := parse.estimate(one["against_best"]["difference"]))
        ]
        svg = plots.whisker_svg(
            rows,
            f"lead over SFT at its best, {record['verifier']}, {record['prompts']} prompts",
            name=f"lead{temperature:g}".replace(".", "-"),
            zero=0.0,
            limits=(min(ends) - pad, max(ends) + pad),
        )
        found.append((decoding_text(temperature).capitalize(), Markup(svg)))
    return found


def _arm(answers: Mapping[str, Any], advice: Mapping[str, Any]) -> str:
    """SFT and the advised preview have colours of their own."""
    return "sft" if answers["reference"] is None else "dpr" if _advised(answers, advice) else ""


def _reward_plots(record: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    found = []
    for index, reward in enumerate(record["rewards"]):
        edges, counts = reward["histogram"]
        svg = plots.histogram_svg(edges, counts, "nats per completion", name=f"histogram{index}")
        found.append((reward["reference"], Markup(svg)))
    return found
