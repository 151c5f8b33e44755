"""The text that a model card adds, from plain values."""

from __future__ import annotations

from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.model_card import (
    own_arguments,
    public_name,
    run_section,
    with_comparison,
    with_names,
    with_section,
)

HISTORY = [
    {"step": 1, "kl_sequence": 0.0, "reward": 1.0, "completions/mean_length": 10.0},
    {"step": 2, "eval_reward": 1.5, "eval_kl_sequence": 0.21},
    {"step": 2, "kl_sequence": 0.25, "reward": 2.0, "completions/mean_length": 12.5},
    {"step": 2, "train_loss": 0.1},
]


def section(**changes):
    values = {
        "sft": "my/sft",
        "reference": "my/base",
        "reward_functions": [],
        "history": HISTORY,
        "max_steps": 4,
    }
    return run_section(DPRConfig("unused", report_to="none"), **{**values, **changes})


def test_it_says_what_the_run_was_and_where_it_ended():
    text = section(reward_functions=["accuracy_reward"])
    assert "| SFT policy | my/sft |" in text
    assert "| reference | my/base |" in text
    assert "| reward functions | accuracy_reward |" in text
    assert "| `beta` | 0.5 |" in text
    assert "| | step 1 | step 2 of 4 |" in text
    assert "| KL to SFT, nats per completion | 0 | 0.25 |" in text
    assert "| length, tokens | 10 | 12.5 |" in text
    assert "Held-out prompts at step 2: KL to SFT, nats per completion 0.21, reward per completion 1.5" in text
    assert "Compared with: nothing but the SFT policy" in text


def test_controls_that_were_run_are_named():
    assert "Compared with: continued SFT (same FLOPs)." in section(compared_with=["continued SFT (same FLOPs)"])


def test_before_the_first_log_there_are_no_figures():
    assert "of 4" not in section(history=[])


def test_every_argument_of_ours_is_listed():
    names = own_arguments(DPRConfig("unused", report_to="none"))
    assert {"beta", "gamma", "dense_reward", "baseline", "num_generations"} <= set(names)
    assert "warmup_steps" not in names


def test_a_local_path_is_not_published(tmp_path):
    assert public_name("org/model") == "org/model"
    assert public_name(str(tmp_path / "sft")) == "sft"
    assert public_name(None) == "a model given as an object"


def test_the_section_stands_before_the_versions():
    assert with_section("a\n### Framework versions\nb", "S\n") == "a\nS\n\n### Framework versions\nb"
    assert with_section("a", "S") == "a\nS"


def test_a_folder_called_model_is_named_with_those_around_it(tmp_path):
    for place in ("mine/sft/model", "mine/references/0.5"):
        (tmp_path / place).mkdir(parents=True)
        assert public_name(str(tmp_path / place)) == place


def test_trls_none_becomes_the_model():
    card = "of [None](https://huggingface.co/None).\n" + 'pipeline("text-generation", model="None")'
    assert with_names(card, "org/base") == 'of `org/base`.\npipeline("text-generation", model="path/to/this/folder")'


def test_what_a_run_compared_stands_once_in_the_place_of_what_was_said_before():
    card = f"# Card\n\n{section()}\n### Framework versions\nb"
    once = with_comparison(card, "| a | b |\n")
    assert "Compared with:" not in once
    assert "### Compared in its run\n\n| a | b |\n\n### Framework versions\nb" in once
    again = with_comparison(once, "| c | d |")
    assert "| a | b |" not in again
    assert again.count("### Compared in its run") == 1
