"""SPIN and GSIL through the trainer: against float64 row by row, and TRL's own DPO loss; resumed; with adapters."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tests.tiny_models import tiny_mamba, with_lora
from trl import DPOTrainer

from densepath.core.imitation import Surrogate
from densepath.data.encode import Encoded
from densepath.errors import ConfigError, DataError
from densepath.trainers.self_play import COLUMNS, SelfPlayConfig, SelfPlayTrainer, opponent_tokens, self_play_pairs
from densepath.trainers.sft import train_resumable

EOS = 1  # <|im_end|> of the tiny tokenizer, its pad token as well
PAIRS = [  # of different lengths; EOS inside of a prompt, at an end, and missing where a sample was cut
    ([10, 11, 12], [40, 41, EOS], [42, EOS]),
    ([13, EOS, 14], [43, EOS], [44, 45, 46, 47, 48]),
    ([20, 21, 22, 23, 24], [EOS], [49, 50, EOS]),
    ([10, 11, 12], [51, 52, 53, EOS], [EOS]),
]
OPPONENT = [(-9.0, -7.5), (-8.0, -20.0), (-5.0, -11.0), (-16.0, -4.0)]
LOSSES = ["spin", *(s.value for s in Surrogate)]


def rows(pairs=PAIRS, opponent=OPPONENT) -> Dataset:
    return Dataset.from_list(
        [dict(zip(COLUMNS, (*pair, *logps), strict=True)) for pair, logps in zip(pairs, opponent, strict=True)]
    )


def config(folder, **changes) -> SelfPlayConfig:
    values = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "beta": 0.2,
        **changes,
    }
    return SelfPlayConfig(**values)


def logprob(model, prompt, completion) -> torch.Tensor:
    """Summed log-probability of a completion in float64."""
    ids = [*prompt, *completion]
    logprobs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logprobs[t - 1, ids[t]] for t in range(len(prompt), len(ids)))


def by_hand(model, loss: str, beta: float) -> torch.Tensor:
    """The loss pair by pair, written out."""
    total = torch.zeros((), dtype=torch.float64)
    for (prompt, demonstration, own), (of_demonstration, of_own) in zip(PAIRS, OPPONENT, strict=True):
        f = beta * (logprob(model, prompt, demonstration) - of_demonstration)
        g = beta * (logprob(model, prompt, own) - of_own)
        s = {"f": 1 / (1 + torch.exp(-f)), "g": 1 / (1 + torch.exp(-g))}
        total = (
            total
            + {
                "spin": torch.log(1 + torch.exp(-(f - g))),
                "logistic": -torch.log(s["f"]) - torch.log(1 - s["g"]),
                "hinge": (1 - f).clamp(min=0) + (1 + g).clamp(min=0),
                "brier": (1 - s["f"]) ** 2 + s["g"] ** 2,
                "kliep": torch.exp(g) - f,
                "least_squares": torch.exp(2 * g) / 2 - torch.exp(f),
                "exponential": torch.exp(-f) + torch.exp(g),
            }[loss]
        )
    return total / len(PAIRS)


def logged(folder) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time"} for row in found if "loss" in row]


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_step_are_those_of_float64_by_hand(tmp_path, make_model, tokenizer, loss):
    model = make_model(0)
    reference = copy.deepcopy(model).double()
    expected = by_hand(reference, loss, 0.2)
    expected.backward()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = SelfPlayTrainer(model, config(tmp_path, self_play_loss=loss, learning_rate=0.01), rows(), tokenizer)
    train_resumable(trainer, tmp_path)
    (row,) = logged(tmp_path)
    assert row["loss"] == pytest.approx(expected.item(), rel=2e-5)
    for name, weight in reference.named_parameters():
        step = (before[name] - dict(model.named_parameters())[name].detach()) / 0.01
        torch.testing.assert_close(step.double(), weight.grad, atol=2e-3, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
    # the prompt of a pair is computed once: 3 + 3 + 2, 3 + 2 + 5, 5 + 1 + 3, 3 + 4 + 1
    assert row["num_tokens"] == 8 + 10 + 9 + 8
    assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"], abs=1e-5)


class Plain(DPOTrainer):
    """TRL's trainer and its own loss and forward pass, on the same ids."""

    def _prepare_dataset(self, dataset, *args):
        return dataset

    def _precompute_ref_logps(self, dataset, *args):
        return dataset


@pytest.mark.parametrize(("loss", "theirs"), [("spin", "sigmoid"), ("logistic", "bco_pair")])
def test_spin_is_trls_dpo_with_the_opponent_as_reference_and_logistic_gsil_its_bco(
    tmp_path, make_model, tokenizer, loss, theirs
):
    ours = SelfPlayTrainer(make_model(0), config(tmp_path, self_play_loss=loss), rows(), tokenizer)
    plain = config(tmp_path)
    plain.loss_type = [theirs]  # SelfPlayConfig itself refuses it: there it would have no effect
    trl = Plain(
        model=make_model(0),
        args=plain,
        train_dataset=rows(),
        processing_class=tokenizer,
    )
    batch = ours.data_collator(list(rows()))
    mine, yours = (t._compute_loss(t.model, dict(batch), False) for t in (ours, trl))
    assert mine.item() == pytest.approx(yours.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, list(t.model.parameters())) for value, t in ((mine, ours), (yours, trl))]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "entropy"):
        assert ours._metrics["train"][name] == pytest.approx(trl._metrics["train"][name], rel=1e-4)


def test_batches_padding_and_company_change_nothing(tmp_path, make_model, tokenizer):
    """Each pair alone, in a batch with longer ones, and behind more padding of another id: the same loss."""
    trainer = SelfPlayTrainer(make_model(0), config(tmp_path), rows(), tokenizer)
    whole = trainer._compute_loss(trainer.model, trainer.data_collator(list(rows())), False).item()
    alone = [trainer._compute_loss(trainer.model, trainer.data_collator([row]), False).item() for row in rows()]
    assert sum(alone) / 4 == pytest.approx(whole, rel=1e-5)
    batch = trainer.data_collator(list(rows()))
    more = {name: torch.nn.functional.pad(batch[name], (0, 5), value=0) for name in batch if batch[name].dim() == 2}
    more["input_ids"] = torch.where(more["attention_mask"] == 1, more["input_ids"], 77)
    assert trainer._compute_loss(trainer.model, {**batch, **more}, False).item() == pytest.approx(whole, rel=1e-5)


def test_a_model_that_is_not_packed_gives_the_same_kind_of_loss(tmp_path, tokenizer):
    model = tiny_mamba(vocab_size=len(tokenizer))
    expected = by_hand(copy.deepcopy(model).double(), "spin", 0.2).item()
    trainer = SelfPlayTrainer(model, config(tmp_path), rows(), tokenizer)
    train_resumable(trainer, tmp_path)
    assert logged(tmp_path)[0]["loss"] == pytest.approx(expected, rel=2e-5)
    assert logged(tmp_path)[0]["num_tokens"] == 35 + 3 + 3 + 5 + 3  # each prompt twice


def test_an_adapter_goes_on_training_alone(tmp_path, make_model, tokenizer):
    model = with_lora(make_model(0))
    expected = by_hand(copy.deepcopy(model).double(), "spin", 0.2).item()
    base = model.get_base_model().model.embed_tokens.weight.detach().clone()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}
    trainer = SelfPlayTrainer(model, config(tmp_path, learning_rate=0.1), rows(), tokenizer)
    assert list(trainer.model.peft_config) == ["default"]  # TRL's copy is gone
    train_resumable(trainer, tmp_path)
    assert logged(tmp_path)[0]["loss"] == pytest.approx(expected, rel=2e-5)
    assert torch.equal(model.get_base_model().model.embed_tokens.weight, base)
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


@pytest.mark.parametrize("is_new", [False, True])
def test_adapters_on_a_base_of_4_bits_stay_float32(tmp_path, make_model, tokenizer, is_new):
    """TRL, which the flag tells of the 4 bits, rounds them to bfloat16: training would not begin at the opponent."""
    settings = LoraConfig(task_type="CAUSAL_LM", r=2)
    model = make_model(0) if is_new else with_lora(make_model(0))
    (model if is_new else model.base_model.model).is_loaded_in_4bit = True
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad and not is_new}
    given = {"peft_config": settings} if is_new else {}
    trainer = SelfPlayTrainer(model, config(tmp_path), rows(), tokenizer, **given)
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all(torch.equal(trained[name], weights) for name, weights in before.items())


def test_a_checkpoint_of_an_adapter_of_any_name_is_loaded_again(tmp_path, make_model, tokenizer):
    model = get_peft_model(make_model(0), LoraConfig(task_type="CAUSAL_LM", r=2), adapter_name="mine")
    model.add_adapter("default", model.peft_config["mine"])
    settings = {"learning_rate": 0.1, "save_strategy": "steps", "save_steps": 1}
    trainer = SelfPlayTrainer(model, config(tmp_path, **settings), rows(), tokenizer)
    trainer.train()
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        if ".mine." in name:
            p.data.zero_()
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    assert any(p.any() for name, p in trained.items() if "lora_B.mine" in name)
    for name, p in model.named_parameters():
        assert torch.equal(p, trained[name]), name


@pytest.mark.parametrize("logging_steps", [1, 5])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, make_model, tokenizer, logging_steps):
    from tests.trainers.test_sft import StopAt

    changes = {
        **{"max_steps": 5, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "optim": "adamw_torch_fused"},
        **{"save_strategy": "steps", "save_steps": 2, "logging_steps": logging_steps},
    }

    def run(folder, callbacks=()):
        trainer = SelfPlayTrainer(make_model(0), config(folder, **changes), rows(), tokenizer, callbacks)
        train_resumable(trainer, folder)
        return trainer

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", [StopAt(3, KeyboardInterrupt)])
    resumed = run(tmp_path / "cut")
    assert len(logged(tmp_path / "cut")) == 5 // logging_steps
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "SPIN" in (tmp_path / "whole/README.md").read_text()


DEMONSTRATIONS = [Encoded((10, 11, 12), (40, 41, EOS)), Encoded((13,), (42, EOS)), Encoded((10, 11, 12), (43, EOS))]


def test_pairs_hold_the_opponents_own_samples_and_scores(make_model):
    model = make_model(0)
    found = self_play_pairs(model, DEMONSTRATIONS, 8, max_completion_length=6, eos_token_ids=[EOS], seed=3)
    again = self_play_pairs(model, DEMONSTRATIONS, 8, max_completion_length=6, eos_token_ids=[EOS], seed=3)
    assert found == again
    assert found != self_play_pairs(model, DEMONSTRATIONS, 8, max_completion_length=6, eos_token_ids=[EOS], seed=4)
    drawn = [Encoded(row["prompt_ids"], row["chosen_ids"]) for row in found]
    for start in (0, 3):  # each is used once before any is used again
        assert {(d.prompt_ids, d.completion_ids) for d in drawn[start : start + 3]} == {
            (d.prompt_ids, d.completion_ids) for d in DEMONSTRATIONS
        }
    assert len({tuple(row["rejected_ids"]) for row in found}) > 4  # fresh for each use
    reference = copy.deepcopy(model).double()
    with torch.no_grad():
        for row in found:
            own = row["rejected_ids"]
            assert EOS not in own[:-1]
            assert own[-1] == EOS or len(own) == 6
            for name, ids in (("ref_chosen_logps", row["chosen_ids"]), ("ref_rejected_logps", own)):
                assert row[name] == pytest.approx(logprob(reference, row["prompt_ids"], ids).item(), abs=1e-4)


def test_samples_follow_the_opponents_distribution(make_model):
    """The share of samples that end at once is EOS's probability after the prompt, within four standard errors."""
    model = make_model(0)
    with torch.no_grad():
        model.lm_head.weight[EOS] += 0.3 * model.lm_head.weight[EOS].sign()
        logits = model(input_ids=torch.tensor([[13]])).logits[0, -1].double()
    expected = logits.softmax(-1)[EOS].item()
    found = self_play_pairs(
        model, [Encoded((13,), (42, EOS))], 3000, max_completion_length=2, eos_token_ids=[EOS], seed=0
    )
    share = sum(row["rejected_ids"] == [EOS] for row in found) / 3000
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 3000)


def test_the_opponents_tokens_are_counted_once():
    pairs = [
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]},
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [6, 7, 8]},
    ]
    # sampled: the prompt once, then 1 + 3; scored: prompt and demonstration once
    assert opponent_tokens(pairs) == 2 + 4 + 4


def test_wrong_input_is_named(tmp_path, make_model, tokenizer):
    with pytest.raises(ConfigError, match=r"self_play_loss='dpo' must be one of spin, logistic, hinge"):
        config(tmp_path, self_play_loss="dpo")
    with pytest.raises(ConfigError, match="max_length has no effect"):
        config(tmp_path, max_length=64)
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(DataError, match="has no prompt_ids, chosen_ids"):
        SelfPlayTrainer(make_model(0), config(tmp_path), text, tokenizer)
    with pytest.raises(DataError, match="no demonstration whose prompt leaves room"):
        self_play_pairs(make_model(0), [], 2, max_completion_length=2, eos_token_ids=[EOS], seed=0)
