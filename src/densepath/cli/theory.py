"""`densepath theory`: check every statement the method rests on, on random MDPs small enough to enumerate."""

from __future__ import annotations

import json
import sys
import time

from densepath.cli.arguments import Parser, user_path


def _parser() -> Parser:
    parser = Parser(
        prog="densepath theory",
        description="Check the statements of docs/theory.md numerically, in float64, on random token MDPs that are "
        "enumerated whole. Exit status: 0 if all hold, 1 if one fails, 2 for a mistake in the command.",
        allow_abbrev=False,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every random instance (default: 0)")
    parser.add_argument("--instances", type=int, default=12, help="random instances of each statement (default: 12)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="N|KEY", help="a statement by number or key; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of the table")
    parser.add_argument("--output_file", type=user_path, metavar="PATH", help="write the report as JSON")
    parser.add_argument("--html_file", type=user_path, metavar="PATH", help="write the report as a page with plots")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def run(argv: list[str]) -> int:
    """Run the command; the return value is its exit status."""
    arguments = _parser().parse_args(argv)

    from densepath.data.outputs import check_outputs

    check_outputs({name: getattr(arguments, name) for name in ("output_file", "html_file")}, {})
    import torch
    from rich.text import Text

    from densepath.io import write_json_atomic, write_text_atomic
    from densepath.report.console import print_parts
    from densepath.report.theory import theory_parts
    from densepath.terminal import say, terminal
    from densepath.theory.runner import run_statements

    torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
    messages = terminal(stderr=True)
    began = time.monotonic()
    with messages.status(Text("checking")) as status:
        report = run_statements(
            arguments.seed,
            arguments.instances,
            arguments.only,
            progress=lambda key: status.update(Text(f"checking {key}")),
        )
    seconds = time.monotonic() - began
    if arguments.html_file is not None:
        from densepath.report.html import page_html
        from densepath.report.theory import theory_page

        write_text_atomic(arguments.html_file, page_html(theory_page(report)))
        say(messages, f"wrote {arguments.html_file}")
    if arguments.output_file is not None:
        write_json_atomic(arguments.output_file, report.as_dict())
        say(messages, f"wrote {arguments.output_file}")
    if arguments.json:
        json.dump(report.as_dict(), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
        sys.stdout.write("\n")
    else:
        console = terminal()
        print_parts(console, *theory_parts(report, console.width, seconds))
    return 0 if report.holds else 1
