"""Words of a benchmark's command line: wrong ones are said in one line, exit 2, before a model is loaded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from densepath.errors import DensepathError


class Parser(argparse.ArgumentParser):
    """One whose description keeps its lines, and that says what is wrong without its whole usage before it."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def count(text: str) -> int:
    """A whole number that is at least 1."""
    found = int(text) if text.strip().isdecimal() else 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return found


def positive(text: str) -> float:
    """A number above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return found


def output(text: str) -> Path:
    """A file that can be written when all is measured: its folder is there."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, or in a folder that is not there: make that first")
    return path


def run_command(main: Callable[[], Any]) -> NoReturn:
    """End with what a benchmark's `main` returns; a user's mistake is one line and its exit code."""
    try:
        raise SystemExit(main())
    except DensepathError as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
