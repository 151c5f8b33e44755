"""docs/results.md shows the records in docs/results as they are.

`python -m tests.docs.test_results_page` writes the tables into the page again, after an experiment was run anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from densepath.records.codec import from_json
from densepath.records.results import Results
from densepath.report.experiment_brief import results_markdown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/results.md"
BLOCK = re.compile(r"<!-- results: ([\w-]+) -->\n(.*?)<!-- /results -->", flags=re.DOTALL)
NAMES = sorted(path.stem for path in (ROOT / "docs/results").glob("*.json"))


def table(name: str) -> str:
    record = json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8"))
    return "\n" + results_markdown(from_json(Results, record), level=3) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_record(name):
    shown = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
    assert shown[name] == table(name)


def test_every_table_on_the_page_has_its_record_and_says_what_made_it():
    assert sorted(name for name, _ in BLOCK.findall(PAGE.read_text(encoding="utf-8"))) == NAMES
    for name in NAMES:
        info = json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8"))["info"]
        assert info["command"].startswith("densepath experiment --config recipes/")
        assert re.fullmatch("[0-9a-f]{7,}", info["commit"])


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        BLOCK.sub(lambda found: f"<!-- results: {found[1]} -->\n{table(found[1])}<!-- /results -->", text),
        encoding="utf-8",
    )
