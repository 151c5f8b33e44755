"""The private parts of TRL that DPRTrainer stands on: if one of these moves, the pin in pyproject must too."""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
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
    ],
)
def test_overridden_methods_keep_their_signatures(method, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters


def test_the_gradient_norm_is_known_before_the_optimizer_steps():
    assert list(inspect.signature(Trainer._get_grad_norm).parameters) == ["self", "model", "grad_norm"]
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("self._get_grad_norm(") < source.index("self.optimizer.step()")


def test_what_the_monitors_read_is_there():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'self._logs["rewards"][name].extend(rewards_per_func[:, i].tolist())' in source
    assert 'output["sampling_per_token_logps"] = sampling_per_token_logps' in source
    assert 'metrics = {f"eval_{key}": val for key, val in metrics.items()}' in inspect.getsource(GRPOTrainer.log)
    assert list(inspect.signature(Trainer._load_best_model).parameters) == ["self"]


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
