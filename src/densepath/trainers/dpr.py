"""`DPRTrainer`: Dense-Path REINFORCE on TRL's `GRPOTrainer`.

What differs from GRPO, and nothing else does (generation engines, accelerate, PEFT, resume, logging are TRL's):

1. The reward is dense, one number a token: `r_t = log pi_SFT - log pi_ref` on the sampled ids (`DenseReward`).
2. The KL to SFT is inside the return: `q_t = r_t - beta (log pi_theta - log pi_SFT)`; no separate KL loss.
3. Advantages are (batch, tokens): undiscounted returns-to-go of `q` less a baseline per position.
4. The loss is REINFORCE, summed over tokens and divided by the number of completions (a constant), so its
   expectation is the exact gradient. With several updates a batch it is PPO's clipped surrogate.
5. Scoring and the policy's forward pass are packed, and completions of one prompt share its computation.

It overrides `_generate_single_turn`, `_generate`, `_generate_and_score_completions` and `_compute_loss`, which are
private: TRL's minor version is pinned and tests/trainers/test_trl_seam.py guards their signatures.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from densepath.core.objective import Normalizer, loss_divisor
from densepath.data.tokenizer_calls import keep_template_defaults
from densepath.models.adapters import add_frozen_copy
from densepath.models.compat import check_deterministic, warn_of_spare_ids
from densepath.models.hidden import completion_hidden_states
from densepath.models.load import load_model, load_tokenizer
from densepath.models.packed_forward import add_packed_forward, with_adapted_heads
from densepath.models.sampling import Samples, sample
from densepath.models.scoring import score_completions
from densepath.rewards.dense import DenseReward, RewardKind
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.checks import (
    check_arguments,
    check_mixture,
    check_number_of_prompts,
    check_processes,
    check_prompt_lengths,
)
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.estimation import (
    choose_estimator,
    importance_weights,
    loss_metrics,
    sampled_loss,
    whole_vocabulary_loss,
)
from densepath.trainers.grpo import as_list, grpo_arguments
from densepath.trainers.model_card import name_of, public_name
from densepath.trainers.monitored import DENSE_REWARD, MonitoredTrainer
from densepath.trainers.policies import frozen_start, loading_arguments, placed, shared_or_loaded, switch_off_dropout
from densepath.trainers.refusals import check_evaluation
from densepath.trainers.reward_functions import RewardFunctions
from densepath.trainers.rollout import Rollout, advantages_of, loss_mask, rollout_flops, token_rewards
from densepath.trainers.whole_vocabulary import plain_head_of


class DPRTrainer(MonitoredTrainer):
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
        name = model if isinstance(model, str) else None
        if isinstance(model, str):
            if processing_class is None:
                processing_class = load_tokenizer(model, trust_remote_code=loading["trust_remote_code"])
            model = load_model(model, for_training=True, **loading)
        switch_off_dropout(model)
        is_peft = hasattr(model, "peft_config")
        if sft_model is None and not is_peft and peft_config is None:
            sft_model = frozen_start(model, name, loading)
        self._sampled: Samples | None = None
        self._functions = RewardFunctions(reward_funcs, args.reward_weights, taken=DENSE_REWARD)
        check_mixture(args, self._functions, environment_factory)
        with grpo_arguments(args, self._functions):
            with_adapted_heads(super().__init__)(
                model=model,
                reward_funcs=[self.dense_reward_sum, *self._functions.wrapped],
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
        self.chat_template_kwargs = keep_template_defaults(self._tokenizer, self.chat_template_kwargs)
        self.reward_weights[1 + len(self._functions) :] *= 1 - args.dense_reward_weight  # an environment's own reward
        switch_off_dropout(self.model)  # that of a new adapter too
        policy = self.accelerator.unwrap_model(self.model)
        frozen = functools.partial(shared_or_loaded, policy, loading=loading, tokenizer=self._tokenizer)
        if sft_model is not None:
            sft = frozen(sft_model, adapter_name="sft")
        elif is_peft:
            add_frozen_copy(policy, source="default", name="sft")
            sft = FrozenPolicy(policy, "sft")
        else:
            sft = FrozenPolicy(policy, None)
        refs = []
        if RewardKind(args.dense_reward) is RewardKind.BASELINE_RELATIVE:
            given = ref_model if isinstance(ref_model, (list, tuple)) else [ref_model]
            refs = [frozen(ref, adapter_name=f"ref_{index}") for index, ref in enumerate(given)]
        held_out = []
        if held_out_ref_model is not None:
            held_out = [frozen(held_out_ref_model, adapter_name="held_out_ref")]
        place = functools.partial(
            placed, policy=policy, accelerator=self.accelerator, sharded=(sharded := self._is_sharded())
        )
        sft, refs, held_out = place(sft), [place(view) for view in refs], [place(view) for view in held_out]
        self.dense_reward = DenseReward(
            sft,
            refs,
            kind=args.dense_reward,
            tokenizer=self._tokenizer,
            reference_mean=args.reference_mean,
            scale=args.reward_scale,
            clip=args.reward_clip,
            floor=args.reward_floor,
            token_budget=args.score_token_budget,
        )
        add_packed_forward(policy)
        if not sharded:
            check_deterministic(policy)
        check_evaluation(self)
        check_processes(self)
        if environment_factory is None:
            check_number_of_prompts(self)
            check_prompt_lengths(self, policy)
        self.estimator, self._vocabulary = choose_estimator(
            args, self.dense_reward, policy, sharded=sharded, multimodal=self._is_vlm
        )
        self._start_monitors(*held_out)
        self._parameters = sum(p.numel() for p in policy.parameters())

    def _is_sharded(self) -> bool:
        """Whether no process holds the weights whole."""
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        return bool(self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))

    # -- rollouts ----------------------------------------------------------------------------------------------

    def _uses_own_sampler(self) -> bool:
        others = self.use_vllm or self.use_transformers_continuous_batching or self._is_vlm
        return not (others or self._is_sharded())

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *args: Any, **kw: Any
    ) -> Any:
        """Completions and their log-probabilities; the prompt's computation is shared among its samples."""
        if not self._uses_own_sampler() or images is not None or multimodal_fields:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args, **kw)
        # A stream of its own for each step and process, so that a resumed run samples what it would have sampled.
        part = self._step % max(1, self.args.gradient_accumulation_steps)
        if not self.model.training:
            part = len(self._metrics["eval"]["kl"])  # how many batches of this evaluation are done
        step = self.state.global_step * 1_000_003 + part
        seed = hash((self.args.seed, step, self.accelerator.process_index, self.model.training)) % (2**63)
        self._use(Rollout(prompt_ids))  # what an error in the sampler leaves to look at
        samples = sample(
            # A compiled one would be compiled again for each length.
            self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False),
            prompt_ids,
            max_completion_length=self.max_completion_length,
            eos_token_ids=self.eos_token_ids,
            generator=torch.Generator().manual_seed(seed),
            pad_token_id=self._tokenizer.pad_token_id,
            keep_hidden=self._vocabulary is not None and self._vocabulary.all_action,
        )
        warn_of_spare_ids(samples.completion_ids, self._tokenizer)
        self._sampled = samples
        return samples.completion_ids, samples.logprobs

    def _generate(self, prompts: Any) -> Any:
        output = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask, _, logprobs = output[:5]
        sampled, self._sampled = self._sampled, None
        # With tools a completion is made of several turns, and the states of the last alone were kept.
        kept = sampled.hidden if sampled is not None and sampled.completion_ids == completion_ids else []
        self._use(Rollout(prompt_ids, completion_ids, logprobs, tool_mask=tool_mask, policy_hidden=kept))
        self._functions.begin(tool_mask)
        return output

    def dense_reward_sum(self, prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        """Dense reward of each completion of the current rollout, nats: what TRL logs as `reward`."""
        rollout = self._rollout
        if self._vocabulary is not None:
            policy = self.accelerator.unwrap_model(self.model)
            hidden, rollout.policy_hidden = rollout.policy_hidden, []
            if self._vocabulary.all_action and not hidden:
                rollout.policy_passes += 1
                with self.accelerator.autocast():  # as in the loss; the frozen models stay in their own precision
                    hidden = completion_hidden_states(
                        policy, rollout.prompt_ids, rollout.completion_ids, token_budget=self.args.score_token_budget
                    )
            self._vocabulary.visit(rollout, hidden, plain_head_of(policy), self.eos_token_ids)
        else:
            rollout.scores = self.dense_reward.score_ids(
                rollout.prompt_ids, rollout.completion_ids, eos_token_ids=self.eos_token_ids
            )
        assert rollout.scores is not None
        if rollout.tool_mask is None:
            return [float(row.sum()) for row in rollout.scores.rewards]
        masks = [torch.tensor(own) for own in rollout.tool_mask]
        return [float((row * own).sum()) for row, own in zip(rollout.scores.rewards, masks, strict=True)]

    def _policy_logprobs(self, output: dict[str, Any]) -> list[Tensor]:
        """The trainer's own log-probabilities of the rollout's tokens: what the KL is about, whoever sampled."""
        rollout = self._rollout
        if rollout.policy_logprobs:
            return rollout.policy_logprobs
        if rollout.sampling_logprobs is not None and not self.use_vllm:
            return [torch.tensor(values) for values in rollout.sampling_logprobs]
        if "old_per_token_logps" in output:
            rows = zip(output["old_per_token_logps"], rollout.completion_ids, strict=True)
            return [values[: len(ids)] for values, ids in rows]
        rollout.policy_passes += 1
        policy = self.accelerator.unwrap_model(self.model)
        return score_completions(
            policy, rollout.prompt_ids, rollout.completion_ids, token_budget=self.args.score_token_budget
        ).logprobs

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        start = self.accelerator.process_index * len(prompts)
        self._rollout.function_rewards = rewards[start : start + len(prompts), 1:]
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        group = self.num_generations if mode == "train" else self.num_generations_eval
        mask = loss_mask(output)
        self._rollout.policy_logprobs = self._policy_logprobs(output)
        if self.args.dense_reward_weight < 1:
            given = self._rollout.function_rewards
            self._rollout.external = self._functions.external(given, self.reward_func_names[1:], mask)
        output["advantages"], metrics = advantages_of(
            self._rollout, mask, self.args, num_generations=group, accelerator=self.accelerator
        )
        if self.log_completions:
            rewards = token_rewards(self._rollout, mask, self.args)
            self._log_tokens(self._rollout.completion_ids, rewards, output["advantages"])
        frozen = self.dense_reward.passes
        flops = torch.tensor(rollout_flops(self._rollout, self._parameters, frozen, self.num_iterations))
        metrics["flops"] = self.accelerator.reduce(flops.to(self.accelerator.device), reduction="sum").item()
        self._rollout.advantages = output["advantages"]
        metrics |= self._rollout_monitors(output)
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        if self._vocabulary is not None:
            output["frozen_hidden"], self._rollout.frozen_hidden = self._rollout.frozen_hidden, []
            if self._vocabulary.all_action:
                output["all_action_weights"] = self._rollout.all_action_weights
        return output

    # -- loss --------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mode = "train" if self.model.training else "eval"
        mask = loss_mask(inputs)
        normalizer = self._normalizer(inputs, mode)
        weights = importance_weights(inputs, mask, self.vllm_importance_sampling_mode)
        epsilons = self.epsilon_low, self.epsilon_high
        if self._vocabulary is not None:
            with self.accelerator.autocast():
                loss, values = whole_vocabulary_loss(model, self._vocabulary, inputs, weights, normalizer, epsilons)
        else:
            logprobs, entropies, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                mask.shape[1],
                compute_entropy=True,
            )
            assert entropies is not None
            loss, values = sampled_loss(logprobs, entropies, inputs, self.args, weights[0], normalizer, epsilons)
        self._loss_monitors(values[0], inputs, mask)
        metrics = loss_metrics(
            values, mask, self.accelerator, clips=self.args.clips_updates, state_kl=not self.args.kl_in_return
        )
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
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
