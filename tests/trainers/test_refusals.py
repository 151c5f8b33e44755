"""What a trainer does not use is refused by name, and what the libraries below refuse is one line before training."""

from __future__ import annotations

import dataclasses
import errno
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, SFTConfig

from densepath.config.reward import ScoreArguments
from densepath.errors import ConfigError
from densepath.trainers import dpr_config, self_play, sft
from densepath.trainers.bounds import BOUNDS, check_bounds
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.refusals import check_startable, refusing
from densepath.trainers.self_play import SelfPlayConfig
from densepath.trainers.sft import check_sft_arguments
from densepath.trainers.trl_config import checked_values, device_defaults, trl_config

DOCUMENT = (Path(__file__).parents[2] / "docs/trainer.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _no_deepspeed_left():
    """transformers keeps a configuration of DeepSpeed for the whole process, also one that was refused."""
    yield
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def _names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _another(value):
    """A value that differs from the given one, of its type where that is known."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return "another"


def _dpr(**changes):
    return DPRConfig("out", report_to="none", **changes)


@pytest.mark.parametrize("name", sorted(dpr_config.WITHOUT_EFFECT))
def test_dpr_refuses_each_argument_that_it_does_not_use(name):
    default = dpr_config.WITHOUT_EFFECT[name]
    with pytest.raises(ConfigError, match=rf"^{name}=.* has no effect in DPR") as error:
        _dpr(**{name: _another(default)})
    assert "\n" not in str(error.value)
    _dpr(**{name: default})


def test_the_document_lists_what_dpr_refuses_and_nothing_else():
    (text,) = re.findall(r"<!-- refused -->(.*?)<!-- /refused -->", DOCUMENT, flags=re.DOTALL)
    assert set(re.findall(r"`(\w+)`", text)) == set(dpr_config.WITHOUT_EFFECT)


def test_every_argument_of_grpo_is_used_or_refused():
    """A name that TRL drops or adds shows here: a new argument is refused until DPR uses it."""
    added = _names(GRPOConfig) - _names(TrainingArguments)
    assert added == dpr_config._USED | (set(dpr_config.WITHOUT_EFFECT) - set(dpr_config._NOT_DPRS))
    assert _names(SFTConfig) >= sft._USED
    assert _names(DPOConfig) >= self_play._USED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vllm_gpu_memory_utilization": 0.5},
            "vllm_gpu_memory_utilization=0.5 has no effect in a run without use_vllm",
        ),
        ({"vllm_mode": "server"}, "vllm_mode='server' has no effect in a run without use_vllm"),
        ({"transformers_continuous_batching_config": {"a": 1}}, "a run without use_transformers_continuous_batching"),
        (
            {"use_transformers_continuous_batching": True, "bf16": True, "use_cpu": True},
            "use_transformers_continuous_batching rounds the policy's own weights",
        ),
        ({"max_completion_length": None}, "max_completion_length=None: give the most tokens"),
        ({"generation_batch_size": 7}, "generation_batch_size (7) must be divisible"),
        ({"reward_scale": float("nan")}, "reward_scale=nan must be a finite number"),
        ({"beta": float("inf")}, "beta=inf must be a finite number"),
        ({"eval_strategy": "sometimes"}, "sometimes is not a valid IntervalStrategy"),
        ({"deepspeed": "nowhere.json"}, "deepspeed"),
    ],
)
def test_dpr_refuses_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        _dpr(**changes)
    assert "\n" not in str(error.value)


def test_zero3_that_could_write_no_model_is_refused():
    def plugin(stage, **zero):
        return SimpleNamespace(zero_stage=stage, deepspeed_config={"zero_optimization": zero})

    args = _dpr(bf16=False)
    args.deepspeed_plugin = plugin(3)
    with pytest.raises(ConfigError, match="under ZeRO-3 no process holds the weights whole"):
        check_startable(args)
    for allowed in (plugin(2), plugin(3, stage3_gather_16bit_weights_on_model_save=True)):
        args.deepspeed_plugin = allowed
        check_startable(args)


@pytest.mark.parametrize("name", sorted(sft.WITHOUT_EFFECT))
def test_sft_refuses_each_argument_that_it_does_not_use(name):
    args = SFTConfig("out", report_to="none", bf16=False)
    check_sft_arguments(args)
    setattr(args, name, False if name == "completion_only_loss" else _another(sft.WITHOUT_EFFECT[name]))
    with pytest.raises(ConfigError, match=rf"^{name}=.* has no effect in SFT"):
        check_sft_arguments(args)


def test_sft_refuses_noise_that_would_shrink_with_the_batch():
    """NEFTune divides by the root of a row's length; rows that are packed have that of the whole batch."""
    args = SFTConfig("out", report_to="none", bf16=False, neftune_noise_alpha=5.0)
    with pytest.raises(ConfigError, match=r"^neftune_noise_alpha=5.0 has no effect in SFT.*would shrink"):
        check_sft_arguments(args)


def test_sft_takes_what_it_does_anyway():
    check_sft_arguments(SFTConfig("out", report_to="none", bf16=False, completion_only_loss=True, loss_type="dft"))


@pytest.mark.parametrize("name", sorted(set(self_play.WITHOUT_EFFECT) - {"loss_weights"}))
def test_self_play_refuses_each_argument_that_it_does_not_use(name):
    with pytest.raises(ConfigError, match=rf"^{name}=.* has no effect in self-play"):
        SelfPlayConfig("out", report_to="none", bf16=False, **{name: _another(self_play.WITHOUT_EFFECT[name])})


def test_self_play_refuses_what_would_change_a_loss_that_is_its_own():
    for changes in ({"router_aux_loss_coef": 0.1}, {"neftune_noise_alpha": 5.0}, {"disable_dropout": False}):
        with pytest.raises(ConfigError, match="has no effect in self-play, whose loss and data are its own"):
            SelfPlayConfig("out", report_to="none", bf16=False, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler_kwargs": {"num_cycles": 1}}, "lr_scheduler_kwargs: get_linear.*'num_cycles'"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_type, lr_scheduler_kwargs: .*decay"),
        ({"adam_beta1": 2.0}, r"adam_beta1=2.0 must lie in \[0, 1\)"),
        ({"adam_epsilon": math.inf}, r"adam_epsilon=inf must lie in \[0, 1\]"),
        ({"max_steps": 0}, "max_steps=0 must lie in .*; -1 counts epochs"),
        ({"optim_target_modules": ["q_proj"]}, "optim_target_modules has no effect with optim=adamw"),
        ({"dataloader_persistent_workers": True}, "dataloader_num_workers and its like: persistent_workers"),
        ({"report_to": "nothing"}, "report_to='nothing' does not exist; choose none, all, or some of .*wandb"),
        ({"report_to": ["wandb"]}, "report_to=wandb needs a package that is missing: pip install wandb"),
        ({"report_to": ["mlflow"]}, "report_to=mlflow needs a package that is missing: pip install mlflow"),
        ({"use_liger_kernel": True}, "use_liger_kernel needs a package .* pip install liger-kernel"),
        ({"optim": "adamw_8bit"}, "optim: .*bitsandbytes"),
        ({"hub_token": "hf_x"}, "hub_token would be written into training_args.bin .* HF_TOKEN"),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, "optim: .*galore"),
    ],
)
def test_what_would_end_training_at_its_first_step_is_known_before(monkeypatch, changes, message):
    for package in ("liger_kernel", "trackio", "wandb", "mlflow", "bitsandbytes", "galore_torch"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    for look in ("get_available_reporting_integrations", "is_liger_kernel_available"):
        monkeypatch.setattr(f"densepath.trainers.refusals.{look}", lambda *_: [])
    args = SFTConfig("out", bf16=False, **{"report_to": "none", **changes})
    with pytest.raises(ConfigError, match=message):
        check_startable(args)


def test_ordinary_arguments_can_start():
    for changes in (
        {},
        {"optim": "adamw_torch_fused", "lr_scheduler_type": "cosine"},
        {"optim": "sgd", "max_steps": 3},
    ):
        check_startable(SFTConfig("out", report_to="none", bf16=False, **changes))


BEYOND = {
    "seed": (-1, 2**32),
    "data_seed": (-1,),
    "max_steps": (0, -5, 10**12),
    "num_train_epochs": (0, -1, "inf", 1e30),
    "learning_rate": (-1, "inf"),
    "weight_decay": (-1, "inf"),
    "adam_epsilon": ("inf", 1e30),
    "save_steps": (0, -1),
    "dataloader_num_workers": (-1,),
    "train_sampling_strategy": ("nosuch",),
    "dataloader_multiprocessing_context": ("nosuch",),
    "log_level": ("nosuch",),
    "label_smoothing_factor": (5, "inf"),
    "optim_target_modules": (3,),
    "max_grad_norm": (-1,),
}


@pytest.mark.parametrize(("kind", "prefix"), [(SFTConfig, ""), (DPRConfig, "dpr_")])
def test_what_no_training_could_use_is_refused_by_the_name_that_was_given(kind, prefix):
    for name, values in BEYOND.items():
        for value in values:
            with pytest.raises(ConfigError, match=rf"^{prefix}{name}=.* (must|does not exist)") as error:
                trl_config(kind, {"output_dir": "out", name: value}, prefix)
            assert "\n" not in str(error.value)


def test_what_is_unusual_and_has_a_meaning_is_taken():
    usual = {"max_steps": -1, "max_grad_norm": "inf", "learning_rate": 0, "seed": 2**32 - 1, "save_steps": 0.5}
    config = trl_config(SFTConfig, {**device_defaults(), "output_dir": "out", "report_to": "none", **usual})
    check_startable(config)
    assert (config.max_grad_norm, config.save_steps) == (math.inf, 0.5)
    listed = checked_values(SFTConfig, {"include_for_metrics": "inputs, loss"})
    assert listed == {"include_for_metrics": ["inputs", "loss"]}


def test_a_float_without_a_bound_of_its_own_must_be_finite():
    with pytest.raises(ConfigError, match=r"^dpr_kl_sequence_threshold=inf must be a finite number$"):
        trl_config(DPRConfig, {"output_dir": "out", "kl_sequence_threshold": "inf"}, "dpr_")


def test_every_bound_is_of_an_argument_that_there_is():
    assert set(BOUNDS) <= _names(DPRConfig) | _names(SFTConfig)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("no\n  such thing"), "SFT cannot begin: no such thing"),
        (KeyError("r"), "SFT cannot begin: KeyError: 'r'"),
        (AttributeError("x"), "SFT cannot begin: AttributeError: x"),
        (
            ModuleNotFoundError("No module named 'zz'", name="zz"),
            "SFT cannot begin: the package zz is missing: pip install",
        ),
        (AssertionError(), "SFT cannot begin: AssertionError"),
        (OSError("offline"), "SFT cannot begin: offline"),
    ],
)
def test_what_a_constructor_raises_is_one_line(error, message):
    with pytest.raises(ConfigError) as found, refusing("SFT cannot begin"):
        raise error
    assert str(found.value).startswith(message)
    assert found.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError(), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]
)
def test_a_full_machine_is_no_mistake(error):
    with pytest.raises(type(error)) as found, refusing("SFT cannot begin"):
        raise error
    assert found.value is error


def test_a_tracker_that_is_no_name_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"report_to=\{'a': 1\} does not exist"):
        check_startable(DPRConfig(str(tmp_path), report_to=[{"a": 1}]))


def test_half_precision_that_would_be_left_out_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="fp16=True has no effect on a CPU"):
        check_startable(DPRConfig(str(tmp_path), fp16=True, bf16=False, use_cpu=True, report_to="none"))


def test_a_count_that_no_machine_holds_is_refused():
    with pytest.raises(ConfigError, match=f"per_device_train_batch_size={10**30} must be at most {sys.maxsize}"):
        check_bounds(SFTConfig, {"per_device_train_batch_size": 10**30})
    with pytest.raises(ConfigError, match=f"max_samples={10**30} must be at most {sys.maxsize}"):
        ScoreArguments(max_samples=10**30)


@pytest.mark.parametrize("name", ["per_device_train_batch_size", "gradient_accumulation_steps"])
def test_a_batch_of_nothing_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
        check_startable(SFTConfig(str(tmp_path), report_to="none", bf16=False, **{name: 0}))


@pytest.mark.parametrize("name", ["num_iterations", "steps_per_generation", "max_completion_length"])
def test_numbers_that_are_none_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
        _dpr(**{name: 0})
