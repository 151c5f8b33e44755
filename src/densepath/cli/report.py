"""`densepath report RUN`: make the HTML report of a run folder again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.cli.arguments import Parser
from densepath.errors import MissingFileError


def run(argv: Sequence[str]) -> int:
    """Write report.html and report.json, and print where they are."""
    parser = Parser(prog="densepath report", description="Make the HTML report of a run folder again.")
    parser.add_argument("run_dir", type=Path, help="Run folder, as given to densepath run as output_dir.")
    parser.add_argument("--debug", action="store_true", help="Show tracebacks.")
    run_dir = parser.parse_args(list(argv)).run_dir
    if not run_dir.is_dir():
        raise MissingFileError(f"{run_dir}: no such run folder; give the output_dir of densepath run")
    from densepath.report import write_report

    paths = write_report(run_dir)
    print(f"{paths.html}\n{paths.json}")
    return 0
