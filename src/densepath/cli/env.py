"""`densepath env`: versions, devices and what the processor reaches, for bug reports."""

from __future__ import annotations

import json
from collections.abc import Sequence

from densepath.errors import UsageError

_HELP = (
    "usage: densepath env [--json]\n\n"
    "Print versions and devices, and the speed of float32 matrix products and of memory, as Markdown for bug reports."
)


def run(argv: Sequence[str]) -> int:
    """Print what matters about this installation and machine."""
    words = [word for word in argv if word != "--debug"]
    if words in (["-h"], ["--help"]):
        print(_HELP)
        return 0
    if words not in ([], ["--json"]):
        raise UsageError(f"unexpected argument {words[0]!r} (see densepath env --help)")
    from densepath.pipeline.environment import environment, speed

    found = environment() | speed()
    if words:
        print(json.dumps(found, indent=2))
    else:
        rows = {"": "", "---": "---", **found}
        print("\n".join(f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows.items()))
    return 0
