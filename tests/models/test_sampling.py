from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.families import build
from tests.positions import counted_positions
from tests.tiny_models import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_mamba, tiny_mistral, with_lora

from densepath.core.products import onednn_linear
from densepath.errors import DataError, ModelError, NumericalError, UsageError
from densepath.models import kinds, prepacked, sampling
from densepath.models.decoding import Decoder, RowBatch, cache_argument
from densepath.models.sampling import (
    FLOOR,
    Contrast,
    ContrastKind,
    Draw,
    Sampling,
    inverse_cdf,
    row_uniforms,
    sample,
    sample_each,
)
from densepath.models.scoring import completion_hidden_states

PROMPTS = [[5, 9, 3], [7], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20], [5, 9, 3, 8]]
FAMILIES = {
    "llama": tiny_llama,
    "mistral-window": tiny_mistral,
    "gemma3-mixed": tiny_gemma3,
    "gpt2": tiny_gpt2,
    "lora": lambda **kw: with_lora(tiny_llama(**kw)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full_logprobs(model, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Oracle: float64 log-softmax of one unpadded, uncached forward pass, (positions, vocabulary)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double() / temperature, dim=-1)


def oracle_of_row(model, prompt, completion, temperature: float = 1.0) -> list[float]:
    logprobs = full_logprobs(model, [*prompt, *completion], temperature)
    return [float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(completion)]


@pytest.fixture
def laid_out(monkeypatch):
    """Weights laid out whatever their size and the number of tokens; fails where no layer was."""
    if not prepacked._can_pack():
        pytest.skip("this processor or build of torch has no such layout")
    monkeypatch.setattr(prepacked, "_LEAST_ELEMENTS", 1)
    monkeypatch.setattr(sampling, "LEAST_STEPS", 1)
    read = []
    monkeypatch.setattr(prepacked, "onednn_linear", lambda *given: read.append(1) or onednn_linear(*given))
    yield
    assert read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_do_not_count_from_zero_are_seen_in_half_precision_too(dtype):
    """RoBERTa's begin behind its padding id, which it finds in ids that it is given whole."""
    model = build("roberta").to(dtype).eval()
    prompts = [[*range(3, 30 + 2 * each), 40 + each] for each in range(3)]
    found = sample(model, prompts, max_completion_length=4, eos_token_ids=[2], generator=seeded())
    for prompt, completion, logprobs in zip(prompts, found.completion_ids, found.logprobs, strict=True):
        assert logprobs == pytest.approx(
            oracle_of_row(model, prompt, completion), abs=2e-3 if dtype.itemsize > 2 else 0.1
        )


def test_how_a_kind_of_model_decodes_is_tried_once(monkeypatch):
    """And whether it reads a common beginning apart: also inside of layers that are laid out."""
    trials = []
    trial = sampling._decodes
    monkeypatch.setattr(kinds, "_found", [])
    monkeypatch.setattr(sampling, "LEAST_STEPS", 1)
    monkeypatch.setattr(sampling, "_decodes", lambda *given, **more: trials.append(1) or trial(*given, **more))
    prompts = [[*range(3, 60), each] for each in range(4)]
    first, other, changed = (tiny_llama(seed=seed) for seed in range(3))
    changed.model.layers[0].self_attn.scaling *= 2
    for model, more in ((first, 2), (other, 0), (other, 0), (changed, 2)):
        before = len(trials)
        sample(model, prompts, max_completion_length=3, eos_token_ids=[2], generator=seeded())
        assert len(trials) - before == more


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_of_each_prompt_alone(family):
    model = FAMILIES[family](seed=1)
    ours = sample(model, PROMPTS, max_completion_length=14, temperature=0, eos_token_ids=[2])
    for prompt, completion in zip(PROMPTS, ours.completion_ids, strict=True):
        theirs = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=14,
            eos_token_id=2,
            pad_token_id=2,
        )
        assert completion == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_logprobs_equal_a_float64_pass_over_the_whole_row(family, dtype, tolerance):
    model = FAMILIES[family](seed=2, dtype=dtype)
    got = sample(
        model, PROMPTS, num_generations=3, max_completion_length=15, eos_token_ids=[2, 4], generator=seeded(3)
    )
    assert len({len(c) for c in got.completion_ids}) > 2  # rows ended at different steps, so the cache was cut
    for row, completion in enumerate(got.completion_ids):
        expected = oracle_of_row(model, PROMPTS[row // 3], completion)
        assert got.logprobs[row] == pytest.approx(expected, abs=tolerance, rel=0)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_logprobs_are_those_of_the_tempered_distribution(temperature):
    model = tiny_llama(dtype=torch.float64)
    got = sample(
        model, PROMPTS, max_completion_length=6, temperature=temperature, eos_token_ids=[2], generator=seeded()
    )
    for prompt, completion, logprobs in zip(PROMPTS, got.completion_ids, got.logprobs, strict=True):
        assert logprobs == pytest.approx(oracle_of_row(model, prompt, completion, temperature), abs=1e-10)


def test_greedy_logprobs_are_those_at_temperature_one():
    model = tiny_llama(dtype=torch.float64)
    got = sample(model, PROMPTS[:1], max_completion_length=6, temperature=0, eos_token_ids=[2])
    assert got.logprobs[0] == pytest.approx(oracle_of_row(model, PROMPTS[0], got.completion_ids[0]), abs=1e-10)


def next_of(model, ids) -> list[float]:
    """Oracle: probabilities of the next token in float64, from one pass over the whole row."""
    return full_logprobs(model, ids)[-1].exp().tolist()


def contrasted(contrast, ids, prompt: int, model) -> list[float]:
    """Oracle: what the next token is drawn from at temperature 1, up to a factor; subtraction on whole prefixes."""
    own, other = next_of(model, ids), next_of(contrast.model, ids)
    if contrast.kind is ContrastKind.CONTRASTIVE:
        return [p ** (1 + contrast.strength) * q**-contrast.strength for p, q in zip(own, other, strict=True)]
    mine, theirs = (
        math.prod(next_of(each, ids[:at])[ids[at]] for at in range(prompt, len(ids)))
        for each in (model, contrast.model)
    )
    return [max(mine * p - contrast.strength * theirs * q, FLOOR * mine * p) for p, q in zip(own, other, strict=True)]


def enumerated(model, prompt, length, eos, *, contrast=None, temperature=1.0) -> dict[tuple[int, ...], float]:
    """Oracle: the probability of every completion of at most `length` tokens, by visiting them all."""
    found: dict[tuple[int, ...], float] = {}

    def visit(completion: tuple[int, ...], probability: float) -> None:
        if len(completion) == length or (completion and completion[-1] == eos):
            found[completion] = probability
            return
        ids = [*prompt, *completion]
        weights = next_of(model, ids) if contrast is None else contrasted(contrast, ids, len(prompt), model)
        weights = [weight ** (1 / temperature) for weight in weights]
        for token, weight in enumerate(weights):
            visit((*completion, token), probability * weight / sum(weights))

    visit((), 1.0)
    assert sum(found.values()) == pytest.approx(1.0)
    return found


def chi_square(
    counts: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float], n: int
) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; cells expecting fewer than 5 are pooled."""
    assert set(counts) <= set(expected)
    pooled_seen = pooled_expected = statistic = 0.0
    cells = 0
    for key, probability in expected.items():
        seen, mean = counts.get(key, 0), n * probability
        if mean < 5:
            pooled_seen, pooled_expected = pooled_seen + seen, pooled_expected + mean
        else:
            statistic, cells = statistic + (seen - mean) ** 2 / mean, cells + 1
    if pooled_expected > 0:
        statistic, cells = statistic + (pooled_seen - pooled_expected) ** 2 / pooled_expected, cells + 1
    return statistic, cells - 1


@pytest.mark.parametrize(
    ("temperature", "kind", "strength"),
    [
        (1.0, None, 0.0),
        (0.6, None, 0.0),
        (1.0, ContrastKind.CONTRASTIVE, 0.7),
        (2.0, ContrastKind.CONTRASTIVE, 0.5),
        (1.0, ContrastKind.SUBTRACTIVE, 0.3),
        (1.0, ContrastKind.SUBTRACTIVE, 0.9),
        (0.6, ContrastKind.SUBTRACTIVE, 0.3),
    ],
    ids=["plain", "cold", "contrast", "both", "subtract", "subtract-much", "subtract-cold"],
)
def test_frequencies_match_the_enumerated_probabilities(temperature, kind, strength):
    model = tiny_llama(vocab_size=4, seed=3)
    contrast = None if kind is None else Contrast(tiny_llama(vocab_size=4, seed=4), kind, strength)
    prompt, n = [1, 3, 0], 4000
    expected = enumerated(model, prompt, 3, 2, contrast=contrast, temperature=temperature)
    got = sample(
        model,
        [prompt],
        num_generations=n,
        max_completion_length=3,
        temperature=temperature,
        eos_token_ids=[2],
        generator=seeded(11),
        contrast=contrast,
    )
    counts: dict[tuple[int, ...], int] = {}
    for completion in got.completion_ids:
        counts[tuple(completion)] = counts.get(tuple(completion), 0) + 1
    statistic, freedom = chi_square(counts, expected, n)
    assert freedom >= 5
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations of a chi-square
    # The recorded log-probabilities are those of the enumeration, row by row.
    for completion, logprobs in zip(got.completion_ids[:50], got.logprobs[:50], strict=True):
        assert sum(logprobs) == pytest.approx(math.log(expected[tuple(completion)]), abs=2e-4)


def test_a_wrong_distribution_fails_the_chi_square():
    """The frequency test has teeth: samples at temperature 1 are not those of temperature 0.8."""
    model = tiny_llama(vocab_size=4, seed=3)
    expected = enumerated(model, [1, 3, 0], 3, 2, temperature=0.8)
    got = sample(
        model, [[1, 3, 0]], num_generations=4000, max_completion_length=3, eos_token_ids=[2], generator=seeded(1)
    )
    counts: dict[tuple[int, ...], int] = {}
    for completion in got.completion_ids:
        counts[tuple(completion)] = counts.get(tuple(completion), 0) + 1
    statistic, freedom = chi_square(counts, expected, 4000)
    assert statistic > freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("kind", [None, ContrastKind.SUBTRACTIVE])
def test_frequencies_match_with_laid_out_weights(kind, laid_out):
    test_frequencies_match_the_enumerated_probabilities(1.0, kind, 0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_with_laid_out_weights_equal_a_float64_pass(family, laid_out):
    test_logprobs_equal_a_float64_pass_over_the_whole_row(family, torch.float32, 1e-4)


def test_weights_are_laid_out_anew_at_each_call(laid_out):
    """A training step between two rollouts changes them in place."""
    model = tiny_llama(seed=1)
    sample(model, PROMPTS, max_completion_length=2, eos_token_ids=[2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded()))
    got = sample(model, PROMPTS, max_completion_length=6, eos_token_ids=[2], generator=seeded())
    for prompt, completion, logprobs in zip(PROMPTS, got.completion_ids, got.logprobs, strict=True):
        assert logprobs == pytest.approx(oracle_of_row(model, prompt, completion), abs=1e-4)


def test_a_pair_of_rows_and_enough_tokens_are_laid_out(monkeypatch):
    packed = []
    monkeypatch.setattr(sampling, "prepacked", lambda models: packed.append(models) or contextlib.nullcontext())
    model = tiny_llama()
    for prompts, tokens in ((PROMPTS[:1], 16), (PROMPTS[:2], 15), (PROMPTS[:2], 16)):
        sample(model, prompts, max_completion_length=tokens, eos_token_ids=[2])
    assert packed == [[model]]


@settings(max_examples=15, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=12), min_size=1, max_size=6),
    batch_size=st.integers(1, 7),
    token_budget=st.integers(1, 200),
    seed=st.integers(0, 2**40),
    family=st.sampled_from(["llama", "gemma3-mixed", "gpt2"]),
)
def test_batching_and_padding_never_matter(prompts, batch_size, token_budget, seed, family):
    model = FAMILIES[family](seed=5, dtype=torch.float64)
    arguments = {"num_generations": 2, "max_completion_length": 7, "eos_token_ids": [2, 4, 6, 8]}
    alone = sample(model, prompts, **arguments, generator=seeded(seed), batch_size=1)
    other = sample(
        model,
        prompts,
        **arguments,
        generator=seeded(seed),
        batch_size=batch_size,
        token_budget=token_budget,
        pad_token_id=63,
    )
    assert other.completion_ids == alone.completion_ids
    assert other.truncated == alone.truncated
    for mine, yours in zip(other.logprobs, alone.logprobs, strict=True):
        assert mine == pytest.approx(yours, abs=1e-10)


def test_a_row_does_not_depend_on_rows_after_it_or_on_the_budget_of_tokens():
    model = tiny_llama(dtype=torch.float64)
    few = sample(model, PROMPTS[:2], max_completion_length=5, eos_token_ids=[2], generator=seeded(9))
    more = sample(model, PROMPTS, max_completion_length=11, eos_token_ids=[2], generator=seeded(9))
    for short, long in zip(few.completion_ids, more.completion_ids, strict=False):
        assert long[:5] == short


def tried(model):
    """The model after what is tried once, before anything is counted."""
    sample(model, [[1]], max_completion_length=1, eos_token_ids=[])
    return model


def test_equal_prompts_are_read_once_and_rows_are_prompt_major():
    model = tried(tiny_llama())
    reads: list[tuple[int, ...]] = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: reads.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    repeated = [p for p in PROMPTS[:2] for _ in range(3)]
    as_trl = sample(model, repeated, max_completion_length=4, eos_token_ids=[], generator=seeded(2))
    hook.remove()
    assert reads == [(2, 3), (6, 1), (6, 1), (6, 1)]
    assert as_trl == sample(
        model, PROMPTS[:2], num_generations=3, max_completion_length=4, eos_token_ids=[], generator=seeded(2)
    )


BEGINNING = [31, 7, 44, 7, 12, 60, 33, 21]
BEGUN = [[*BEGINNING, *prompt] for prompt in [*PROMPTS, [5, 9, 3, 8, 10]]]


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_behind_a_beginning_that_all_prompts_share(family):
    """Rows of several lengths, padded behind the beginning, whose cache is repeated and cut."""
    model = FAMILIES[family](seed=2, dtype=torch.float64)
    got = sample(model, BEGUN, num_generations=3, max_completion_length=15, eos_token_ids=[2, 4], generator=seeded(3))
    assert len({len(c) for c in got.completion_ids}) > 2
    for row, completion in enumerate(got.completion_ids):
        assert got.logprobs[row] == pytest.approx(oracle_of_row(model, BEGUN[row // 3], completion), abs=1e-10)


def reads_of(model, prompts, **arguments) -> list[tuple[int, ...]]:
    """Shapes of what the model reads until each row has two tokens."""
    reads: list[tuple[int, ...]] = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: reads.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample(model, prompts, max_completion_length=2, eos_token_ids=[], **arguments)
    hook.remove()
    return reads


def test_a_shared_beginning_is_read_once_for_all_batches():
    model = tried(tiny_llama())
    reads_of(model, BEGUN)  # what is tried once
    assert reads_of(model, BEGUN, batch_size=3) == [(1, 8), (3, 10), (3, 1), (2, 3), (2, 1)]
    few = [prompt[3:] for prompt in BEGUN[:4]]  # 5 tokens, read four times: less than a pass is worth
    assert reads_of(model, few) == [(4, 15), (4, 1)]
    for windowed in (tried(tiny_mistral()), tried(tiny_gemma3())):
        assert reads_of(windowed, BEGUN) == [(5, 18), (5, 1)]


def test_both_models_of_a_contrast_read_the_beginning():
    contrast = Contrast(tiny_llama(seed=1, dtype=torch.float64), ContrastKind.CONTRASTIVE, 0.7)
    model = tiny_llama(seed=2, dtype=torch.float64)
    together = sample(model, BEGUN, max_completion_length=5, eos_token_ids=[], generator=seeded(), contrast=contrast)
    assert len(reads_of(contrast.model, BEGUN, contrast=Contrast(model, ContrastKind.CONTRASTIVE, 0.7))) == 3
    for row, prompt in enumerate(BEGUN):
        weights = torch.tensor(contrasted(contrast, prompt, len(prompt), model), dtype=torch.float64)
        expected = float((weights / weights.sum()).log()[together.completion_ids[row][0]])
        assert together.logprobs[row][0] == pytest.approx(expected, abs=1e-9)


@torch.no_grad()
def test_a_token_is_written_behind_the_cache_and_nothing_is_copied():
    decoder = Decoder(tiny_llama())
    batch = RowBatch([decoder], PROMPTS, steps=4, pad_token_id=0)
    batch.select([0, 1, 1, 3])
    places = set()
    for token in range(4):
        batch.step(torch.full((4,), token))
        places.add(tuple(layer.keys.data_ptr() for layer in decoder._cache.layers))
    assert len(places) == 1
    assert decoder._cache.get_seq_length() == len(PROMPTS[2]) + 4


def test_finished_rows_leave_the_batch():
    model = tried(tiny_llama())
    sizes: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    got = sample(
        model, PROMPTS, num_generations=4, max_completion_length=20, eos_token_ids=range(12), generator=seeded(1)
    )
    hook.remove()
    assert max(sizes[1:]) <= 16
    assert sizes[1:] == sorted(sizes[1:], reverse=True)
    assert sum(sizes[1:]) < 1.3 * sum(len(c) for c in got.completion_ids)


def test_the_first_eos_is_kept_and_nothing_after_it():
    got = sample(
        tiny_llama(), PROMPTS, num_generations=8, max_completion_length=9, eos_token_ids=[2, 7, 9], generator=seeded(4)
    )
    assert {True, False} == set(got.truncated)
    for completion, logprobs, truncated in zip(got.completion_ids, got.logprobs, got.truncated, strict=True):
        assert len(completion) == len(logprobs) <= 9
        assert not set(completion[:-1]) & {2, 7, 9}
        assert truncated == (completion[-1] not in (2, 7, 9))
        assert not truncated or len(completion) == 9


def test_an_eos_as_the_last_token_of_the_budget_is_not_truncated():
    model = tiny_llama()
    free = sample(model, [[5]], max_completion_length=3, temperature=0, eos_token_ids=[])
    last = free.completion_ids[0][2]
    assert last not in free.completion_ids[0][:2]
    got = sample(model, [[5]], max_completion_length=3, temperature=0, eos_token_ids=[last])
    assert got.completion_ids == free.completion_ids
    assert free.truncated == [True]
    assert got.truncated == [False]


def test_an_eos_in_the_prompt_ends_nothing():
    got = sample(tiny_llama(), [[5, 2, 2], [2]], max_completion_length=5, eos_token_ids=[2], generator=seeded(5))
    assert all(len(completion) >= 1 for completion in got.completion_ids)
    assert oracle_of_row(tiny_llama(), [5, 2, 2], got.completion_ids[0]) == pytest.approx(got.logprobs[0], abs=1e-4)


def test_without_eos_ids_every_row_is_truncated():
    got = sample(tiny_llama(), PROMPTS, max_completion_length=5, eos_token_ids=[], generator=seeded())
    assert got.truncated == [True] * 4
    assert [len(c) for c in got.completion_ids] == [5] * 4


@pytest.mark.parametrize("kind", [None, *ContrastKind])
def test_several_draws_are_those_of_each_alone_and_read_each_prompt_once(kind):
    model = tiny_llama()
    contrast = None if kind is None else Contrast(tiny_llama(seed=1), kind, 0.5)
    each = ((1.0, 3, 4), (0.5, 2, 5), (0.0, 1, 0))
    with counted_positions(model) as read:
        found = sample_each(
            model,
            PROMPTS,
            [Draw(temperature, number, seeded(seed)) for temperature, number, seed in each],
            Sampling(4, (3,), contrast=contrast, keep_entropies=True),
        )
    whole = len(PROMPTS) * max(map(len, PROMPTS))
    assert [positions for positions in read if positions >= whole] == [whole]
    for samples, (temperature, number, seed) in zip(found, each, strict=True):
        alone = sample(
            model,
            PROMPTS,
            num_generations=number,
            max_completion_length=4,
            temperature=temperature,
            eos_token_ids=(3,),
            generator=seeded(seed),
            contrast=contrast,
        )
        assert samples.completion_ids == alone.completion_ids
        assert samples.truncated == alone.truncated
        for row, ids in enumerate(samples.completion_ids):
            assert samples.logprobs[row] == pytest.approx(alone.logprobs[row], abs=1e-5)
            prompt = PROMPTS[row // number]
            if contrast is not None:
                models = model, contrast.model
                for told, of in zip(samples.of_models[row], models, strict=True):
                    assert told == pytest.approx(oracle_of_row(of, prompt, ids), abs=1e-5)
                continue
            assert samples.of_models == []
            logprobs = full_logprobs(model, [*prompt, *ids], temperature or 1)[len(prompt) - 1 : -1]
            assert samples.entropies[row] == pytest.approx((-logprobs.exp() * logprobs).sum(-1).tolist(), abs=1e-5)


def test_the_seed_decides_and_the_global_generator_serves_without_one():
    model = tiny_llama()
    arguments = {"num_generations": 4, "max_completion_length": 6, "eos_token_ids": [2]}
    a, b, c = (sample(model, PROMPTS, **arguments, generator=seeded(s)) for s in (1, 1, 2))
    assert a == b
    assert a != c
    torch.manual_seed(3)
    d = sample(model, PROMPTS, **arguments)
    torch.manual_seed(3)
    assert d == sample(model, PROMPTS, **arguments)


def test_contrast_with_itself_changes_nothing():
    model = tiny_llama(dtype=torch.float64)
    arguments = {"max_completion_length": 6, "eos_token_ids": [2]}
    plain = sample(model, PROMPTS, **arguments, generator=seeded(6))
    contrast = Contrast(model, ContrastKind.CONTRASTIVE, 1.5)
    found = sample(model, PROMPTS, **arguments, generator=seeded(6), contrast=contrast)
    assert found.completion_ids == plain.completion_ids
    for mine, yours in zip(found.logprobs, plain.logprobs, strict=True):
        assert mine == pytest.approx(yours, abs=1e-9)


def test_nothing_taken_away_is_the_model_itself():
    model, second = (tiny_llama(dtype=torch.float64, seed=seed) for seed in (0, 1))
    arguments = {"max_completion_length": 6, "eos_token_ids": [2]}
    plain = sample(model, PROMPTS, **arguments, generator=seeded(6))
    found = sample(
        model, PROMPTS, **arguments, generator=seeded(6), contrast=Contrast(second, ContrastKind.SUBTRACTIVE, 0.0)
    )
    assert found.completion_ids == plain.completion_ids
    for mine, yours in zip(found.logprobs, plain.logprobs, strict=True):
        assert mine == pytest.approx(yours, abs=1e-9)


def test_subtraction_follows_each_row_when_others_leave_the_batch():
    """Rows end at different steps, so that what is carried has to be cut with them; one batch is as good as many."""
    model, second = (tiny_llama(dtype=torch.float64, seed=seed) for seed in (0, 1))
    contrast = Contrast(second, ContrastKind.SUBTRACTIVE, 0.6)
    arguments = {"num_generations": 6, "max_completion_length": 10, "eos_token_ids": list(range(2, 20))}
    together = sample(model, PROMPTS, **arguments, generator=seeded(1), contrast=contrast)
    alone = sample(model, PROMPTS, **arguments, generator=seeded(1), contrast=contrast, batch_size=1)
    assert len({len(ids) for ids in together.completion_ids}) > 3
    assert together.completion_ids == alone.completion_ids
    for mine, yours in zip(together.logprobs, alone.logprobs, strict=True):
        assert mine == pytest.approx(yours, abs=1e-9)


def test_train_mode_dropout_and_checkpointing_do_not_matter_and_are_restored():
    model = tiny_gpt2(dropout=0.5)
    expected = sample(model, PROMPTS, max_completion_length=8, eos_token_ids=[2], generator=seeded(7))
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    model.transformer.h[1].attn.eval()
    modes = [module.training for module in model.modules()]
    got = sample(model, PROMPTS, max_completion_length=8, eos_token_ids=[2], generator=seeded(7))
    assert got == expected
    assert [module.training for module in model.modules()] == modes
    assert model.transformer.gradient_checkpointing
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()  # nothing was left in inference mode


def test_modes_are_restored_when_the_model_fails():
    model = tiny_llama().train()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(NumericalError, match=r"row \d: NaN or infinite logits at completion token 0"):
        sample(model, PROMPTS, max_completion_length=3, eos_token_ids=[2])
    assert model.training


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_model_without_a_key_value_cache_is_decoded_row_by_row():
    """Where transformers (from 5.24) gives it a cache of states, its mask must not read the past again."""
    model = tiny_mamba(dtype=torch.float64)
    with pytest.warns(UserWarning, match="one by one"):
        got = sample(
            model, PROMPTS, num_generations=2, max_completion_length=6, eos_token_ids=[2, 4], generator=seeded(8)
        )
    for row, completion in enumerate(got.completion_ids):
        assert got.logprobs[row] == pytest.approx(oracle_of_row(model, PROMPTS[row // 2], completion), abs=1e-6)


def test_progress_counts_completed_rows():
    seen: list[tuple[int, int]] = []
    sample(
        tiny_llama(),
        PROMPTS,
        num_generations=4,
        max_completion_length=9,
        eos_token_ids=range(6),
        generator=seeded(),
        batch_size=5,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (16, 16)
    assert all(a[0] < b[0] for a, b in itertools.pairwise(seen))


def test_no_prompts_give_no_rows():
    got = sample(tiny_llama(), [], max_completion_length=3, eos_token_ids=[2])
    assert (got.completion_ids, got.logprobs, got.truncated) == ([], [], [])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompt_ids": [[3], []]}, DataError, "prompt 1 is empty"),
        ({"prompt_ids": [[3], [3, 64]]}, DataError, "prompt 1 has token id 64"),
        ({"prompt_ids": [[3], [3] * 253]}, DataError, "prompt 1: 253 tokens beside .*context holds 256; shorten"),
        ({"max_completion_length": 0}, UsageError, "at least 1"),
        ({"num_generations": 0}, UsageError, "at least 1"),
        ({"batch_size": 0}, UsageError, "at least 1"),
        ({"temperature": -1.0}, UsageError, "temperature"),
        ({"temperature": float("nan")}, UsageError, "temperature"),
    ],
)
def test_what_cannot_be_done_is_refused(change, error, message):
    arguments = {"prompt_ids": [[3]], "max_completion_length": 4, "eos_token_ids": [2], **change}
    with pytest.raises(error, match=message):
        sample(tiny_llama(), **arguments)


@pytest.mark.parametrize(
    ("kind", "strength"),
    [("contrastive", 0.0), ("contrastive", math.inf), ("subtractive", -0.1), ("subtractive", 1.1)],
)
def test_a_strength_out_of_range_is_refused(kind, strength):
    with pytest.raises(UsageError, match=f"{kind} decoding needs a .*, not {strength}"):
        Contrast(None, ContrastKind(kind), strength)


def test_a_prompt_may_fill_the_context_to_the_last_token():
    got = sample(tiny_llama(), [[3] * 252], max_completion_length=4, eos_token_ids=[])
    assert len(got.completion_ids[0]) == 4


def test_inverse_cdf_by_hand():
    # cumulative 0.25, 0.25, 0.75, 1.0: token 1 has probability zero and no interval.
    logprobs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logprobs, uniforms).tolist() == [0, 0, 2, 2, 3, 3]
    trailing_zero = torch.tensor([[1.0, 0.0]]).log()
    assert inverse_cdf(trailing_zero, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [0]


def test_row_uniforms_depend_on_seed_and_row_alone():
    small, large = row_uniforms(3, 5, seeded(1)), row_uniforms(40, 700, seeded(1))
    assert torch.equal(large[:3, :5], small)
    assert 0 <= large.min() < 0.001 < 0.999 < large.max() < 1
    assert torch.corrcoef(large).fill_diagonal_(0).abs().max() < 0.2  # 40 rows, 700 numbers: sd 0.038


@pytest.mark.parametrize("build", [tiny_llama, tiny_gemma3, tiny_mamba])
def test_kept_hidden_states_are_those_of_a_pass_over_the_samples(build):
    """Prompts of several lengths, rows that end early and leave the batch: each row keeps its own states."""
    model = build()
    prompts = [[5, 6, 7], [8], [5, 6, 7, 8, 9], [5, 6, 7]]
    kept = sample(
        model,
        prompts,
        num_generations=3,
        max_completion_length=9,
        eos_token_ids=[*range(0, 64, 6)],
        generator=torch.Generator().manual_seed(1),
        keep_hidden=True,
    )
    assert len({len(ids) for ids in kept.completion_ids}) > 2
    expected = completion_hidden_states(model, [p for p in prompts for _ in range(3)], kept.completion_ids)
    for mine, theirs in zip(kept.hidden, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3)
    assert not sample(model, prompts, max_completion_length=2, eos_token_ids=[]).hidden


def _renamed(name: str):
    """A tiny LLaMA whose forward pass takes its cache under another name, as a release of transformers may call it."""
    model = tiny_llama(dtype=torch.float64)
    forward, theirs = model.forward, cache_argument(model)

    def renamed(input_ids=None, attention_mask=None, position_ids=None, use_cache=None, **given):
        if name in given:
            given[theirs] = given.pop(name)
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache, **given
        )

    parameters = inspect.signature(renamed).parameters
    extra = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
    named = [p for p in parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    renamed.__signature__ = inspect.Signature([*named, extra])
    model.forward = renamed
    return model


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_is_used_under_either_name_that_transformers_gave_it(name):
    """One pass for the prompts and one for each further token, each of one token a row: not everything again."""
    model = tried(_renamed(name))
    widths: list[int] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, given: widths.append(given[0].shape[1]))
    got = sample(model, PROMPTS, max_completion_length=6, eos_token_ids=[], generator=seeded(8))
    assert widths == [max(map(len, PROMPTS)), *[1] * 5]
    for row, completion in enumerate(got.completion_ids):
        assert got.logprobs[row] == pytest.approx(oracle_of_row(model, PROMPTS[row], completion), abs=1e-6)


def test_a_decoder_whose_cache_is_not_found_is_an_error_and_not_slow():
    message = f"LlamaForCausalLM: .* cache in transformers {re.escape(transformers.__version__)}"
    with pytest.raises(ModelError, match=message):
        sample(_renamed("kept"), PROMPTS, max_completion_length=2, eos_token_ids=[2])


def test_a_model_of_other_code_without_a_cache_is_decoded_row_by_row():
    model = _renamed("kept")
    model.__class__ = type("Foreign", (type(model),), {"__module__": "someone.elses.code"})
    with pytest.warns(UserWarning, match="Foreign: .* one by one"):
        got = sample(model, PROMPTS, max_completion_length=3, eos_token_ids=[2], generator=seeded(8))
    for row, completion in enumerate(got.completion_ids):
        assert got.logprobs[row] == pytest.approx(oracle_of_row(model, PROMPTS[row], completion), abs=1e-6)


def test_longrope_is_sampled_on_one_side_of_its_border_alone():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 16, "factor": 4.0, "rope_theta": 10000.0}
    model = tiny_llama(rope_parameters={**rope, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4})
    prompts = [[1, 2, 3], [*range(1, 31)], [4, 5]]
    samples = sample(model, prompts, max_completion_length=4, eos_token_ids=[])
    for prompt, ids, logprobs in zip(prompts, samples.completion_ids, samples.logprobs, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), own, atol=1e-5, rtol=0)
    with pytest.raises(DataError, match=r"prompt 1 has 14 tokens; with max_completion_length=4 it may cross 16"):
        sample(model, [[1], [*range(1, 15)]], max_completion_length=4, eos_token_ids=[])


@pytest.mark.slow
def test_a_compiled_model_keeps_no_states_rather_than_others():
    model = tiny_llama()
    compiled = torch.compile(model, backend="eager")
    compiled(input_ids=torch.tensor([[1, 2, 3]]))
    samples = sample(compiled, [[1, 2, 3]], max_completion_length=3, eos_token_ids=[], keep_hidden=True)
    assert len(samples.completion_ids[0]) == 3
    for states in samples.hidden:
        again = completion_hidden_states(model, [[1, 2, 3]], samples.completion_ids)[0]
        torch.testing.assert_close(states, again, atol=1e-5, rtol=0)
