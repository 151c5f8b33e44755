"""SPIN and GSIL: demonstrations against the opponent's own samples, on TRL's `DPOTrainer`.

What differs from DPO on text:

1. Rows are token ids: `prompt_ids`, `chosen_ids` (the demonstration) and `rejected_ids` (the sample), never tokenised
   again. TRL would tokenise prompt and completion together.
2. The opponent's log-probabilities are columns, scored once before training.
3. The pass is packed: a prompt that both completions share is computed once, and only completions are projected.
4. The loss is SPIN's (which is DPO's sigmoid) or one of GSIL's, from `core.imitation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from densepath.core.imitation import Surrogate, gsil_loss, spin_loss
from densepath.core.objective import Metrics
from densepath.data.encode import Encoded
from densepath.errors import ConfigError, DataError
from densepath.models.adapters import SavesOwnAdapter
from densepath.models.load import disable_dropout
from densepath.models.packed_forward import add_packed_forward, with_adapted_heads
from densepath.models.packing import IGNORED_LABEL
from densepath.models.quantized import adapters_in_float32, adapters_kept
from densepath.models.sampling import sample
from densepath.models.scoring import score_completions
from densepath.trainers.model_card import NamedCard
from densepath.trainers.refusals import check_optimization, check_token, refuse_unused, refusing, without_effect
from densepath.trainers.resuming import Resumable

SPIN = "spin"
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
_PAPERS = {
    True: {
        "title": "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
        "id": "2401.01335",
    },
    False: {
        "title": "How to Leverage Demonstration Data in Alignment for Large Language Model? "
        "A Self-Imitation Learning Perspective",
        "id": "2410.10093",
    },
}


_USED = frozenset(
    {
        *("beta", "activation_offloading", "pad_token", "max_length", "pad_to_multiple_of"),
        *("precompute_ref_log_probs", "trust_remote_code"),
    }
)
"""What `DPOConfig` adds to transformers' arguments and self-play uses."""
_INSTEAD = {
    "loss_type": "self_play_loss says which loss it is",
    "disable_dropout": "dropout is always off",
    "neftune_noise_alpha": "the opponent is scored without noise",
}
WITHOUT_EFFECT = without_effect(DPOConfig, _USED, also=("label_smoothing_factor", "neftune_noise_alpha"))
"""Arguments that self-play refuses with any value but their default, which is given here."""


@dataclasses.dataclass
class SelfPlayConfig(DPOConfig):  # type: ignore[misc]
    """Arguments of `SelfPlayTrainer`: those of `DPOConfig`, `beta` among them, but for `WITHOUT_EFFECT`."""

    self_play_loss: str = dataclasses.field(
        default=SPIN, metadata={"help": "spin, or the surrogate of GSIL: " + ", ".join(s.value for s in Surrogate)}
    )
    max_length: int | None = dataclasses.field(default=None, metadata={"help": "Rows are ids, and are not cut."})

    def __post_init__(self) -> None:
        losses = [SPIN, *(s.value for s in Surrogate)]
        if self.self_play_loss not in losses:
            raise ConfigError(f"self_play_loss={self.self_play_loss!r} must be one of {', '.join(losses)}")
        if self.max_length is not None:
            raise ConfigError("max_length has no effect here: cut the ids before")
        self.precompute_ref_log_probs = True  # they are columns; TRL then keeps no reference model
        with refusing():
            super().__post_init__()
        refuse_unused(self, WITHOUT_EFFECT, "self-play, whose loss and data are its own", _INSTEAD)


class SelfPlayTrainer(Resumable, SavesOwnAdapter, NamedCard, DPOTrainer):  # type: ignore[misc]
    """Trainer of SPIN and GSIL over pairs of token ids.

    Args:
        model: causal LM, or a PEFT model whose adapter goes on training.
        args: `beta` and `self_play_loss` are the method's.
        train_dataset: the columns of `COLUMNS`, such as `self_play_pairs` gives them.
        processing_class: the tokenizer.
        callbacks: further callbacks.
        peft_config: of an adapter that is put on a plain model.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "self-play"]

    def __init__(
        self,
        model: Any,
        args: SelfPlayConfig,
        train_dataset: Dataset,
        processing_class: Any,
        callbacks: Sequence[Any] = (),
        peft_config: Any = None,
    ) -> None:
        is_spin = args.self_play_loss == SPIN
        self._name, self._paper = "SPIN" if is_spin else "GSIL", {"citation": "", **_PAPERS[is_spin]}
        self._surrogate = None if is_spin else Surrogate(args.self_play_loss)
        check_token(args)
        check_optimization(args)
        with refusing(f"{self._name} cannot begin"), adapters_kept(model):
            with_adapted_heads(super().__init__)(
                model=model,
                args=args,
                train_dataset=train_dataset,
                processing_class=processing_class,
                callbacks=list(callbacks),
                peft_config=peft_config,
            )
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")  # TRL's copy of the adapter; the opponent's scores are columns
        adapters_in_float32(self.model)
        disable_dropout(self.model)
        self._packs = add_packed_forward(self.model)

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        missing = [name for name in COLUMNS if name not in dataset.column_names]
        if missing:
            raise DataError(f"the {dataset_name} data set has no {', '.join(missing)}: make it with self_play_pairs")
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
        if return_outputs:
            raise NotImplementedError("the packed pass has no logits to return")
        completions, kept = inputs["completion_mask"], inputs["attention_mask"]
        labels = inputs["input_ids"].masked_fill(completions == 0, IGNORED_LABEL)
        outputs = model(input_ids=inputs["input_ids"], attention_mask=kept, labels=labels, fused_lm_head=True)
        opponent = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        demonstrations, own = (outputs.log_probs.sum(dim=1) - opponent).chunk(2)
        loss, metrics = self._loss(demonstrations, own)
        prompts = (kept - completions).sum(dim=1).chunk(2)[0] if self._packs else (kept - completions)
        self._record(metrics, outputs.entropy, completions.sum(), prompts.sum())
        return loss

    def _loss(self, demonstrations: Tensor, own: Tensor) -> tuple[Tensor, Metrics]:
        if self._surrogate is None:
            return spin_loss(demonstrations, own, self.beta)
        return gsil_loss(demonstrations, own, self.beta, self._surrogate)

    def _record(self, metrics: Metrics, entropies: Tensor, completion_tokens: Tensor, prompt_tokens: Tensor) -> None:
        """Metrics over all processes; `num_tokens` counts what was computed: a shared prompt once."""
        store = self._metrics["train" if self.model.training else "eval"]
        gather = self.accelerator.gather_for_metrics
        for name, value in metrics.items():
            store[name].append(gather(value).mean().item())
        tokens = gather(completion_tokens).sum().item()
        store["entropy"].append(gather(entropies.detach().sum()).sum().item() / max(tokens, 1))
        if self.model.training:
            self._total_train_tokens += int(tokens + gather(prompt_tokens).sum().item())
        store["num_tokens"] = [self._total_train_tokens]


def self_play_pairs(
    opponent: Any,
    demonstrations: Sequence[Encoded],
    count: int,
    *,
    max_completion_length: int,
    eos_token_ids: Sequence[int],
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Pairs of a demonstration and a fresh sample of the opponent for its prompt, with the opponent's scores.

    Args:
        opponent: causal LM, frozen.
        demonstrations: ids; each is used once before any is used again, in random order.
        count: pairs.
        max_completion_length: of a sample, EOS included.
        eos_token_ids: they end a sample.
        seed: of order and samples.
        on_progress: called with (completed samples, all samples).

    Returns:
        Rows with the columns of `COLUMNS`; log-probabilities are sums over a completion, nats.

    Raises:
        DataError: there is no demonstration.
    """
    if not demonstrations:
        raise DataError("no demonstration whose prompt leaves room for a completion: raise the context or lengths")
    generator = torch.Generator().manual_seed(seed)
    passes = -(-count // len(demonstrations))
    order = torch.cat([torch.randperm(len(demonstrations), generator=generator) for _ in range(passes)])[:count]
    drawn = sorted(set(order.tolist()))
    samples = sample(
        opponent,
        [demonstrations[index].prompt_ids for index in order.tolist()],
        max_completion_length=max_completion_length,
        eos_token_ids=eos_token_ids,
        generator=generator,
        on_progress=on_progress,
    )
    scores = score_completions(
        opponent,
        [demonstrations[index].prompt_ids for index in drawn],
        [demonstrations[index].completion_ids for index in drawn],
    )
    of_demonstration = {i: float(values.double().sum()) for i, values in zip(drawn, scores.logprobs, strict=True)}
    return [
        {
            "prompt_ids": list(demonstrations[index].prompt_ids),
            "chosen_ids": list(demonstrations[index].completion_ids),
            "rejected_ids": samples.completion_ids[row],
            "ref_chosen_logps": of_demonstration[index],
            "ref_rejected_logps": sum(samples.logprobs[row]),
        }
        for row, index in enumerate(order.tolist())
    ]


def opponent_tokens(pairs: Sequence[dict[str, Any]]) -> int:
    """Tokens that went through the opponent for these pairs: sampled once, and each demonstration scored once.

    A prompt counts once when it is sampled from, however many samples share it, and once a demonstration scored.
    """
    prompts = {tuple(pair["prompt_ids"]) for pair in pairs}
    scored = {(tuple(pair["prompt_ids"]), tuple(pair["chosen_ids"])) for pair in pairs}
    sampled = sum(map(len, prompts)) + sum(len(pair["rejected_ids"]) for pair in pairs)
    return sampled + sum(len(prompt) + len(completion) for prompt, completion in scored)
