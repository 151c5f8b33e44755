"""The table of the README and the picture below it come from one run by one command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tests.browser.driver import CHROMIUM
from tests.report.conftest import RESULTS, results

from densepath.errors import UsageError
from densepath.records.codec import from_json
from densepath.records.results import Results
from densepath.report import write_report

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("quickstart_picture", ROOT / "docs/images/quickstart.py")
quickstart = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(quickstart)


def test_the_readme_has_one_place_for_the_table_and_keeps_all_else():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = quickstart.with_table(text, from_json(Results, RESULTS))
    before, after = text.splitlines(), changed.splitlines()
    new = [line for line in after if line not in before]
    assert [line.split()[0] for line in new if not line.startswith("─")][:2] in (
        ["method", "SFT"],
        ["SFT", "continued"],
    )
    assert any(".375 [" in line for line in new)  # 90 of 240
    assert before[:10] == after[:10]
    assert before[-10:] == after[-10:]
    assert quickstart.with_table(changed, from_json(Results, RESULTS)) == changed


def test_a_readme_without_that_place_is_refused():
    with pytest.raises(UsageError, match="one block"):
        quickstart.with_table("no table", from_json(Results, results({"sft": 9})))


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH; as root on Debian: make browser")
def test_a_page_is_photographed(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    picture = tmp_path / "page.png"
    quickstart.photograph(write_report(tmp_path).html, picture)
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == quickstart.SIZE
