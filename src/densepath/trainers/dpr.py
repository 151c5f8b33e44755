"""`DPRTrainer`: Dense-Path REINFORCE on TRL's `GRPOTrainer`.

What differs from GRPO, and nothing else does (generation engines, accelerate, PEFT, resume, logging are TRL's):

1. The reward is dense, one number a token: `r_t = log pi_SFT - log pi_ref` on the sampled ids (`DenseReward`).
2. The KL to SFT is inside the return: `q_t = r_t - beta (log pi_theta - log pi_SFT)`; no separate KL loss.
3. Advantages are (batch, tokens): undiscounted returns-to-go of `q` less a baseline per position.
4. The loss is REINFORCE, summed over tokens and divided by the number of completions (a constant), so its
   expectation is the exact gradient. With several updates a batch it is PPO's clipped surrogate.
5. Scoring and the policy's forward pass are packed, and completions of one prompt share its computation.

A step, from top to bottom of this file: `_generate_single_turn` and `_generate` make a `Sampled` batch,
`_calculate_rewards` a `Scored` one, `_generate_and_score_completions` a `Credited` one; `_compute_loss` is called on
its micro-batches. Formulas are in `core.estimator`. What watches a run reads the records and changes nothing.

The methods that are overridden are private: TRL's minor version is pinned and tests/trainers/test_trl_seam.py guards
their signatures.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor

from densepath.core.estimator import Estimator
from densepath.core.masks import at_first
from densepath.core.objective import Normalizer, loss_divisor
from densepath.data.tokenizer_calls import keep_template_defaults
from densepath.io import write_text_atomic
from densepath.models.compat import check_deterministic, context_length, warn_of_spare_ids
from densepath.models.packed_forward import add_packed_forward, with_adapted_heads
from densepath.models.quantized import adapters_in_float32, adapters_kept, parameter_count
from densepath.models.sampling import Samples, sample
from densepath.models.scoring import score_completions
from densepath.rewards.dense import DenseReward, RewardKind
from densepath.trainers.checks import (
    check_arguments,
    check_mixture,
    check_number_of_prompts,
    check_processes,
    check_prompt_lengths,
)
from densepath.trainers.completion_table import TokenTable
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.early_stopping import SignalCallback, default_signals
from densepath.trainers.estimation import SampledTokens, choose_estimator
from densepath.trainers.grpo import (
    ResumableGRPOTrainer,
    as_list,
    grpo_arguments,
    reload_packed_weights,
    sampler_type,
)
from densepath.trainers.held_out import HeldOutNLL
from densepath.trainers.model_card import name_of, public_name, run_section, with_section
from densepath.trainers.monitors import SPENT, EffectiveSampleSize, RolloutMonitor, loss_metrics
from densepath.trainers.policies import (
    FrozenModels,
    frozen_models,
    loading_arguments,
    placed,
    shared_or_loaded,
    starting_models,
    switch_off_dropout,
)
from densepath.trainers.refusals import check_evaluation
from densepath.trainers.reward_functions import CALL, DENSE_REWARD, Call, RewardFunctions, dense_reward_sum
from densepath.trainers.rollout import (
    Credited,
    FunctionRewards,
    MicroBatch,
    Sampled,
    Scored,
    batch_of,
    credit_of,
    loss_mask,
    pad_rows,
)
from densepath.trainers.whole_vocabulary import WholeVocabulary


class DPRTrainer(ResumableGRPOTrainer):
    """Improve an SFT policy with undiscounted REINFORCE on the dense reward hidden in it.

    Args:
        model: the SFT policy: path, hub id, model, or PEFT model whose adapter is the SFT adapter. Training
            starts from it, and a frozen copy is the reward's numerator and the KL's anchor. With a PEFT model the
            copy is a second adapter on the same base; with `peft_config` it is the model with its new adapter off.
        ref_model: the reference of the reward, or several: path, hub id, model or `FrozenPolicy`. With a PEFT policy a
            path to its base, or to another adapter of it, is put on that base in memory. Not needed by
            `dense_reward="logprob"` and `"inverse_bellman"`.
        args: `DPRConfig`.
        train_dataset: rows with a `prompt` (standard or conversational).
        eval_dataset, processing_class: as in `GRPOTrainer`.
        reward_funcs: TRL's reward functions, for the hybrid reward (`dense_reward_weight`) or to be logged alone. They
            return a number a completion, or a list of one number a token.
        reward_processing_classes, callbacks, optimizers, quantization_config, peft_config, tools, rollout_func,
            environment_factory: as in `GRPOTrainer`.
        sft_model: the SFT policy when `model` is not it (a policy that was already improved), else None.
        held_out_ref_model: a second reference, such as another checkpoint, under which the reward is logged
            (`reward_held_out_ref`) and never optimised.

    Raises:
        ModelError: no reference where one is needed, or models that do not share a vocabulary.
        ConfigError: see `DPRConfig`.

    Source: Li, Vu, Abbasnejad, Haffari, "Beyond Imitation: Recovering Dense Rewards from Demonstrations";
    docs/method.md says which details are the paper's.
    """

    compared_with: tuple[str, ...] = ()
    """Controls that were run beside this training, for the model card."""
    _tag_names = ["trl", "dpr", "densepath"]  # noqa: RUF012 - TRL's class attribute
    _name = "DPR"
    _paper = {  # noqa: RUF012 - TRL's class attribute
        "title": "Beyond Imitation: Recovering Dense Rewards from Demonstrations",
        "id": "2510.02493",
        "citation": (
            "@article{li2025beyond,\n"
            "    title  = {{Beyond Imitation: Recovering Dense Rewards from Demonstrations}},\n"
            "    author = {Jiangnan Li and Thuy-Trang Vu and Ehsan Abbasnejad and Gholamreza Haffari},\n"
            "    year   = 2025,\n"
            "    eprint = {arXiv:2510.02493},\n"
            "}"
        ),
    }

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPRConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_funcs: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: list[Any] | None = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        *,
        sft_model: Any = None,
        held_out_ref_model: Any = None,
    ) -> None:
        args = args if args is not None else DPRConfig(f"{public_name(name_of(model))}-DPR")
        check_arguments(ref_model, args)
        loading = loading_arguments(args, quantization_config)
        self._names = {"sft": name_of(model if sft_model is None else sft_model), "ref": name_of(ref_model)}
        was_named = isinstance(model, (str, Path))
        model, processing_class, sft_model = starting_models(model, processing_class, sft_model, loading, peft_config)
        is_peft = hasattr(model, "peft_config")
        self._samples: Samples | None = None
        self._turn = 0  # of a conversation with tools: a completion is made of several
        self._functions = RewardFunctions(reward_funcs, args.reward_weights, taken=DENSE_REWARD)
        check_mixture(args, self._functions, environment_factory)
        arguments = grpo_arguments(args, self._functions, was_named=was_named)
        with arguments, sampler_type(args, model), adapters_kept(model):
            with_adapted_heads(super().__init__)(
                model=model,
                reward_funcs=[dense_reward_sum, *self._functions.wrapped],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=[None, *as_list(reward_processing_classes, len(self._functions))],
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
                tools=tools,
                rollout_func=rollout_func,
                environment_factory=environment_factory,
            )
        adapters_in_float32(self.model)
        if self.use_vllm:
            reload_packed_weights(self.vllm_generation)
        self.chat_template_kwargs = keep_template_defaults(self._tokenizer, self.chat_template_kwargs)
        self.reward_weights[1 + len(self._functions) :] *= 1 - args.dense_reward_weight  # an environment's own reward
        switch_off_dropout(self.model)  # that of a new adapter too
        policy = self.accelerator.unwrap_model(self.model)
        self._parameters = parameter_count(policy)  # before frozen adapters lie beside its own
        load = functools.partial(shared_or_loaded, policy, loading=loading, tokenizer=self._tokenizer)
        place = functools.partial(placed, policy=policy, accelerator=self.accelerator, sharded=self._is_sharded())
        needed = ref_model if RewardKind(args.dense_reward) is RewardKind.BASELINE_RELATIVE else None
        frozen = frozen_models(policy, sft_model, needed, held_out_ref_model, load, is_sft_adapter=is_peft)
        self._begin(policy, frozen.mapped(place), has_environment=environment_factory is not None)

    def _begin(self, policy: Any, frozen: FrozenModels, *, has_environment: bool) -> None:
        """Everything that stands on the models: the reward, the checks, the estimator, and what observes the run."""
        self.dense_reward = DenseReward(
            frozen.sft,
            frozen.refs,
            kind=self.args.dense_reward,
            tokenizer=self._tokenizer,
            reference_mean=self.args.reference_mean,
            scale=self.args.reward_scale if self.args.cap is None else 1.0,  # a capped reward is scaled above its cap
            clip=self.args.reward_clip,
            floor=self.args.reward_floor,
            token_budget=self.args.score_token_budget,
        )
        watched = [] if frozen.held_out is None else [frozen.held_out.context]
        self._context = min(context_length(policy), self.dense_reward.context, *watched)
        add_packed_forward(policy)
        if not self._is_sharded():
            check_deterministic(policy)
        check_evaluation(self)
        check_processes(self)
        if not has_environment:
            check_number_of_prompts(self)
            check_prompt_lengths(self, self._context)
        self.estimation = self._estimation(policy)
        self._watch(policy, frozen)

    def _estimation(self, policy: Any) -> SampledTokens | WholeVocabulary:
        """How rewards and loss are computed, chosen once."""
        estimator = choose_estimator(
            self.args, self.dense_reward, policy, sharded=self._is_sharded(), multimodal=self._is_vlm
        )
        if estimator.kl_in_return and not estimator.all_action:
            per_token = self._get_per_token_logps_and_entropies
            return SampledTokens(self.dense_reward, estimator, per_token)
        return WholeVocabulary(
            self.dense_reward,
            estimator,
            dense_weight=self.args.dense_reward_weight,
            cap=self.args.cap,
            token_budget=self.args.score_token_budget,
            autocast=self.accelerator.autocast,
        )

    @property
    def estimator(self) -> Estimator:
        """The estimator of the run."""
        return self.estimation.estimator

    def _watch(self, policy: Any, frozen: FrozenModels) -> None:
        """What observes the run: monitors, held-out demonstrations, early stopping, the token table."""
        held_out_ref = None
        if frozen.held_out is not None:  # with the checks of a reference
            held_out_ref = DenseReward(self.dense_reward.sft, frozen.held_out).refs[0]
        self._monitor = RolloutMonitor(
            self.accelerator,
            self.reward_func_names,
            held_out_ref,
            self.args.score_token_budget,
            parameters=self._parameters,
            frozen=self.dense_reward.passes,
            num_iterations=self.num_iterations,
            cap=self.args.cap,
            beta=self.args.beta,
        )
        self._sample_size = EffectiveSampleSize(self.accelerator)
        self._table = TokenTable(self.args.generation_batch_size, self._tokenizer)
        signals = self._signals()
        if signals is None:
            self.add_callback(SignalCallback(default_signals(self.args), self.args.early_stopping))
        else:
            signals.watch_too(default_signals(self.args), self.args.early_stopping)
        self._held_out = HeldOutNLL(
            self.dense_reward.sft,
            self.accelerator,
            self.args.score_token_budget,
            alone=not self.args.predict_with_generate,
            tokenizer=self._tokenizer,
            chat_template_kwargs=self.chat_template_kwargs,
            max_length=min(context_length(self.model), self.dense_reward.sft.context),
        )
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        for dataset in datasets.values():
            if dataset is not None:
                self._held_out.read(dataset)

    def _signals(self) -> SignalCallback | None:
        return next((each for each in self.callback_handler.callbacks if isinstance(each, SignalCallback)), None)

    def _record(self, mode: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            values = self._metrics[mode][name]
            if name in SPENT:  # TRL logs the mean over generation batches, of which a step may have several or none
                values[:] = [sum(values) + value]
            else:
                values.append(value)

    def _is_sharded(self) -> bool:
        """Whether no process holds the weights whole."""
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        return bool(self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))

    # -- a generation batch: sampled, scored, credited ---------------------------------------------------------

    def _uses_own_sampler(self) -> bool:
        others = self.use_vllm or self.use_transformers_continuous_batching or self._is_vlm
        return not (others or self._is_sharded())

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *args: Any, **kw: Any
    ) -> Any:
        """Completions and their log-probabilities; the prompt's computation is shared among its samples."""
        turn, self._turn = self._turn, self._turn + 1
        if not self._uses_own_sampler() or images is not None or multimodal_fields:
            training = self.model.training
            output = super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args, **kw)
            self.model.train(training)
            return output
        # A stream of its own for each step and process, so that a resumed run samples what it would have sampled.
        part = self._step % max(1, self.args.gradient_accumulation_steps)
        if not self.model.training:
            part = len(self._metrics["eval"]["kl"])  # how many batches of this evaluation are done
        step = self.state.global_step * 1_000_003 + part
        place = (self.args.seed, step, self.accelerator.process_index, self.model.training)
        seed = hash((*place, turn) if turn else place) % (2**63)
        longest = self.max_completion_length
        if turn:  # behind a tool's answer less of the context is left; TRL cuts what passes the budget of all turns
            longest = max(1, min(longest, self._context - max(map(len, prompt_ids))))
        self.rollout = Sampled(prompt_ids)  # what an error in the sampler leaves to look at
        self._samples = sample(
            # A compiled one would be compiled again for each length.
            self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False),
            prompt_ids,
            max_completion_length=longest,
            eos_token_ids=self.eos_token_ids,
            generator=torch.Generator().manual_seed(seed),
            pad_token_id=self._tokenizer.pad_token_id,
            keep_hidden=self.estimator.all_action,
        )
        warn_of_spare_ids(self._samples.completion_ids, self._tokenizer)
        return self._samples.completion_ids, self._samples.logprobs

    def _generate(self, prompts: Any) -> Any:
        self._turn = 0
        output = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask, _, logprobs = output[:5]
        samples, self._samples = self._samples, None
        # With tools a completion is made of several turns, and the states of the last alone were kept.
        kept = samples.hidden if samples is not None and samples.completion_ids == completion_ids else ()
        self.rollout = Sampled(prompt_ids, completion_ids, logprobs, tool_mask, kept)
        return output

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Score the batch, and ask the reward functions, of which TRL takes the dense reward's sum for the first."""
        assert isinstance(self.rollout, Sampled)
        self.rollout = scored = self.estimation.score(self.rollout, self.accelerator.unwrap_model(self.model))
        call = Call(scored)
        rows = [{**row, CALL: call} for row in inputs]
        rewards: Tensor = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(prompts)
        functions = FunctionRewards(rewards, first, len(prompts), call.per_token)
        self.rollout = dataclasses.replace(scored, functions=functions)
        return rewards

    def _with_policy_logprobs(self, scored: Scored, output: dict[str, Any]) -> Scored:
        """The trainer's own log-probabilities of the tokens: what the KL is about, whoever sampled."""
        sampled, passes = scored.sampled, scored.policy_passes + ("old_per_token_logps" in output)  # TRL's own pass
        if scored.policy_logprobs:
            logprobs = list(scored.policy_logprobs)
        elif sampled.logprobs is not None and self._uses_own_sampler() and self.rollout_func is None:
            logprobs = [torch.tensor(values) for values in sampled.logprobs]
        elif "old_per_token_logps" in output:
            rows = zip(output["old_per_token_logps"], sampled.completion_ids, strict=True)
            logprobs = [values[: len(ids)] for values, ids in rows]
        else:
            policy, budget = self.accelerator.unwrap_model(self.model), self.args.score_token_budget
            ids = sampled.prompt_ids, sampled.completion_ids
            logprobs, passes = score_completions(policy, *ids, token_budget=budget).logprobs, passes + 1
        return dataclasses.replace(scored, policy_logprobs=logprobs, policy_passes=passes)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        assert isinstance(self.rollout, Scored)
        scored, mask, external = self._with_policy_logprobs(self.rollout, output), loss_mask(output), None
        if self.args.dense_reward_weight < 1:
            assert scored.functions is not None
            external = self._functions.external(scored.functions, self.reward_func_names[1:], mask)
        batch = batch_of(scored, mask, external, self.args.dense_reward_weight, self.args.cap)
        group = self.num_generations if mode == "train" else self.num_generations_eval
        credit = credit_of(batch, self.estimator, group, self.accelerator)
        # The frozen models' states are large, and live on in the micro-batches alone.
        self.rollout = Credited(dataclasses.replace(scored, frozen_hidden=()), batch, credit)
        self._record(mode, self._monitor(self.rollout))
        if self.log_completions:
            self._table.observe(self.rollout)
            self._put_first_advantages(at_first(credit.advantages, mask))
        output["advantages"] = credit.advantages
        if scored.frozen_hidden:
            output["frozen_hidden"] = scored.frozen_hidden
        if credit.shares is not None:
            output["all_action_weights"] = credit.shares
        if scored.log_ratios:
            output["log_ratios"] = pad_rows(scored.log_ratios, mask)
        return output

    # -- loss --------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mode = "train" if self.model.training else "eval"
        batch = MicroBatch.of(inputs, self._normalizer(inputs, mode), self.vllm_importance_sampling_mode)
        loss, values = self.estimation.loss(model, batch)
        self._record(mode, loss_metrics(values, batch.mask, self.accelerator, self.estimator))
        sampled = inputs.get("sampling_per_token_logps")
        if mode == "train" and sampled is not None:
            self._record(mode, self._sample_size.observe(values[0], sampled, batch.mask))
        return loss

    def _normalizer(self, inputs: dict[str, Any], mode: str) -> float | Tensor:
        """What this process divides the loss of one micro-batch by.

        Each process holds as many completions as the others, so the mean over processes that DDP takes is the mean
        over the global batch; micro-batches add up to it.
        """
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1
        # TRL counts the tokens of the generation batch, which spans `steps_per_generation` micro-batches.
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        return loss_divisor(
            Normalizer(self.args.loss_normalizer),
            completions=float(len(inputs["completion_ids"]) * steps),
            tokens=tokens * (steps / self.args.steps_per_generation if mode == "train" else 1),
            max_completion_length=self.max_completion_length,
        )

    # -- evaluation, and what a run leaves on disk -------------------------------------------------------------

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
        started = time.monotonic()
        measured = self._held_out.metrics(dataset, self.accelerator.unwrap_model(self.model))
        name = metric_key_prefix.removeprefix("eval").lstrip("_")  # of one of several data sets
        self._record("eval", {f"{name}_{metric}" if name else metric: value for metric, value in measured.items()})
        if self.args.predict_with_generate:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[no-any-return]
        self.model.eval()  # TRL's log writes what was measured under that mode
        metrics = {f"{metric_key_prefix}_runtime": time.monotonic() - started}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _put_first_advantages(self, advantages: Tensor) -> None:
        """In TRL's table, for GRPO's advantage: the first token's, the completion's return less its baseline."""
        first = self.accelerator.gather(advantages.squeeze(1)).tolist()
        table = self._logs["advantages"]  # a deque, which holds no more than a generation batch
        for _ in range(min(len(first), len(table))):
            table.pop()
        table.extend(first)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, and add the columns per token to the table of completions."""
        super().log(logs, start_time)
        if self.accelerator.is_main_process and self.log_completions:
            folder = Path(self.args.output_dir) / "completions"
            self._table.add_to(folder / f"completions_{self.state.global_step:05d}.parquet")

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """TRL's model card with a section on this run: models, arguments, where it ended, controls."""
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        if not self.is_world_process_zero():
            return
        section = run_section(
            self.args,
            sft=public_name(self._names["sft"]),
            reference=public_name(self._names["ref"]) if self._names["ref"] else "none",
            reward_functions=self.reward_func_names[1:],
            history=self.state.log_history,
            max_steps=self.state.max_steps,
            compared_with=self.compared_with,
        )
        path = Path(self.args.output_dir) / "README.md"
        write_text_atomic(path, with_section(str(ModelCard.load(path)), section))
