"""`densepath report RUN`: make the HTML page of a run, an experiment or judged models again."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import Parser, user_path
from densepath.errors import MissingFileError


def run(argv: Sequence[str]) -> int:
    """Write the page and its twin, and print where they are."""
    parser = Parser(
        prog="densepath report", description="Make the page of a run, an experiment or judged models again."
    )
    parser.add_argument("run_dir", type=user_path, help="output_dir of densepath run, experiment or judge.")
    parser.add_argument("--debug", action="store_true", help="Show tracebacks.")
    run_dir = parser.parse_args(list(argv)).run_dir
    if not run_dir.is_dir():
        raise MissingFileError(f"{run_dir}: no such run folder; give the output_dir of run, experiment or judge")
    from densepath.report import is_experiment, rewrite_experiment_page, write_report
    from densepath.report.judged import is_judged, rewrite_judged_page

    if is_experiment(run_dir):
        print(rewrite_experiment_page(run_dir))
        return 0
    paths = rewrite_judged_page(run_dir) if is_judged(run_dir) else write_report(run_dir)
    print(f"{paths.html}\n{paths.json}")
    return 0
