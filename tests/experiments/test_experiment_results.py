"""From cells to the record: who is compared with whom, what validation chooses, and what is missing."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.experiments.made_up import METHODS, cell, drawn

from densepath.config.experiment import ExperimentArguments
from densepath.errors import DataError
from densepath.pipeline.grid import Grid
from densepath.pipeline.recipe import read_recipe
from densepath.pipeline.results import assemble, grid_results, write_results
from densepath.records.arm import SPLITS, Arm
from densepath.records.codec import from_json, to_json
from densepath.records.results import Results
from densepath.report.experiment import experiment_page
from densepath.report.experiment_brief import experiment_parts, results_markdown
from densepath.report.html import page_html
from densepath.report.verdict import GOES_BY_PLACE

SFT, CONTINUED, CONTRASTIVE, DPR = METHODS
CHANCES = {"sft": 0.3, "continued_sft": 0.35, "contrastive": 0.5, "dpr": 0.6}


def made(results, methods=METHODS, settings=("habit",), **info):
    return to_json(assemble(results, methods, settings, metric="exact match", info=info))


def steady(method, right, *, of=100, seeds=3, **fields):
    """The same number of right answers in every seed, but for one more in each next seed."""
    return [
        cell(method, seed, [1.0] * (right + seed) + [0.0] * (of - right - seed), **fields) for seed in range(seeds)
    ]


def both(method, validation, test, **fields):
    return steady(method, validation, split="validation", **fields) + steady(method, test, split="test", **fields)


def comparison(setting, method, role, decoding=None):
    """At each one's own decoding, or at the one that is given."""
    [found] = [
        one
        for one in setting["comparisons"]
        if (one["method"], one["role"]) == (method, role)
        and (one["own_decoding"] if decoding is None else not one["own_decoding"] and one["decoding"] == decoding)
    ]
    return found


def row(setting, method, decoding="greedy"):
    [found] = [one for one in setting["rows"] if (one["method"], one["decoding"]) == (method, decoding)]
    return found


def text(setting, method):
    [found] = [one["text"] for one in setting["statements"] if one["method"] == method and one["own_decoding"]]
    return found


# -- choices -----------------------------------------------------------------------------------------------------


def test_the_best_control_is_chosen_on_validation_though_test_would_choose_another():
    cells = both("sft", 30, 30) + both("continued_sft", 50, 40) + both("contrastive", 45, 90) + both("dpr", 20, 60)
    [setting] = made(cells)["settings"]
    for decoding in (None, "greedy"):
        found = comparison(setting, "dpr", "best control", decoding)
        assert found["against"] == "continued_sft"
        assert found["difference"]["mean"] == pytest.approx(0.2)
        assert comparison(setting, "dpr", "sft", decoding)["difference"]["mean"] == pytest.approx(0.3)
    # A control is compared with the best of the others, and a method under test is never the best control.
    assert comparison(setting, "continued_sft", "best control")["against"] == "contrastive"
    assert comparison(setting, "contrastive", "best control")["against"] == "continued_sft"
    assert [best["method"] for best in setting["best_controls"]] == ["continued_sft"] * 2


def test_each_method_stands_at_the_decoding_that_did_best_on_validation():
    cold, warm = "greedy", "temperature 1"
    cells = both("sft", 40, 10, decoding=cold) + both("sft", 30, 90, decoding=warm)
    cells += both("dpr", 20, 90, decoding=cold) + both("dpr", 60, 50, decoding=warm)
    [setting] = made(cells, (SFT, DPR))["settings"]
    assert setting["decodings"] == [warm, cold]
    assert row(setting, "sft", cold)["chosen"]
    assert row(setting, "dpr", warm)["chosen"]
    found = comparison(setting, "dpr", "sft")
    assert (found["decoding"], found["against_decoding"]) == (warm, cold)
    assert found["difference"]["mean"] == pytest.approx(0.4)
    same = comparison(setting, "dpr", "sft", warm)
    assert same["difference"]["mean"] == pytest.approx(-0.4)
    assert "DPR (temperature 1)" in text(setting, "dpr")
    assert "SFT (greedy), which is also the best control," in text(setting, "dpr")


def test_of_equal_decodings_and_controls_the_first_is_taken():
    cells = [one for d in ("greedy", "temperature 0.5", "temperature 1") for one in both("sft", 40, 40, decoding=d)]
    cells += both("continued_sft", 40, 40) + both("dpr", 50, 50)
    [setting] = made(cells, (CONTINUED, DPR, SFT))["settings"]
    assert setting["decodings"] == ["temperature 1", "temperature 0.5", "greedy"]
    assert row(setting, "sft", "temperature 1")["chosen"]
    assert comparison(setting, "dpr", "best control", "greedy")["against"] == "sft"


def test_test_values_choose_nothing():
    rng = np.random.default_rng(0)
    cells = drawn(CHANCES, seeds=3, prompts=40, rng=rng, decodings=("temperature 1", "greedy"))
    other = [
        one if one.split == "validation" else cell(one.arm.name, one.seed, rng.random(40) < 0.5, decoding=one.decoding)
        for one in cells
    ]

    def choices(record):
        [setting] = record["settings"]
        chosen = [(one["method"], one["decoding"], one["chosen"], one["validation"]) for one in setting["rows"]]
        pairs = [(one["method"], one["decoding"], one["against"], one["role"]) for one in setting["comparisons"]]
        return chosen, pairs, setting["best_controls"]

    assert choices(made(cells)) == choices(made(other))


# -- verdicts ----------------------------------------------------------------------------------------------------


def test_a_method_that_is_secretly_sft_ties_and_is_named():
    rng = np.random.default_rng(1)
    cells = drawn({"sft": 0.4, "continued_sft": 0.4}, seeds=5, prompts=50, rng=rng, decodings=("greedy", "other"))
    copies = [cell("dpr", one.seed, one.values, decoding=one.decoding, split=one.split) for one in cells]
    copies = [copy for copy, one in zip(copies, cells, strict=True) if one.arm.name == "sft"]
    [setting] = made(cells + copies, (SFT, CONTINUED, DPR))["settings"]
    for decoding in (None, "greedy", "other"):
        found = comparison(setting, "dpr", "sft", decoding)
        assert (found["verdict"], found["p"], found["p_holm"]) == ("tie", 1, 1)
        assert found["difference"] == {"mean": 0, "low": 0, "high": 0, "n": 5, "unit": "seeds"}
    assert [line for line in setting["warnings"] if "Is it the SFT model?" in line and line.startswith("DPR")]


def test_where_nothing_tells_two_models_apart_none_is_taken_for_sft():
    """All answers wrong and cut off: any two models agree in that, and the likelihood tells, where there is one."""
    wrong = [cell(name, 0, [0.0] * 9, split=split) for name in ("sft", "dpr") for split in SPLITS]

    def asked(likelihoods):
        cells = [replace(one, nll=likelihoods.get(one.arm.name)) for one in wrong]
        return any("Is it the SFT model?" in line for line in made(cells, (SFT, DPR))["settings"][0]["warnings"])

    sft, other = (1.0,) * 9, (1.5,) * 9
    assert not asked({})
    assert not asked({"sft": sft})
    assert not asked({"sft": sft, "dpr": other})
    assert asked({"sft": sft, "dpr": sft})


def test_words_say_the_difference_and_both_verdicts():
    cells = both("sft", 30, 30) + both("contrastive", 50, 50) + both("dpr", 52, 52)
    shifted = [  # contrastive decoding gains what DPR gains, but not in the same seeds
        cell("contrastive", seed, [1.0] * right + [0.0] * (100 - right), split=split)
        for split in ("validation", "test")
        for seed, right in enumerate((51, 58, 47))
    ]
    lifted = [
        cell("dpr", seed, [1.0] * right + [0.0] * (100 - right), split=split)
        for split in ("validation", "test")
        for seed, right in enumerate((50, 52, 51))
    ]
    cells = [one for one in cells if one.arm.name == "sft"] + shifted + lifted
    [setting] = made(cells, (SFT, CONTRASTIVE, DPR))["settings"]
    # Gains over SFT .20, .21, .19: mean .2, s = .01, half = 4.302653 * .01 / sqrt 3 = .024841.
    # Over contrastive decoding -.01, -.06, .04: mean -.01, s = .05, half = .124207.
    assert text(setting, "dpr") == (
        "DPR (greedy) is better than SFT (greedy) by 0.200 [0.175, 0.225] but ties with the best control "
        "(contrastive decoding, greedy) (−0.010 [−0.134, +0.114])."
    )
    assert comparison(setting, "dpr", "sft")["p"] == pytest.approx(0.000832, abs=2e-6)  # t = 34.641, 2 degrees


def test_a_method_is_compared_with_the_control_at_its_compute():
    matched = replace(CONTINUED, matches="dpr")
    cells = both("sft", 30, 30) + both("continued_sft", 40, 45) + both("contrastive", 50, 50) + both("dpr", 60, 60)
    [setting] = made(cells, (SFT, matched, CONTRASTIVE, DPR))["settings"]
    found = comparison(setting, "dpr", "equal compute")
    assert (found["against"], found["primary"], found["own_decoding"]) == ("continued_sft", True, True)
    assert found["difference"]["mean"] == pytest.approx(0.15)
    assert setting["compared"]["primary"] == 3  # corrected for all three
    assert " It is better than the control at its compute (continued SFT, greedy) by 0.150" in text(setting, "dpr")
    assert [one["method"] for one in setting["comparisons"] if one["role"] == "equal compute"] == ["dpr"]
    # where it is the best control too, the pair counts once and is said once
    [setting] = made([one for one in cells if one.arm.name != "contrastive"], (SFT, matched, DPR))["settings"]
    assert setting["compared"]["primary"] == 2
    assert "at its compute" not in text(setting, "dpr")


def test_a_control_that_was_trained_on_the_validation_prompts_is_ranked_by_none_and_compared_with_all():
    trained = Arm("rejection", "rejection sampling", True, sees_validation=True)
    cold, warm = "greedy", "temperature 1"
    cells = [one for d in (cold, warm) for one in both("sft", 30 + 5 * (d == warm), 30, decoding=d)]
    cells += [one for d in (cold, warm) for one in both("dpr", 60, 60, decoding=d)]
    cells += both("continued_sft", 50, 58, decoding=cold) + both("continued_sft", 40, 40, decoding=warm)
    cells += both("rejection", 95, 35, decoding=cold) + both("rejection", 90, 55, decoding=warm)
    [setting] = made(cells, (SFT, CONTINUED, trained, DPR))["settings"]
    assert comparison(setting, "dpr", "best control")["against"] == "continued_sft"
    assert [each["method"] for each in setting["best_controls"]] == ["continued_sft"] * 3
    found = comparison(setting, "dpr", "trained on validation")
    assert (found["against"], found["against_decoding"]) == ("rejection", warm)  # where SFT does best
    assert found["primary"]
    assert setting["compared"]["primary"] == 3
    assert "the control that was trained on the validation prompts (rejection sampling, temperature 1)" in text(
        setting, "dpr"
    )
    assert comparison(setting, "rejection", "best control")["against"] == "continued_sft"


def test_an_arm_that_nothing_measures_is_shown_with_what_is_known_of_it():
    """Without a verifier a decoder has no likelihood: its length is told, and it does not stop the others' table."""
    measured = [replace(cell("sft", 0, [0.0] * 4, split=split), values=None, nll=(1.0, 2.0, 3.0)) for split in SPLITS]
    decoder = [replace(cell("contrastive", 0, [0.0] * 4, split=split), values=None, nll=None) for split in SPLITS]
    for cells in ([*measured, *decoder], decoder):
        record = assemble(cells, (SFT, CONTRASTIVE), ["habit"], metric=None, info={})
        [setting] = to_json(record)["settings"]
        assert row(setting, "contrastive")["length"] == 10
        assert row(setting, "contrastive")["nll"] is None
        assert setting["prompts"] == {"validation": 4, "test": 4}  # answered, though three have a demonstration
        shown = results_markdown(replace(record, info={"commit": "abc"}))
        assert "contrastive decoding" in shown
        assert ".." not in shown
        assert ".;" not in shown
        assert ".." not in results_markdown(record)


def test_worse_is_said_with_a_positive_size():
    rng = np.random.default_rng(0)
    cells = drawn({"sft": 0.8, "dpr": 0.2}, seeds=4, prompts=200, rng=rng)
    [setting] = made(cells, (SFT, DPR))["settings"]
    assert comparison(setting, "dpr", "sft")["verdict"] == "worse"
    assert "is worse than SFT (greedy), which is also the best control, by 0." in text(setting, "dpr")


def test_the_correction_is_holms_in_each_half_and_pairs_count_once():
    """Against the step-down procedure itself, at half of 5 % for either half."""
    rng = np.random.default_rng(4)
    chances = CHANCES | {"dpr_half": 0.45, "dpr_gamma": 0.5}
    methods = (*METHODS, Arm("dpr_half", "half", False), Arm("dpr_gamma", "gamma", False))
    cells = drawn(chances, seeds=4, prompts=150, spread=0.02, rng=rng, decodings=("temperature 1", "greedy"))
    [setting] = made(cells, methods)["settings"]
    pairs: dict[tuple, dict] = {}
    primary = set()
    for one in setting["comparisons"]:
        pair = (one["method"], one["decoding"], one["against"], one["against_decoding"])
        assert pairs.setdefault(pair, one)["p_holm"] == one["p_holm"]
        if one["own_decoding"] and one["method"].startswith("dpr"):
            primary.add(pair)
    assert setting["compared"] == {"primary": len(primary), "other": len(pairs) - len(primary)}
    shown = set()
    for half in (primary, set(pairs) - primary):
        left = sorted(half, key=lambda pair: pairs[pair]["p"])
        while left and pairs[left[0]]["p"] < 0.025 / len(left):
            shown.add(left.pop(0))
    assert 0 < len(shown) < len(pairs)
    assert {pair for pair, one in pairs.items() if one["verdict"] != "tie"} == shown


def test_length_is_shown_beside_the_difference_and_flagged():
    cells = both("sft", 30, 30, length=10) + both("continued_sft", 31, 31, length=13) + both("dpr", 60, 60, length=14)
    [setting] = made(cells, (SFT, CONTINUED, DPR))["settings"]
    assert not comparison(setting, "continued_sft", "sft")["length_flag"]
    found = comparison(setting, "dpr", "sft")
    assert (found["length_ratio"], found["length_flag"]) == (1.4, True)
    assert found["length_difference"]["mean"] == 4
    assert row(setting, "dpr")["length_flag"]
    assert "1.40 times as long as SFT's" in text(setting, "dpr")
    assert [line for line in setting["warnings"] if line.startswith("DPR (greedy): completions are 1.40 times")]


# -- one seed, missing cells -------------------------------------------------------------------------------------


def test_one_seed_has_intervals_over_prompts_and_says_so():
    cells = drawn({"sft": 0.3, "dpr": 0.6}, seeds=1, prompts=200, rng=np.random.default_rng(0))
    [setting] = made(cells, (SFT, DPR))["settings"]
    found = comparison(setting, "dpr", "sft")
    assert (found["verdict"], found["difference"]["unit"], found["difference"]["n"]) == ("better", "prompts", 200)
    assert row(setting, "dpr")["value"]["unit"] == "prompts"
    assert setting["warnings"][0].startswith("One seed")
    assert text(setting, "dpr").endswith("The interval is over prompts, not over seeds.")


def test_a_missing_seed_is_shown_and_gets_no_verdict():
    cells = both("sft", 30, 30) + both("continued_sft", 90, 90) + both("dpr", 80, 80)
    cells = [one for one in cells if (one.arm.name, one.seed) not in {("dpr", 1), ("continued_sft", 2)}]
    [setting] = made(cells, (SFT, CONTINUED, DPR))["settings"]
    found = row(setting, "dpr")
    assert (found["status"], found["seeds"], found["missing_seeds"]) == ("incomplete", [0, 2], [1])
    assert not found["chosen"]
    compared = comparison(setting, "dpr", "sft", "greedy")
    assert (compared["verdict"], compared["p"], compared["missing_seeds"]) == ("incomplete", None, [1])
    assert (compared["difference"]["unit"], compared["difference"]["n"]) == (
        "prompts",
        200,
    )  # two seeds of 100 that gain the same
    assert compared["against"] == comparison(setting, "dpr", "best control", "greedy")["against"] == "sft"
    assert [line for line in setting["warnings"] if line.startswith("DPR: seed 1 is missing on test (greedy)")]
    assert (
        "continued SFT: seed 2 is missing on validation (greedy). Nothing of it is chosen there, nor is it taken "
        "as the best control."
    ) in setting["warnings"]
    [words] = [one["text"] for one in setting["statements"] if one["method"] == "dpr"]
    assert "is not compared with SFT" in words
    assert "seed 1 is missing" in words


def test_a_comparison_that_is_missing_still_counts_in_the_correction():
    cells = both("sft", 30, 30) + both("continued_sft", 29, 29) + both("dpr", 80, 80)
    whole = made(cells, (SFT, CONTINUED, DPR))["settings"][0]
    cells = [one for one in cells if (one.arm.name, one.seed, one.split) != ("continued_sft", 2, "test")]
    part = made(cells, (SFT, CONTINUED, DPR))["settings"][0]
    assert part["compared"] == whole["compared"]
    assert comparison(part, "dpr", "sft")["p_holm"] == comparison(whole, "dpr", "sft")["p_holm"]


def test_a_method_or_seed_that_never_finished_is_missing():
    cells = both("sft", 30, 30) + both("dpr", 80, 80)
    [setting] = made(cells, METHODS)["settings"]
    found = row(setting, "contrastive")
    assert (found["status"], found["value"], found["missing_seeds"]) == ("missing", None, [0, 1, 2])
    assert "contrastive decoding: no result; it did not run, or failed." in setting["warnings"]
    [setting] = made(cells, (SFT, DPR), seeds=[0, 1, 2, 3])["settings"]
    assert row(setting, "sft")["missing_seeds"] == [3]
    assert {one["verdict"] for one in setting["comparisons"]} == {"incomplete"}


def test_what_was_not_chosen_for_test_has_validation_alone():
    cells = both("sft", 30, 30) + both("dpr", 80, 80) + steady("continued_sft", 40, split="validation")
    [setting] = made(cells, (SFT, CONTINUED, DPR))["settings"]
    found = row(setting, "continued_sft")
    assert (found["status"], found["value"]) == ("validation only", None)
    assert found["validation"]["mean"] == pytest.approx(0.41)
    assert comparison(setting, "dpr", "best control")["verdict"] == "incomplete"


def test_a_setting_without_any_cell_is_all_missing(tmp_path):
    record = made(both("sft", 30, 30), (SFT, DPR), settings=("habit", "novel"), seeds=[0, 1, 2])
    setting = record["settings"][1]
    assert (setting["rows"], setting["comparisons"], setting["prompts"]["test"]) == ([], [], None)
    assert "SFT: no result; it did not run, or failed." in setting["warnings"]
    assert write_results(tmp_path, from_json(Results, record)).html.exists()
    assert "## novel" in results_markdown(from_json(Results, record))


@pytest.mark.parametrize(
    ("cells", "methods", "words"),
    [
        ([cell("sft", 0, [1.0])] * 2, (SFT,), "there twice"),
        ([cell("dpr", 0, [1.0])], (SFT,), "no method of that name"),
        ([cell("sft", 0, [1.0])], (DPR,), "no method is called sft"),
        ([cell("sft", 0, [1.0])], (SFT, SFT), "method sft is there twice"),
        ([cell("sft", 0, [1.0], setting="other")], (SFT,), "not among habit"),
        ([cell("sft", 0, [1.0]), cell("dpr", 0, [1.0, 0.0])], (SFT, DPR), "2 prompts, but 1 in"),
    ],
)
def test_cells_that_do_not_fit_together_are_refused(cells, methods, words):
    with pytest.raises(DataError, match=words):
        made(cells, methods)


@settings(deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False))
def test_the_order_of_cells_does_not_matter(order: random.Random):
    rng = np.random.default_rng(7)
    cells = drawn(CHANCES, seeds=2, prompts=12, rng=rng, decodings=("temperature 1", "greedy"))
    cells += drawn({"sft": 0.5, "dpr": 0.5}, seeds=1, prompts=9, rng=rng, setting="novel")
    cells = [one for one in cells if (one.arm.name, one.seed) != ("continued_sft", 1)]
    first = made(cells, settings=("novel", "habit"))
    order.shuffle(cells)
    assert made(cells, settings=("novel", "habit")) == first


# -- files -------------------------------------------------------------------------------------------------------


def test_the_files_hold_the_record(tmp_path):
    cells = drawn(CHANCES, seeds=2, prompts=30, rng=np.random.default_rng(0))
    cells = [one for one in cells if (one.arm.name, one.seed) != ("dpr", 1)]
    record = made(cells, commit="abc", hub_token="hunter2")
    paths = write_results(tmp_path, from_json(Results, record))
    assert json.loads(paths.json.read_text(encoding="utf-8")) == record
    assert "hunter2" not in paths.json.read_text(encoding="utf-8")
    rows = list(csv.DictReader(paths.csv.open(encoding="utf-8")))
    [setting] = record["settings"]
    assert len(rows) == len(setting["rows"])
    sft = next(one for one in rows if one["method"] == "sft")
    assert float(sft["value_mean"]) == row(setting, "sft")["value"]["mean"]
    assert (sft["setting"], sft["seeds"], sft["value_unit"], sft["flops"]) == ("habit", "0 1", "seeds", "0.0")
    assert next(one for one in rows if one["method"] == "dpr")["missing_seeds"] == "1"
    compared = list(csv.DictReader(paths.comparisons.open(encoding="utf-8")))
    assert len(compared) == len(setting["comparisons"])
    assert float(compared[0]["difference_low"]) == setting["comparisons"][0]["difference"]["low"]
    assert "<h2>habit</h2>" in paths.html.read_text(encoding="utf-8")


def test_a_prompt_that_a_judge_could_not_judge_for_one_method_counts_for_none():
    """The same record as of cells that never had the prompt, but for the warning."""
    values = {"sft": [0.5] * 6, "dpr": [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]}
    cells, left = [], []
    for method, numbers in values.items():
        for split in ("validation", "test"):
            unjudged = (1, 4) if (method, split) == ("dpr", "test") else ()
            cells.append(cell(method, 0, numbers, split=split, unjudged=unjudged))
            kept = [number for place, number in enumerate(numbers) if split == "validation" or place not in (1, 4)]
            left.append(cell(method, 0, kept, split=split))
    found, expected = (made(each, methods=[SFT, DPR])["settings"][0] for each in (cells, left))
    warning = "The judge could say nothing of 2 answers' test prompts; these are left out for every method."
    assert found.pop("warnings") == [warning, *expected.pop("warnings")]
    assert found == expected
    assert row(found, "dpr")["value"]["mean"] == 1.0


def judged_cells(by_order):
    """DPR's answers win 3 of 4 against SFT's, whose own are the fixed ones that nobody is asked about."""
    won = [(0.5,) * 20, (1.0,) * 15 + (0.0,) * 5]
    return [
        cell(method, 0, values, split=split, by_order=None if method == "sft" else by_order)
        for method, values in zip(("sft", "dpr"), won, strict=True)
        for split in ("validation", "test")
    ]


def test_a_judge_that_goes_by_the_place_gets_no_headline_in_a_table_either():
    follows = ((1.0, 0.0),) * 19 + (None,)
    found = assemble(judged_cells(follows), [SFT, DPR], ["habit"], metric="win rate", info={})
    (setting,) = found.settings
    assert (setting.position.follows_place.mean, setting.position.first_place.mean) == (1.0, 1.0)
    assert setting.position.follows_place.n == 19
    warning = "The judge favours the answer shown first: at 100.0 % of the pairs on test it goes by the place."
    assert setting.warnings[0] == warning
    assert setting.statements == ()
    assert from_json(Results, to_json(found)) == found
    page = page_html(experiment_page(found))
    text = results_markdown(found)
    terminal = "".join(getattr(part, "title", "") or "" for part in experiment_parts(found))
    for each in (page, text, terminal):
        assert GOES_BY_PLACE in each
    assert "is better than SFT" not in page + text
    assert "a method is better" not in page


def test_a_judge_that_does_not_go_by_the_place_has_its_statements():
    steady_judge = ((1.0, 1.0),) * 15 + ((0.0, 0.0),) * 4 + ((1.0, 0.0),)
    found = assemble(judged_cells(steady_judge), [SFT, DPR], ["habit"], metric="win rate", info={})
    (setting,) = found.settings
    assert setting.position.follows_place.mean == 0.05
    assert not any("place" in each for each in setting.warnings)
    assert setting.statements
    assert GOES_BY_PLACE not in page_html(experiment_page(found))


def test_truncation_is_warned_of_once_for_all_arms():
    cut = [replace(one, truncated=0.5) for one in both("sft", 40, 40) + both("dpr", 50, 50)]
    cut += [replace(one, truncated=0.04) for one in both("continued_sft", 40, 40)]
    [setting] = made(cut)["settings"]
    (line,) = (line for line in setting["warnings"] if "cut off" in line)
    assert line == (
        "Completions cut off at the length limit: SFT 50% greedy; DPR 50% greedy. Raise max_completion_length."
    )


def test_a_metric_that_is_not_that_of_all_settings_is_named_with_its_own(tmp_path):
    judges = {"a": "exact_match", "b": "final_number", "c": "exact_match"}
    for names, expected in (("ac", "exact_match"), ("abc", "exact_match (a, c), final_number (b)")):
        recipe = {name: {"verifier": judges[name], "dataset_name": "regime:habit"} for name in names}
        found = read_recipe(ExperimentArguments(settings=recipe, methods={"sft": {}}), {})
        assert grid_results(Grid(tmp_path, found, [0]), {}).metric == expected
