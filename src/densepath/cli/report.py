"""`densepath report RUN`: make the HTML page of a run, an experiment or judged models again."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import Parser, user_path
from densepath.config.options import check_html_name
from densepath.errors import MissingFileError

PAGES = ("report.html", "report.json", "results.html")
"""What the command writes where no place is given; any other file of a run folder is another command's."""


def run(argv: Sequence[str]) -> int:
    """Write the page and its twin, and print where they are."""
    parser = Parser(
        prog="densepath report", description="Make the page of a run, an experiment or judged models again."
    )
    parser.add_argument("run_dir", type=user_path, help="output_dir of densepath run, experiment or judge.")
    parser.add_argument(
        "--html_file",
        type=user_path,
        metavar="PATH",
        help="Where the page goes, with its JSON twin beside it; by default report.html of that folder, and "
        "results.html of an experiment, which has no other twin than its results.json.",
    )
    parser.add_argument("--debug", action="store_true", help="Show tracebacks.")
    arguments = parser.parse_args(list(argv))
    run_dir, html = arguments.run_dir, arguments.html_file
    if not run_dir.is_dir():
        raise MissingFileError(f"{run_dir}: no such run folder; give the output_dir of run, experiment or judge")
    from densepath.data.outputs import check_outputs, with_twin
    from densepath.report import is_experiment, rewrite_experiment_page, write_report
    from densepath.report.judged import is_judged, rewrite_judged_page

    if html is not None:
        check_html_name(str(html), "its JSON twin takes .json")
        read = (each for each in run_dir.rglob("*") if each.name not in PAGES)
        check_outputs({"html_file": html} if is_experiment(run_dir) else with_twin(str(html)), {"run_dir": read})
    if is_experiment(run_dir):
        print(rewrite_experiment_page(run_dir, html))
        return 0
    paths = rewrite_judged_page(run_dir, html) if is_judged(run_dir) else write_report(run_dir, html)
    print(f"{paths.html}\n{paths.json}")
    return 0
