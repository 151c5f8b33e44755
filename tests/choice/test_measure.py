"""A diagnosis where it is known what is right: planted models, closed forms, and the three regimes."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.pipeline.planted import planted_model
from tests.tiny_sft import TOKENIZER, counting_models, counting_rows

from densepath.choice import measure as measuring
from densepath.choice.decide import decide
from densepath.choice.inputs import Evidence, MeasurePlan, SFTModels
from densepath.choice.measure import measure
from densepath.data.encode import encode_pairs
from densepath.errors import ConfigError, DataError, NumericalError
from densepath.evals.preview import preview_logprobs
from densepath.models.sampling import FLOOR, Contrast, ContrastKind, sample
from densepath.records.choice import Answer
from densepath.records.estimates import verdict_of
from densepath.records.judging import Preference
from densepath.rewards.frozen import FrozenPolicy

PROMPTS = 120
ROWS = [{"prompt": f"{index}:", "completion": "A", "answer": "A"} for index in range(PROMPTS)]
SETTINGS = {"tokenizer": TOKENIZER, "max_completion_length": 3}


def diagnose(sft, references, rows, *, tokenizer, verifier=None, preferences=(), on_progress=None, **plan):
    """Findings, and what was decided from them."""
    models, evidence = SFTModels(sft, references, tokenizer), Evidence(rows, verifier, preferences)
    findings = measure(models, evidence, MeasurePlan(**plan), on_progress=on_progress)
    return SimpleNamespace(findings=findings, decision=decide(findings))


@pytest.fixture(scope="module")
def planted():
    """Policies by their probability of the right answer, "A"; all end after it."""
    rights = (0.1, 0.45, 0.5, 0.6, 0.9)
    return {right: planted_model(TOKENIZER, {":": {"A": right, "B": 1 - right}}) for right in rights}


def contrast(sft, ref, alpha):
    odds = (sft / (1 - sft)) ** (1 + alpha) * (ref / (1 - ref)) ** -alpha
    return odds / (1 + odds)


def subtracted(sft, ref, taken):
    left = [max(of_sft - taken * of_ref, FLOOR * of_sft) for of_sft, of_ref in ((sft, ref), (1 - sft, 1 - ref))]
    return left[0] / sum(left)


def test_the_reference_that_makes_answers_right_is_advised_and_the_other_is_named(planted):
    seen = []
    found = diagnose(
        planted[0.45], {"0": planted[0.1], "0.5": planted[0.9]}, ROWS, verifier="exact_match",
        on_progress=lambda done, total: seen.append((done, total)), **SETTINGS,
    )  # fmt: skip
    advice = found.decision
    assert (advice.answer, advice.reference) == (Answer.CANDIDATE, "0")
    assert "Reference 0.5 does harm" in " ".join(advice.reasons)
    assert seen[-1][0] == seen[-1][1]
    assert all(a <= b for (a, _), (b, _) in itertools.pairwise(seen))
    assert [(p.reference, p.alpha, p.taken, p.temperature) for p in found.findings.candidates] == [
        (name, *strength, temperature)
        for name in ("0", "0.5")
        for strength in ((1.0, 0.0), (2.0, 0.0), (0.0, 0.8))
        for temperature in (1.0, 0.0)
    ]
    own = {answers.temperature: answers for answers in found.findings.sft}
    for preview in found.findings.candidates:
        ref = {"0": 0.1, "0.5": 0.9}[preview.reference]
        right = subtracted(0.45, ref, preview.taken) if preview.capped else contrast(0.45, ref, preview.alpha)
        if preview.temperature == 0:
            assert preview.value.mean == float(right > 0.5)
            continue
        assert preview.value.mean == pytest.approx(right, abs=4 * math.sqrt(right * (1 - right) / PROMPTS) + 1e-9)
        share = preview.value.mean  # exactly, given what was sampled
        kl = share * math.log(right / 0.45) + (1 - share) * math.log((1 - right) / 0.55)
        reward = share * math.log(0.45 / ref) + (1 - share) * math.log(0.55 / (1 - ref))
        assert preview.kl.mean == pytest.approx(kl, abs=1e-4)
        assert preview.reward.mean == pytest.approx(reward, abs=1e-4)
        lead = np.array(preview.verdicts) - np.array(own[1.0].verdicts)
        assert preview.against_same.difference.mean == pytest.approx(lead.mean())
    for figures, ref in zip(found.findings.rewards, (0.1, 0.9), strict=True):
        share = own[1.0].value.mean
        good, bad = math.log(0.45 / ref), math.log(0.55 / (1 - ref))
        assert figures.per_completion.mean == pytest.approx(share * good + (1 - share) * bad, abs=1e-4)
        assert figures.per_completion.sd == pytest.approx(abs(good - bad) * math.sqrt(share * (1 - share)), abs=1e-4)
        assert figures.per_completion.negative == pytest.approx(share if good < 0 else 1 - share)
        assert figures.per_token.mean == pytest.approx(figures.per_completion.mean / 2, abs=1e-4)  # "A" and EOS
        assert figures.verifier.mean == float(good > bad)
        assert figures.length_correlation is None
        assert sum(figures.histogram[1]) == PROMPTS
    nll = {(one.reference, one.alpha): one for one in found.findings.likelihoods}
    assert nll[None, None].nll.mean == pytest.approx(-math.log(0.45) / 2, abs=1e-4)
    assert nll["0", 2.0].nll.mean == pytest.approx(-math.log(contrast(0.45, 0.1, 2.0)) / 2, abs=1e-4)
    assert nll["0.5", None].change.mean == pytest.approx((math.log(0.45) - math.log(0.9)) / 2, abs=1e-4)


def test_a_reward_that_asks_for_the_wrong_answer_is_a_no_and_cannot_be_told_without_ground_truth(planted):
    reference = {"0": planted[0.9]}
    found = diagnose(planted[0.45], reference, ROWS, verifier="exact_match", **SETTINGS)
    assert found.decision.answer is Answer.NONE
    blind = diagnose(planted[0.45], reference, [{"prompt": row["prompt"]} for row in ROWS[:20]], **SETTINGS)
    assert blind.decision.answer is Answer.CANNOT_TELL
    assert blind.findings.likelihoods == ()
    assert all(answers.value is None for answers in (*blind.findings.sft, *blind.findings.candidates))
    pairs = [{"prompt": f"{index}:", "chosen": "A", "rejected": "B"} for index in range(30)]
    against = diagnose(planted[0.45], reference, ROWS[:20], preferences=pairs, **SETTINGS)
    assert against.decision.answer is Answer.NONE
    agrees = diagnose(planted[0.45], {"0": planted[0.1]}, ROWS[:20], preferences=pairs, **SETTINGS)
    assert (agrees.decision.answer, agrees.decision.beta) == (Answer.CANDIDATE, 1.0)
    assert agrees.findings.rewards[0].preference.mean == 1.0
    lead = agrees.findings.rewards[0].preference_lead  # log pi_SFT alone prefers "B", .55 to .45
    assert (lead.difference.mean, lead.verdict.value) == (1.0, "better")
    # Against a flat reference the reward is log pi_SFT itself: nothing that a lower temperature does not give.
    flat = diagnose(planted[0.6], {"0": planted[0.5]}, ROWS[:20], preferences=pairs, **SETTINGS)
    assert flat.findings.rewards[0].preference_lead.difference.mean == 0.0
    assert flat.decision.answer is Answer.NONE


def test_sharpening_alone_is_a_no(planted):
    """Right with .6: always right when greedy. Away from .5 the preview is surer, at temperature 1 alone."""
    found = diagnose(planted[0.6], {"0": planted[0.5]}, ROWS, verifier="exact_match", betas=[0.25], **SETTINGS)
    sampled = next(p for p in found.findings.candidates if p.temperature == 1)
    assert sampled.against_same.verdict.value == "better"
    assert found.decision.answer is Answer.NONE
    assert "sharpening" in found.decision.reasons[1]


def test_a_reference_that_is_the_sft_model_is_nothing_to_extrapolate(planted):
    found = diagnose(
        planted[0.5], {"1": copy.deepcopy(planted[0.5])}, ROWS[:12], verifier=lambda text, row: 1.0, **SETTINGS
    )
    assert found.decision.answer is Answer.NONE
    assert "zero" in found.decision.reasons[0]


@pytest.mark.parametrize("said", [float("nan"), float("inf"), None, "right"])
def test_a_verifier_that_says_no_number_is_named_with_the_prompt(planted, said):
    def verifier(text, row):
        return said if row == ROWS[2] else 1.0

    with pytest.raises(DataError, match=rf"^prompt 3 \('.*'\): the verifier says '?{said}'? of an answer"):
        diagnose(planted[0.45], {"0": planted[0.1]}, ROWS[:4], verifier=verifier, **SETTINGS)


def test_a_verifier_that_raises_is_named_with_the_prompt_and_keeps_its_cause(planted):
    with pytest.raises(DataError, match=r"^prompt 1 \('.*'\): the verifier failed: KeyError: 'nothere'") as found:
        diagnose(planted[0.45], {"0": planted[0.1]}, ROWS[:4], verifier=lambda text, row: row["nothere"], **SETTINGS)
    assert isinstance(found.value.__cause__.__cause__, KeyError)


@pytest.mark.parametrize(("p", "mean"), [(float("nan"), 0.5), (0.01, float("nan"))])
def test_what_is_no_number_has_no_verdict(p, mean):
    with pytest.raises(NumericalError, match="has no verdict"):
        verdict_of(p, mean)


def test_several_completions_of_a_prompt_are_one_unit(planted):
    found = diagnose(
        planted[0.5], {"0": planted[0.1]}, ROWS[:10], verifier="exact_match", num_generations=4, **SETTINGS
    )
    sampled, _, greedy = found.findings.sft
    assert sampled.value.n == greedy.value.n == 10
    assert {value * 4 % 1 for value in sampled.verdicts} == {0.0}
    assert len(set(sampled.verdicts)) > 2
    assert sum(found.findings.rewards[0].histogram[1]) == 40


def states_of(policies, texts):
    ids = [text.prompt_ids for text in texts], [text.completion_ids for text in texts]
    return list(zip(*(policy.hidden_states(*ids) for policy in policies), strict=True))


def test_the_likelihood_under_the_preview_is_that_of_the_sampler_and_of_plain_logits():
    sft, ref, _ = counting_models()
    policies = FrozenPolicy(sft), FrozenPolicy(ref)
    pairs = [pair for row in counting_rows(5, seed=3) for pair in encode_pairs(row, TOKENIZER)]
    found = preview_logprobs(*policies, pairs, [0.5, 2.0], states_of(policies, pairs))
    exact = [copy.deepcopy(model).double() for model in (sft, ref)]
    for index, pair in enumerate(pairs):
        ids = torch.tensor([[*pair.prompt_ids, *pair.completion_ids]])
        with torch.no_grad():
            mine, theirs = (model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1] for model in exact)
        for alpha in (0.5, 2.0):
            logprobs = ((1 + alpha) * mine - alpha * theirs).log_softmax(-1)
            expected = logprobs[torch.arange(len(logprobs)), torch.tensor(pair.completion_ids)]
            torch.testing.assert_close(found[alpha][index], expected, atol=1e-4, rtol=0)
    drawn = sample(
        sft, [pairs[0].prompt_ids], max_completion_length=6, eos_token_ids=[TOKENIZER.eos_token_id],
        generator=torch.Generator().manual_seed(0), contrast=Contrast(ref, ContrastKind.CONTRASTIVE, 2.0),
    )  # fmt: skip
    one = [type(pairs[0])(pairs[0].prompt_ids, tuple(drawn.completion_ids[0]))]
    again = preview_logprobs(*policies, one, [2.0], states_of(policies, one))
    torch.testing.assert_close(again[2.0][0], torch.tensor(drawn.logprobs[0]).double(), atol=1e-4, rtol=0)


def test_mistakes_are_named(planted):
    with pytest.raises(ConfigError, match="there is no reference to preview"):
        diagnose(planted[0.5], {}, ROWS, **SETTINGS)
    for betas in ([0.0], [1.0, 1.0]):
        with pytest.raises(ConfigError, match=r"betas=\[.*\] must be different positive numbers"):
            diagnose(planted[0.5], {"0": planted[0.1]}, ROWS, betas=betas, **SETTINGS)
    of_two_kinds = {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}
    for row in ({"text": "a"}, of_two_kinds):
        with pytest.raises(DataError, match="row 1: "):
            diagnose(planted[0.5], {"0": planted[0.1]}, [row], **SETTINGS)
    with pytest.raises(
        ConfigError, match="reference 0 is the SFT model itself, so a preview would be SFT; give another"
    ):
        diagnose(planted[0.5], {"0": planted[0.5]}, ROWS[:2], **SETTINGS)


class PrefersA:
    """A judge's preference over SFT's greedy answer, "B": "A" wins; of the first prompts it says nothing."""

    def __init__(self, silent: int = 0) -> None:
        self.silent = silent

    def judged(self, answers, rows):
        silent = {row["prompt"] for row in ROWS[: self.silent]}
        won = (None if row["prompt"] in silent else text == "A" for text, row in zip(answers, rows, strict=True))
        return [Preference(None) if each is None else Preference(0.5 + 0.5 * each, (1.0, each)) for each in won]


@pytest.mark.parametrize("silent", [0, 20])
def test_a_judge_decides_as_a_verifier_does_and_what_it_could_not_say_counts_for_nobody(planted, silent):
    references = {"0": planted[0.1], "0.5": planted[0.9]}
    found = diagnose(planted[0.45], references, ROWS, verifier=PrefersA(silent), **SETTINGS)
    checked = diagnose(planted[0.45], references, ROWS, verifier="exact_match", **SETTINGS)
    assert found.decision.answer == Answer.CANDIDATE
    assert found.decision.reference == checked.decision.reference == "0"
    assert found.findings.prompts == PROMPTS - silent
    wrong = [1 - 2 * (each.value.mean - 0.5) for each in (*found.findings.candidates, *found.findings.sft)]
    assert found.findings.position.follows_place.mean == pytest.approx(statistics.fmean(wrong))
    assert found.findings.position.follows_place.n == found.findings.prompts
    assert any("it goes by the place" in each for each in found.decision.warnings)
    assert checked.findings.position is None
    pairs = zip(found.findings.candidates, checked.findings.candidates, strict=True)
    for mine, other in (*pairs, *zip(found.findings.sft, checked.findings.sft, strict=True)):
        assert mine.verdicts == tuple(0.5 + 0.5 * right for right in other.verdicts[silent:])
        assert mine.lengths == other.lengths[silent:]


def test_a_prompt_is_answered_and_scored_once_for_all_temperatures_and_figures(planted, monkeypatch):
    """Each model makes one pass over all texts, and each policy or preview one call of the sampler."""
    passes, draws = [], []

    def counted(self, prompt_ids, completion_ids, *args):
        passes.append((id(self.model), len(completion_ids)))
        return score(self, prompt_ids, completion_ids, *args)

    def drawn(model, tokenizer, rows, decodings, **given):
        draws.append([decoding.temperature for decoding in decodings])
        return generate_each(model, tokenizer, rows, decodings, **given)

    score, generate_each = FrozenPolicy.score, measuring.generate_each
    monkeypatch.setattr(FrozenPolicy, "score", counted)
    monkeypatch.setattr(FrozenPolicy, "hidden_states", None)
    monkeypatch.setattr(measuring, "generate_each", drawn)
    references = {"0": planted[0.1], "0.5": planted[0.9]}
    found = diagnose(planted[0.5], references, ROWS[:6], verifier="exact_match", betas=[1.0], **SETTINGS)
    assert all(one.kl is not None for one in found.findings.candidates if one.temperature == 1)
    assert [model for model, _ in passes] == [id(planted[right]) for right in (0.5, 0.1, 0.9)]
    assert len({count for _, count in passes}) == 1
    assert draws == [[1.0, 0.5, 0.0], *[[1.0, 0.0]] * 4]
