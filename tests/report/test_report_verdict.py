"""What the first card of a run's page says, and what its reader is warned of: from the numbers alone."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from tests.experiments.made_up import METHODS, cell
from tests.report.conftest import results, write

from densepath.pipeline.results import assemble
from densepath.records.arm import Arm
from densepath.records.codec import from_json, to_json
from densepath.records.results import Results
from densepath.report import build_report, run_page
from densepath.report.console import print_parts
from densepath.report.document import Notice, Table
from densepath.report.experiment import kind, verdicts
from densepath.report.experiment_brief import experiment_parts, results_markdown
from densepath.report.html import page_html
from densepath.report.records import Curve
from densepath.report.verdict import curve_alarms, nll_alarms


@pytest.mark.parametrize(
    ("dpr", "word", "sentence"),
    [
        (200, "better", "DPR (greedy) is better than SFT (greedy), which is also the best control, by 0.458"),
        (20, "worse", "DPR (greedy) is worse than SFT (greedy), which is also the best control, by 0.292"),
        (91, "tie", "DPR (greedy) ties with SFT (greedy)"),
    ],
)
def test_the_sentence_and_its_colour_follow_the_comparison(dpr, word, sentence):
    record = from_json(Results, results({"sft": 90, "dpr": dpr}))
    (setting,) = record.settings
    assert kind(setting) == word
    (said,) = verdicts(record, setting)
    assert said.startswith(sentence)


def test_one_that_beats_sft_and_loses_to_the_best_control_is_no_success():
    (setting,) = from_json(Results, results({"sft": 40, "continued_sft": 200, "dpr": 120})).settings
    assert {one.verdict.value for one in setting.comparisons if one.primary} == {"better", "worse"}
    assert kind(setting) == "tie"


def test_the_method_that_is_better_is_told_first_and_gives_the_colour():
    arms = [METHODS[0], METHODS[-1], Arm("purified_sft", "purified SFT", False)]
    right = {"sft": 90, "dpr": 91, "purified_sft": 200}
    cells = [
        cell(arm, 0, [1.0] * count + [0.0] * (240 - count), split=split, setting="tasks")
        for arm, count in right.items()
        for split in ("validation", "test")
    ]
    record = assemble(cells, arms, ["tasks"], metric="exact_match", info={"seeds": [0]})
    (setting,) = record.settings
    said = verdicts(record, setting)
    assert [line.split(" (")[0] for line in said] == ["purified SFT", "DPR"]
    assert kind(setting) == "better"


def test_the_model_before_sft_moved_away_from_nothing():
    rows = [SimpleNamespace(method=name, label=name, nll=nll) for name, nll in (("sft", 1.0), ("base", 5.0))]
    assert nll_alarms(rows) == []


def test_comparisons_of_controls_do_not_speak_for_dpr():
    (setting,) = from_json(Results, results({"sft": 90, "continued_sft": 200})).settings
    assert not [one for one in setting.comparisons if one.primary]
    assert kind(setting) == "tie"


def test_without_an_evaluation_nothing_is_claimed(tmp_path):
    write(tmp_path / "environment.json", {})
    card = run_page(build_report(tmp_path)).sections[0].parts[0]
    assert isinstance(card, Notice)
    assert (card.kind, card.title[:14]) == ("unknown", "Not evaluated:")


@pytest.mark.parametrize(("nll", "count"), [(1.05, 0), (1.2, 1), (0.5, 0)])
def test_a_rise_of_the_nll_of_held_out_demonstrations_is_flagged(nll, count):
    rows = [SimpleNamespace(method="sft", label="SFT", nll=1.0), SimpleNamespace(method="dpr", label="DPR", nll=nll)]
    assert len(nll_alarms(rows)) == count
    assert nll_alarms(rows[1:]) == []


def test_only_the_last_kl_counts_and_sft_has_none():
    high, low = (Curve("dpr", "kl_sequence", (1.0, 2.0), values) for values in ((0.1, 1.6), (1.6, 0.1)))
    assert curve_alarms([high]) == ["dpr: KL to SFT ended at 1.60 nats per completion; most collapses came above 1.5."]
    assert curve_alarms([low, Curve("dpr", "reward", (1.0, 2.0), (0.0, 9.0))]) == []


def test_without_a_check_there_is_no_verdict_and_the_nll_stands_once(tmp_path):
    arms = [method for method in METHODS if method.name in ("sft", "continued_sft", "dpr")]
    cells = [
        replace(cell(arm.name, 0, [1.0] * 8, split=split, setting="tasks"), values=None, nll=(nll, nll + 0.1))
        for arm, nll in zip(arms, (2.0, 1.5, 2.5), strict=True)
        for split in ("validation", "test")
    ]
    found = assemble(cells, arms, ["tasks"], metric=None, info={"seeds": [0]})
    (setting,) = found.settings
    assert (setting.comparisons, setting.statements) == ((), ())
    assert all(row.value is None and not row.chosen for row in setting.rows)
    write(tmp_path / "results.json", to_json(found))
    report = build_report(tmp_path)
    summary, results_section, *_ = run_page(report).sections
    card = summary.parts[0]
    assert (card.kind, card.title) == ("unchecked", "No verdict: nothing checked the answers")
    assert "health check" in card.lines[0]
    columns = [each.name for part in results_section.parts if isinstance(part, Table) for each in part.columns]
    assert columns.count("held-out NLL") == 1
    assert "less SFT" not in columns
    shown = page_html(run_page(report))
    assert "is better than" not in shown
    assert "densepath judge " in shown
    console = Console(file=io.StringIO(), width=140)
    print_parts(console, *experiment_parts(found))
    assert "health check" in console.file.getvalue()
    assert not re.search(r"\b(better than|worse|tie)\b", console.file.getvalue())
    assert "No verdict" not in results_markdown(found)
    assert "2.050" in results_markdown(found)


@pytest.mark.parametrize("arm", ["dpr_capped", "purified_sft"])
def test_the_kl_of_every_arm_is_watched(run_dir, arm):
    write(run_dir / arm / "metrics.jsonl", [{"step": step, "kl_sequence": float(step)} for step in (1, 2)])
    assert any(line.startswith(f"{arm}: KL to SFT ended at 2.00") for line in build_report(run_dir).warnings)
