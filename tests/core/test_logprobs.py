"""Log-probabilities: naive float64 as oracle over dtypes and chunk sizes, values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.live_memory import LiveBytes

from densepath.core import heads
from densepath.core.heads import Head, chunked_token_logprobs
from densepath.core.logprobs import (
    contrastive_logits,
    entropy,
    exact_kl,
    lift,
    token_logprobs,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def naive_logprobs(logits: torch.Tensor) -> torch.Tensor:
    probs = logits.double().exp()
    return (probs / probs.sum(-1, keepdim=True)).log()


def test_literal():
    # logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]], dtype=torch.float64)
    found = torch.stack([token_logprobs(logits, torch.tensor([i]))[0] for i in range(3)])
    assert found.tolist() == pytest.approx([math.log(1 / 8), math.log(2 / 8), math.log(5 / 8)], abs=1e-15)
    # -(1/8 log 1/8 + 1/4 log 1/4 + 5/8 log 5/8)
    expected = 1 / 8 * math.log(8) + 1 / 4 * math.log(4) + 5 / 8 * math.log(8 / 5)
    assert entropy(logits).item() == pytest.approx(expected, abs=1e-15)
    # KL to the uniform: log 3 - entropy
    assert exact_kl(logits, torch.zeros_like(logits)).item() == pytest.approx(math.log(3) - expected, abs=1e-15)


def test_entropy_of_the_uniform_and_of_certainty():
    assert entropy(torch.zeros(4)).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([100.0, 0.0])).item() == pytest.approx(0.0, abs=1e-30)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_against_naive_float64_in_every_dtype(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, 7, 11, generator=generator)).to(dtype)
    ids = torch.randint(11, (5, 7), generator=generator)
    oracle = naive_logprobs(logits)
    found = token_logprobs(logits, ids)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = oracle.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(
        entropy(logits).double(), -(oracle.exp() * oracle).sum(-1), rtol=0, atol=TOLERANCE[dtype]
    )
    other = logits.flip(-1)
    torch.testing.assert_close(
        exact_kl(logits, other).double(),
        (oracle.exp() * (oracle - oracle.flip(-1))).sum(-1),
        rtol=0,
        atol=3 * TOLERANCE[dtype],
    )


def test_impossible_tokens_give_no_nan():
    """A logit of -inf (a masked vocabulary entry) has probability 0 and adds nothing, gradients included."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    other = torch.tensor([[0.0, math.log(3), -torch.inf]], requires_grad=True)
    assert entropy(logits).item() == pytest.approx(math.log(2))
    # 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4)
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert exact_kl(logits, other).item() == pytest.approx(expected)
    gradients = torch.autograd.grad(entropy(logits).sum() + exact_kl(logits, other).sum(), (logits, other))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert exact_kl(torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])).item() == math.inf


def test_lift_keeps_what_is_precise():
    assert lift(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert lift(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
    double = torch.zeros(1, dtype=torch.float64)
    assert lift(double) is double


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_an_offset_of_the_logits_changes_nothing(seed, offset):
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor([0, 3, 5])
    torch.testing.assert_close(token_logprobs(logits + offset, ids), token_logprobs(logits, ids), rtol=0, atol=1e-12)
    torch.testing.assert_close(exact_kl(logits + offset, logits), torch.zeros(3).double(), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_kl_is_never_negative_and_contrast_with_itself_is_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, other = (4 * torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    assert exact_kl(logits, other).min() >= -1e-15
    for alpha in (0.0, 0.5, 3.0):
        same = contrastive_logits(logits, logits, alpha)
        torch.testing.assert_close(same, logits.log_softmax(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(contrastive_logits(logits, other, 0.0), logits.log_softmax(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("forbids", ["both", "sft", "ref"])
def test_what_a_model_forbids_stays_out(forbids):
    """And of the rest nothing changes; without contrast it is pi_SFT, whatever the reference forbids."""
    sft, ref = torch.tensor([0.5, 2.0, 0.25]), torch.tensor([0.5, 2.0, 1.0])
    for logits in {"both": (sft, ref), "sft": (sft,), "ref": (ref,)}[forbids]:
        logits[1] = -torch.inf
    found = contrastive_logits(sft, ref, 1.0)
    assert found[1] == -torch.inf
    rest = contrastive_logits(sft[[0, 2]], ref[[0, 2]], 1.0)
    torch.testing.assert_close(found[[0, 2]].log_softmax(-1), rest.log_softmax(-1))
    torch.testing.assert_close(contrastive_logits(sft, ref, 0.0), sft.log_softmax(-1))


def test_contrastive_literal():
    # p = (1/2, 1/2), q = (1/4, 3/4), alpha 1: p^2 / q ~ (1/4 / 1/4, 1/4 / 3/4) = (1, 1/3): normalised 3/4, 1/4
    sft, ref = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]], dtype=torch.float64)
    assert contrastive_logits(sft, ref, 1.0).softmax(-1).tolist() == pytest.approx([0.75, 0.25], abs=1e-15)


@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 100])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_chunked_equals_whole_with_gradients(chunk, softcap):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    ids = torch.tensor([0, 1, 2, 3, 4, 0])
    logits = 0.5 * (hidden @ weight.T + bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    scores = chunked_token_logprobs(hidden, Head(weight, bias, 0.5, softcap), ids, chunk_tokens=chunk)
    torch.testing.assert_close(scores.logprobs, token_logprobs(logits, ids), rtol=0, atol=1e-13)
    torch.testing.assert_close(scores.entropies, entropy(logits), rtol=0, atol=1e-13)
    torch.testing.assert_close(scores.log_normalizers, logits.logsumexp(-1), rtol=0, atol=1e-13)
    assert torch.equal(scores.is_top1, logits.argmax(-1) == ids)
    # logprobs + log_normalizers is the raw logit
    raw = logits.gather(1, ids.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(scores.logprobs + scores.log_normalizers, raw, rtol=0, atol=1e-13)
    mine = torch.autograd.grad((scores.logprobs**2).sum() + scores.entropies.sum(), (hidden, weight, bias))
    plain = (token_logprobs(logits, ids) ** 2).sum() + entropy(logits).sum()
    for left, right in zip(mine, torch.autograd.grad(plain, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 1, 2)])
def test_each_score_alone_has_its_gradient(chosen):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    weight[3] = -1e3  # next to no probability where hidden is positive
    ids = torch.tensor([0, 1, 3, 5, 6])
    factors = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    scores = chunked_token_logprobs(hidden, Head(weight), ids, chunk_tokens=2)
    (mine,) = torch.autograd.grad(sum((factors[k] * scores[k]).sum() for k in chosen), hidden)
    logits = hidden @ weight.T
    plain = (token_logprobs(logits, ids), entropy(logits), logits.logsumexp(-1))
    (expected,) = torch.autograd.grad(sum((factors[k] * plain[k]).sum() for k in chosen), hidden)
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [8, 64])
def test_nothing_of_the_vocabulary_outlives_its_chunk(rows):
    """Forward and backward hold a few (chunk, vocabulary) tensors, however many chunks there are."""
    vocabulary, chunk = 4000, 8
    hidden, weight = torch.randn(rows, 2, requires_grad=True), torch.randn(vocabulary, 2, requires_grad=True)
    with LiveBytes() as live:
        scores = chunked_token_logprobs(hidden, Head(weight), torch.arange(rows), chunk_tokens=chunk)
        scores.logprobs.sum().backward()  # entropies are for the log: no gradient comes back to them
    assert live.peak < 2.5 * chunk * vocabulary * 4


@pytest.mark.parametrize("tile", [1, 3, 8, 17, 1000])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, 5.0)])
def test_tiles_of_the_vocabulary_equal_the_whole(monkeypatch, tile, scale, softcap):
    """Without gradients: maxima that rise from tile to tile, ties, an impossible token, large offsets."""
    monkeypatch.setattr(heads, "TILE_ELEMENTS", {"cpu": tile * 4})  # 4 tokens a chunk
    generator = torch.Generator().manual_seed(2)
    hidden = 3 * torch.randn(7, 4, dtype=torch.float64, generator=generator)
    weight = torch.randn(17, 4, dtype=torch.float64, generator=generator)
    weight[[5, 11]] = weight[2].clone()  # ties: only the first of them is top-1
    bias = torch.linspace(-20, 400, 17, dtype=torch.float64) if softcap is None else torch.zeros(17).double()
    bias[7] = -torch.inf if softcap is None else 0.0
    ids = torch.tensor([0, 16, 5, 2, 11, 16, 8])
    logits = scale * (hidden @ weight.T + bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    for order in (torch.arange(17), torch.arange(17).flip(0)):  # maxima at the end, and at the beginning
        z = logits[:, order]
        with torch.no_grad():
            head = Head(weight[order], bias[order], scale, softcap)
            scores = chunked_token_logprobs(hidden, head, ids, chunk_tokens=4)
        probabilities = torch.softmax(z, -1)
        nats = torch.where(probabilities > 0, probabilities * probabilities.log(), torch.zeros_like(z))
        torch.testing.assert_close(scores.logprobs, token_logprobs(z, ids), rtol=0, atol=1e-12)
        torch.testing.assert_close(scores.entropies, -nats.sum(-1), rtol=0, atol=1e-12)
        torch.testing.assert_close(scores.log_normalizers, z.logsumexp(-1), rtol=0, atol=1e-12)
        assert torch.equal(scores.is_top1, z.argmax(-1) == ids)


def test_an_id_outside_of_the_vocabulary_is_not_a_number():
    with torch.no_grad():
        scores = chunked_token_logprobs(torch.ones(2, 3), Head(torch.ones(5, 3)), torch.tensor([1, 5]))
    assert scores.logprobs.isnan().tolist() == [False, True]


def test_chunked_lifts_half_precision_and_takes_nothing():
    hidden, weight = torch.randn(4, 8).bfloat16(), torch.randn(9, 8).bfloat16()
    ids = torch.tensor([0, 3, 8, 1])
    scores = chunked_token_logprobs(hidden, Head(weight), ids, chunk_tokens=3)
    assert {scores.logprobs.dtype, scores.entropies.dtype, scores.log_normalizers.dtype} == {torch.float32}
    assert scores.is_top1.dtype == torch.bool
    oracle = naive_logprobs(torch.nn.functional.linear(hidden, weight))
    expected = oracle.gather(1, ids.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(scores.logprobs.double(), expected, rtol=0, atol=1e-5)
    empty = chunked_token_logprobs(hidden[:0], Head(weight), ids[:0])
    assert {part.shape for part in empty} == {(0,)}


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3,\)"):
        token_logprobs(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="differ"):
        exact_kl(torch.zeros(1, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="differ"):
        contrastive_logits(torch.zeros(1, 3), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="alpha"):
        contrastive_logits(torch.zeros(3), torch.zeros(3), -0.1)
    with pytest.raises(ValueError, match="hidden"):
        chunked_token_logprobs(torch.zeros(2, 3, 4), Head(torch.zeros(5, 4)), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="chunk_tokens"):
        chunked_token_logprobs(
            torch.zeros(2, 4), Head(torch.zeros(5, 4)), torch.zeros(2, dtype=torch.long), chunk_tokens=0
        )
