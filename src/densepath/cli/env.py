"""`densepath env`: versions, devices and what the processor reaches, for bug reports."""

from __future__ import annotations

import json
from collections.abc import Sequence

from densepath.cli.arguments import Parser, user_path


def run(argv: Sequence[str]) -> int:
    """Print what matters about this installation and machine."""
    parser = Parser(
        prog="densepath env",
        description="Print versions and devices, and the speed of float32 matrix products and of memory, as Markdown "
        "for bug reports.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="Print them as JSON.")
    parser.add_argument("--output_file", type=user_path, metavar="PATH", help="Also write them as JSON.")
    parser.add_argument("--debug", action="store_true", help="Show tracebacks.")
    arguments = parser.parse_args(list(argv))
    from densepath.io import write_json_atomic
    from densepath.pipeline.environment import environment, speed

    found = environment() | speed()
    if arguments.output_file is not None:
        write_json_atomic(arguments.output_file, found)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        rows = {"": "", "---": "---", **found}
        print("\n".join(f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows.items()))
    return 0
