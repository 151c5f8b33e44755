"""The moments of an optimizer step, against the tensors that are alive in a real pass."""

from __future__ import annotations

import pytest
import torch
from tests.live_memory import LiveBytes
from transformers import LlamaConfig, LlamaForCausalLM

from densepath.core.heads import Head, chunked_token_logprobs
from densepath.planning.architecture import read_architecture
from densepath.planning.plan import Machine, Training, peak, training_moments

CASES = [
    (True, "backward begins", {"rows": 8, "vocabulary": 2000, "hidden": 32, "inner": 64, "layers": 4}),
    (True, "in the last layer", {"rows": 32, "vocabulary": 64, "hidden": 32, "inner": 512, "layers": 12}),
    (True, "backward ends", {"rows": 1, "vocabulary": 32, "hidden": 64, "inner": 512, "layers": 12}),
    (False, "backward begins", {"rows": 8, "vocabulary": 2000, "hidden": 32, "inner": 64, "layers": 4}),
    (False, "in the last layer", {"rows": 32, "vocabulary": 64, "hidden": 32, "inner": 512, "layers": 2}),
]
"""(gradient checkpointing, moment, sizes that put the peak into it)."""
WIDTH = 64


@pytest.mark.parametrize(("checkpointing", "moment", "sizes"), CASES)
def test_the_largest_moment_is_what_is_alive(checkpointing, moment, sizes):
    model = LlamaForCausalLM(
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
    if checkpointing:
        model.gradient_checkpointing_enable()
    name, terms = peak(planned(model, rows=sizes["rows"], checkpointing=checkpointing))
    ids = torch.randint(sizes["vocabulary"], (sizes["rows"], WIDTH))
    mask = torch.ones(WIDTH, WIDTH).tril().bool().expand(sizes["rows"], 1, WIDTH, WIDTH).clone()
    with LiveBytes() as live:
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        scores = chunked_token_logprobs(hidden[:, :-1].flatten(0, 1), Head(model.lm_head.weight), ids[:, 1:].flatten())
        scores.logprobs.sum().backward()
    assert name == moment
    held = terms["policy"] + terms["optimizer"]
    assert sum(terms.values()) - held == pytest.approx(live.peak, rel=0.08)


def planned(model, *, rows: int, checkpointing: bool):
    return training_moments(
        Training(
            model=read_architecture(model, "llama"),
            machine=Machine(cuda=False, memory=None, process=0.0),
            weights=4,
            compute=4,
            adapter=0,
            four_bit=False,
            rows=rows,
            accumulation=1,
            optimizer="adamw_torch",
            checkpointing=checkpointing,
            completion=WIDTH - 1,
        )
    )
