"""A packed forward pass behind TRL's own seam: `model(..., labels=labels, fused_lm_head=True)`.

TRL's trainers get per-token log-probabilities by calling the model so (`add_fused_lm_head`). On a GPU that head
projects labelled positions only; on a CPU it projects every position, padding included. `add_packed_forward` puts a
pass in front that packs the rows without padding, computes a prompt that several rows share once, and on a CPU
projects labelled positions alone. It stays inside of the model's `forward`: wrappers (DDP, PEFT) see one call.

With `token_loss=...` in the same call the loss is the caller's own, computed from the hidden states at the labelled
positions and the head, in the same place.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput
from trl.trainer.utils import FusedCausalLMOutput

from densepath.core.heads import Head
from densepath.core.logprobs import chunked_token_logprobs
from densepath.models.packing import IGNORED_LABEL, PackedBatch, pack
from densepath.models.scoring import causal_lm, head_of, hidden_states, supports_packing

TokenLoss = Callable[[Tensor, Head, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden states (n, width), head, ids (n,) that they predict, row and column (n,) of each label) -> (loss, values).

Rows and columns are those of `labels`. A call without any label has n = 0; its loss may be 0 without a gradient.
"""


@dataclass
class TokenLossOutput(ModelOutput):  # type: ignore[misc]
    """What `token_loss` returned.

    Attributes:
        loss: scalar with gradient.
        token_values: a tensor of whatever shape, without. Not `values`: DDP calls that method of a `ModelOutput`.
    """

    loss: Tensor | None = None
    token_values: Tensor | None = None


def add_packed_forward(model: Any) -> bool:
    """Put the packed pass in front of a model that TRL's `add_fused_lm_head` has prepared.

    Args:
        model: causal LM or the PEFT model around it, already patched by a TRL trainer.

    Returns:
        Whether rows are packed: not for models whose attention does not allow it. They keep TRL's pass, and
        `token_loss` gets the hidden states of padded rows.
    """
    model = causal_lm(model)
    packs = supports_packing(model)
    inner = model.forward

    @functools.wraps(type(model).forward)  # `generate` and the sampler read its signature
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        token_loss: TokenLoss | None = None,
        **kwargs: Any,
    ) -> Any:
        input_ids, attention_mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        given = {name for name, value in kwargs.items() if value is not None and value is not False}
        known = given <= {"input_ids", "attention_mask", "num_items_in_batch", "return_dict"} and not args
        if input_ids is None or attention_mask is None or labels is None or not known:
            if token_loss is not None:
                raise TypeError(f"token_loss takes input_ids, attention_mask and labels alone, got {sorted(given)}")
        elif token_loss is not None:
            return _token_loss_output(self, _Rows(input_ids, attention_mask, labels), token_loss, packs)
        if input_ids is None or attention_mask is None or labels is None or not (packs and fused_lm_head and known):
            if fused_lm_head:
                kwargs["fused_lm_head"] = True
            if labels is not None:
                kwargs["labels"] = labels
            return inner(*args, **kwargs)
        rows = _Rows(input_ids, attention_mask, labels)
        if not rows.indices:  # nothing is labelled: TRL's pass gives a zero that is connected to the weights
            return inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True)
        batch = next(pack(rows.prompts, rows.completions)).to(input_ids.device)
        return _output(self, inner, batch, rows, kwargs.get("num_items_in_batch"))

    model.forward = types.MethodType(forward, model)
    return packs


class _Rows:
    """Padded rows with labels as (prompt, completion) lists, and where each labelled token goes back to.

    The prompt is everything before the first labelled token; unlabelled tokens after it (the user's turns of a
    conversation) are part of the completion, and are not projected.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> None:
        self.shape = (input_ids.shape[0], input_ids.shape[1] - 1)
        self.prompts: list[list[int]] = []
        self.completions: list[list[int]] = []
        self.indices: list[int] = []
        self.targets: list[list[int]] = []
        self.columns: list[list[int]] = []
        # Lists: a tensor's methods on each row of a batch took a tenth of a small model's step.
        every_kept, every_id = attention_mask.bool().tolist(), input_ids.tolist()
        every_label = (labels != IGNORED_LABEL).tolist()
        for row, (kept, ids, labelled) in enumerate(zip(every_kept, every_id, every_label, strict=True)):
            positions = [position for position, keeps in enumerate(kept) if keeps]
            # nothing precedes a row's first token, so nothing predicts it
            targets = [place for place, position in enumerate(positions) if place and labelled[position]]
            if not targets:
                continue
            first, last = targets[0], targets[-1]
            tokens = [ids[position] for position in positions]
            self.indices.append(row)
            self.prompts.append(tokens[:first])
            self.completions.append(tokens[first : last + 1])
            self.targets.append([place - first for place in targets])
            self.columns.append([positions[place] - 1 for place in targets])


def _places(batch: PackedBatch, rows: _Rows) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Row and column of each labelled token's prediction: in the packed batch, and in the padded output."""
    device = batch.input_ids.device
    packed_rows: list[int] = []
    packed_columns: list[int] = []
    out_rows: list[int] = []
    out_columns: list[int] = []
    for sequence, row, column in zip(batch.sequences, batch.rows, batch.columns, strict=True):
        targets = rows.targets[sequence]
        packed_rows += [row] * len(targets)
        packed_columns += [column + target for target in targets]
        out_rows += [rows.indices[sequence]] * len(targets)
        out_columns += rows.columns[sequence]
    where = torch.tensor(packed_rows, device=device), torch.tensor(packed_columns, device=device)
    return where, (torch.tensor(out_rows, device=device), torch.tensor(out_columns, device=device))


def _token_loss_output(model: Any, rows: _Rows, token_loss: TokenLoss, packs: bool) -> TokenLossOutput:
    head = head_of(model)
    device = head.weight.device
    if not rows.indices:
        # A pass over any token gives a zero that is connected to the weights, as DDP needs it.
        hidden = model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        states = hidden.last_hidden_state[0]
        loss, values = token_loss(states[:0], head, nothing, nothing, nothing)
        connected = states.sum() + head.weight.sum() + (0.0 if head.bias is None else head.bias.sum())
        return TokenLossOutput(loss=loss + 0.0 * connected, token_values=values)
    batch = next(pack(rows.prompts, rows.completions, padded=not packs)).to(device)
    where, (out_rows, out_columns) = _places(batch, rows)
    loss, values = token_loss(hidden_states(model, batch)[where], head, batch.labels[where], out_rows, out_columns + 1)
    return TokenLossOutput(loss=loss, token_values=values)


def _output(model: Any, inner: Any, batch: PackedBatch, rows: _Rows, num_items: Any) -> FusedCausalLMOutput:
    device = batch.input_ids.device
    where, back = _places(batch, rows)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
    }
    if device.type == "cpu":
        weight, bias, scale, softcap = head_of(model)
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[where]
        scores = chunked_token_logprobs(hidden, weight, batch.labels[where], bias, logit_scale=scale, softcap=softcap)
        log_probs: Tensor = scores.logprobs
        entropy: Tensor | None = scores.entropies
        is_top1: Tensor | None = scores.is_top1
    else:
        labels = torch.full_like(batch.labels, IGNORED_LABEL)
        labels[where] = batch.labels[where]
        fused = inner(**inputs, shift_labels=labels, fused_lm_head=True)
        log_probs, entropy = fused.log_probs[where], None if fused.entropy is None else fused.entropy[where]
        is_top1 = None if fused.is_top1 is None else fused.is_top1[where]

    def scatter(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.new_zeros(rows.shape).index_put(back, values)

    label_mask = torch.zeros(rows.shape, dtype=torch.bool, device=device).index_put(
        back, torch.ones(len(back[0]), dtype=torch.bool, device=device)
    )
    divisor = label_mask.sum().clamp(min=1) if num_items is None else num_items
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / divisor,
        log_probs=scatter(log_probs),
        entropy=scatter(entropy),
        is_top1=scatter(is_top1),
        label_mask=label_mask,
    )
