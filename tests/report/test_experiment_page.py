"""The page and the terminal table of an experiment, from made-up cells with every kind of trouble."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from rich.console import Console
from tests.experiments.made_up import METHODS, drawn
from tests.report.test_report_page import HOSTILE, Page, poison

from densepath.cli.main import main
from densepath.pipeline.results import assemble
from densepath.records.arm import Arm
from densepath.records.codec import from_json, to_json
from densepath.records.estimates import Interval
from densepath.records.results import Results
from densepath.report.console import parts_text
from densepath.report.drawings import Costs, Spent
from densepath.report.experiment import experiment_page
from densepath.report.experiment_brief import experiment_parts, results_markdown
from densepath.report.html import page_html
from densepath.report.plots import apart, svg
from densepath.report.words import interval_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORDS = ("better", "worse", "tie", "incomplete", "sft", "best control", "missing", "complete", "validation only")


read = functools.partial(from_json, Results)


@functools.cache
def record_text() -> str:
    rng = np.random.default_rng(0)
    chances = {"sft": 0.3, "continued_sft": 0.35, "contrastive": 0.5, "dpr": 0.7}
    cells = drawn(chances, seeds=3, prompts=60, rng=rng, decodings=("temperature 1", "greedy"), budget={"flops": 1e9})
    cells += drawn({"sft": 0.5, "dpr": 0.1}, seeds=1, prompts=60, rng=rng, setting="novel", kl=2.0)
    cells = [one for one in cells if (one.arm.name, one.seed, one.setting) != ("continued_sft", 1, "habit")]
    methods = (*METHODS, Arm("gone", "a | b", False))
    info = {"name": "regimes", "command": "densepath experiment", "commit": "abc1234"}
    return json.dumps(to_json(assemble(cells, methods, ["habit", "novel"], metric="exact match", info=info)))


@pytest.fixture
def record():
    return json.loads(record_text())


@pytest.mark.parametrize(
    ("estimate", "options", "text"),
    [
        (Interval(0.5, 0.25, 0.75, 9), {}, "0.500 [0.250, 0.750]"),
        (Interval(0.5, 0.25, 0.75, 9), {"digits": 1, "signed": True}, "+0.5 [+0.2, +0.8]"),
        (Interval(-0.5, -0.75, 0.0, 9), {"digits": 2}, "−0.50 [−0.75, 0.00]"),
        (None, {}, "–"),
        (None, {"missing": "?"}, "?"),
    ],
)
def test_an_interval_in_words(estimate, options, text):
    assert interval_text(estimate, **options) == text


def shown(record, width=140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(parts_text(experiment_parts(read(record), width)))
    return out.getvalue()


def test_a_narrow_terminal_leaves_columns_out_and_cuts_none(record):
    wide, narrow = shown(record), shown(record, width=80)
    assert "less best control" in wide
    assert "less best control" not in narrow
    for text in (wide, narrow):
        assert "…" not in text
        for method in record["methods"]:
            assert method["label"].split()[0] in text


def test_the_page_is_whole_and_asks_for_nothing(record):
    html = page_html(experiment_page(read(record)))
    page = Page(html)
    assert (page.faults, page.stack) == ([], [])
    assert "script" not in page.tags
    assert re.findall(r"https?://", html) == []
    assert re.search(r'Content-Security-Policy" content="default-src \'none\'', html)
    assert not [name for _, name, _ in page.attributes if name in ("src", "action", "onclick")]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")} <= set(ids)
    for setting in record["settings"]:
        for line in [*setting["warnings"], *(one["text"] for one in setting["statements"] if "DPR (" in one["text"])]:
            assert line in page.text
    # 2 settings: forests to SFT and the best control, own and each decoding; two costs; results at each decoding
    assert page.tags.count("svg") == 2 * (1 + 2) + 2 + 2 * (1 + 1) + 2 + 3
    assert page.text.index("Be wary of") < page.text.index("Results on test")


def test_hostile_names_change_no_tag(record):
    clean = Page(page_html(experiment_page(read(record))))
    hostile = poison(record, HOSTILE)

    def restore(old, new):  # what is compared with fixed words stays
        if isinstance(old, dict):
            return {key: restore(old[key], new[key]) for key in old}
        if isinstance(old, list):
            return [restore(a, b) for a, b in zip(old, new, strict=True)]
        return old if old in WORDS else new

    page = Page(page_html(experiment_page(read(restore(record, hostile)))))
    assert page.faults == []
    drawn = ("path", "text", "circle", "rect")  # an axis has as many numbers as the labels leave room for
    assert [tag for tag in page.tags if tag not in drawn] == [tag for tag in clean.tags if tag not in drawn]
    assert "alert(1)" in page.text


def test_the_terminal_shows_every_method_of_every_setting(record):
    text = shown(record)
    for words in ("habit (3 seeds)", "novel (1 seed)", "warning: One seed", "a | b", "missing"):
        assert words in text
    [line] = [line for line in text.splitlines() if line.startswith("continued SFT ")][:1]
    assert "*" in line  # a seed is missing
    [line] = [line for line in text.splitlines() if line.startswith("DPR  ") and "worse" in line]
    assert "2.00" in line  # KL


def test_the_report_command_makes_the_page_again_from_the_record(record, tmp_path, capsys):
    (tmp_path / "experiment.yaml").write_text("seeds: [0]\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "results.json: no such file yet; run densepath experiment again to go on" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[]")
    assert main(["report", str(tmp_path)]) == 1
    assert "results.json is damaged (Results: [] is not an object)" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "results.html")
    assert (tmp_path / "results.html").read_text(encoding="utf-8") == page_html(experiment_page(read(record)))


def test_markdown_has_a_table_a_setting_with_what_made_it(record):
    text = results_markdown(read(record))
    assert text.count("made by `densepath experiment` at commit abc1234") == 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {11, 10}  # two decodings in habit, one in novel
    assert "a \\| b" in text
    value = next(row for row in record["settings"][0]["rows"] if row["method"] == "dpr" and row["chosen"])["value"]
    assert f"**{value['mean']:.3f} ± {value['high'] - value['mean']:.3f}**" in text
    assert "(seed 1 missing)" in text


def test_names_at_the_right_keep_their_distance_and_order():
    places = apart([0.0, 0.0, 0.01, 0.5, 0.99, 1.0], 0.1)
    assert places == pytest.approx([0.0, 0.1, 0.2, 0.5, 0.9, 1.0])
    assert apart([1.0] * 21, 0.1) == pytest.approx([index / 20 for index in range(21)])  # closer where they must


def test_costs_are_drawn_where_nothing_was_spent_too():
    points = (
        Spent("SFT", 0.0, Interval(0.5, 0.5, 0.5, 9), "sft"),
        Spent("$x$ <b>", 0.0, Interval(0.5, 0.4, 0.6, 9), "dpr"),
    )
    assert "$x$ &lt;b&gt;" in svg(Costs(points, "FLOPs", "exact match", level=0.5))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH")
def test_a_browser_draws_the_page_without_a_complaint(record, tmp_path):
    page, picture = tmp_path / "results.html", tmp_path / "page.png"
    page.write_text(page_html(experiment_page(read(record))), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    command += ["--window-size=1280,3000", f"--screenshot={picture}", page.as_uri()]
    drawn_page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert picture.stat().st_size > 50_000
    assert [line for line in drawn_page.stderr.splitlines() if "CONSOLE" in line] == []
