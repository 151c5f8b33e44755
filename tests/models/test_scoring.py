"""Scoring: equal to a naive float64 forward pass, whatever the order, the company, the budget or the padding."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_mamba
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from densepath.errors import NumericalError
from densepath.models import flat_attention, kinds, logits, sampling
from densepath.models.logits import layout_of, plain_head, supports_packing
from densepath.models.packing import Layout
from densepath.models.scoring import score_completions

MODELS = {
    "llama": tiny_llama(dtype=torch.float64),
    "gpt2": tiny_gpt2(dtype=torch.float64),
    "gemma3": tiny_gemma3(dtype=torch.float64),
}
VOCAB = min(m.config.get_text_config().vocab_size for m in MODELS.values())


def naive(model, prompt: list[int], completion: list[int]) -> list[float]:
    """One sequence, one forward pass, one token at a time."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    found = []
    for t, token in enumerate(completion):
        row = logits[len(prompt) + t - 1]
        found.append(float(row[token] - math.log(sum(math.exp(float(z)) for z in row))))
    return found


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=15)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([(1,), (1, 2, 3), (5, 4, 3, 2, 1, 6, 7)]),
            st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=6,
    ),
    budget=st.integers(4, 64),
)
def test_equals_a_naive_forward_pass(name, rows, budget):
    model = MODELS[name]
    prompts, completions = [list(p) for p, _ in rows], [c for _, c in rows]
    scored = score_completions(model, prompts, completions, token_budget=budget)
    for prompt, completion, values in zip(prompts, completions, scored.logprobs, strict=True):
        assert values.dtype == torch.float64
        # Gemma's and Llama's own norms round to float32 inside.
        assert values.tolist() == pytest.approx(naive(model, prompt, completion), abs=2e-6)


class Tokens:
    """Counts tokens that go through a model, padding included."""

    def __init__(self, model):
        self.count, self._hook = 0, model.base_model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module, given, named):
        self.count += named["input_ids"].numel()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._hook.remove()


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=15)
@given(
    shared=st.lists(st.integers(0, VOCAB - 1), min_size=8, max_size=14),
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
            st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=20),
        ),
        min_size=1,
        max_size=6,
    ),
    budget=st.integers(4, 64),
)
def test_a_beginning_that_all_prompts_share_changes_nothing(name, shared, rows, budget):
    """Some prompts coincide, some completions are empty, some are long beside it."""
    model = MODELS[name]
    prompts, completions = [[*shared, *p] for p, _ in rows], [c for _, c in rows]
    scored = score_completions(model, prompts, completions, token_budget=budget)
    for prompt, completion, values in zip(prompts, completions, scored.logprobs, strict=True):
        assert values.tolist() == pytest.approx(naive(model, prompt, completion), abs=2e-6)


def test_a_shared_beginning_is_computed_once():
    model = MODELS["llama"]
    supports_packing(model)
    prompts = [[*range(1, 21), 30 + k] for k in range(8)]
    with Tokens(model) as tokens:
        score_completions(model, prompts, [[5, 6]] * 8)
    assert tokens.count == 20 + 8 * 2
    with Tokens(model) as tokens:  # nothing to share
        score_completions(model, [[k, *range(20)] for k in range(8)], [[5, 6]] * 8)
    assert tokens.count == 8 * 22


def test_turns_of_a_conversation_are_computed_once():
    model = MODELS["llama"]
    supports_packing(model)
    first, second = [[1, 2, 3, 4], [5, 6]], [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11]]
    with Tokens(model) as tokens:
        both = score_completions(model, [first[0], second[0]], [first[1], second[1]])
    assert tokens.count == 10
    for (prompt, completion), values in zip((first, second), both.logprobs, strict=True):
        assert values.tolist() == pytest.approx(naive(model, prompt, completion), abs=2e-6)


def test_which_models_are_packed():
    assert [layout_of(model) for model in MODELS.values()] == [Layout.FLAT] * 3
    assert not supports_packing(tiny_mamba()), "a recurrent layer goes on from one sequence to the next"


def test_order_company_and_mode_do_not_matter():
    model = MODELS["llama"]
    prompts, completions = [[1, 2], [3, 4, 5], [1, 2]], [[6, 7], [8], [9, 1, 2]]
    together = score_completions(model, prompts, completions)
    backwards = score_completions(model, prompts[::-1], completions[::-1])
    model.train()
    alone = [score_completions(model, [p], [c]) for p, c in zip(prompts, completions, strict=True)]
    assert model.training
    model.eval()
    for index in range(3):
        for field in ("logprobs", "entropies", "log_normalizers"):
            value = getattr(together, field)[index]
            torch.testing.assert_close(value, getattr(backwards, field)[2 - index], atol=1e-9, rtol=0)
            torch.testing.assert_close(value, getattr(alone[index], field)[0], atol=1e-9, rtol=0)


def test_entropy_and_normaliser_against_the_definition():
    model = MODELS["llama"]
    scored = score_completions(model, [[1, 2, 3]], [[4, 5]])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 2, 3, 4, 5]])).logits[0, 2:4].double()
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    entropy = -(probabilities * probabilities.log()).sum(dim=1)
    torch.testing.assert_close(scored.entropies[0], entropy, atol=1e-6, rtol=0)
    torch.testing.assert_close(scored.log_normalizers[0], logits.exp().sum(dim=1).log(), atol=1e-6, rtol=0)


def test_empty_completion_gives_an_empty_tensor():
    scored = score_completions(MODELS["llama"], [[1], [2]], [[], [3]])
    assert [len(values) for values in scored.logprobs] == [0, 1]


def test_nan_is_named_with_its_place():
    model = tiny_llama(seed=3)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    layout_of(model)
    # In a packed row NaN would reach its neighbours.
    model._densepath_tried = dataclasses.replace(model._densepath_tried, layouts=(Layout.PADDED,))
    with pytest.raises(
        NumericalError, match=r"sequence 1, completion token 0 \(id 7\): log-probability is nan"
    ) as raised:
        score_completions(model, [[1], [2], [7]], [[3, 4], [7, 5], [3]])
    assert raised.value.sequences == (1, 2)


def test_a_model_that_is_cast_is_tried_again(monkeypatch):
    """Where it is computed, and with what precision, decides which kernels do it: float32 here, bfloat16 on a GPU."""
    model, seen = tiny_llama(seed=3), []
    trial, decodes = logits._try, sampling._decodes
    monkeypatch.setattr(kinds, "_found", [])
    monkeypatch.setattr(logits, "_try", lambda tried, *given: seen.append(tried.dtype) or trial(tried, *given))
    monkeypatch.setattr(
        sampling, "_decodes", lambda with_, tried, **given: seen.append(tried.dtype) or decodes(with_, tried, **given)
    )

    def used() -> list[torch.dtype]:
        seen.clear()
        for _ in range(2):
            score_completions(model, [[1, 2]], [[3]])
            sampling.sample(
                model, [[*range(1, 41), last] for last in (50, 51)], max_completion_length=1, eos_token_ids=()
            )
        return list(seen)

    assert used() == [torch.float32] * 3  # the pass, the decoder, and a beginning that all prompts share
    model.to(torch.bfloat16)
    assert used() == [torch.bfloat16] * 3
    model.float()
    assert used() == []  # as another of its kind was found


KERNELS = {
    "attends in float32": lambda query, key, value, mask, **given: attended(
        query.float(), key.float(), value.float(), mask, **given
    ).to(query.dtype),
    "sees no context": lambda query, key, value, mask, **given: attended(
        query, key[:, :, -query.shape[2] :], value[:, :, -query.shape[2] :], None, **given
    ),
}
attended = flat_attention._attended


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize(("kernel", "layout"), [*zip(KERNELS, (Layout.FLAT, Layout.PACKED), strict=True)])
def test_a_kernel_in_half_precision_may_round_as_it_likes_and_not_err(build, dtype, kernel, layout, monkeypatch):
    monkeypatch.setattr(kinds, "_found", [])
    monkeypatch.setattr(flat_attention, "_attended", KERNELS[kernel])
    assert layout_of(build(dtype=dtype)) is layout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_gemma3])
def test_attention_across_sequences_is_refused_in_half_precision(build, dtype, monkeypatch):
    """Every segment of a flat row sees all that lies before it."""
    plain = flat_attention.flat_attention

    def leaking(module, query, key, value, attention_mask, **given):
        whole = (flat_attention.Segment(0, query.shape[2], ()),)
        mask = flat_attention.FlatMask(whole, lambda batch, head, of, at: at <= of, query.device)
        return plain(module, query, key, value, mask, **given)

    monkeypatch.setattr(kinds, "_found", [])
    AttentionInterface.register(flat_attention.NAME, leaking)
    try:
        assert layout_of(build(dtype=dtype)) < Layout.FLAT
    finally:
        AttentionInterface.register(flat_attention.NAME, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("build", "scale"), [(tiny_llama, 1.0), *itertools.product((tiny_gpt2, tiny_gemma3), (1.0, 0.08))]
)
def test_a_model_that_reads_no_positions_is_refused_in_half_precision(build, scale, dtype):
    """It counts columns for them; with small weights that changes less than rounding does with large ones."""
    model = build(dtype=dtype)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(scale if weights.dim() > 1 else 1.0)
    inner = model.base_model.forward
    model.base_model.forward = lambda *args, position_ids=None, **given: inner(*args, **given)
    assert layout_of(model) is Layout.PADDED


@pytest.mark.parametrize("family", ["MPT", "CodeGen", "GPTJ"])
def test_half_precision_finds_the_layout_of_float32(family):
    """Positions of columns, which some releases give them, change little with weights as transformers begins them."""
    widths = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "d_model": 32, "n_heads": 4, "n_layers": 2}
    config = AutoConfig.for_model(family.lower(), vocab_size=64, **widths)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    full, *half = (layout_of(model.to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert half == [full, full]


def test_memory_that_runs_out_says_nothing_of_a_model(monkeypatch):
    full, attention = [True], flat_attention._attended

    def attend(*states, **given):
        if full:
            full.pop()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return attention(*states, **given)

    monkeypatch.setattr(kinds, "_found", [])
    monkeypatch.setattr(flat_attention, "_attended", attend)
    model = tiny_llama()
    with pytest.raises(torch.OutOfMemoryError):
        layout_of(model)
    assert layout_of(model) is Layout.FLAT


def test_a_trial_under_autocast_is_one_of_the_weights_own_precision(monkeypatch):
    rounded, trial = [], logits._try
    monkeypatch.setattr(kinds, "_found", [])
    monkeypatch.setattr(
        logits, "_try", lambda *given: rounded.append(torch.is_autocast_enabled("cpu")) or trial(*given)
    )
    with torch.autocast("cpu", torch.bfloat16):
        layout = layout_of(tiny_llama(seed=4))
    assert (layout, rounded) == (Layout.FLAT, [False])


def test_a_kind_of_model_is_tried_once_and_one_that_may_differ_each_time(monkeypatch):
    """Models with other weights are of one kind; another configuration, NaN, a hook or code of one's own are not."""
    trials = []
    trial = logits._try
    monkeypatch.setattr(kinds, "_found", [])
    monkeypatch.setattr(logits, "_try", lambda *given: trials.append(type(given[0])) or trial(*given))

    def tried(model):
        before = len(trials)
        found = layout_of(model)
        return found, len(trials) - before

    first, other, hooked, nan, changed = (tiny_llama(seed=seed) for seed in range(5))
    assert tried(first) == (Layout.FLAT, 1)
    other.config._name_or_path = "elsewhere"
    assert tried(other) == (Layout.FLAT, 0)
    assert plain_head(other).weight is other.get_output_embeddings().weight
    hooked.model.layers[0].register_forward_hook(lambda module, given, output: output)
    assert tried(hooked)[1] == 1
    with torch.no_grad():
        nan.lm_head.weight[0, 0] = float("nan")
    assert tried(nan) == (Layout.ALONE, 1)
    changed.config.rope_parameters = {**changed.config.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    assert tried(changed)[1] == 1

    patched = tiny_llama(seed=5)
    patched.model.layers[0].self_attn.scaling *= 2
    assert tried(patched)[1] == 1

    class Own(type(first)):
        pass

    for _ in range(2):
        assert tried(Own(first.config))[1] == 1
