"""The private parts of TRL that DPRTrainer stands on: if one of these moves, the pin in pyproject must too."""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer
from trl import DPOTrainer, GRPOConfig, GRPOTrainer
from trl.trainer.utils import FusedCausalLMOutput


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (
            "_generate_single_turn",
            ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        ),
        ("_generate", ["self", "prompts"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_compute_loss", ["self", "model", "inputs"]),
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_get_train_sampler", ["self", "dataset"]),
        ("_save", ["self", "output_dir", "state_dict"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        ("log", ["self", "logs", "start_time"]),
        ("create_model_card", ["self", "model_name", "dataset_name", "tags"]),
    ],
)
def test_overridden_methods_keep_their_signatures(method, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
        ("_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("_compute_loss", ["self", "model", "inputs", "return_outputs"]),
    ],
)
def test_what_self_play_overrides_keeps_its_signature(method, parameters):
    assert list(inspect.signature(getattr(DPOTrainer, method)).parameters) == parameters


def test_the_gradient_norm_is_known_before_the_optimizer_steps():
    assert list(inspect.signature(Trainer._get_grad_norm).parameters) == ["self", "model", "grad_norm"]
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("self._get_grad_norm(") < source.index("self.optimizer.step()")


def test_a_resumed_training_sets_its_losses_to_nothing_before_its_first_epoch():
    source = inspect.getsource(Trainer._inner_training_loop)
    for name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"):
        assert source.index(f"self.{name} = ") < source.index("self._run_epoch(")
    for name in ("epoch", "epochs_trained", "resume_from_checkpoint"):
        assert f"{name}={name}," in source
        assert name in inspect.signature(Trainer._run_epoch).parameters


def test_what_the_monitors_read_is_there():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'self._logs["rewards"][name].extend(rewards_per_func[:, i].tolist())' in source
    assert 'output["sampling_per_token_logps"] = sampling_per_token_logps' in source
    assert 'metrics = {f"eval_{key}": val for key, val in metrics.items()}' in inspect.getsource(GRPOTrainer.log)
    assert list(inspect.signature(Trainer._load_best_model).parameters) == ["self"]


def test_reward_functions_get_the_rows_columns_and_rewards_are_gathered():
    """The batch that was scored goes to reward functions as a column; what comes back is of all processes."""
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    assert "reward_kwargs = {key: [example[key] for example in inputs] for key in keys}" in source
    assert "rewards_per_func = gather(rewards_per_func)\n        return rewards_per_func" in source


def test_generate_returns_ids_completions_and_logprobs_in_this_order():
    source = inspect.getsource(GRPOTrainer._generate)
    assert (
        "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images"
        in source
    )


def test_rollout_hands_these_tensors_to_the_loss():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"):
        assert f'"{name}": {name}' in source


def test_fused_output_has_the_fields_that_the_packed_pass_fills():
    fields = FusedCausalLMOutput.__dataclass_fields__
    assert {"loss", "log_probs", "entropy", "is_top1", "label_mask"} <= fields.keys()


def test_grpo_config_keeps_the_arguments_that_dpr_config_changes():
    fields = GRPOConfig.__dataclass_fields__
    assert {"beta", "num_generations", "learning_rate", "temperature", "top_p", "top_k", "min_p"} <= fields.keys()


def test_the_sampler_of_prompts_is_the_one_that_ours_stands_in_for():
    source = inspect.getsource(GRPOTrainer._get_train_sampler)
    for argument in (
        "mini_repeat_count=self.num_generations",
        "batch_size=self.args.generation_batch_size // self.num_generations",
        "repeat_count=self.num_iterations * self.args.steps_per_generation",
        "shuffle=self.shuffle_dataset",
        "seed=self.args.seed",
    ):
        assert argument in source


def test_orders_of_prompts_are_trls():
    from trl.trainer.utils import RepeatSampler

    from densepath.trainers.grpo import ResumableSampler

    given = {"mini_repeat_count": 2, "batch_size": 3, "repeat_count": 2, "seed": 5}
    theirs = RepeatSampler(range(10), **given)
    for epoch in range(3):
        expected = list(theirs)
        assert list(ResumableSampler(range(10), **given, epoch=lambda now=epoch: now)) == expected


def test_models_are_whole_inside_and_in_pieces_again_outside():
    """The reference to ZeRO-3's configuration is private to transformers."""
    from transformers.integrations import deepspeed

    from densepath.models.sharded import loaded_whole

    class Zero3:
        def is_zero3(self) -> bool:
            return True

    config = Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        with loaded_whole():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
    with loaded_whole():
        assert not deepspeed.is_deepspeed_zero3_enabled()
