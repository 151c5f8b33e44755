"""A run folder as a document: the answer, the arms, the choice of reference, training, samples, setup, terms."""

from __future__ import annotations

from densepath.report import experiment, sections
from densepath.report.behaviours import purification_section
from densepath.report.document import Document, Notice, Paragraph, Section, Tiles, present
from densepath.report.glossary import EXPERIMENT_GLOSSARY
from densepath.report.next_step import after_run
from densepath.report.records import Report
from densepath.report.words import Run

_WORDS = (
    "SFT fine-tunes a model on demonstrations. DPR (Dense-Path REINFORCE) then trains it on a reward found inside "
    "that fine-tuning: for each token, how much likelier the SFT model finds it than an earlier ",
    Run("reference", target="glossary"),
    " does. Continued SFT is the control: plain fine-tuning for as long. Terms are explained in the ",
    Run("glossary", target="glossary"),
    ".",
)


def run_page(report: Report) -> Document:
    """The page of a run."""
    facts = {"model": report.model, "date": (report.date or "").replace("T", " ").replace("+00:00", " UTC")}
    facts["made with"] = f"densepath {report.version or '(version not recorded)'}"
    settings = {"Configuration": report.config, "Environment": report.environment}
    answer = _answer(report)
    found: list[Section | None] = [
        _summary(report, answer),
        purification_section(report.purification) if report.purification else None,
        _results(report),
        sections.choice_section(report.selection) if report.selection else None,
        sections.training_section(report.curves, _labels(report)),
        _samples(report),
        sections.setup_section(report.data, settings, report.missing),
        _glossary(report),
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
        next=after_run(report, answer.kind),
    )


def _answer(report: Report) -> Notice:
    """What the comparisons of the method under test say; else why there is no answer."""
    results = report.results
    if results is not None and (none := experiment.withheld(results.settings[0])):
        return none
    if results is not None and (said := experiment.verdicts(results, results.settings[0])):
        first, *others = said
        return Notice(first, tuple(others), experiment.kind(results.settings[0]), headline=True)
    if results is not None and results.metric is None:
        return Notice("No verdict: nothing checked the answers", (experiment.UNCHECKED,), "unchecked", headline=True)
    if report.selection is not None and report.selection.chosen is None and report.selection.rows:
        words = "No candidate reference beat SFT on validation, so none was chosen."
        return Notice(words, (), "none-helps", headline=True)
    words = "Not evaluated: this run says nothing yet about which model is better."
    return Notice(words, (), "unknown", headline=True)


def _summary(report: Report, answer: Notice) -> Section:
    tiles: Tiles | None = None
    warnings = list(report.warnings)
    if report.results is not None:
        setting = report.results.settings[0]
        tiles = experiment.tiles(report.results, setting)
        warnings = [*experiment.warning_lines(setting), *warnings]
    card = sections.warnings_notice(tuple(dict.fromkeys(warnings)))
    return Section("summary", "", present([answer, tiles, Paragraph(_WORDS, "muted"), card]), link="Summary")


def _results(report: Report) -> Section | None:
    results = report.results
    if results is None:
        return None
    setting = results.settings[0]
    found = experiment.results_parts(results, setting)
    if results.metric is None:
        return Section("results", "Results", found)
    words = ("Metric: ", Run(results.metric, "strong"), ", higher is better. ", experiment.prompts_text(setting))
    return Section("results", "Results", (Paragraph(words), *found, Paragraph(results.interval, "muted")))


def _samples(report: Report) -> Section | None:
    if not report.samples:
        return None
    judged = report.results is not None and report.results.metric == "exact_match"
    return sections.samples_section(report.samples, report.samples_total, _labels(report), judged=judged)


def _labels(report: Report) -> dict[str, str]:
    """What a reader calls the stages and arms; before there are results, by their folders' names."""
    folders = {curve.stage: curve.stage.replace("_", " ") for curve in report.curves}
    return (
        folders
        | {"sft": "SFT", "dpr": "DPR"}
        | {method.name: method.label for method in (report.results.methods if report.results else ())}
    )


def _glossary(report: Report) -> Section:
    terms = {term.name: term for term in (*report.glossary, *EXPERIMENT_GLOSSARY)}
    return Section("glossary", "Glossary", (sections.glossary_table(terms.values()),))
