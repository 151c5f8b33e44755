"""`generate` on models whose distribution is known: frequencies, greedy, verdicts, order, seeds."""

from __future__ import annotations

import math

import pytest
from tests.pipeline.planted import planted_model, token_id
from tests.support import tiny_tokenizer

from densepath.evals.generation import Completion, Decoding, checked, generate
from densepath.models.sampling import Contrast, ContrastKind

ROWS = [{"prompt": f"Q{i}:", "answer": "A" if i % 2 else "B"} for i in range(4)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def completions(tokenizer, table, rows=ROWS, **changes) -> list[Completion]:
    given = {name: changes.pop(name) for name in ("contrast", "on_progress") if name in changes}
    verifier = changes.pop("verifier", None)
    decoding = Decoding(**{"max_completion_length": 4, "temperature": 1.0, **changes})
    found = generate(planted_model(tokenizer, table), tokenizer, rows, decoding, **given)
    return checked(found, rows, verifier)


def exact(completion: str, row) -> float:
    return float(completion == row["answer"])


def test_frequencies_probabilities_and_verdicts_are_the_tables(tokenizer):
    table = {":": {"A": 0.7, "B": 0.2, "": 0.1}, "A": {"": 0.75, "B": 0.25}}
    found = completions(tokenizer, table, num_generations=400, verifier=exact)
    assert [c.row for c in found] == [index for index in range(4) for _ in range(400)]
    # P("A") = .7 * .75, P("AB") = .7 * .25, P("B") = .2, P("") = .1; four standard errors of 1,600 draws are .05
    expected = {"A": 0.525, "AB": 0.175, "B": 0.2, "": 0.1}
    for text, probability in expected.items():
        share = sum(c.text == text for c in found) / len(found)
        assert share == pytest.approx(probability, abs=0.05)
    a, b, end = (token_id(tokenizer, text) for text in ("A", "B", ""))
    ids = {"A": [a, end], "AB": [a, b, end], "B": [b, end], "": [end]}
    logprobs = {"A": [0.7, 0.75], "AB": [0.7, 0.25, 1], "B": [0.2, 1], "": [0.1]}
    for c in found:
        assert c.completion_ids == ids[c.text]
        assert c.logprobs == pytest.approx([math.log(p) for p in logprobs[c.text]], abs=1e-4)
        assert c.prompt_ids == tokenizer(ROWS[c.row]["prompt"])["input_ids"]
        assert c.truncated is False
        assert c.metric == float(c.text == ROWS[c.row]["answer"])


def test_greedy_takes_the_most_probable_token(tokenizer):
    found = completions(tokenizer, {":": {"A": 0.4, "B": 0.6}, "B": {"A": 0.55, "": 0.45}}, temperature=0.0)
    assert [c.text for c in found] == ["BA"] * 4
    # log-probabilities are those at temperature 1
    assert found[0].logprobs == pytest.approx([math.log(0.6), math.log(0.55), 0], abs=1e-4)


def test_temperature_sharpens(tokenizer):
    """At temperature 1/2 the odds are squared: .6 against .4 becomes .36 / (.36 + .16)."""
    found = completions(tokenizer, {":": {"A": 0.6, "B": 0.4}}, temperature=0.5, num_generations=500)
    assert sum(c.text == "A" for c in found) / 2000 == pytest.approx(0.36 / 0.52, abs=0.045)


def test_a_completion_without_eos_is_truncated(tokenizer):
    found = completions(tokenizer, {":": {"A": 1.0}, "A": {"A": 1.0}})
    assert [c.text for c in found] == ["AAAA"] * 4
    assert all(c.truncated for c in found)


def test_without_a_verifier_there_is_no_verdict(tokenizer):
    assert completions(tokenizer, {":": {"A": 1.0}})[0].metric is None


def test_contrastive_decoding_multiplies_the_odds(tokenizer):
    """softmax((1 + a) z_SFT - a z_ref): odds (.5/.5)^3 (.9/.1)^2 = 81 for a = 2."""
    sft = {":": {"A": 0.5, "B": 0.5}}
    ref = Contrast(planted_model(tokenizer, {":": {"A": 0.1, "B": 0.9}}), ContrastKind.CONTRASTIVE, 2.0)
    found = completions(tokenizer, sft, num_generations=250, contrast=ref)
    assert sum(c.text == "A" for c in found) / 1000 == pytest.approx(81 / 82, abs=0.015)
    first = next(c for c in found if c.text == "A")
    assert first.logprobs[0] == pytest.approx(math.log(81 / 82), abs=1e-3)


def test_subtraction_does_not_collapse_where_contrast_does(tokenizer):
    """A new error A in a tenth of SFT's answers, never seen before: contrast makes nearly all of them A.

    Subtraction leaves SFT without the reference's share, (.45 - .4 * .499, .45 - .4 * .499, .1 - .4 * .002) / .6, and
    no event grows by more than 1 / .6.
    """
    sft = {":": {"A": 0.1, "B": 0.45, "": 0.45}}
    ref = planted_model(tokenizer, {":": {"A": 0.002, "B": 0.499, "": 0.499}})
    share = {}
    for kind, strength in ((ContrastKind.CONTRASTIVE, 2.0), (ContrastKind.SUBTRACTIVE, 0.4)):
        found = completions(tokenizer, sft, num_generations=250, contrast=Contrast(ref, kind, strength))
        share[kind] = sum(c.text == "A" for c in found) / 1000
    assert share[ContrastKind.CONTRASTIVE] > 0.95
    assert share[ContrastKind.SUBTRACTIVE] == pytest.approx((0.1 - 0.4 * 0.002) / 0.6, abs=0.05)


def test_models_that_agree_sample_the_same_under_one_seed(tokenizer):
    """The same uniforms for both: they differ where their distributions do, and nowhere else."""
    one = completions(tokenizer, {":": {"A": 0.5, "B": 0.5}}, num_generations=200)
    two = completions(tokenizer, {":": {"A": 0.6, "B": 0.4}}, num_generations=200)
    moved = [(a.text, b.text) for a, b in zip(one, two, strict=True) if a.text != b.text]
    assert set(moved) == {("B", "A")}  # only the mass that moved
    assert len(moved) / 800 == pytest.approx(0.1, abs=0.04)
    again = completions(tokenizer, {":": {"A": 0.5, "B": 0.5}}, num_generations=200)
    assert [c.text for c in again] == [c.text for c in one]
    other = completions(tokenizer, {":": {"A": 0.5, "B": 0.5}}, num_generations=200, seed=1)
    assert [c.text for c in other] != [c.text for c in one]


def test_prompts_of_every_format_are_answered(tokenizer):
    """The model answers by the token before it: the last one of the chat template's generation prompt, "\\n"."""
    table = {":": {"A": 1.0}, "\n": {"B": 1.0}}
    conversation = [{"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": "Q:"},
        {"prompt": conversation},
        {"messages": [*conversation, {"role": "assistant", "content": "Hello"}]},
    ]
    assert [c.text for c in completions(tokenizer, table, rows=rows)] == ["A", "B", "B"]


def test_progress_reaches_every_completion(tokenizer):
    seen: list[tuple[int, int]] = []
    completions(tokenizer, {":": {"A": 1.0}}, num_generations=3, on_progress=lambda *done: seen.append(done))
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
