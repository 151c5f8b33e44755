"""README's table and the picture below it, both from one run: `make pictures RUN_DIR=runs/quickstart`.

The picture is taken by a headless Chromium, which `make browser` installs on Debian.
"""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from densepath.errors import UsageError
from densepath.io import write_text_atomic
from densepath.records.codec import read_record
from densepath.records.results import Results
from densepath.report import write_report
from densepath.report.console import print_parts
from densepath.report.document import Table
from densepath.report.experiment_brief import experiment_parts
from densepath.terminal import Console

README = Path(__file__).parents[2] / "README.md"
PICTURE = Path(__file__).with_name("report.png")
SIZE = (1160, 1500)
"""Of the picture, pixels."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
_BLOCK = re.compile(r"(<!-- quickstart-table\b[^>]*-->\n)```text\n.*?```\n(<!-- /quickstart-table -->)", re.DOTALL)


def table(results: Results) -> str:
    """The run's table as its terminal shows it, without a title."""
    (shown, *_) = (part for part in experiment_parts(results) if isinstance(part, Table))
    console = Console(file=io.StringIO(), width=200)
    print_parts(console, dataclasses.replace(shown, title=""))
    lines = [line.strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    return "\n".join(line for line in lines if line)


def with_table(text: str, results: Results) -> str:
    """README with that table in its place.

    Raises:
        UsageError: there is no such place, or more than one.
    """
    if len(_BLOCK.findall(text)) != 1:
        raise UsageError("README has one block between <!-- quickstart-table --> and <!-- /quickstart-table -->")
    return _BLOCK.sub(lambda found: f"{found[1]}```text\n{table(results)}\n```\n{found[2]}", text)


def photograph(page: Path, picture: Path) -> None:
    """The top of a page as PNG.

    Raises:
        UsageError: no Chromium on the PATH, or it took no picture.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UsageError(f"no {BROWSERS[0]} on the PATH; as root on Debian: make browser")
    with tempfile.TemporaryDirectory() as profile:
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        words = [browser, *_FLAGS, size, f"--user-data-dir={profile}", f"--screenshot={picture.resolve()}"]
        done = subprocess.run([*words, page.resolve().as_uri()], check=False, capture_output=True, timeout=120)
    if done.returncode or not picture.is_file():
        raise UsageError(f"{browser} took no picture of {page}: {done.stderr.decode(errors='replace')[-200:]}")


def main(run_dir: Path) -> None:
    """Write both."""
    page = write_report(run_dir).html
    write_text_atomic(
        README, with_table(README.read_text(encoding="utf-8"), read_record(Results, run_dir / "results.json"))
    )
    photograph(page, PICTURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
