"""Records -> documents: pages with a JSON twin, heat maps, terminal tables, Markdown. No torch."""

from __future__ import annotations

from densepath.report.build import ReportPaths, build_report, write_report
from densepath.report.experiment import experiment_page, is_experiment, rewrite_experiment_page
from densepath.report.heatmap import heatmap_html
from densepath.report.html import page_html
from densepath.report.records import Report
from densepath.report.run import run_page

__all__ = [
    "Report",
    "ReportPaths",
    "build_report",
    "experiment_page",
    "heatmap_html",
    "is_experiment",
    "page_html",
    "rewrite_experiment_page",
    "run_page",
    "write_report",
]
