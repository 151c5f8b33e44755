"""A flat row gives what a plain pass over each sequence gives: log-probabilities, and gradients of the weights."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.positions import counted_positions
from tests.tiny_models import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_mistral, with_lora
from torch.nn.functional import scaled_dot_product_attention
from trl.trainer.utils import add_fused_lm_head

from densepath.models import flat_attention, kinds, scoring
from densepath.models.logits import layout_of
from densepath.models.packed_forward import add_packed_forward
from densepath.models.packing import Layout
from densepath.models.scoring import completion_hidden_states, score_completions

OUTPUTS = ("log_probs", "entropy", "is_top1")
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny(name: str, attention: str = "sdpa", **config):
    """A float64 model of transformers' family `name`, with weights far from zero."""
    found = getattr(transformers, f"{name}Config")(
        vocab_size=64, initializer_range=0.25, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        max_position_embeddings=256, **WIDTHS, **config,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(found, attn_implementation=attention)
    return model.double().eval()


GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "llama": lambda: tiny_llama(dtype=torch.float64),
    "llama, biases and tied heads": lambda: tiny("Llama", attention_bias=True, tie_word_embeddings=True),
    "llama, eager": lambda: tiny("Llama", "eager", num_key_value_heads=1),
    "llama under LoRA": lambda: with_lora(tiny_llama(dtype=torch.float64)).double(),
    "qwen2": lambda: tiny("Qwen2", num_key_value_heads=2),
    "qwen2, windows in one layer": lambda: tiny(
        "Qwen2", num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": lambda: tiny("Qwen3", **GROUPED),
    "mistral, windows": lambda: tiny_mistral(dtype=torch.float64),
    "gemma2, capped scores and logits": lambda: tiny(
        "Gemma2", "eager", sliding_window=5, query_pre_attn_scalar=8, attn_logit_softcapping=2.0, **GROUPED
    ),
    "gemma3, windows in turn": lambda: tiny_gemma3(dtype=torch.float64),
    "gpt2": lambda: tiny_gpt2(dtype=torch.float64, dropout=0.0),
    "gpt_neox": lambda: tiny("GPTNeoX"),
}
_built: dict[str, tuple] = {}


def built(name: str):
    """The model with the packed pass in front, and the same without."""
    if name not in _built:
        model = MODELS[name]()
        plain = copy.deepcopy(model)
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        add_fused_lm_head(inner, outputs=OUTPUTS)
        assert add_packed_forward(model)
        _built[name] = model, plain
    return _built[name]


def own(model, prompt, completion) -> torch.Tensor:
    """(completion tokens,) of one plain forward pass."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def trained(model, prompts, completions) -> torch.Tensor:
    """(completion tokens of all,) of the training pass over rows padded on the right."""
    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        labels[row, len(p) : len(p) + len(c)] = torch.tensor(c)
    out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return torch.cat([out.log_probs[row, labels[row, 1:] != -100] for row in range(len(rows))])


def gradients(model, values: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (values.double() * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


ids = st.lists(st.integers(3, 6), min_size=1, max_size=12)  # few, so that prompts begin alike
long = st.integers(30, 50).map(lambda n: [7 + k % 50 for k in range(n)])
groups = st.lists(
    st.tuples(st.one_of(ids, long), st.lists(st.one_of(ids, long), min_size=1, max_size=4)), min_size=1, max_size=4
).map(lambda each: ([p for p, cs in each for _ in cs], [c for _, cs in each for c in cs]))


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=6)
@given(groups=groups, budget=st.integers(8, 200))
def test_scores_and_gradients_are_those_of_a_plain_pass(name, groups, budget):
    model, plain = built(name)
    prompts, completions = groups
    expected = torch.cat([own(plain, p, c) for p, c in zip(prompts, completions, strict=True)])
    scored = score_completions(model, prompts, completions, token_budget=budget)
    # norms, and the scores of eager attention, are rounded to float32 inside
    torch.testing.assert_close(torch.cat(scored.logprobs), expected.detach(), atol=1e-5, rtol=0)
    found = trained(model, prompts, completions)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    weights = torch.linspace(-1, 1, len(found), dtype=torch.float64)
    ours, theirs = gradients(model, found, weights), gradients(plain, expected, weights)
    assert ours.keys() == theirs.keys()
    largest = max(1e-9, *(float(g.abs().max()) for g in theirs.values()))  # equal states may leave rounding alone
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, atol=1e-5 * largest, rtol=1e-5, msg=key)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_is_computed_again_is_computed_alike(reentrant):
    model = tiny_gemma3(dtype=torch.float64)
    prompts, completions = [[1, 2, 3, 4]] * 3 + [[5]], [[6, 7, 8], [9], [3] * 12, [4]]
    add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_forward(model)
    weights = torch.linspace(-1, 1, sum(map(len, completions)), dtype=torch.float64)
    model.train()
    expected = gradients(model, trained(model, prompts, completions), weights)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    passes = []
    model.base_model.layers[1].self_attn.register_forward_hook(lambda *args: passes.append(1))
    found = gradients(model, trained(model, prompts, completions), weights)
    assert len(passes) == 2
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-12, rtol=1e-9, msg=key)
    assert model.config._attn_implementation == "sdpa"


def test_masks_of_long_segments_are_made_in_blocks(monkeypatch):
    monkeypatch.setattr(flat_attention, "_BLOCK", 5)
    for model in (tiny_llama(dtype=torch.float64), tiny_gemma3(dtype=torch.float64)):
        prompts, completions = [[1, 2, 3, 4, 5, 6, 7, 8]] * 2 + [[1, 2, 3]], [[9] * 11, [8] * 23, [7] * 17]
        for found, p, c in zip(
            score_completions(model, prompts, completions).logprobs, prompts, completions, strict=True
        ):
            torch.testing.assert_close(found, own(model, p, c).detach(), atol=2e-6, rtol=0)


def lengths_one_by_one(
    query, key, value, of_queries, of_keys, most, widest, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """What torch's attention over sequences of several lengths computes, by its definition."""
    assert window_size == (-1, 0)
    assert (most, widest) == (int(of_queries.diff().max()), int(of_keys.diff().max()))
    found = []
    for (a, b), (c, d) in zip(of_queries.unfold(0, 2, 1).tolist(), of_keys.unfold(0, 2, 1).tolist(), strict=True):
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - b + a)
        parts = (each.transpose(0, 1)[None] for each in (query[a:b], key[c:d], value[c:d]))
        found.append(scaled_dot_product_attention(*parts, mask, scale=scale, enable_gqa=enable_gqa)[0].transpose(0, 1))
    return torch.cat(found)


def of_torch_2_11(query, key, value, *lengths, scale=None, window_size=(-1, -1)):
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return lengths_one_by_one(query, key, value, *lengths, scale=scale, window_size=window_size)


def of_torch_2_10(query, key, value, *lengths, is_causal=False):
    raise AssertionError("it has no scale, and nothing says where its triangle begins")


def of_old_gpus(*states, scale=None, window_size=(-1, -1), enable_gqa=False):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def counted(calls: list, kernel):
    @functools.wraps(kernel)
    def call(*args, **given):
        calls.append(args[0].dtype)
        return kernel(*args, **given)

    return call


KERNELS = {lengths_one_by_one: True, of_torch_2_11: True, of_torch_2_10: False, of_old_gpus: False}


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_a_kernel_takes_is_asked_before_it_is_used(kernel, monkeypatch):
    """As on a GPU: weights in float32, tried outside of autocast, where no kernel is called, and trained inside."""
    model = tiny_llama()
    prompts, completions = [[1, 2, 3, 4]] * 3 + [[1, 2, 5], [6]], [[6, 7, 8], [9], [3] * 12, [4], [5, 4]]
    expected = torch.cat([own(model, p, c) for p, c in zip(prompts, completions, strict=True)])
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    theirs = gradients(model, expected, weights)
    calls: list[torch.dtype] = []
    monkeypatch.setattr(flat_attention, "varlen_attn", counted(calls, kernel))
    add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_forward(model)
    assert layout_of(model) is Layout.FLAT
    assert calls == []
    with torch.autocast("cpu", torch.bfloat16):
        found = trained(model, prompts, completions)
    assert set(calls) <= {torch.bfloat16}
    assert (len(calls) == 4) is KERNELS[
        kernel
    ]  # each layer, behind calls that look whether it works, and groups heads
    assert float((found - expected).detach().abs().mean()) < 0.05
    ours = gradients(model, found, weights)
    for name, gradient in theirs.items():
        assert float(torch.cosine_similarity(ours[name].flatten(), gradient.flatten(), 0)) > 0.99, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_take_the_kernel(dtype, monkeypatch):
    calls: list[torch.dtype] = []
    monkeypatch.setattr(flat_attention, "varlen_attn", counted(calls, of_torch_2_11))
    model = tiny_llama(dtype=dtype, num_hidden_layers=3)
    assert layout_of(model) is Layout.FLAT
    assert set(calls) == {dtype}


@pytest.mark.slow  # the compiler takes ten seconds
def test_a_compiler_is_told_what_the_kernel_takes(monkeypatch):
    """Its trace would call torch's kernel with tensors that are not there, and find it on every device."""
    monkeypatch.setattr(kinds, "_found", [])
    model, plain = (tiny_llama(dtype=torch.bfloat16, num_hidden_layers=1) for _ in range(2))
    model.model.layers[0].compile(backend="eager")
    prompts, completions = [[1, 2, 3, 4]] * 2 + [[1, 2, 5]], [[6, 7, 8], [9], [4]]
    assert layout_of(model) is Layout.FLAT
    found = torch.cat(score_completions(model, prompts, completions).logprobs)
    assert torch.equal(found, torch.cat(score_completions(plain, prompts, completions).logprobs))
    asked = torch.compile(flat_attention.in_one_call, backend="eager", fullgraph=True)
    for kernel in (flat_attention.varlen_attn, *KERNELS):
        monkeypatch.setattr(flat_attention, "varlen_attn", kernel)
        torch.compiler.reset()
        assert asked(torch.zeros(1, dtype=torch.bfloat16)) is KERNELS.get(kernel, False)


def test_memory_that_runs_out_says_nothing_of_a_kernel(monkeypatch):
    full = [True]

    def kernel(*states, **given):
        if full:
            full.pop()
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(flat_attention, "varlen_attn", kernel)
    states = torch.zeros(1, dtype=torch.bfloat16)
    with pytest.raises(torch.OutOfMemoryError):
        flat_attention.in_one_call(states)
    assert flat_attention.in_one_call(states)


def test_all_segments_in_one_call(monkeypatch):
    """The GPU's way, with its kernel's definition in place of the kernel."""
    model = tiny_llama(dtype=torch.float64)
    assert layout_of(model) is Layout.FLAT
    calls = []
    monkeypatch.setattr(flat_attention, "_takes_lengths", lambda query, value: True)
    monkeypatch.setattr(flat_attention, "varlen_attn", counted(calls, lengths_one_by_one))
    prompts, completions = [[1, 2, 3, 4]] * 3 + [[1, 2, 5], [6]], [[6, 7, 8], [9], [3] * 12, [4], [5, 4]]
    for found, p, c in zip(score_completions(model, prompts, completions).logprobs, prompts, completions, strict=True):
        torch.testing.assert_close(found, own(model, p, c).detach(), atol=2e-6, rtol=0)
    assert len(calls) == 3  # one looks whether the kernel groups heads


def test_one_call_for_all_segments_makes_none_of_their_masks(monkeypatch):
    """Each mask would wait for the device twice."""
    model = tiny_llama(dtype=torch.float64)
    assert layout_of(model) is Layout.FLAT
    monkeypatch.setattr(flat_attention, "_takes_lengths", lambda query, value: True)
    monkeypatch.setattr(flat_attention, "varlen_attn", lengths_one_by_one)
    monkeypatch.setattr(flat_attention, "_parts", lambda *given: pytest.fail("a mask was made"))
    score_completions(model, [[1, 2, 3, 4]] * 3, [[6, 7, 8], [9], [3] * 12])


@pytest.mark.parametrize("in_one_call", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_beginning_of_all_prompts_is_computed_once_for_all_rows(name, in_one_call, monkeypatch):
    """Longer than any window, and shorter than what rows go on to share; each token of it is read once."""
    if in_one_call:
        if "capped" in name:
            pytest.skip("the kernel caps no scores")
        monkeypatch.setattr(flat_attention, "_takes_lengths", lambda query, value: True)
        monkeypatch.setattr(flat_attention, "varlen_attn", lengths_one_by_one)
    monkeypatch.setattr(scoring, "LEAST_BEGINNING", 12)
    model, plain = built(name)
    beginning = [3 + k % 40 for k in range(12)]
    prompts = [[*beginning, *rest] for rest in ([7], [7, 9, 11], [7, 9, 12, 5, 6], [8], [8], [50, 51])]
    completions = [[4, 5], [9, 9, 3], [5] * 9, [6], [7, 8], [20, 21, 22]]
    expected = [own(plain, p, c).detach() for p, c in zip(prompts, completions, strict=True)]
    with counted_positions(model) as read:
        scored = score_completions(model, prompts, completions, token_budget=8, keep_hidden=[2])
        states = completion_hidden_states(model, prompts, completions, token_budget=8)
    for found, own_logprobs in zip(scored.logprobs, expected, strict=True):
        torch.testing.assert_close(found, own_logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.hidden[2], states[2], atol=1e-6, rtol=0)
    rows = [positions for positions in read if positions > 1]
    assert len(rows) > 4
    alone = sum(len(p) + len(c) - 1 for p, c in zip(prompts, completions, strict=True))
    assert sum(rows) < 2 * (alone - (len(prompts) - 1) * len(beginning) + 1)
