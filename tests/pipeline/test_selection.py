"""The choice of the reference where it is known which one helps: models with planted distributions."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from tests.pipeline.planted import save_planted
from tests.support import tiny_tokenizer

from densepath.config.run import RunArguments
from densepath.io import read_json, write_jsonl_atomic
from densepath.methods import SFTRun
from densepath.pipeline import selection
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.selection import chosen, run_selection

PROMPTS = 80
HALF = {":": {"A": 0.5, "B": 0.5}}
"""The SFT policy: right ("A") half of the time."""


def answers(right: float) -> dict[str, dict[str, float]]:
    """A reference that says "A" with this probability; the contrast moves away from it."""
    return {":": {"A": right, "B": 1 - right}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of planted models by their probability of "A"; 0.5 is the SFT policy."""
    folder, tokenizer = tmp_path_factory.mktemp("planted"), tiny_tokenizer()
    return {right: save_planted(folder / str(right), tokenizer, answers(right)) for right in (0.1, 0.3, 0.5, 0.7, 0.9)}


@pytest.fixture
def select(models, tmp_path):
    """Run the stage with a reference at each fraction, given by its probability of the right answer."""

    def run(references: dict[str, float], **changes) -> tuple[dict, str]:
        folder = RunFolder(tmp_path / "run")
        kept = [float(name) for name in references]
        arguments = RunArguments(
            **{
                "model_name_or_path": models[references.get("0", 0.5)],
                "output_dir": str(folder.path),
                "verifier": "exact_match",
                "max_completion_length": 3,
                "reference_fractions": kept,
                "candidate_betas": [1.0, 0.5],
                **changes,
            }
        )
        (folder / "sft/references").mkdir(parents=True)
        (folder / "sft/model").symlink_to(models[0.5])
        for name, right in references.items():
            if name != "0":
                (folder / f"sft/references/{name}").symlink_to(models[right])
        rows = [{"prompt": f"Q{i}:", "completion": "A", "answer": "A"} for i in range(PROMPTS)]
        write_jsonl_atomic(folder / "data/validation.jsonl", rows)
        output = io.StringIO()
        run_selection(folder, SFTRun(folder.path, arguments), Console(file=output, width=200), "3/6")
        assert folder.is_done("selection")
        found = read_json(folder / "selection.json")
        assert found["chosen"] == chosen(folder.path)
        folder.close()
        return found, output.getvalue()

    return run


def contrast(reference: float, beta: float) -> float:
    """P("A") of softmax((1 + 1/beta) z_SFT - z_ref / beta) for an SFT policy that is right half of the time."""
    odds = ((1 - reference) / reference) ** (1 / beta)
    return odds / (1 + odds)


def margin_of(probability: float, n: int = PROMPTS) -> float:
    """Four standard errors of a share."""
    return 4 * math.sqrt(probability * (1 - probability) / n) + 1e-9


def test_auto_takes_the_reference_and_beta_that_help_most(select):
    found, _ = select({"0": 0.9, "0.25": 0.7, "0.5": 0.1, "0.75": 0.3})
    assert found["chosen"] == {"reference": "0.5", "beta": 0.5}
    assert found["mode"] == "auto"
    assert "exact_match of contrastive decoding on 80 validation prompts" in found["criterion"]
    tried = {(row["reference"], row["beta"]): row for row in found["rows"]}
    # every reference at the first beta, and the other beta at the best of them
    assert list(tried) == [("0", 1.0), ("0.25", 1.0), ("0.5", 1.0), ("0.75", 1.0), ("0.5", 0.5)]
    of = {"0": 0.9, "0.25": 0.7, "0.5": 0.1, "0.75": 0.3}
    for (name, beta), row in tried.items():
        truth = contrast(of[name], beta)  # .1, .3, .9, .7 at beta 1 and 81/82 at beta 1/2
        assert row["score"]["mean"] == pytest.approx(truth, abs=margin_of(truth))
        assert row["alpha"] == 1 / beta
        assert row["n"] == PROMPTS
        assert row["difference"]["mean"] == pytest.approx(row["score"]["mean"] - found["baseline"]["mean"])
    assert found["baseline"]["mean"] == pytest.approx(0.5, abs=margin_of(0.5))
    assert found["baseline"]["low"] < 0.5 < found["baseline"]["high"]
    assert f"{found['baseline']['mean']:.3f} for SFT" in found["reason"]
    assert found["warnings"] == []


def test_auto_may_take_the_model_before_sft(select):
    assert select({"0": 0.1, "0.5": 0.7})[0]["chosen"]["reference"] == "0"


def test_auto_says_that_none_helps(select):
    found, _ = select({"0": 0.9, "0.25": 0.7})
    assert found["chosen"] is None
    assert found["reason"].startswith("no preview beats SFT (0.")
    assert "with 90 % confidence; the best (reference 0.25, beta 1) has 0." in found["reason"]
    assert max(row["score"]["high"] for row in found["rows"]) < 0.5


def test_a_reference_equal_to_sft_does_not_help_and_is_named(select):
    found, printed = select({"0": 0.5, "0.5": 0.7})
    assert found["chosen"] is None
    warning = "reference 0 has the same weights as the SFT model: the reward is zero everywhere"
    assert found["warnings"] == [warning]
    assert f"warning: {warning}" in printed


def test_a_fixed_reference_is_obeyed_without_a_preview(select, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("nothing needs to be sampled")

    monkeypatch.setattr(selection, "generate", never)
    found, _ = select({"0": 0.1, "0.25": 0.9}, reference="0.25", beta="0.7")
    assert found["chosen"] == {"reference": "0.25", "beta": 0.7}
    assert (found["mode"], found["rows"]) == ("fixed", [])


def test_a_fixed_reference_that_harms_is_obeyed_with_the_least_harmful_beta(select):
    found, _ = select({"0": 0.1, "0.25": 0.7}, reference="0.25")
    assert found["chosen"] == {"reference": "0.25", "beta": 1.0}  # P("A") is .3, and .155 at beta 1/2
    assert [row["reference"] for row in found["rows"]] == ["0.25", "0.25"]
    assert "the reference was given; no preview beats SFT" in found["reason"]


def test_a_reference_by_its_path(select, models):
    found, _ = select({"0": 0.9}, reference=models[0.1])
    assert found["chosen"] == {"reference": models[0.1], "beta": 0.5}


def test_a_reward_without_a_reference_chooses_nothing(select):
    found, _ = select({"0": 0.9, "0.5": 0.1}, dense_reward="logprob")
    assert found["mode"] == "fixed"
    assert found["chosen"] == {"reference": "0", "beta": 1.0}
    assert found["reason"] == "the reward logprob uses no reference"


def test_without_a_verifier_the_reward_must_tell_demonstrations_from_samples(select):
    found, _ = select({"0": 0.9, "0.5": 0.1}, verifier=None)
    assert found["chosen"] == {"reference": "0.5", "beta": 1.0}
    assert found["baseline"] is None
    # Demonstrations say "A": reward log(.5/.1) over "A" and EOS. Of SFT's samples half do, half earn log(.5/.9).
    good, bad = math.log(0.5 / 0.1) / 2, math.log(0.5 / 0.9) / 2
    row = next(row for row in found["rows"] if row["reference"] == "0.5")
    spread = 4 * (good - bad) * 0.5 / math.sqrt(PROMPTS)
    assert row["score"]["mean"] == pytest.approx(good - (good + bad) / 2, abs=spread)
    assert f"({row['score']['mean']:+.4f} nats per token)" in found["reason"]
    other = next(row for row in found["rows"] if row["reference"] == "0")
    assert other["score"]["mean"] < 0


def test_without_a_verifier_none_may_help_either(select):
    found, _ = select({"0": 0.9, "0.5": 0.7}, verifier=None)
    assert found["chosen"] is None
    assert "no reference gives a reward that tells held-out demonstrations" in found["reason"]


def test_a_fixed_reference_is_obeyed_without_a_verifier(select):
    found, _ = select({"0": 0.1, "0.25": 0.9}, verifier=None, reference="0.25")
    assert found["chosen"] == {"reference": "0.25", "beta": 1.0}
