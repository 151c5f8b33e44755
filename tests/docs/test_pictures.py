"""The table of the README and the picture below it come from one run by one command, and the view's by the same."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from tests.browser.driver import CHROMIUM
from tests.pipeline.runs import save_tiny_model
from tests.report.conftest import RESULTS, results

from densepath.errors import UsageError
from densepath.records.codec import from_json
from densepath.records.results import Results
from densepath.report import write_report

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("quickstart_picture", ROOT / "docs/images/quickstart.py")
quickstart = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(quickstart)


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def size_of(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def test_the_readme_has_one_place_for_the_table_and_keeps_all_else():
    readme = text("README.md")
    changed = quickstart.with_table(readme, from_json(Results, RESULTS))
    before, after = readme.splitlines(), changed.splitlines()
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
    assert size_of(data) == quickstart.SIZE


def test_every_page_that_is_pictured_is_one_that_the_command_makes():
    shown = {name for path in ("README.md", "docs/view.md") for name in re.findall(r"images/(\w+\.png)", text(path))}
    assert shown == {quickstart.PICTURE.name, quickstart.VIEW_PICTURE.name}
    assert "quickstart.py $(RUN_DIR) $(VIEW_SFT)" in text("Makefile")
    data = quickstart.VIEW_PICTURE.read_bytes()
    assert size_of(data) == quickstart.VIEW_SIZE


def test_the_view_of_one_altered_digit_is_photographed(tmp_path):
    places = [save_tiny_model(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    page = quickstart.view_page(*places, tmp_path / "view.html")
    assert "How many rolls" in page.read_text(encoding="utf-8")
    different = [a for a, b in zip(quickstart.ANSWER, quickstart.ALTERED, strict=True) if a != b]
    assert different == ["6"]
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH; as root on Debian: make browser")
    quickstart.photograph(page, tmp_path / "view.png", quickstart.VIEW_SIZE)
    assert size_of((tmp_path / "view.png").read_bytes()) == quickstart.VIEW_SIZE
