"""Losses of whole distributions in chunks: values and gradients of the naive computation, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.live_memory import WidestRows

from densepath.core import heads
from densepath.core.heads import Head, chunked_loss, head_logprobs, logprobs_in_parts, token_chunks


def naive_logprobs(hidden, weight, bias=None, scale=1.0, softcap=None):
    logits = hidden.double() @ weight.double().T
    logits = (logits if bias is None else logits + bias.double()) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits - logits.exp().sum(-1, keepdim=True).log()


@pytest.mark.parametrize(
    ("bias", "scale", "softcap"), [(False, 1.0, None), (True, 1.0, None), (True, 0.25, None), (False, 2.0, 3.0)]
)
def test_head_logprobs_equal_the_naive_ones(bias, scale, softcap):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 4, generator=generator)
    weight = torch.randn(7, 4, generator=generator)
    extra = torch.randn(7, generator=generator) if bias else None
    found = head_logprobs(hidden, Head(weight, extra, scale, softcap))
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), naive_logprobs(hidden, weight, extra, scale, softcap), atol=1e-5, rtol=0
    )


def test_half_precision_and_autocast_are_lifted_to_float32():
    """Rounding happened to the inputs alone: the product, the bias and the softmax are float32."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 64, generator=generator).bfloat16()
    weight = torch.randn(50, 64, generator=generator).bfloat16()
    expected = naive_logprobs(hidden, weight)
    with torch.autocast("cpu", torch.bfloat16):
        for states, matrix in ((hidden, weight), (hidden.float(), weight.float())):
            found = head_logprobs(states, Head(matrix))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


def weighted(weights):
    """A loss that is linear in nothing: each token's weighted sum of probabilities squared, plus its first logprob."""

    def function(logprobs, chunk):
        each = (logprobs.exp() ** 2).sum(-1) + logprobs[:, 0]
        return (weights[chunk] * each).sum(), torch.stack([each, 2 * weights[chunk].to(each)])

    return function


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 12), st.booleans(), st.integers(0, 1000))
def test_value_and_gradients_do_not_depend_on_the_chunks(tokens, chunk_tokens, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    extra = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True) if bias else None
    weights = torch.randn(tokens, generator=generator, dtype=torch.float64)
    inputs = [hidden, weight, *([] if extra is None else [extra])]
    expected, expected_values = weighted(weights)(naive_logprobs(hidden, weight, extra, 0.5, 4.0), slice(None))
    loss, values = chunked_loss(weighted(weights), hidden, Head(weight, extra, 0.5, 4.0), chunk_tokens=chunk_tokens)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(values, expected_values.detach())
    assert not values.requires_grad
    # the upstream factor reaches the gradients
    found = torch.autograd.grad(loss * -2.5, inputs)
    for ours, theirs in zip(found, torch.autograd.grad(expected * -2.5, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tile", [1, 12, 10**6])
def test_parts_cover_all_tokens_with_the_distributions_of_each_model(tile, monkeypatch):
    """Projected 4 tokens at a time and handed out by the tile, in memory that is written over."""
    monkeypatch.setattr(heads, "TILE_ELEMENTS", {"cpu": tile})
    hidden = [torch.randn(9, width) for width in (3, 5)]
    both = [Head(torch.randn(6, 3), torch.randn(6)), Head(torch.randn(6, 5), None, 0.5, 3.0)]
    seen = torch.zeros(9)
    for part, found in logprobs_in_parts(hidden, both, chunk_tokens=4):
        seen[part] += 1
        assert len(found[0]) <= max(1, tile // 6)
        for each, states, head in zip(found, hidden, both, strict=True):
            torch.testing.assert_close(each, naive_logprobs(states[part], *head).float())
    assert seen.tolist() == [1.0] * 9


@pytest.mark.parametrize("tile", [1, 12, 10**6])
def test_a_loss_sees_frozen_models_at_the_same_tokens(tile, monkeypatch):
    monkeypatch.setattr(heads, "TILE_ELEMENTS", {"cpu": tile})
    hidden, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((9, 3), (6, 3)))
    frozen = [(torch.randn(9, 5, dtype=torch.float64), Head(torch.randn(6, 5, dtype=torch.float64))) for _ in range(2)]

    def function(logprobs, part, first, second):
        each = (logprobs.exp() * (first - 2 * second)).sum(-1)
        return each.sum(), each.unsqueeze(0)

    given = [naive_logprobs(states, head.weight) for states, head in frozen]
    expected, values = function(naive_logprobs(hidden, weight), slice(None), *given)
    loss, found = chunked_loss(function, hidden, Head(weight), frozen=frozen, chunk_tokens=4)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, values.detach())
    wanted = torch.autograd.grad(expected, [hidden, weight])
    torch.testing.assert_close(torch.autograd.grad(loss, [hidden, weight]), wanted)


def test_only_what_is_trained_gets_a_gradient_in_its_own_dtype():
    hidden = torch.randn(4, 3).bfloat16().requires_grad_()
    weight = torch.randn(6, 3).bfloat16()
    loss, _ = chunked_loss(weighted(torch.ones(4)), hidden, Head(weight), chunk_tokens=3)
    loss.backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert weight.grad is None
    weight.requires_grad_()
    loss, _ = chunked_loss(weighted(torch.ones(4)), hidden.detach(), Head(weight), chunk_tokens=3)
    loss.backward()
    assert weight.grad.dtype == torch.bfloat16
    with torch.no_grad():
        assert not chunked_loss(weighted(torch.ones(4)), hidden, Head(weight))[0].requires_grad


def test_chunks_cover_all_tokens_and_are_just_large_enough_for_the_kernel_to_take_them_back():
    assert list(token_chunks(5, 10, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(token_chunks(0, 10)) == []
    sizes = [chunk.stop - chunk.start for chunk in token_chunks(1000, 128_256)]
    assert sum(sizes) == 1000
    assert 2**23 <= max(sizes) * 128_256 < 2**23 + 128_256
    assert [chunk.stop for chunk in token_chunks(2, 2**24)] == [1, 2]
    with pytest.raises(ValueError, match="at least 1"):
        token_chunks(5, 10, 0)


def test_whole_distributions_exist_for_one_chunk_alone():
    hidden = torch.randn(64, 3, requires_grad=True)
    weight = torch.randn(97, 3, requires_grad=True)
    with WidestRows(97) as seen:
        loss, _ = chunked_loss(weighted(torch.ones(64)), hidden, Head(weight), chunk_tokens=8)
        loss.backward()
    assert seen.rows == 8


def test_a_second_backward_pass_is_refused():
    hidden = torch.randn(4, 3, requires_grad=True)
    loss, _ = chunked_loss(weighted(torch.ones(4)), hidden, Head(torch.randn(6, 3)))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()


def test_no_token_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        chunked_loss(weighted(torch.ones(0)), torch.zeros(0, 3), Head(torch.zeros(6, 3)))
