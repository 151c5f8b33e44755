"""Run folder -> one self-contained HTML page with a JSON twin, heat maps and the terminal table. No torch."""

from __future__ import annotations

from densepath.report.build import ReportPaths, build_report, write_report
from densepath.report.experiment import is_experiment, render_experiment, rewrite_experiment_page
from densepath.report.experiment_table import experiment_table
from densepath.report.heatmap import heatmap_html
from densepath.report.page import render_html
from densepath.report.records import Report
from densepath.report.table import format_interval, results_table

__all__ = [
    "Report",
    "ReportPaths",
    "build_report",
    "experiment_table",
    "format_interval",
    "heatmap_html",
    "is_experiment",
    "render_experiment",
    "render_html",
    "results_table",
    "rewrite_experiment_page",
    "write_report",
]
