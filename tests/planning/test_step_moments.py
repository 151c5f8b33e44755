"""The moments of an optimizer step, against the tensors that are alive in a real pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.live_memory import LiveBytes
from transformers import LlamaConfig, LlamaForCausalLM

from densepath.core.heads import Head, chunked_token_logprobs
from densepath.planning.architecture import Architecture, read_architecture
from densepath.planning.plan import Machine, Training, peak, training_moments

CASES = [
    (True, "backward begins", {"rows": 8, "vocabulary": 2000, "hidden": 32, "inner": 64, "layers": 4}),
    (True, "in the last layer", {"rows": 32, "vocabulary": 64, "hidden": 32, "inner": 512, "layers": 12}),
    (True, "backward ends", {"rows": 1, "vocabulary": 32, "hidden": 64, "inner": 512, "layers": 12}),
    (False, "backward begins", {"rows": 8, "vocabulary": 2000, "hidden": 32, "inner": 64, "layers": 4}),
    (False, "in the last layer", {"rows": 32, "vocabulary": 64, "hidden": 32, "inner": 512, "layers": 2}),
]
"""(gradient checkpointing, moment, sizes that put the peak into it)."""
WIDTH, RANK = 64, 2


@pytest.mark.parametrize(("checkpointing", "moment", "sizes"), CASES)
def test_the_largest_moment_is_what_is_alive(checkpointing, moment, sizes):
    model = llama(sizes)
    if checkpointing:
        model.gradient_checkpointing_enable()
    name, terms = peak(planned(read_architecture(model, "llama"), rows=sizes["rows"], checkpointing=checkpointing))
    assert name == moment
    assert own(terms) == pytest.approx(alive(model, model, sizes["rows"]), rel=0.08)


@pytest.mark.parametrize("half", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_on_a_half_precision_base_takes_what_the_plan_says(checkpointing, half):
    """PEFT casts what an adapter reads to float32, forward and backward: half as much again as the layer keeps."""
    sizes = {"rows": 16, "vocabulary": 64, "hidden": 64, "inner": 512, "layers": 4}
    model = llama(sizes).to(torch.bfloat16)
    found = read_architecture(model, "llama")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.enable_input_require_grads()
    lora = {"adapter": found.adapter(RANK), "adapter_reads": found.adapter_reads()}
    stage = {"weights": 2, "autocast": half, "rows": sizes["rows"], "checkpointing": checkpointing}
    _, terms = peak(planned(found, **stage, **lora))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        measured = alive(adapted, model, sizes["rows"])
    assert own(terms) == pytest.approx(measured, rel=0.1)


def llama(sizes: dict[str, int]) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes["vocabulary"],
            hidden_size=sizes["hidden"],
            intermediate_size=sizes["inner"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=WIDTH,
            tie_word_embeddings=False,
        )
    ).train()


def alive(trained: Any, model: Any, rows: int) -> float:
    """Bytes at most of a forward and backward pass, whose layers are those of `model`, under an adapter or not."""
    ids = torch.randint(model.config.vocab_size, (rows, WIDTH))
    mask = torch.ones(WIDTH, WIDTH).tril().bool().expand(rows, 1, WIDTH, WIDTH).clone()
    with LiveBytes() as live:
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        scores = chunked_token_logprobs(hidden[:, :-1].flatten(0, 1), Head(model.lm_head.weight), ids[:, 1:].flatten())
        scores.logprobs.sum().backward()
    assert any(parameter.grad is not None for parameter in trained.parameters())
    return live.peak


def own(terms: dict[str, float]) -> float:
    """What a pass makes itself."""
    return sum(terms.values()) - terms["policy"] - terms["optimizer"]


def planned(model: Architecture, *, rows: int, checkpointing: bool, **changes: Any) -> dict[str, dict[str, float]]:
    values: dict[str, Any] = {"weights": 4, "autocast": False, "adapter": 0, "adapter_reads": 0, **changes}
    return training_moments(
        Training(
            model=model,
            machine=Machine(cuda=False, memory=None, process=0.0),
            four_bit=False,
            rows=rows,
            accumulation=1,
            optimizer="adamw_torch",
            checkpointing=checkpointing,
            completion=WIDTH - 1,
            **values,
        )
    )
