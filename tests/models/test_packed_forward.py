"""The packed pass gives what TRL's own fused head gives: values, gradients, zeros, on either padding side."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tests.families import build
from tests.tiny_models import tiny_gemma3, tiny_llama, tiny_mamba, with_lora
from trl.trainer.utils import add_fused_lm_head

from densepath.core.heads import head_logprobs
from densepath.models import packed_forward
from densepath.models.packed_forward import add_packed_forward

OUTPUTS = ("log_probs", "entropy", "is_top1")
PLAIN = tiny_llama(dtype=torch.float64)
add_fused_lm_head(PLAIN, outputs=OUTPUTS)
PACKED = tiny_llama(dtype=torch.float64)
add_fused_lm_head(PACKED, outputs=OUTPUTS)
assert add_packed_forward(PACKED)
RECURRENT = tiny_mamba(dtype=torch.float64)
add_fused_lm_head(RECURRENT, outputs=OUTPUTS)
assert not add_packed_forward(RECURRENT)


def padded(rows, left: bool):
    """(input_ids, attention_mask, labels) with garbage under the padding."""
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), width), 9)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for r, (ids, marks) in enumerate(rows):
        at = width - len(ids) if left else 0
        input_ids[r, at : at + len(ids)] = torch.tensor(ids)
        mask[r, at : at + len(ids)] = 1
        labels[r, at : at + len(ids)] = torch.tensor([i if m else -100 for i, m in zip(ids, marks, strict=True)])
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


row = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 4), min_size=n, max_size=n),  # few ids, so that rows share prompts
        st.lists(st.booleans(), min_size=n, max_size=n),  # any labels: several turns, none, all
    )
)


@settings(deadline=None, max_examples=30)
@given(st.lists(row, min_size=1, max_size=5), st.booleans())
def test_values_and_gradients_equal_trls(rows, left):
    inputs = padded(rows, left)
    # The first token of a row has nothing before it: TRL's head would predict it from padding.
    first = inputs["attention_mask"].argmax(dim=1)
    inputs["labels"][torch.arange(len(rows)), first] = -100
    weights = torch.randn(len(rows), inputs["input_ids"].shape[1] - 1, dtype=torch.float64)
    grads = []
    for model in (PLAIN, PACKED):
        model.zero_grad()
        out = model(**inputs, fused_lm_head=True)
        (out.log_probs * weights).sum().backward()
        grads.append([p.grad for p in model.parameters()])
        if model is PLAIN:
            expected = out
    assert torch.equal(out.label_mask, expected.label_mask)
    for name in ("log_probs", "entropy"):
        torch.testing.assert_close(getattr(out, name).double(), getattr(expected, name).double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.loss.double(), expected.loss.double(), atol=1e-5, rtol=1e-5)
    assert torch.equal(out.is_top1, expected.is_top1)
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        if ours is None and theirs is None:
            continue
        ours = torch.zeros_like(theirs) if ours is None else ours
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_plain_calls_and_generation_are_untouched():
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(PACKED(input_ids=ids).logits, PLAIN(input_ids=ids).logits)
    kwargs = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    assert PACKED.generate(ids, **kwargs).tolist() == PLAIN.generate(ids, **kwargs).tolist()


def test_under_peft_only_the_adapter_gets_gradients():
    base = tiny_llama(dtype=torch.float64)
    model = with_lora(base)
    reference = copy.deepcopy(model)
    for m in (model, reference):
        add_fused_lm_head(m.get_base_model(), outputs=OUTPUTS)
    assert add_packed_forward(model)
    calls = []
    model.get_base_model().base_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    inputs = padded([([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 2, 5], [0, 0, 1])], left=False)
    outputs = [m(**inputs, fused_lm_head=True) for m in (model, reference)]
    assert calls == [(1, 4)], "one packed row: [1 | 2 3 | 2]"
    torch.testing.assert_close(outputs[0].log_probs.double(), outputs[1].log_probs.double(), atol=1e-6, rtol=0)
    outputs[0].loss.backward()
    assert all((p.grad is not None) == ("lora" in n) for n, p in model.named_parameters() if "lora" in n)


@pytest.mark.parametrize(("make", "packs"), [(tiny_gemma3, True), (tiny_mamba, False)])
def test_sliding_windows_and_recurrent_layers_equal_trls_pass(make, packs):
    model = make()
    add_fused_lm_head(model, outputs=OUTPUTS)
    inputs = padded([([1, 2, 3, 4], [False, True, False, True])], left=False)
    expected = model(**inputs, fused_lm_head=True)
    assert add_packed_forward(model) is packs
    found = model(**inputs, fused_lm_head=True)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("left", [True, False])
def test_nothing_labelled_is_a_connected_zero(left):
    out = PACKED(**padded([([1, 2, 3], [0, 0, 0])], left), fused_lm_head=True)
    assert out.log_probs.abs().max().item() == 0
    out.log_probs.sum().backward()


def test_signature_stays_that_of_the_model():
    """The sampler and `generate` read it to see what the model takes."""
    import inspect

    expected = inspect.signature(tiny_llama().forward).parameters
    assert list(inspect.signature(PACKED.forward).parameters) == list(expected)


@settings(deadline=None, max_examples=20)
@given(st.lists(row, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_token_loss_sees_each_labelled_token_with_its_place_and_state(rows, left, packs):
    """The loss is the caller's own: here weights that depend on place and id, of the log-probability."""
    model = PACKED if packs else RECURRENT
    inputs = padded(rows, left)
    first = inputs["attention_mask"].argmax(dim=1)
    inputs["labels"][torch.arange(len(rows)), first] = -100
    weights = torch.randn(inputs["labels"].shape, dtype=torch.float64)

    def token_loss(hidden, head, ids, at_rows, at_columns):
        assert torch.equal(inputs["labels"][at_rows, at_columns], ids)
        logprobs = head_logprobs(hidden, head)
        chosen = logprobs[torch.arange(len(ids)), ids]
        return (weights[at_rows, at_columns] * chosen).sum(), torch.tensor([float(len(ids))])

    model.zero_grad()
    out = model(**inputs, token_loss=token_loss)
    out.loss.backward()
    ours = [p.grad.clone() for p in model.parameters()]
    assert out.token_values.item() == (inputs["labels"] != -100).sum()
    model.zero_grad()
    expected = model(**inputs, fused_lm_head=True)
    total = (expected.log_probs * weights[:, 1:]).sum()
    total.backward()
    torch.testing.assert_close(out.loss.double(), total.double(), atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.grad.double(), atol=1e-4, rtol=1e-4)


def test_token_loss_takes_no_other_input():
    inputs = padded([([1, 2, 3], [False, True, True])], left=False)
    with pytest.raises(TypeError, match="token_loss takes"):
        PACKED(**inputs, token_loss=lambda *args: None, position_ids=torch.arange(3).unsqueeze(0))


def test_a_copy_computes_with_its_own_weights():
    model = tiny_llama()
    add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_forward(model)
    twin, clean = copy.deepcopy(model), tiny_llama(seed=3)
    twin.load_state_dict(clean.state_dict())
    inputs = padded([([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 2, 5], [0, 0, 1])], left=False)
    ids = inputs["input_ids"]
    torch.testing.assert_close(twin(input_ids=ids).logits, clean(input_ids=ids).logits)
    add_fused_lm_head(clean, outputs=OUTPUTS)
    for kwargs in (inputs, {**inputs, "position_ids": torch.arange(ids.shape[1])[None].expand_as(ids)}):
        found, expected = (m(**kwargs, fused_lm_head=True).log_probs for m in (twin, clean))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_model_that_is_cast_or_moved_is_tried_again(monkeypatch):
    """Also where a pass under autocast comes first, and in the weights' own precision."""
    tried, trial = [], packed_forward._fused_is_right

    def seen(model, inner):
        def called(**given):
            tried.append((model.dtype, torch.is_autocast_enabled("cpu")))
            return inner(**given)

        return trial(model, called)

    monkeypatch.setattr(packed_forward, "_fused_is_right", seen)
    model = tiny_llama()
    add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_forward(model)
    ids = torch.tensor([[1, 2, 3, 4]])
    for dtype in (torch.float32, torch.bfloat16, torch.bfloat16, torch.float32):
        model.to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, labels=ids, fused_lm_head=True)  # without a mask it is TRL's
    assert tried == [(dtype, False) for dtype in (torch.float32, torch.bfloat16) for _ in range(2)]


def test_a_mixture_of_experts_keeps_its_balance_loss_where_an_adapter_lies_on_the_head():
    """The loss is the model's own; TRL calls with `use_cache` and asks for the routers' logits."""
    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(build("mixtral"), settings)
    inputs = padded([([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 2, 5], [0, 0, 1])], left=False)
    asked = {"output_router_logits": True, "use_cache": False}
    own = model(**inputs, **asked)
    add_fused_lm_head(model.get_base_model(), outputs=OUTPUTS)
    add_packed_forward(model)
    found = model(**inputs, **asked, fused_lm_head=True)
    assert own.aux_loss > 0
    torch.testing.assert_close(found.aux_loss, own.aux_loss)
    torch.testing.assert_close(found.loss, own.loss, atol=1e-5, rtol=1e-5)
