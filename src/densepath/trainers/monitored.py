"""What every run of DPRTrainer is watched with: monitors, held-out demonstrations, early stopping, the NaN stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from densepath.core.masks import lengths_to_mask
from densepath.errors import ConfigError
from densepath.models.compat import context_length
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.early_stopping import SignalCallback, default_signals
from densepath.trainers.grpo import RecordedGRPOTrainer
from densepath.trainers.monitors import (
    EffectiveSampleSize,
    HeldOutDemonstrations,
    distinct_ngrams,
    held_out_reward,
    reward_correlations,
)
from densepath.trainers.nan_stop import NaNStop, check_finite
from densepath.trainers.rollout import Rollout, pad_rows

DENSE_REWARD = "dense_reward_sum"
"""Name of the dense reward among TRL's reward functions, hence of its metrics."""


class MonitoredTrainer(RecordedGRPOTrainer):
    """TRL's trainer with densepath's monitors; `DPRTrainer` adds what is trained.

    It overrides `evaluate`, `train` and `training_step`, and the private `_get_grad_norm`, which
    tests/trainers/test_trl_seam.py guards.
    """

    dense_reward: DenseReward

    def _start_monitors(self, held_out_ref: FrozenPolicy | None = None) -> None:
        """Add the callbacks, and tokenise the held-out demonstrations; the rest of the trainer stands.

        Raises:
            ModelError: a held-out reference with another vocabulary.
            DataError, ConfigError: held-out demonstrations that cannot be used.
        """
        self._held_out_ref = None if held_out_ref is None else DenseReward(self.dense_reward.sft, held_out_ref).refs[0]
        self._nan_stop = NaNStop(self.args.output_dir, self.accelerator)
        self._sample_size = EffectiveSampleSize(self.accelerator)
        self.add_callback(self._nan_stop)
        self._use(Rollout())
        if self._signals() is None:
            self.add_callback(SignalCallback(default_signals(self.args), self.args.early_stopping))
        self._demonstrations: dict[int, tuple[Any, HeldOutDemonstrations]] = {}
        self._sft_nll: dict[int, float] = {}
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        for dataset in datasets.values():
            if dataset is not None:
                self._demonstrations_of(dataset)

    def _use(self, rollout: Rollout) -> None:
        """Make a generation batch the one at hand, until the next."""
        self._rollout = self._nan_stop.rollout = rollout

    def _signals(self) -> SignalCallback | None:
        return next((each for each in self.callback_handler.callbacks if isinstance(each, SignalCallback)), None)

    # -- monitors of training ----------------------------------------------------------------------------------

    def _rollout_monitors(self, output: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of the generation batch at hand, over all processes; those that are undefined are left out.

        Raises:
            NumericalError: an advantage is NaN or infinite.
        """
        rollout = self._rollout
        assert rollout.scores is not None
        check_finite("advantages", output["advantages"], self.accelerator)
        ids = output["completion_ids"]
        lengths = torch.tensor([len(row) for row in rollout.completion_ids], device=ids.device)
        mask = lengths_to_mask(
            lengths, ids.shape[1]
        )  # truncated completions count, even where the loss leaves them out
        metrics = {"completions/distinct_4": distinct_ngrams(ids, mask, self.accelerator)}
        if self._held_out_ref is not None:
            scores = self._held_out_ref.score(rollout.prompt_ids, rollout.completion_ids, self.args.score_token_budget)
            sft_logprobs, other = pad_rows(rollout.scores.sft_logprobs, mask), pad_rows(scores.logprobs, mask)
            metrics["reward_held_out_ref"] = held_out_reward(sft_logprobs, other, mask, self.accelerator)
        rows = len(mask) * self.accelerator.num_processes
        rewards = {name: list(self._logs["rewards"][name])[-rows:] for name in self.reward_func_names}
        dense = rewards.pop(DENSE_REWARD)
        metrics |= reward_correlations(dense, rewards)
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _loss_monitors(self, logprobs: Tensor, inputs: Mapping[str, Any], mask: Tensor) -> None:
        """Metrics of a micro-batch, while the policy is trained."""
        sampled = inputs.get("sampling_per_token_logps")
        if self.model.training and sampled is not None:
            share = self._sample_size.add(logprobs, sampled, mask)
            if share is not None:
                self._metrics["train"]["effective_sample_size"].append(share)

    # -- the NaN stop ------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's, which ends at the first NaN or infinity in sampling, rewards, advantages or loss."""
        micro_batch = self._step % self.args.steps_per_generation

        def tensors() -> dict[str, Tensor]:
            buffered = self._buffered_inputs[micro_batch] if self._buffered_inputs is not None else {}
            return {f"micro_batch.{key}": value for key, value in buffered.items() if isinstance(value, Tensor)}

        with self._nan_stop.watch(self.state.global_step + 1, tensors):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            check_finite("loss", loss, self.accelerator)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """transformers', which ends where the norm is not finite: before the optimizer's step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.accelerator.scaler is None:  # with fp16 such steps are skipped on purpose
            with self._nan_stop.watch(self.state.global_step + 1):
                check_finite("gradient norm", torch.as_tensor(norm, device=self.accelerator.device), self.accelerator)
        return norm

    # -- evaluation and early stopping -------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """transformers'; a run that a signal stopped ends with the weights of the last good checkpoint."""
        output = super().train(*args, **kwargs)
        signals = self._signals()
        chosen = self.args.metric_for_best_model is not None  # then transformers has seen to it
        if signals is not None and signals.stopped_by and not chosen and self.state.best_model_checkpoint:
            self._load_best_model()
        return output

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """TRL's, with the NLL of the rows that have a completion; no sampling if `predict_with_generate` is off."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        if dataset is None or isinstance(dataset, dict):  # TRL says what is missing, or comes back for each of them
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[no-any-return]
        started = time.time()
        for name, value in self._held_out_metrics(dataset).items():
            self._metrics["eval"][name].append(value)
        if self.args.predict_with_generate:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[no-any-return]
        self.model.eval()  # TRL's log writes what was measured under that mode
        metrics = {f"{metric_key_prefix}_runtime": time.time() - started}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _demonstrations_of(self, dataset: Iterable[Mapping[str, Any]]) -> HeldOutDemonstrations:
        """The rows with a completion, tokenised once.

        Raises:
            DataError: a row that cannot be used.
            ConfigError: no row has a completion, and nothing else is to be measured.
        """
        if id(dataset) not in self._demonstrations:
            found = HeldOutDemonstrations(
                dataset, self._tokenizer, self.chat_template_kwargs, max_length=context_length(self.model)
            )
            if not found.pairs and not self.args.predict_with_generate:
                raise ConfigError(
                    "predict_with_generate=False measures the NLL of demonstrations alone, and no row of eval_dataset "
                    "has a completion: add it, or leave predict_with_generate out"
                )
            self._demonstrations[id(dataset)] = (dataset, found)  # the data set too, so that its id stays its own
        return self._demonstrations[id(dataset)][1]

    def _held_out_metrics(self, dataset: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """`nll` of the policy, and by how much it exceeds that of the SFT model."""
        demonstrations = self._demonstrations_of(dataset)
        if not demonstrations.pairs:
            return {}
        budget = self.args.score_token_budget
        if id(dataset) not in self._sft_nll:
            with self.dense_reward.sft.active() as sft:
                self._sft_nll[id(dataset)] = demonstrations.nll(sft, self.accelerator, budget)
        nll = demonstrations.nll(self.accelerator.unwrap_model(self.model), self.accelerator, budget)
        return {"nll": nll, "nll_increase": nll - self._sft_nll[id(dataset)]}
