"""Signals: when they warn, when they stop, what they say, which checkpoint stays, and that a resumed run agrees."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tests.trainers.test_dpr import config
from tests.trainers.test_monitors import DEMONSTRATIONS
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState

from densepath.errors import ConfigError
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.early_stopping import Signal, SignalCallback
from densepath.trainers.sft import train_resumable

KL = Signal("kl_sequence", 1.5, "raise beta", stops=True, patience=2)


def fed(callback: SignalCallback, metric: str, values, state=None) -> list[bool]:
    """Whether training is to stop after each value."""
    state = state or TrainerState()
    args = SimpleNamespace(output_dir="nowhere", metric_for_best_model=None)
    callback.on_train_begin(args, state, TrainerControl())
    stops = []
    for value in values:
        control = TrainerControl()
        state.global_step += 1
        callback.on_log(args, state, control, logs={"loss": 1.0} if value == "none" else {metric: value})
        stops.append(control.should_training_stop)
    return stops


def test_it_stops_at_values_in_a_row_and_warns_once(caplog):
    callback = SignalCallback([KL], early_stopping=True)
    with caplog.at_level(logging.WARNING):
        stops = fed(callback, "kl_sequence", [1.4, 1.6, 1.5, 1.7, "none", None, 1.9, 1.0, 2.0, 2.0])
    # 1.6 stands alone, 1.5 is not above; 1.7 and 1.9 are the second pair, logs without the metric between
    assert stops == [False] * 6 + [True] + [False] * 3
    (message,) = caplog.messages
    assert message == (
        "step 7: kl_sequence is 1.9, above the threshold of 1.5 for 2 logs; training stops, the last good checkpoint "
        "is none: keep the SFT model, and save more often; raise beta"
    )


def test_what_the_configuration_asks_for_is_watched_beside_signals_of_ones_own(
    tmp_path, make_model, tokenizer, prompts
):
    own = SignalCallback([Signal("completions/mean_length", 100, "x"), Signal("kl_sequence", 9.0, "mine")])
    changes = {"early_stopping": True, "kl_sequence_threshold": 1.0, "nll_increase_threshold": 0.1}
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, [own], **changes)
    assert trainer._signals() is own
    assert own.early_stopping
    watched = {signal.metric: signal.threshold for signal in own.signals}
    assert watched == {"completions/mean_length": 100, "kl_sequence": 9.0, "eval_nll_increase": 0.1}


def test_each_of_several_evaluation_data_sets_is_named_and_watched(tmp_path, make_model, tokenizer, prompts):
    rows = datasets.Dataset.from_list(DEMONSTRATIONS)
    changes = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "predict_with_generate": False}
    trainer = DPRTrainer(
        make_model(0),
        make_model(1),
        config(tmp_path, **changes, metric_for_best_model="eval_chat_nll", save_strategy="steps", save_steps=1),
        prompts,
        eval_dataset={"chat": rows.select([0]), "code": rows.select([1])},
        processing_class=tokenizer,
    )
    trainer.train()
    logged = {name for row in trainer.state.log_history for name in row if "nll" in name}
    kinds = ("nll", "nll_increase")
    assert logged == {f"eval_{data}_{kind}" for data in ("chat", "code") for kind in kinds}
    assert set(trainer._signals().beyond) >= {"eval_chat_nll_increase", "eval_code_nll_increase"}
    assert trainer.state.best_metric is not None
    assert trainer.args.greater_is_better is False


def test_without_early_stopping_it_only_warns(caplog):
    with caplog.at_level(logging.WARNING):
        assert fed(SignalCallback([KL]), "kl_sequence", [2.0] * 5) == [False] * 5
    assert caplog.messages == ["step 2: kl_sequence is 2, above the threshold of 1.5 for 2 logs; raise beta"]


@pytest.mark.parametrize(
    ("signal", "values", "alarm", "said"),
    [
        # start (10 + 12) / 2 = 11; 0.7 x 11 = 7.7
        (Signal("m", 0.7, "x", "ratio", below=True, patience=2), [10, 12, 7.6, 7.8, 7.5, 7.0], 5, "0.636 times its"),
        (Signal("m", 0.1, "x", "difference"), [0.5, 0.6, 0.61], 2, "+0.11 against its start"),
        (Signal("m", 0.5, "x", below=True), [0.9, 0.6, 0.4], 2, "m is 0.4, below the threshold of 0.5;"),
    ],
)
def test_measures(caplog, signal, values, alarm, said):
    callback = SignalCallback([signal])
    with caplog.at_level(logging.WARNING):
        fed(callback, "m", values[:alarm])
        assert caplog.messages == []
        fed(callback, "m", values[: alarm + 1])
    assert said in caplog.messages[0]


def test_a_state_that_went_through_a_checkpoint_goes_on_where_it_was(tmp_path):
    signal = Signal("m", 2.0, "x", "ratio", stops=True, patience=3)
    values = [1.0, 1.0, 1.0, 2.5, 2.5, 2.5, 2.5]
    assert fed(SignalCallback([signal], early_stopping=True), "m", values) == [False] * 5 + [True, False]
    for cut in range(1, 6):
        first = SignalCallback([signal], early_stopping=True)
        state = TrainerState(stateful_callbacks=[first])
        fed(first, "m", values[:cut], state)
        state.stateful_callbacks["SignalCallback"] = first.state()
        state.save_to_json(str(tmp_path / "state.json"))
        loaded = TrainerState.load_from_json(str(tmp_path / "state.json"))
        second = SignalCallback([signal], early_stopping=True)
        assert fed(second, "m", values[cut:], loaded) == ([False] * 5 + [True, False])[cut:]
        copied = SignalCallback(**first.state()["args"])  # as transformers restores callbacks
        assert copied.signals == first.signals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Signal("m", 1.0, "x", patience=0), "patience=0 must be at least 1"),
        (lambda: Signal("m", 1.0, "x", measure="slope"), "choose one of: value, difference, ratio"),
        (lambda: SignalCallback([KL, KL]), "watch a metric twice: kl_sequence, kl_sequence"),
    ],
)
def test_signals_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# -- in a training -----------------------------------------------------------------------------------------------


def trainer_of(folder, make_model, tokenizer, prompts, callbacks=(), **changes) -> DPRTrainer:
    values = {"beta": 0.0, "learning_rate": 3e-3, "lr_scheduler_type": "constant", "max_steps": 8} | changes
    return DPRTrainer(
        make_model(0),
        make_model(1),
        config(folder, **{"save_strategy": "steps", "save_steps": 1, **values}),
        prompts,
        eval_dataset=datasets.Dataset.from_list(DEMONSTRATIONS),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:  # after checkpoint 6, which remembers one log above the threshold
            raise KeyboardInterrupt


class Weights(TrainerCallback):
    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = model.lm_head.weight.detach().clone()


def test_a_stopped_run_ends_with_the_last_good_checkpoint_and_so_does_a_resumed_one(
    tmp_path, make_model, tokenizer, prompts, caplog
):
    whole, weights = trainer_of(tmp_path / "whole", make_model, tokenizer, prompts, save_strategy="no"), Weights()
    whole.add_callback(weights)
    whole.train()
    kl = [row["kl_sequence"] for row in whole.state.log_history if "kl_sequence" in row]
    below, above = max(kl[:5]), min(kl[5:7])
    assert below < above  # so with a threshold between them logs 6 and 7 are the first two above it
    threshold = (below + above) / 2
    stop = {"early_stopping": True, "kl_sequence_threshold": threshold, "early_stopping_patience": 2}
    stop |= {"save_total_limit": 1}
    stopped = trainer_of(tmp_path / "stopped", make_model, tokenizer, prompts, **stop)
    with caplog.at_level(logging.WARNING):
        stopped.train()
    assert stopped.state.global_step == 7
    kept = tmp_path / "stopped" / "dpr" / "checkpoint-5"
    assert f"the last good checkpoint is {kept}; lower learning_rate" in caplog.messages[-1]
    assert torch.equal(load_file(kept / "model.safetensors")["lm_head.weight"], weights.after[5])
    assert torch.equal(stopped.model.lm_head.weight, weights.after[5])  # not those of step 7
    cut = trainer_of(tmp_path / "cut", make_model, tokenizer, prompts, [Stop()], **stop)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = trainer_of(tmp_path / "cut", make_model, tokenizer, prompts, **stop)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 7
    assert torch.equal(resumed.model.lm_head.weight, weights.after[5])


def test_transformers_choice_of_the_best_and_its_patience_work_on_the_held_out_nll(
    tmp_path, make_model, tokenizer, prompts
):
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "predict_with_generate": False, "eval_on_start": True}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "nll", "nll_increase_threshold": None}
    weights = Weights()
    trainer = trainer_of(
        tmp_path, make_model, tokenizer, prompts, [EarlyStoppingCallback(2), weights], **evaluation, **best
    )
    assert trainer.args.greater_is_better is False
    trainer.train()
    nll = [row["eval_nll"] for row in trainer.state.log_history if "eval_nll" in row][1:]
    lowest = min(range(len(nll)), key=nll.__getitem__) + 1
    assert trainer.state.global_step == min(lowest + 2, 8)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "dpr" / f"checkpoint-{lowest}")
    assert torch.equal(trainer.model.lm_head.weight, weights.after[lowest])


class KilledAtTheEnd(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_training_killed_behind_its_last_step_ends_with_the_best_model_too(tmp_path, make_model, tokenizer, prompts):
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "predict_with_generate": False, "max_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "nll", "nll_increase_threshold": None}
    killed, weights = KilledAtTheEnd(), Weights()
    settings = {**evaluation, **best, "learning_rate": 1e-2, "beta": 0.3}
    cut = trainer_of(tmp_path, make_model, tokenizer, prompts, [killed, weights], **settings)
    with pytest.raises(KeyboardInterrupt):
        train_resumable(cut, tmp_path / "dpr")
    nll = [row["eval_nll"] for row in cut.state.log_history if "eval_nll" in row]
    assert min(nll) < nll[-1]  # the last is not the best
    resumed = trainer_of(tmp_path, make_model, tokenizer, prompts, **settings)
    train_resumable(resumed, tmp_path / "dpr")
    assert torch.equal(resumed.model.lm_head.weight, weights.after[1 + nll.index(min(nll))])


def test_a_rising_nll_stops_too(tmp_path, make_model, tokenizer, prompts, caplog):
    trainer = trainer_of(
        tmp_path,
        make_model,
        tokenizer,
        prompts,
        eval_strategy="steps",
        eval_steps=1,
        predict_with_generate=False,
        early_stopping=True,
        kl_sequence_threshold=None,
        nll_increase_threshold=-100.0,
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 1
    assert "eval_nll_increase is" in caplog.messages[-1]
