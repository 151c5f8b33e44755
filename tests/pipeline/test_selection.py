"""The choice of the reference where it is known which one helps: models with planted distributions."""

from __future__ import annotations

import io
import json
import math

import pytest
import yaml
from rich.console import Console
from tests.pipeline.planted import save_planted
from tests.support import tiny_tokenizer

from densepath.choice import measure
from densepath.choice.decide import decide
from densepath.config.choice import DiagnoseArguments
from densepath.config.run import RunArguments
from densepath.io import read_json, write_jsonl_atomic
from densepath.methods import SFTRun
from densepath.pipeline.diagnose import run_diagnose_command
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.selection import chosen, run_selection
from densepath.records.choice import Findings
from densepath.records.codec import from_json, to_json

PROMPTS = 80
SFT = 0.45
"""How often the SFT policy is right ("A") at temperature 1; never when greedy."""


def answers(right: float) -> dict[str, dict[str, float]]:
    """A reference that says "A" with this probability; the contrast moves away from it."""
    return {":": {"A": right, "B": 1 - right}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of planted models by their probability of "A"; `SFT` is the SFT policy."""
    folder, tokenizer = tmp_path_factory.mktemp("planted"), tiny_tokenizer()
    return {right: save_planted(folder / str(right), tokenizer, answers(right)) for right in (0.1, 0.3, SFT, 0.7, 0.9)}


@pytest.fixture
def select(models, tmp_path):
    """Run the stage with a reference at each fraction, given by its probability of the right answer."""

    def run(references: dict[str, float], prompts: int = PROMPTS, beside: dict | None = None, capped=True, **changes):
        folder = RunFolder(tmp_path / "run")
        kept = [float(name) for name in references]
        arguments = RunArguments(
            **{
                "model_name_or_path": models[references.get("0", SFT)],
                "output_dir": str(folder.path),
                "verifier": "exact_match",
                "max_completion_length": 3,
                "reference_fractions": kept,
                "candidate_betas": [1.0, 0.5],
                **changes,
            }
        )
        (folder / "sft/references").mkdir(parents=True)
        (folder / "sft/model").symlink_to(models[SFT])
        for name, right in references.items():
            if name != "0":
                (folder / f"sft/references/{name}").symlink_to(models[right])
        rows = [{"prompt": f"Q{i}:", "completion": "A", "answer": "A", **(beside or {})} for i in range(prompts)]
        write_jsonl_atomic(folder / "data/validation.jsonl", rows)
        output = io.StringIO()
        run_selection(folder, SFTRun(folder.path, arguments), Console(file=output, width=200), "3/6", capped=capped)
        found = read_json(folder / "selection.json")
        assert found["chosen"] == (chosen(folder.path) and to_json(chosen(folder.path)))
        folder.close()
        return found, output.getvalue()

    return run


def contrast(reference: float, beta: float) -> float:
    """P("A") of softmax((1 + 1/beta) z_SFT - z_ref / beta)."""
    odds = (SFT / (1 - SFT)) ** (1 + 1 / beta) * ((1 - reference) / reference) ** (1 / beta)
    return odds / (1 + odds)


def margin_of(probability: float, n: int = PROMPTS) -> float:
    """Four standard errors of a share."""
    return 4 * math.sqrt(probability * (1 - probability) / n) + 1e-9


def test_auto_takes_the_reference_that_helps_most(select):
    found, _ = select({"0": 0.9, "0.25": 0.7, "0.5": 0.1, "0.75": 0.3})
    assert found["chosen"] == {"reference": "0.5", "beta": 1.0, "capped": False}
    assert (found["mode"], found["decision"]["answer"]) == ("auto", "candidate")
    assert found["criterion"] == ("exact_match of previews of DPR on 80 validation prompts, against SFT at its best")
    *plain, capped = found["rows"]
    assert (capped["reference"], capped["capped"], capped["verdict"]) == ("0.5", True, "better")
    tried = {(row["reference"], row["beta"]): row for row in plain}
    # every reference at the first beta, and the other beta at the best of them
    assert list(tried) == [("0", 1.0), ("0.25", 1.0), ("0.5", 1.0), ("0.75", 1.0), ("0.5", 0.5)]
    of = {"0": 0.9, "0.25": 0.7, "0.5": 0.1, "0.75": 0.3}
    for (name, beta), row in tried.items():
        truth = contrast(of[name], beta)  # .07, .22, .86, .61 at beta 1
        if truth > 0.5:  # right always when greedy, else best when sampled
            assert (row["decoding"], row["score"]["mean"]) == ("greedy", 1.0)
        else:
            assert row["decoding"] == "temperature 1"
            assert row["score"]["mean"] == pytest.approx(truth, abs=margin_of(truth))
        assert row["n"] == PROMPTS
        assert row["lead"]["mean"] == pytest.approx(row["score"]["mean"] - found["baseline"]["mean"])
        assert row["verdict"] == ("better" if truth > 0.5 else "worse")
    assert found["baseline"]["mean"] == pytest.approx(SFT, abs=margin_of(SFT))
    assert found["baseline"]["low"] < SFT < found["baseline"]["high"]
    assert f"SFT at its best (temperature 1) on {found['baseline']['mean']:.3f}" in found["reason"]
    assert found["warnings"] == []
    # what decides is what is shown
    best = tried["0.5", 1.0]
    assert found["decision"]["figure"] == best["lead"]


def test_a_run_decides_as_a_diagnosis_does(select, models, tmp_path, monkeypatch):
    """The stage of a run and the command, on the same rows: the same findings, and one decision from them."""
    monkeypatch.chdir(tmp_path)
    found, _ = select({"0": 0.1, "0.5": 0.7}, candidate_betas=[0.5])
    recipe = {"model_name_or_path": models[0.1], "verifier": "exact_match", "max_completion_length": 3}
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(recipe))
    arguments = DiagnoseArguments(run_dir="run", betas=[0.5], max_samples=PROMPTS, ensemble=False)
    record = run_diagnose_command(arguments, Console(file=io.StringIO(), width=200))
    capped = [one for one in record["candidates"] if one["taken"] and one["reference"] == "0.5"]
    assert len(capped) == 2  # a run tries the capped reward against the best reference alone
    for name in ("answer", "reference", "beta", "capped", "figure"):
        assert record["decision"][name] == found["decision"][name]
    assert record["decision"]["reference"] == found["chosen"]["reference"] == "0"
    for name in ("sft", "rewards", "likelihoods", "agreement"):
        assert record[name] == found["findings"][name]
    findings = from_json(Findings, json.loads(json.dumps(found["findings"])))
    assert to_json(decide(findings)) == found["decision"]


def test_a_diagnosis_asks_the_judge_of_the_recipe(select, models, tmp_path, monkeypatch):
    """A program as judge, against SFT's greedy answer, which is wrong: a right answer wins, and a wrong one ties."""
    monkeypatch.chdir(tmp_path)
    checked, _ = select({"0": 0.1, "0.5": 0.7}, candidate_betas=[0.5])
    recipe = {"model_name_or_path": models[0.1], "judge": "verifier:exact_match", "max_completion_length": 3}
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(recipe))
    arguments = DiagnoseArguments(
        run_dir="run", betas=[0.5], max_samples=PROMPTS, ensemble=False, html_file="page.html"
    )
    record = run_diagnose_command(arguments, Console(file=io.StringIO(), width=200))
    assert record["verifier"] == "verifier:exact_match"
    assert "--judge verifier:exact_match" in (tmp_path / "page.html").read_text()  # what to type next
    assert record["decision"]["answer"] == checked["decision"]["answer"] == "candidate"
    assert record["decision"]["reference"] == checked["decision"]["reference"] == "0"
    assert [one["verdicts"] for one in record["sft"]] == [
        [0.5 + 0.5 * right for right in one["verdicts"]] for one in checked["findings"]["sft"]
    ]


def test_where_it_cannot_be_told_the_one_that_looks_best_is_tried(select):
    """A lead on three prompts is worth having, and not shown."""
    found, _ = select({"0": 0.1, "0.5": 0.7}, prompts=3)
    assert found["decision"]["answer"] == "cannot_tell"
    assert found["chosen"]["reference"] == "0"
    assert found["reason"].startswith("it cannot be told whether it helps, so the test prompts will tell. A lead of ")


def test_auto_may_take_the_model_before_sft(select):
    assert select({"0": 0.1, "0.5": 0.7})[0]["chosen"]["reference"] == "0"


def test_auto_says_that_none_helps(select):
    found, _ = select({"0": 0.9, "0.25": 0.7})
    assert found["chosen"] is None
    assert found["decision"]["answer"] == "none"
    assert found["reason"].startswith("No candidate is shown to beat SFT at its best (temperature 1: 0.")
    assert "The best, reference 0.25, beta 1, temperature 1, has 0." in found["reason"]
    assert max(row["score"]["high"] for row in found["rows"]) < SFT


def test_a_reference_equal_to_sft_does_not_help_and_is_named(select):
    found, printed = select({"0": SFT, "0.5": 0.7})
    assert found["chosen"] is None
    warning = "reference 0 has the same weights as the SFT model: the reward is zero everywhere"
    assert found["warnings"] == [warning]
    assert f"warning: {warning}" in printed


def test_a_fixed_reference_is_obeyed_without_a_preview(select, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("nothing needs to be sampled")

    monkeypatch.setattr(measure, "generate_each", never)
    found, _ = select({"0": 0.1, "0.25": 0.9}, reference="0.25", beta="0.7")
    assert found["chosen"] == {"reference": "0.25", "beta": 0.7, "capped": False}
    assert (found["mode"], found["rows"]) == ("fixed", [])


def test_a_fixed_reference_that_harms_is_obeyed_with_the_least_harmful_beta(select):
    found, _ = select({"0": 0.1, "0.25": 0.7}, reference="0.25")
    assert found["chosen"] == {"reference": "0.25", "beta": 1.0, "capped": False}  # P("A") is .22, and .09 at beta 1/2
    assert [row["reference"] for row in found["rows"]] == ["0.25"] * 3
    assert [row["capped"] for row in found["rows"]] == [False, False, True]
    assert found["reason"].startswith("the reference was given. No candidate is shown to beat SFT")


def test_a_reference_by_its_path(select, models):
    found, _ = select({"0": 0.9}, reference=models[0.1])
    assert found["chosen"] == {"reference": models[0.1], "beta": 1.0, "capped": False}


def test_a_reward_without_a_reference_chooses_nothing(select):
    found, _ = select({"0": 0.9, "0.5": 0.1}, dense_reward="logprob")
    assert found["mode"] == "fixed"
    assert found["chosen"] == {"reference": "0", "beta": 1.0, "capped": False}
    assert found["reason"] == "the reward logprob uses no reference"


def test_without_a_verifier_the_reward_must_tell_demonstrations_from_samples(select):
    found, _ = select({"0": 0.9, "0.5": 0.1}, verifier=None)
    assert found["chosen"] == {"reference": "0.5", "beta": 1.0, "capped": False}
    assert (found["baseline"], found["decision"]["answer"]) == (None, "cannot_tell")
    assert found["criterion"] == "signal-to-noise of the reward (samples), 80 prompts"
    # Demonstrations say "A". Of SFT's samples a share k does: margin 0, else a constant c. Its mean over its standard
    # deviation is (1 - k) c / (c sqrt(k (1 - k))), with the sign of c: sqrt(.55 / .45) = 1.11.
    scores = {row["reference"]: row["score"]["mean"] for row in found["rows"]}
    assert scores["0.5"] == pytest.approx(math.sqrt((1 - SFT) / SFT), abs=0.5)
    assert scores["0"] == pytest.approx(-scores["0.5"], abs=1e-4)
    assert f"signal-to-noise (samples) of {scores['0.5']:.3f}" in found["reason"]
    assert "There is no judged answer here" in found["reason"]
    assert {row["lead"] for row in found["rows"]} == {None}


def test_without_a_verifier_none_may_help_either(select):
    found, _ = select({"0": 0.9, "0.5": 0.7}, verifier=None)
    assert found["chosen"] is None
    assert found["reason"].startswith("No reference's reward is shown to be above 0")


def test_a_fixed_reference_is_obeyed_without_a_verifier(select):
    found, _ = select({"0": 0.1, "0.25": 0.9}, verifier=None, reference="0.25")
    assert found["chosen"] == {"reference": "0.25", "beta": 1.0, "capped": False}


def test_demonstrations_beyond_the_context_leave_their_prompts_whatever_stands_beside(select):
    found, _ = select({"0": 0.9, "0.5": 0.1}, prompts=20, beside={"completion": "A" * 3000, "text": "Below."})
    assert "on 20 validation prompts" in found["criterion"]


def test_where_the_capped_reward_looks_best_it_is_what_dpr_is_run_with(select):
    """Against a reference that is right as often as SFT, contrast does nothing; what is subtracted leaves SFT too."""
    found, _ = select({"0": 0.1, "0.5": 0.7}, candidate_betas=[20.0])  # too weak a contrast to help
    assert found["chosen"] == {"reference": "0", "beta": 1.0, "capped": True}
    assert "Subtractive decoding against reference 0" in found["reason"]


def test_a_given_beta_stays_where_the_capped_reward_is_chosen(select):
    """Its preview is the same whatever beta is, so the one that was given is what DPR is run with."""
    found, _ = select({"0": 0.1, "0.5": 0.7}, beta="20")
    assert found["chosen"] == {"reference": "0", "beta": 20.0, "capped": True}


def test_an_experiment_asks_for_no_capped_candidate(select):
    found, _ = select({"0": 0.1, "0.5": 0.7}, capped=False, candidate_betas=[20.0])
    assert [row["capped"] for row in found["rows"]] == [False, False]
