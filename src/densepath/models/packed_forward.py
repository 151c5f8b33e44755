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
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput
from trl.trainer.utils import FusedCausalLMOutput

from densepath.core.heads import Head
from densepath.core.logprobs import logit_scores
from densepath.errors import ModelError
from densepath.models.compat import computed_on, in_mode, is_sharded, predicted_rows
from densepath.models.flat_attention import attending
from densepath.models.logits import (
    PASSED_THROUGH,
    attempt,
    causal_lm,
    hidden_states,
    layout_of,
    model_inputs,
    plain_head,
    score_positions,
    supports_packing,
)
from densepath.models.packing import IGNORED_LABEL, PackedBatch, pack

T = TypeVar("T")
_TRAINERS = ("trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", "trl.trainer.dpo_trainer")
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

    TRL's head knows a linear layer and the scalings that it finds by name; it leaves adapters on the head out. Where a
    head is not plain, log-probabilities come from the model's own logits instead.

    Args:
        model: causal LM or the PEFT model around it, already patched by a TRL trainer.

    Returns:
        Whether rows are packed: not for models whose attention does not allow it. Theirs are padded on the right.

    Raises:
        ModelError: the model is not causal; `token_loss` with a head that is not plain.
    """
    model = causal_lm(model)
    packs = not is_sharded(model) and supports_packing(model)
    inner = model.forward
    pass_of_model = _Pass(inner)
    pass_of_model.fused(model)  # while it is whole, and nothing is around

    @functools.wraps(type(model).forward)  # `generate` and the sampler read its signature
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        token_loss: TokenLoss | None = None,
        **kwargs: Any,
    ) -> Any:
        inner, pass_of = pass_of_model.inner, pass_of_model
        if self is not model:  # a copy: what TRL put around would still compute with the weights it was made for
            inner = functools.partial(type(self).forward, self)
            pass_of = _Pass(inner, {computed_on(self): False})
        input_ids, attention_mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        given = {name for name, value in kwargs.items() if value is not None and value is not False}
        known = given <= {"input_ids", "attention_mask", "num_items_in_batch", "return_dict"} and not args
        if input_ids is None or attention_mask is None or labels is None or not known:
            if token_loss is not None:
                raise TypeError(f"token_loss takes input_ids, attention_mask and labels alone, got {sorted(given)}")
            if fused_lm_head:
                return pass_of.of_anything(self, args, {**kwargs, "labels": labels})
            return inner(*args, **kwargs) if labels is None else inner(*args, labels=labels, **kwargs)
        rows = _Rows(input_ids, attention_mask, labels)
        if token_loss is not None:
            return _token_loss_output(self, rows, token_loss)
        if not fused_lm_head:
            return inner(labels=labels, **kwargs)
        if not rows.indices:
            return pass_of.of_anything(self, (), {**kwargs, "labels": labels})
        return pass_of.of_rows(self, rows, kwargs.get("num_items_in_batch"), input_ids.device)

    setattr(forward, PASSED_THROUGH, inner)
    model.forward = types.MethodType(forward, model)
    return packs


def with_adapted_heads(make: Callable[..., T]) -> Callable[..., T]:
    """The same constructor of a TRL trainer, but it takes a model with an adapter on its head.

    TRL refuses one, because its fused head would leave the adapter out; `add_packed_forward` computes it.
    """

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> T:
        kept = {name: sys.modules[name] for name in _TRAINERS if name in sys.modules}
        layers = {name: vars(module)["BaseTunerLayer"] for name, module in kept.items()}
        try:
            for module in kept.values():
                module.BaseTunerLayer = _NoLayer  # type: ignore[attr-defined]
            return make(*args, **kwargs)
        finally:
            for name, module in kept.items():
                module.BaseTunerLayer = layers[name]  # type: ignore[attr-defined]

    return made


class _NoLayer:
    """What no head is."""


def _fused_is_right(model: Any, inner: Any) -> bool:
    """Whether TRL's fused head gives the model's own log-probabilities while the head is plain."""
    if plain_head(model) is None:
        return False
    device, dtype = computed_on(model)
    ids = torch.tensor([[(7 * k + 3) % predicted_rows(model) for k in range(8)]], device=device)

    def agrees() -> bool:
        mask = torch.ones_like(ids)
        found = inner(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs[0].float()
        own = logit_scores(inner(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:]).logprobs.float()
        tolerance = 2e-3 if dtype in (torch.float32, torch.float64) else 0.25
        return bool(torch.allclose(found, own, atol=tolerance, rtol=tolerance))

    with in_mode(model), torch.no_grad(), torch.autocast(device.type, enabled=False):
        return bool(attempt(agrees))


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


def _token_loss_output(model: Any, rows: _Rows, token_loss: TokenLoss) -> TokenLossOutput:
    head = plain_head(model)
    if head is None:
        raise ModelError("whole distributions need a plain head, and the model's is not: use estimator=sampled")
    device = head.weight.device
    if not rows.indices:
        # A pass over any token gives a zero that is connected to the weights, as DDP needs it.
        hidden = model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        states = hidden.last_hidden_state[0]
        loss, values = token_loss(states[:0], head, nothing, nothing, nothing)
        connected = states.sum() + head.weight.sum() + (0.0 if head.bias is None else head.bias.sum())
        return TokenLossOutput(loss=loss + 0.0 * connected, token_values=values)
    parts = []
    for batch in pack(rows.prompts, rows.completions, layout_of(model)):
        batch = batch.to(device)
        where, back = _places(batch, rows)
        parts.append((hidden_states(model, batch)[where], batch.labels[where], *back))
    states, ids, out_rows, out_columns = (torch.cat(each) for each in zip(*parts, strict=True))
    loss, values = token_loss(states, head, ids, out_rows, out_columns + 1)
    return TokenLossOutput(loss=loss, token_values=values)


@dataclass(frozen=True)
class _Pass:
    """The pass that gives log-probabilities of labels.

    Attributes:
        inner: the model's forward pass as TRL prepared it.
        known: device and dtype -> what `fused` found there.
    """

    inner: Any
    known: dict[tuple[torch.device, torch.dtype], bool] = field(default_factory=dict)

    def fused(self, model: Any) -> bool:
        """Whether TRL's head is right for the model where it is, as long as its own is plain.

        A sharded model cannot be tried: it is what it was found to be before.
        """
        where = computed_on(model)
        if where not in self.known:
            whole = not is_sharded(model)
            self.known[where] = _fused_is_right(model, self.inner) if whole else any(self.known.values())
        return self.known[where]

    def of_rows(self, model: Any, rows: _Rows, num_items: Any, device: torch.device) -> FusedCausalLMOutput:
        """Of padded rows with labels, packed as the model allows."""
        head = plain_head(model)
        found: list[tuple[Tensor | None, ...]] = []
        for batch in pack(rows.prompts, rows.completions, layout_of(model)):
            batch = batch.to(device)
            where, back = _places(batch, rows)
            if head is not None and device.type != "cpu" and self.fused(model):
                found.append((*back, *self._of_trl(model, batch, where)))
            else:
                forward = self.inner if head is None else None
                scores = score_positions(model, batch, where, head, forward=forward)
                found.append((*back, scores.logprobs, scores.entropies, scores.is_top1))
        joined = [None if each[0] is None else torch.cat(each) for each in zip(*found, strict=True)]
        places, log_probs = (joined[0], joined[1]), joined[2]
        assert log_probs is not None

        def scatter(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.new_zeros(rows.shape).index_put(places, values)

        label_mask = scatter(torch.ones(len(log_probs), dtype=torch.bool, device=log_probs.device))
        assert label_mask is not None
        divisor = label_mask.sum().clamp(min=1) if num_items is None else num_items
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / divisor,
            log_probs=scatter(log_probs),
            entropy=scatter(joined[3]),
            is_top1=scatter(joined[4]),
            label_mask=label_mask,
        )

    def of_anything(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Of rows as they are given, with whatever else belongs to them."""
        if plain_head(model) is not None and self.fused(model):
            return self.inner(*args, **{k: v for k, v in kwargs.items() if v is not None}, fused_lm_head=True)
        labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
        num_items = kwargs.pop("num_items_in_batch", None)
        outputs = self.inner(*args, **{**kwargs, "use_cache": False})
        logits, aux_loss = outputs.logits, getattr(outputs, "aux_loss", None)
        if shifted is None:
            logits, shifted = logits[:, :-1], labels[:, 1:]
        mask = shifted != IGNORED_LABEL
        scores = logit_scores(logits[mask], shifted[mask])
        log_probs = logits.new_zeros(mask.shape, dtype=scores.logprobs.dtype)
        log_probs = log_probs.masked_scatter(mask, scores.logprobs) + 0.0 * logits.sum()  # connected without a label
        divisor = mask.sum().clamp(min=1) if num_items is None else num_items
        loss = -log_probs.sum() / divisor
        if aux_loss is not None:  # of a mixture of experts, added as TRL's head adds it
            loss = loss + getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0) * aux_loss
        return FusedCausalLMOutput(
            loss=loss,
            log_probs=log_probs,
            entropy=torch.zeros_like(log_probs).masked_scatter(mask, scores.entropies),
            is_top1=torch.zeros_like(mask).masked_scatter(mask, scores.is_top1),
            label_mask=mask,
            aux_loss=aux_loss,
        )

    def _of_trl(self, model: Any, batch: PackedBatch, where: tuple[Tensor, Tensor]) -> list[Tensor | None]:
        """Log-probabilities, entropies, whether the best: by TRL's head, whose kernel is the faster one on a GPU."""
        labels = torch.full_like(batch.labels, IGNORED_LABEL)
        labels[where] = batch.labels[where]
        with attending(model, batch.segments):
            fused = self.inner(**model_inputs(batch), shift_labels=labels, fused_lm_head=True)
        fields = fused.log_probs, fused.entropy, fused.is_top1
        return [None if values is None else values[where] for values in fields]
