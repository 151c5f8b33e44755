"""The choice of a reference where it is known which one is best, and every figure against plain forward passes."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from tests.pipeline.planted import planted_model
from tests.tiny_models import tiny_llama
from tests.tiny_sft import TOKENIZER, counting_models, counting_rows

from densepath.choice import measure as module
from densepath.choice.agreement import measure_agreement
from densepath.choice.decide import decide
from densepath.choice.inputs import Evidence, MeasurePlan, SFTModels
from densepath.choice.measure import measure
from densepath.data.encode import encode_pairs
from densepath.errors import ConfigError, DataError
from densepath.evals import scored_texts
from densepath.evals.generation import Completion
from densepath.records.choice import Answer, Criterion
from densepath.stats.intervals import proportion_interval


def judge(sft, references, rows, *, verifier=None, preferences=(), on_progress=None, **plan):
    """Findings about the reward alone, without previews, and what was decided from them."""
    models, evidence = SFTModels(sft, references, TOKENIZER), Evidence(rows, verifier, preferences)
    found = measure(models, evidence, MeasurePlan(betas=(), **plan), on_progress=on_progress)
    return found, decide(found)


def candidate(found, name):
    return {one.criterion.value: one for one in found.agreement if one.reference == name}


def criteria(found):
    return {one.criterion.value for one in found.agreement}


def answers(right: float):
    return {":": {"A": right, "B": 1 - right}}


@pytest.fixture(scope="module")
def planted():
    """Policies by their probability of "A" after ":"; all end after it."""
    return {right: planted_model(TOKENIZER, answers(right)) for right in (0.1, 0.3, 0.5, 0.9)}


ROWS = [{"prompt": f"{index}:", "completion": "A", "answer": "A"} for index in range(60)]
PAIRS = [{"prompt": f"{index}:", "chosen": "A", "rejected": "B"} for index in range(20)]


def test_each_criterion_finds_the_reference_that_it_should(planted):
    """SFT says "A" half of the time. Against 0.9 the reward of "A" is negative, against 0.1 and 0.3 positive."""
    references = {"0": planted[0.9], "0.25": planted[0.3], "0.5": planted[0.1]}
    found, decision = judge(
        planted[0.5], references, ROWS, preferences=PAIRS, verifier="exact_match",
        max_completion_length=3,
    )  # fmt: skip
    assert criteria(found) == {"preference", "verifier", "samples"}  # no number to alter
    assert (found.criterion.value, decision.reference, decision.answer) == (
        "preference",
        "0.25",
        Answer.CANDIDATE,
    )  # the first of those with accuracy 1
    for name, accuracy in {"0": 0.0, "0.25": 1.0, "0.5": 1.0}.items():
        assert candidate(found, name)["preference"].value.mean == accuracy
        assert candidate(found, name)["verifier"].value.mean == accuracy  # AUROC of right samples
    # Of SFT's samples half are "A": margin 0 there, and half the contrast of "A" with "B" (two tokens) elsewhere.
    for name, right in {"0": 0.9, "0.25": 0.3, "0.5": 0.1}.items():
        contrast = (math.log(0.5 / right) - math.log(0.5 / (1 - right))) / 2
        margins = candidate(found, name)["samples"]
        share = margins.margin / contrast  # of samples that were "B"
        assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 60)
        expected = math.copysign(share / math.sqrt(share * (1 - share)), contrast)
        assert margins.value.mean == pytest.approx(expected, rel=1e-3)
        assert candidate(found, name)["verifier"].right == pytest.approx(1 - share, abs=1e-6)


def test_the_mean_of_all_references_is_a_candidate(planted):
    references = {"0": planted[0.9], "0.5": planted[0.1]}
    found, _ = judge(planted[0.5], references, ROWS[:20], max_completion_length=3, criterion="samples")
    # (0.9 + 0.1) / 2 is the SFT policy itself: no reward at all.
    assert candidate(found, "all")["samples"].margin == pytest.approx(0.0, abs=1e-5)
    alone, _ = judge(planted[0.5], references, ROWS[:20], max_completion_length=3, ensemble=False)
    assert [one.reference for one in alone.agreement] == ["0", "0.5"]


def test_none_is_chosen_where_none_tells(planted):
    found, decision = judge(planted[0.5], {"0": planted[0.9]}, ROWS, preferences=PAIRS, max_completion_length=3)
    assert (decision.answer, decision.reference) == (Answer.NONE, None)
    assert found.preferences_set_aside == 0
    assert decision.reasons[0] == "The reward prefers the rejected answers, whatever the reference."
    found, decision = judge(planted[0.5], {"0": planted[0.9]}, ROWS, max_completion_length=3)
    assert (decision.answer, decision.reference) == (Answer.NONE, None)
    words = "No reference's reward is shown to be above 0; the best, 0, has signal-to-noise (samples) of -"
    assert decision.reason.startswith(words)
    useless = [PAIRS[0], {**PAIRS[1], "rejected": "A"}, {**PAIRS[2], "prompt": "z" * 200}]
    found, _ = judge(planted[0.5], {"0": planted[0.1]}, ROWS[:4], preferences=useless, num_generations=0)
    assert found.preferences_set_aside == 2
    assert candidate(found, "0")["preference"].value.n == 1
    short = tiny_llama(len(TOKENIZER), max_position_embeddings=40)
    beyond = [PAIRS[0], {**PAIRS[2], "prompt": "z" * 60}]  # the SFT model holds it, and the reference does not
    found, _ = judge(planted[0.5], {"0": short}, ROWS[:4], preferences=beyond, num_generations=0)
    assert found.preferences_set_aside == 1
    _, same = judge(planted[0.5], {"1": planted[0.5]}, ROWS[:10], max_completion_length=3)
    assert same.answer is Answer.NONE


def test_a_verifier_that_finds_all_alike_is_no_criterion(planted):
    rows = [{**row, "answer": "C"} for row in ROWS[:10]]
    arguments = {"verifier": "exact_match", "max_completion_length": 3}
    found, _ = judge(planted[0.5], {"0": planted[0.1]}, rows, **arguments)
    assert criteria(found) == {"samples"}
    with pytest.raises(ConfigError, match=r"criterion=verifier cannot be computed .*; there is samples"):
        judge(planted[0.5], {"0": planted[0.1]}, rows, criterion="verifier", **arguments)


def answered(row, token, metric):
    return Completion(row, [1, row], [token, 9], [0.0, 0.0], "", False, metric)


def test_what_a_judge_could_not_say_counts_for_no_reward():
    """Of six samples one is not judged, and each verdict stays with its own sample."""
    texts, metrics = scored_texts.Texts(), (0.2, None, 0.9, 0.4, 0.8, 0.1)
    texts.add_samples([answered(row, row + 10, metric) for row, metric in enumerate(metrics)], 6)
    rewards = {"r": [torch.full((2,), value) for value in (-1.0, 99.0, 1.0, 0.5, 0.0, -2.0)]}
    found = measure_agreement(texts, rewards, 8, 0)[Criterion.VERIFIER]
    assert found.values["r"] == pytest.approx(5 / 6)  # of (1, 0) against (-1, .5, -2) five pairs are in order
    assert found.extras["r"]["right"] == 0.4
    texts.add_samples([answered(row, row + 10, None) for row in range(6)], 6)
    assert texts.verdicts == [[]] * 6
    assert Criterion.VERIFIER not in measure_agreement(texts, rewards, 8, 0)


def test_prompts_that_were_not_judged_are_not_counted():
    """Five of eight were; the figure is that of these five alone, its interval too."""
    found = []
    for metrics in ([1.0, None, 0.0, 1.0, None, 0.0, 1.0, None], [1.0, 0.0, 1.0, 0.0, 1.0]):
        texts = scored_texts.Texts()
        texts.add_samples([answered(row, row + 10, metric) for row, metric in enumerate(metrics)], len(metrics))
        scores = iter((0.9, 0.1, 0.3, 0.5, 0.8))
        rewards = [torch.tensor([99.0 if metric is None else next(scores)]) for metric in metrics]
        found.append(measure_agreement(texts, {"r": rewards}, 8, 0)[Criterion.VERIFIER])
    some, alone = (one.agreement("r", Criterion.VERIFIER) for one in found)
    assert some == alone
    assert some.value.n == 5
    few = scored_texts.Texts()
    few.add_samples([answered(row, row + 10, metric) for row, metric in enumerate((1.0, 0.0, 1.0, 0.0, None))], 5)
    assert Criterion.VERIFIER not in measure_agreement(few, {"r": [torch.zeros(1)] * 5}, 8, 0)


def made_texts(pairs=0, twins=0, answers=0):
    """Pairs, demonstrations with twins, and rows of a right and a wrong answer; a reward of about 1 for the first."""
    count = itertools.count()
    judged, altered, sampled = ([(next(count), next(count)) for _ in range(size)] for size in (pairs, twins, answers))
    texts = scored_texts.Texts(
        pairs=judged,
        demonstrations=[mine for mine, _ in altered],
        demonstrated=list(range(twins)),
        twins=[twin for _, twin in altered],
        samples=[list(each) for each in sampled],
        verdicts=[[1.0, 0.0]] * answers,
    )
    noise = np.random.default_rng(0).random(next(count)) / 2
    return texts, [torch.tensor([1.0 - place % 2 + noise[place]]) for place in range(len(noise))]


@pytest.mark.parametrize(("n", "there"), [(1, False), (3, False), (4, False), (5, True)])
def test_a_figure_of_few_prompts_is_no_criterion(n, there):
    """All agree: four are the fewest whose sign test says less than one in ten, and one draw in 64 is of one alone."""
    texts, rewards = made_texts(twins=n, answers=n)
    found = measure_agreement(texts, {"r": rewards}, 8, 0)
    assert (Criterion.VERIFIER in found, Criterion.ALTERED in found) == (there, there)
    if there:
        one = found[Criterion.ALTERED].agreement("r", Criterion.ALTERED)
        assert 0 < one.low < one.value.mean < one.value.high < 1000


@pytest.mark.parametrize("right", [True, False])
def test_pairs_that_all_agree_have_the_interval_of_a_proportion(right):
    texts, rewards = made_texts(pairs=3)
    rewards = rewards if right else [-values for values in rewards]
    one = measure_agreement(texts, {"r": rewards}, 8, 0)[Criterion.PREFERENCE].agreement("r", Criterion.PREFERENCE)
    assert one.value == proportion_interval(3 * right, 3)
    z = statistics.NormalDist().inv_cdf(0.9)
    assert one.low == pytest.approx(3 / (3 + z * z) if right else 0.0)  # Wilson 1927, one-sided


def test_three_pairs_decide_nothing(planted):
    """Whichever way they agree, and whether or not anything was sampled."""
    for name, generations in itertools.product((0.9, 0.1), (0, 1)):
        arguments = {"max_completion_length": 3, "num_generations": generations, "preferences": PAIRS[:3]}
        found, decision = judge(planted[0.5], {"0": planted[name]}, ROWS[:8], **arguments)
        assert (found.criterion, decision.answer, decision.reference) == (
            Criterion.PREFERENCE, Answer.CANNOT_TELL, None,
        )  # fmt: skip


def test_a_row_without_an_answer_is_compared_with_nothing(planted):
    """Rows of prompts stand between the demonstrations, and each is compared with samples of its own prompt."""
    rows = [dict(row) for row in ROWS[:6]]
    asked = {"prompt": rows[1]["prompt"]}, {"messages": [{"role": "user", "content": "a"}]}
    arguments = {"max_completion_length": 3, "num_generations": 2}
    alone, _ = judge(planted[0.5], {"0": planted[0.1]}, [row for row in rows if row is not rows[1]], **arguments)
    mixed, _ = judge(planted[0.5], {"0": planted[0.1]}, [rows[0], asked[0], *rows[2:]], **arguments)
    assert candidate(mixed, "0")["samples"].value.n == candidate(alone, "0")["samples"].value.n == 5
    texts = scored_texts.collect_texts([rows[0], *asked, rows[2]], [], TOKENIZER, 64, 0, "rows")
    assert texts.demonstrated == [0, 3]


def plain_logprobs(model, pair):
    ids = torch.tensor([[*pair.prompt_ids, *pair.completion_ids]])
    with torch.no_grad():
        table = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(pair.prompt_ids)
    return [float(table[start - 1 + t, token]) for t, token in enumerate(pair.completion_ids)]


def test_altered_and_samples_by_plain_forward_passes(monkeypatch):
    sft, ref, base = counting_models()
    rows = counting_rows(12, seed=21)
    twins, samples = {}, {}
    whole, drawn = scored_texts.alter_answer, module.generate_each
    exact = [copy.deepcopy(model).double() for model in (sft, ref, base)]
    monkeypatch.setattr(
        scored_texts, "alter_answer", lambda row, *given: twins.setdefault(str(row), whole(row, *given))
    )

    def keep(*given, **named):
        found = drawn(*given, **named)
        samples.update({completion.row: completion for drawing in found for completion in drawing})
        return found

    monkeypatch.setattr(module, "generate_each", keep)
    seen = []
    found, decision = judge(
        sft, {"0": base, "0.25": ref}, rows, max_completion_length=4, seed=5,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    # Sampled; then demonstrations, twins and samples under three models, equal ones once.
    done, total = seen[-1]
    assert done == total
    assert 12 + 3 * 24 <= total <= 12 + 3 * 36
    assert found.criterion.value == "altered"

    @functools.cache
    def logprobs(pair):
        found = dict(zip(("sft", "0.25", "0"), (plain_logprobs(model, pair) for model in exact), strict=True))
        both = zip(found["0.25"], found["0"], strict=True)
        return {**found, "all": [math.log((math.exp(a) + math.exp(b)) / 2) for a, b in both]}

    def rewards(name, pair):
        return [a - b for a, b in zip(logprobs(pair)["sft"], logprobs(pair)[name], strict=True)]

    for name in ("0", "0.25", "all"):
        altered, own = [], []
        for index, row in enumerate(rows):
            (pair,) = encode_pairs(row, TOKENIZER)
            demonstration = rewards(name, pair)
            twin = twins[str(row)].completions[1]
            altered.append(statistics.fmean(demonstration) - statistics.fmean(rewards(name, twin)))
            sample = samples[index]
            theirs = rewards(name, scored_texts.Encoded(tuple(sample.prompt_ids), tuple(sample.completion_ids)))
            own.append(statistics.fmean(demonstration[:4]) - statistics.fmean(theirs))
        for criterion, margins in (("altered", altered), ("samples", own)):
            one = candidate(found, name)[criterion]
            assert one.margin == pytest.approx(statistics.fmean(margins), abs=1e-4)
            assert one.above == pytest.approx(np.mean(np.array(margins) > 1e-6), abs=1e-9)
            assert one.value.mean == pytest.approx(statistics.fmean(margins) / statistics.pstdev(margins), abs=1e-3)
    # After a real SFT the reward tells right answers from altered ones.
    assert decision.answer is Answer.CANNOT_TELL  # a reference to try: no answer was judged
    assert candidate(found, decision.reference)["altered"].above > 0.8


def test_mistakes_are_named(planted):
    arguments = {"max_completion_length": 3}
    with pytest.raises(ConfigError, match="there is no reference to preview"):
        judge(planted[0.5], {}, ROWS, **arguments)
    with pytest.raises(
        ConfigError, match="criterion=luck is not one of answers, preference, verifier, altered, samples"
    ):
        judge(planted[0.5], {"0": planted[0.1]}, ROWS, criterion="luck", **arguments)
    with pytest.raises(DataError, match="nothing to measure; sample with num_generations"):
        judge(planted[0.5], {"0": planted[0.1]}, [{"prompt": "a"}], num_generations=0, **arguments)
    bad = [{"prompt": "a", "chosen": "b"}]
    with pytest.raises(DataError, match='the preference rows, row 1: no "rejected"'):
        judge(planted[0.5], {"0": planted[0.1]}, ROWS[:2], preferences=bad, **arguments)
    with pytest.raises(DataError, match=r"row 1: 1.. tokens, but the models' context holds 128"):
        judge(planted[0.5], {"0": planted[0.1]}, [{"prompt": "z" * 130, "completion": "A"}], **arguments)
