import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.report.scored_files import span, turn

from densepath.records.estimates import Interval
from densepath.report import build_report, page_html, run_page, write_report
from densepath.report.drawings import Curves, Whisker, Whiskers
from densepath.report.plots import running_mean, svg
from densepath.report.records import Curve
from densepath.report.text import visible

HOSTILE = (
    "</script><script>alert(1)</script>\"'<img src=x onerror=alert(2)>&amp;\u2028\u202e\x00"
    "👩\u200d🚀 שלום $\\frac{1}{2}$ {{ 1 }}"
)


class Page(HTMLParser):
    VOID = ("meta", "link", "input", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.stack, self.faults = [], [], "", [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        self.text += data


def poison(value, text):
    """Every string of a JSON value, keys of free mappings included, with `text` appended."""
    if isinstance(value, dict):
        return {key: poison(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item, text) for item in value]
    return value + text if isinstance(value, str) else value


FIXED = {
    "mode",
    "method",
    "against",
    "role",
    "decoding",
    "against_decoding",
    "verdict",
    "status",
    "unit",
    "name",
    "decodings",
}
"""Keys of results whose values are compared with fixed words or with each other."""


def names_kept(old, new, key=""):
    """The poisoned value, with what is compared as it was."""
    if isinstance(old, dict):
        return {name: names_kept(value, new[name], name) for name, value in old.items()}
    if isinstance(old, list):
        return [names_kept(a, b, key) for a, b in zip(old, new, strict=True)]
    return old if key in FIXED else new


def poisoned(run_dir: Path, text: str):
    for path in [*run_dir.rglob("*.json"), *run_dir.rglob("*.jsonl")]:
        if path.name == "report.json":
            continue
        original = path.with_suffix(path.suffix + ".original")
        if not original.exists():
            original.write_bytes(path.read_bytes())
        rows = [json.loads(line) for line in original.read_text(encoding="utf-8").split("\n") if line]
        bad = (
            names_kept(row, poison(row, text)) if path.name == "results.json" else poison(row, text) for row in rows
        )
        path.write_text("".join(json.dumps(row) + "\n" for row in bad), encoding="utf-8")
    config = yaml.safe_dump({"model": "m" + text, "x" + text: text, "hub_token": "t"})
    (run_dir / "config.yaml").write_text(config, encoding="utf-8")
    return run_dir


def test_page_is_well_formed_and_asks_for_nothing_from_outside(run_dir):
    html = page_html(run_page(build_report(run_dir)))
    page = Page(html)
    assert page.faults == []
    assert page.stack == []
    for tag, name, value in page.attributes:
        assert name not in ("src", "action", "srcset", "onclick")
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), (tag, value)
    assert "@import" not in html
    assert re.findall(r"https?://", html) == []
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, name, value in page.attributes if name == "href"]
    assert set(targets) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_policy_allows_exactly_the_one_script(run_dir):
    html = page_html(run_page(build_report(run_dir)))
    [script] = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "http" not in policy
    assert "unsafe-eval" not in policy


def test_hostile_strings_change_no_tag(run_dir):
    clean = Page(page_html(run_page(build_report(run_dir))))
    write_report(poisoned(run_dir, HOSTILE))
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.faults == []
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert set(page.tags) <= set(clean.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert visible("Capitals: katze" + HOSTILE) in page.text
    assert "\x00" not in html
    assert "\u202e" not in html
    twin = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    assert twin["samples"][0]["prompt"] == "Capitals: katze" + HOSTILE
    assert twin["config"]["x" + HOSTILE] == HOSTILE


@given(st.text(max_size=30))
@settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_comes_back_from_page_and_twin(run_dir, text):
    paths = write_report(poisoned(run_dir, text))
    page = Page(paths.html.read_text(encoding="utf-8"))
    assert page.faults == []
    assert visible("Capitals: katze" + text) in page.text
    assert json.loads(paths.json.read_text(encoding="utf-8"))["samples"][0]["prompt"] == "Capitals: katze" + text


def test_a_lone_surrogate_is_replaced_and_written(run_dir):
    paths = write_report(poisoned(run_dir, "\ud800"))
    assert json.loads(paths.json.read_text(encoding="utf-8"))["samples"][0]["prompt"] == "Capitals: katze\ufffd"


def test_twelve_samples_fit_in_a_megabyte(run_dir):
    path = run_dir / "samples.jsonl"
    sample = json.loads(path.read_text().split("\n")[0])
    for item in sample["completions"].values():
        words = (span(f" word{index}", -1.234567, first_id=40_000 + index) for index in range(200))
        item |= {**turn(*words), "sft_logprobs": [-0.1234567] * 200}
    path.write_text((json.dumps(sample) + "\n") * 12)
    assert write_report(run_dir).html.stat().st_size < 1_000_000


def test_the_page_says_what_matters(run_dir):
    text = " ".join(Page(page_html(run_page(build_report(run_dir)))).text.split())
    for words in (
        "DPR (greedy) is better than SFT (greedy) by 0.188",  # 135 and 90 of 240
        "is better than the best control (continued SFT, greedy) by 0.125",
        "0.375 [0.316, 0.438]",  # Wilson: 90 of 240
        "95 % t-interval over seeds",
        "Chosen: reference 0 (the model before SFT), β 0.5",
        "tiny/model",
        "2026-01-02 03:04:05 UTC",
        "One seed: every interval is over prompts",
        "cut off at the length limit",
        "ab" * 32,
        "Not logged:",
    ):
        assert words in text, words


def test_same_folder_same_bytes(run_dir, tmp_path):
    first = write_report(run_dir)
    copy = tmp_path / "elsewhere" / run_dir.name
    shutil.copytree(run_dir, copy)
    second = write_report(copy)
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.json.read_bytes() == second.json.read_bytes()
    assert [path.name for path in run_dir.glob(".*")] == []


def test_plots_follow_the_theme_and_are_the_same_each_time():
    curve = Curve("dpr", "kl_sequence", tuple(range(50)), (None, *[0.1 * step for step in range(49)]))
    drawn = svg(Curves((curve,), "nats", watch=1.5))
    assert drawn == svg(Curves((curve,), "nats", watch=1.5))
    assert "var(--arm-dpr)" in drawn
    assert not re.search(r"#[0-9a-f]{6}", drawn)
    assert "nan" not in drawn.lower()


@pytest.mark.parametrize("label", ["$a$", "$\\frac{1", "<b>", "x" * 500, "👩‍🚀", "\x00", "line\nbreak", ""])
def test_any_label_can_be_drawn(label):
    drawn = svg(Whiskers((Whisker(label, Interval(0.5, 0.5, 0.5, 1), "other"),), label))
    assert Page(drawn).faults == []
    assert drawn.count("<script") == 0


def test_running_mean_by_hand():
    # windows of 3: (1,2), (1,2,_), (2,_,6), (_,6): means 1.5, 1.5, 4, 6
    assert running_mean([1.0, 2.0, None, 6.0], 3) == [1.5, 1.5, 4.0, 6.0]
