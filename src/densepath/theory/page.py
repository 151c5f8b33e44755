"""A report as one self-contained HTML page: everything escaped, nothing fetched, no script."""

from __future__ import annotations

from importlib import resources

from densepath.errors import UsageError
from densepath.theory.plots import report_plots
from densepath.theory.records import Kind, Report, verdict_word

RELATION = {Kind.EQUALITY: "≤", Kind.BOUND: "≤", Kind.SAMPLED: "≤", Kind.DIFFERS: "≥"}
"""How a check's value stands to its limit when it holds."""


def report_page(report: Report) -> str:
    """The page as text.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise UsageError("--html needs jinja2: pip install jinja2") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("densepath.theory").joinpath("page.html").read_text(encoding="utf-8")
    )
    # the drawings are our own output, the only markup that is let through
    plots = {
        key: [{"svg": Markup(plot["svg"]), "caption": plot["caption"]} for plot in pictures]
        for key, pictures in report_plots(report).items()
    }
    return template.render(report=report, plots=plots, relation=RELATION, word=verdict_word)
