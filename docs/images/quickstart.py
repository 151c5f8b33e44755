"""README's table and the picture below it, both from one run, and the picture of `densepath view`:
`make pictures RUN_DIR=runs/quickstart VIEW_SFT=sft-output/model`.

The pictures are taken by a headless Chromium, which `make browser` installs on Debian. Without VIEW_SFT, the model
that docs/log.md describes ("One altered number, seen in the view"), that picture stays as it is.
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

from densepath.config.pages import ViewArguments
from densepath.errors import UsageError
from densepath.io import write_text_atomic
from densepath.records.codec import read_record
from densepath.records.results import Results
from densepath.report import write_report
from densepath.report.console import print_parts
from densepath.report.document import Table
from densepath.report.experiment_brief import experiment_parts
from densepath.serve.view_command import run_view_command
from densepath.terminal import Console, terminal

README = Path(__file__).parents[2] / "README.md"
PICTURE = Path(__file__).with_name("report.png")
SIZE = (1160, 1500)
"""Of the picture, pixels."""
VIEW_PICTURE = Path(__file__).with_name("view.png")
VIEW_SIZE = (1180, 960)
BEFORE_SFT = "smollm2-135m-instruct"
QUESTION = (
    "A baker fills 4 trays with 12 rolls each. She sells 3 trays and gives 5 more rolls to a neighbour. "
    "How many rolls are left?"
)
ANSWER = """The baker makes 4*12=<<4*12=48>>48 rolls.
She sells 3*12=<<3*12=36>>36 rolls.
So she has 48-36-5=<<48-36-5=7>>7 rolls left.
#### 7"""
ALTERED = ANSWER.replace(">>36 rolls", ">>39 rolls")
"""One digit, copied wrongly."""
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


def view_page(sft: str, before: str, page: Path) -> Path:
    """The page of the two answers, as `densepath view` writes it; its path.

    Args:
        sft: the SFT model.
        before: the model before SFT.
        page: where it goes.
    """
    texts = {"prompt": QUESTION, "completion": ANSWER, "other_completion": ALTERED}
    models = {"model_name_or_path": [sft], "ref_model_name_or_path": [before]}
    run_view_command(ViewArguments(**models, **texts, html_file=str(page)), terminal(quiet=True))
    return page


def photograph(page: Path, picture: Path, size: tuple[int, int] = SIZE) -> None:
    """The top of a page as PNG, of a size in pixels.

    Raises:
        UsageError: no Chromium on the PATH, or it took no picture.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UsageError(f"no {BROWSERS[0]} on the PATH; as root on Debian: make browser")
    with tempfile.TemporaryDirectory() as profile:
        window = f"--window-size={size[0]},{size[1]}"
        words = [browser, *_FLAGS, window, f"--user-data-dir={profile}", f"--screenshot={picture.resolve()}"]
        done = subprocess.run([*words, page.resolve().as_uri()], check=False, capture_output=True, timeout=120)
    if done.returncode or not picture.is_file():
        raise UsageError(f"{browser} took no picture of {page}: {done.stderr.decode(errors='replace')[-200:]}")


def main(run_dir: Path, view_sft: str | None = None) -> None:
    """Write the table and its picture, and the picture of the view where its SFT model is given."""
    page = write_report(run_dir).html
    write_text_atomic(
        README, with_table(README.read_text(encoding="utf-8"), read_record(Results, run_dir / "results.json"))
    )
    photograph(page, PICTURE)
    if view_sft is None:
        print(f"{VIEW_PICTURE.name} stays as it is: it needs VIEW_SFT, an SFT model that docs/log.md describes")
        return
    with tempfile.TemporaryDirectory() as folder:
        photograph(view_page(view_sft, BEFORE_SFT, Path(folder) / "view.html"), VIEW_PICTURE, VIEW_SIZE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
