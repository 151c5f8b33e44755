"""Products through oneDNN are those of torch: values, gradients of both orders, and what each is taken for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densepath.core import products
from densepath.core.heads import Head, chunked_loss, chunked_token_logprobs
from densepath.core.products import Library, add_product, linear, matmul, onednn_linear

needs_onednn = pytest.mark.skipif(not products.has_onednn(), reason="this build of torch has no oneDNN")


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN for products of any size."""
    monkeypatch.setattr(products, "LEAST_WORK", 1)
    monkeypatch.setattr(products, "_in_use", Library.ONEDNN)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaves(shape: tuple[int, ...], out: int, bias: bool) -> list[torch.Tensor | None]:
    given = [randn(*shape), randn(out, shape[-1], seed=1), randn(out, seed=2) if bias else None]
    return [None if each is None else each.requires_grad_() for each in given]


def gradients(function, given: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """The value, the gradients of a loss that is not linear in it, and those of their squared norm."""
    value = function(*given)
    weights = randn(*value.shape, seed=3)
    wanted = [each for each in given if each is not None]
    first = torch.autograd.grad((weights * value.tanh()).sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum((each**2).sum() for each in first), wanted)
    return [value, *first, *second]


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(9,), (1, 9), (5, 9), (2, 5, 9)], ids=str)
def test_values_and_gradients_of_both_orders_are_those_of_float64(shape, bias, onednn):
    given = leaves(shape, 7, bias)
    exact = [None if each is None else each.detach().double().requires_grad_() for each in given]
    for found, true in zip(gradients(linear, given), gradients(nn.functional.linear, exact), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_the_error_is_float32s_own():
    """At the width of a model: no library is further from float64 than twice the other."""
    inputs, weight = randn(64, 576), randn(192, 576, seed=1)
    true = nn.functional.linear(inputs.double(), weight.double())
    errors = [(f(inputs, weight).double() - true).norm() for f in (nn.functional.linear, onednn_linear)]
    assert errors[1] < 2 * errors[0]


@needs_onednn
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=str)
def test_only_what_is_asked_for_gets_a_gradient_and_is_kept(wanted, onednn):
    inputs, weight = randn(5, 9).requires_grad_(wanted[0]), randn(7, 9, seed=1).requires_grad_(wanted[1])
    value = linear(inputs, weight)
    kept = [each is not None for each in value.grad_fn.saved_tensors]
    assert kept == [wanted[1], wanted[0]]
    value.sum().backward()
    assert [each.grad is not None for each in (inputs, weight)] == list(wanted)


@needs_onednn
def test_transposed_and_strided_matrices(onednn):
    wide = randn(5, 18)[:, ::2]
    torch.testing.assert_close(linear(wide, randn(9, 7, seed=1).t()), wide @ randn(9, 7, seed=1))
    torch.testing.assert_close(matmul(wide.t(), randn(5, 4, seed=1)), wide.t() @ randn(5, 4, seed=1))


@needs_onednn
@pytest.mark.parametrize("rows", [3, 200])
def test_a_product_is_added_in_place_in_slabs(rows, onednn, monkeypatch):
    monkeypatch.setattr(products, "_SLAB_ELEMENTS", 64)
    total, left, right = randn(rows, 5), randn(rows, 4, seed=1), randn(4, 5, seed=2)
    expected = total + left @ right
    found = add_product(total, left, right)
    assert found is total
    torch.testing.assert_close(found, expected)


class Spread(torch.Tensor):
    """As a quantised weight or one spread over processes: a subclass that knows its own products."""


@needs_onednn
@pytest.mark.parametrize(
    ("inputs", "weight"),
    [
        (randn(5, 9).double(), randn(7, 9).double()),
        (randn(5, 9).bfloat16(), randn(7, 9).bfloat16()),
        (randn(5, 9), randn(7, 9).as_subclass(Spread)),
        (randn(0, 9), randn(7, 9)),
        (randn(5, 9), randn(9)),
    ],
    ids=["float64", "bfloat16", "a subclass", "no rows", "a vector"],
)
def test_the_rest_goes_to_torch(inputs, weight, onednn, monkeypatch):
    monkeypatch.setattr(products, "onednn_linear", None)
    torch.testing.assert_close(linear(inputs, weight), nn.functional.linear(inputs, weight))


@needs_onednn
def test_autocast_and_small_products_go_to_torch(onednn, monkeypatch):
    monkeypatch.setattr(products, "onednn_linear", None)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(randn(5, 9), randn(7, 9)).dtype == torch.bfloat16
    monkeypatch.setattr(products, "LEAST_WORK", 5 * 9 * 7 + 1)
    torch.testing.assert_close(linear(randn(5, 9), randn(7, 9)), nn.functional.linear(randn(5, 9), randn(7, 9)))


def test_a_buffer_takes_the_product():
    buffer = torch.empty(5, 7)
    assert linear(randn(5, 9), randn(7, 9), buffer=buffer).data_ptr() == buffer.data_ptr()
    torch.testing.assert_close(buffer, randn(5, 9) @ randn(7, 9).t())


def head_results(head: Head, ids: torch.Tensor) -> list[torch.Tensor]:
    """Values and gradients of both kinds of passes through a head, in chunks."""
    hidden = randn(len(ids), head.weight.shape[1], seed=5).requires_grad_()
    scores = chunked_token_logprobs(hidden, head, ids, chunk_tokens=4)
    loss = (scores.logprobs * randn(len(ids), seed=6)).sum() + scores.entropies.sum()

    def of_chunk(logprobs, chunk):
        return (logprobs.exp() ** 2).sum(), logprobs[:, :1].T

    whole, values = chunked_loss(of_chunk, hidden, head, chunk_tokens=4)
    wanted = [each for each in (hidden, head.weight, head.bias) if each is not None]
    return [scores.logprobs, values, *torch.autograd.grad(loss + whole, wanted)]


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_heads_are_the_same(bias, monkeypatch):
    head = Head(randn(33, 8).requires_grad_(), randn(33, seed=1).requires_grad_() if bias else None, 0.5, 3.0)
    ids = torch.arange(11) * 3
    expected = head_results(head, ids)
    monkeypatch.setattr(products, "LEAST_WORK", 1)
    monkeypatch.setattr(products, "_in_use", Library.ONEDNN)
    for found, true in zip(head_results(head, ids), expected, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-5)
