"""A run folder as a document: the answer, the arms, the choice of reference, training, samples, setup, terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densepath.report import parse, sections
from densepath.report.document import Document, Section, Table
from densepath.report.records import Report
from densepath.report.words import Run

_NEXT = {
    "better": "run densepath experiment over several seeds: one run does not say how another would end.",
    "none-helps": "densepath diagnose, for references and betas that were not tried; without one, keep the SFT model.",
    "unknown": "run the same command again: finished stages are kept, and the evaluation follows.",
}
_KEEP = "keep the SFT model; densepath diagnose says, before any training, whether another reference or beta helps."


def run_page(report: Report) -> Document:
    """The page of a run."""
    facts = {"model": report.model, "date": (report.date or "").replace("T", " ").replace("+00:00", " UTC")}
    facts["made with"] = f"densepath {report.version or '(version not recorded)'}"
    results = report.results
    settings = {"Configuration": report.config, "Environment": report.environment}
    found: list[Section | None] = [
        sections.summary_section(report.verdict, results, report.warnings),
        sections.results_section(results) if results else None,
        sections.choice_section(report.selection) if report.selection else None,
        sections.training_section(report.curves),
        sections.samples_section(report.samples, report.samples_total, results) if report.samples else None,
        sections.setup_section(report.data, settings, report.missing),
        Section("glossary", "Glossary", (sections.glossary_table(report.glossary),)),
    ]
    return Document(
        brand="densepath report",
        title=report.run,
        facts=tuple((name, value) for name, value in facts.items() if value),
        sections=tuple(section for section in found if section is not None),
        footer=(
            f"Written by densepath {report.made_by} from the run folder alone; ",
            Run("report.json", "code"),
            " beside this page holds the same data.",
        ),
        next=_NEXT.get(report.verdict.kind, _KEEP),
    )


def results_table(results: Mapping[str, Any]) -> Table:
    """The rows of `eval/results.json` as a table of 80 columns: the same numbers as on the page."""
    return sections.brief_arms_table(parse.results(parse.clean(results)))
