"""SFT against a training loop written out by hand: its loss, its references, accumulation and resuming."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.pipeline.runs import save_tiny_model
from tests.tiny_models import tiny_gpt2
from transformers import TrainerCallback
from trl import SFTConfig

from densepath.cli.main import main
from densepath.errors import ConfigError, NumericalError
from densepath.models.references import reference_name
from densepath.trainers.callbacks import COMPLETE_MARKER, last_complete_checkpoint
from densepath.trainers.sft import save_model, sft_trainer, train_resumable

EOS = 1  # <|im_end|> of the tiny tokenizer, its pad token as well
ROWS = [  # (ids, 1 where the token is an action); lengths and shares of actions differ
    ([10, 11, 12, 40, 41, EOS], [0, 0, 0, 1, 1, 1]),
    ([10, 13, 42, EOS], [0, 0, 1, 1]),
    ([20, 21, 22, 23, 24, 25, 43, 44, 45, 46, EOS], [0] * 6 + [1] * 5),
    ([30, 50, EOS, 31, 32, 51, 52, EOS], [0, 1, 1, 0, 0, 1, 1, 1]),  # two turns
]
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def encoded(rows=ROWS) -> Dataset:
    return Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "completion_mask": [mask for _, mask in rows]})


def config(folder: Path, **changes) -> SFTConfig:
    values = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "dataloader_pin_memory": False,
        **changes,
    }
    return SFTConfig(**values)


def trainer_of(model, tokenizer, folder, rows=ROWS, fractions=(), peft_config=None, callbacks=(), **changes):
    return sft_trainer(
        model,
        tokenizer,
        encoded(rows),
        config(folder, **changes),
        peft_config=peft_config,
        reference_folder=folder / "references",
        fractions=fractions,
        callbacks=callbacks,
    )


def loss_of(model, rows) -> torch.Tensor:
    """- sum of log-probabilities of the actions, divided by their number: row by row, in float64."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, mask in rows:
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for position in range(1, len(ids)):
            if mask[position]:
                total = total - logprobs[position - 1, ids[position]]
                count += 1
    return total / count


def by_hand(model, steps: int, rate: float = 0.05) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """Losses, and the weights after each step, of plain gradient descent on all rows."""
    model, losses, weights = copy.deepcopy(model), [], []
    for _ in range(steps):
        loss = loss_of(model, ROWS)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
        losses.append(loss.item())
        weights.append({name: value.detach().clone() for name, value in model.named_parameters()})
    return losses, weights


def logged(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def assert_close(found, expected, **tolerance) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def flat(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_losses_weights_and_references_are_those_of_a_loop_by_hand(tmp_path, make_model, tokenizer):
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == EOS
    model = make_model(0)
    losses, weights = by_hand(model, 8)
    trainer = trainer_of(model, tokenizer, tmp_path, fractions=(0.0, 0.25, 0.5, 0.75))
    train_resumable(trainer, tmp_path)
    assert [row["loss"] for row in logged(tmp_path)] == pytest.approx(losses, abs=1e-4)
    assert_close(dict(model.named_parameters()), weights[-1], atol=1e-5, rtol=1e-4)
    assert sorted(path.name for path in (tmp_path / "references").iterdir()) == ["0.25", "0.5", "0.75"]
    for name, step in (("0.25", 2), ("0.5", 4), ("0.75", 6)):
        folder = tmp_path / "references" / name
        assert_close(load_file(folder / "model.safetensors"), weights[step - 1], atol=1e-5, rtol=1e-4)
        record = json.loads((folder / "densepath.json").read_text())
        assert record == {"fraction": step / 8, "step": step, "max_steps": 8}
        assert (folder / "tokenizer.json").exists()
    assert losses[-1] < losses[0] - 0.5
    assert (weights[1]["lm_head.weight"] - weights[3]["lm_head.weight"]).abs().max() > 1e-3


def test_eos_is_trained_although_it_is_the_pad_token(tmp_path, make_model, tokenizer):
    """Rows whose only action is EOS: masked with the padding, there would be nothing to learn."""
    rows = [([10, 11, 12, EOS], [0, 0, 0, 1]), ([13, EOS], [0, 1])]
    model = make_model(0)
    before = loss_of(model, rows).item()
    train_resumable(trainer_of(model, tokenizer, tmp_path, rows), tmp_path)
    assert logged(tmp_path)[0]["loss"] == pytest.approx(before, abs=1e-4)
    assert loss_of(model, rows).item() < before - 1


def test_prompts_and_the_users_turns_are_not_imitated(tmp_path, make_model, tokenizer):
    """What is learned is the actions: the likelihood of the other tokens hardly moves."""
    model = make_model(0)
    train_resumable(trainer_of(model, tokenizer, tmp_path), tmp_path)
    others = [(ids, [0, *(1 - m for m in mask[1:])]) for ids, mask in ROWS]
    learned, gained = (loss_of(make_model(0), rows) - loss_of(model, rows) for rows in (ROWS, others))
    assert learned.item() > 1.5
    assert abs(gained.item()) < 0.3 * learned.item()


@pytest.mark.parametrize(("size", "accumulation"), [(2, 2), (1, 4)])
def test_accumulation_changes_nothing(tmp_path, make_model, tokenizer, size, accumulation):
    """Each step sees all four rows, whose numbers of actions differ: tokens count equally, not batches."""
    whole, parts = make_model(0), make_model(0)
    train_resumable(trainer_of(whole, tokenizer, tmp_path / "whole", max_steps=3), tmp_path / "whole")
    trainer = trainer_of(
        parts,
        tokenizer,
        tmp_path / "parts",
        max_steps=3,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    train_resumable(trainer, tmp_path / "parts")
    torch.testing.assert_close(flat(parts), flat(whole), atol=1e-5, rtol=1e-4)
    assert (flat(whole) - flat(make_model(0))).abs().max() > 1e-3
    losses = [[row["loss"] for row in logged(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_dropout_is_off(tmp_path, tokenizer):
    """A model that is scored without dropout later is trained without it."""
    model = tiny_gpt2(vocab_size=len(tokenizer), dropout=0.5)
    expected = loss_of(copy.deepcopy(model).eval(), ROWS).item()
    train_resumable(trainer_of(model, tokenizer, tmp_path, max_steps=1, learning_rate=0.0), tmp_path)
    assert logged(tmp_path)[0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_dropout_of_an_adapter_is_off(tmp_path, make_model, tokenizer):
    trained = []
    for dropout in (0.0, 0.5):
        adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")
        folder = tmp_path / str(dropout)
        trainer = trainer_of(make_model(0), tokenizer, folder, peft_config=adapter, max_steps=3)
        train_resumable(trainer, folder)
        trained.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]))
    assert torch.equal(trained[0], trained[1])
    assert trained[0].abs().max() > 0


class StopAt(TrainerCallback):
    """End training after a step, cleanly or as Ctrl-C does."""

    def __init__(self, step: int, error: type[BaseException] | None = None) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.error is not None:
                raise self.error
            control.should_training_stop = True


MANY = [([10 + i, 11, 40 + i, 41 + (i % 3), EOS], [0, 0, 1, 1, 1]) for i in range(10)]
ADAM = {
    "optim": "adamw_torch_fused",
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 3,
    "max_steps": 9,
}
"""As in a run: AdamW, a schedule over nine steps, two epochs and a bit, the last batch of each with one row."""


@pytest.mark.parametrize(
    ("fraction", "step", "peft"), [(0.33, 3, False), (0.6, 5, True), (0.01, 1, False), (0.99, 9, False)]
)
def test_a_reference_is_the_model_of_a_training_that_was_stopped_there(
    tmp_path, make_model, tokenizer, fraction, step, peft
):
    adapter = LORA if peft else None
    trainer = trainer_of(
        make_model(0), tokenizer, tmp_path, MANY, fractions=[fraction], peft_config=adapter, **ADAM
    )  # fmt: skip
    train_resumable(trainer, tmp_path)
    stopped = trainer_of(
        make_model(0), tokenizer, tmp_path / "stopped", MANY, peft_config=adapter, callbacks=[StopAt(step)], **ADAM
    )  # fmt: skip
    stopped.train()
    assert stopped.state.global_step == step
    folder = tmp_path / "references" / reference_name(fraction)
    save_model(stopped, tokenizer, tmp_path / "expected")
    name = "adapter_model.safetensors" if peft else "model.safetensors"
    ours, theirs = load_file(folder / name), load_file(tmp_path / "expected" / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert json.loads((folder / "densepath.json").read_text())["step"] == step
    if peft:
        model = PeftModel.from_pretrained(make_model(0), folder).eval()
        ids = torch.tensor([MANY[0][0]])
        expected = stopped.model.eval()(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fraction", [1.0, -0.1, 1.5])
def test_a_fraction_outside_of_the_run_is_refused(tmp_path, make_model, tokenizer, fraction):
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\): 1 is the SFT model itself"):
        trainer_of(make_model(0), tokenizer, tmp_path, fractions=[fraction])


def test_a_configuration_that_peft_refuses_is_a_config_error(tmp_path, make_model, tokenizer):
    nowhere = LoraConfig(target_modules=["nowhere"], task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match=r"SFT cannot begin: Target modules .*nowhere.* not found"):
        trainer_of(make_model(0), tokenizer, tmp_path, peft_config=nowhere)


@pytest.mark.parametrize(("stop", "resumes_from"), [(2, None), (5, 4), (9, 8)])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, make_model, tokenizer, stop, resumes_from):
    changes = {**ADAM, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    whole = trainer_of(make_model(0), tokenizer, tmp_path / "whole", MANY, **changes)
    train_resumable(whole, tmp_path / "whole")
    folder = tmp_path / "cut"
    cut = trainer_of(make_model(0), tokenizer, folder, MANY, callbacks=[StopAt(stop, KeyboardInterrupt)], **changes)
    with pytest.raises(KeyboardInterrupt):
        train_resumable(cut, folder)
    found = last_complete_checkpoint(folder)
    assert found == (None if resumes_from is None else str(folder / f"checkpoint-{resumes_from}"))
    resumed = trainer_of(make_model(0), tokenizer, folder, MANY, **changes)
    train_resumable(resumed, folder)
    assert torch.equal(flat(resumed.model), flat(whole.model))
    assert resumed.state.global_step == 9
    rows = [[{k: v for k, v in row.items() if k != "time"} for row in logged(f)] for f in (folder, tmp_path / "whole")]
    assert rows[0] == rows[1]
    assert rows[0][-1]["num_tokens"] == 5 * 23  # rows of 5 tokens: 10 in each epoch, and a batch of 3
    # Once more: the last checkpoint is the end, and there is nothing left to do.
    again = trainer_of(make_model(0), tokenizer, folder, MANY, **changes)
    train_resumable(again, folder)
    assert again.state.global_step == 9
    assert torch.equal(flat(again.model), flat(whole.model))
    assert len(logged(folder)) == 9


def test_tokens_of_a_resumed_training_are_counted_however_seldom_it_logs(tmp_path, make_model, tokenizer):
    changes = {**ADAM, "save_strategy": "steps", "save_steps": 2, "logging_steps": 7}
    cut = trainer_of(make_model(0), tokenizer, tmp_path, MANY, callbacks=[StopAt(5, KeyboardInterrupt)], **changes)
    with pytest.raises(KeyboardInterrupt):
        train_resumable(cut, tmp_path)
    train_resumable(trainer_of(make_model(0), tokenizer, tmp_path, MANY, **changes), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_tokens"] for row in rows if "num_tokens" in row][-1] == 5 * 23  # as in the test above


@pytest.mark.slow
def test_a_log_after_a_resume_is_of_all_steps_since_the_log_before(tmp_path, make_model, tokenizer):
    """The checkpoint at 4 is in the midst of a mean over three steps, and that at 8 in the last one."""
    changes = {**ADAM, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3}
    whole = trainer_of(make_model(0), tokenizer, tmp_path / "whole", MANY, **changes)
    train_resumable(whole, tmp_path / "whole")
    for stop in (5, 9):
        folder = tmp_path / str(stop)
        cut = trainer_of(
            make_model(0), tokenizer, folder, MANY, callbacks=[StopAt(stop, KeyboardInterrupt)], **changes
        )
        with pytest.raises(KeyboardInterrupt):
            train_resumable(cut, folder)
        train_resumable(trainer_of(make_model(0), tokenizer, folder, MANY, **changes), folder)
        rows = [
            [{k: v for k, v in row.items() if k != "time"} for row in logged(f)] for f in (folder, tmp_path / "whole")
        ]
        assert [row["step"] for row in rows[0]] == [3, 6, 9]
        assert rows[0] == rows[1]
        totals = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (folder, tmp_path / "whole")]
        mean = sum(row["loss"] for row in rows[1]) / 3
        assert [row["train_loss"] for row in totals] == pytest.approx([mean, mean])


def test_a_training_that_was_killed_behind_its_last_checkpoint_is_not_gone_on_with(tmp_path, make_model, tokenizer):
    """The best of checkpoints is looked for, so there is one of the last step."""
    changes = {**ADAM, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "metric_for_best_model": "loss"}
    first = trainer_of(make_model(0), tokenizer, tmp_path, MANY, **changes)
    train_resumable(first, tmp_path)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    totals = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    again = trainer_of(make_model(0), tokenizer, tmp_path, MANY, **changes)
    train_resumable(again, tmp_path)
    assert again.state.global_step == 4
    assert torch.equal(flat(again.model), flat(first.model))
    assert len(logged(tmp_path)) == 4
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][4:]
    for name in ("step", "train_loss", "epoch"):
        assert row[name] == totals[name]


def test_a_checkpoint_that_was_cut_short_is_removed_and_not_used(tmp_path):
    nothing = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    marker = json.dumps({"files": {}, "log": nothing, "references": {}, "tokens": 0})
    for step, whole in ((2, True), (4, True), (6, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            for name in ("trainer_state.json", "optimizer.pt", "rng_state.pth", COMPLETE_MARKER):
                (tmp_path / f"checkpoint-{step}" / name).write_text(marker)
    (tmp_path / "checkpoint-best").mkdir()  # somebody else's
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-best"]
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_a_loss_that_is_not_a_number_ends_the_training(tmp_path, make_model, tokenizer):
    model = make_model(0)
    with torch.no_grad():
        model.lm_head.weight[40] = float("nan")
    trainer = trainer_of(model, tokenizer, tmp_path, logging_nan_inf_filter=False)
    with pytest.raises(
        NumericalError, match=r"the loss is nan at step 1 \(.*metrics\.jsonl\); lower the learning rate"
    ):
        train_resumable(trainer, tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["loss"] is None


def test_an_adapter_of_any_name_is_saved_as_the_one_that_is_loaded(tmp_path, make_model, tokenizer):
    model = get_peft_model(make_model(0), LORA, adapter_name="mine")
    model.add_adapter("default", LORA)
    trainer = trainer_of(model, tokenizer, tmp_path, fractions=(0.5,), max_steps=2)
    trainer.train()
    save_model(trainer, tokenizer, tmp_path / "model")
    loaded = PeftModel.from_pretrained(make_model(0), tmp_path / "model")
    trained = {name.replace(".mine.", ".default."): p for name, p in model.named_parameters() if ".mine." in name}
    assert any(p.any() for name, p in trained.items() if "lora_B" in name)
    assert_close({name: p for name, p in loaded.named_parameters() if ".default." in name}, trained)
    assert (tmp_path / "references" / "0.5" / "adapter_model.safetensors").is_file()
    model.base_model.set_adapter(["mine", "default"])
    with pytest.raises(ConfigError, match="adapters mine, default are active at once"):
        trainer_of(model, tokenizer, tmp_path)


class KeepsWeights(TrainerCallback):
    """What each step left: step -> weights by name."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_best_checkpoint_of_an_adapter_of_any_name_is_loaded(tmp_path, make_model, tokenizer):
    model, weights = get_peft_model(make_model(0), LORA, adapter_name="mine"), KeepsWeights()
    model.add_adapter("default", LORA)
    changes = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(model, tokenizer, tmp_path, callbacks=[weights], **changes)
    trainer.train()
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    assert_close(dict(model.named_parameters()), weights.after[1])
    with pytest.raises(AssertionError):
        assert_close(weights.after[2], weights.after[1])
    assert not [path for path in (tmp_path / "checkpoint-1").iterdir() if path.is_dir()]


def test_a_transformers_model_that_holds_an_adapter_itself_is_trained(tmp_path, make_model, tokenizer):
    model = make_model(0)
    model.add_adapter(LORA)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(model, tokenizer, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert changed
    assert all("lora_" in name for name in changed)
    save_model(trainer, tokenizer, tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path / "checkpoint-1"):
        saved = load_file(folder / "adapter_model.safetensors")
        assert any(p.any() for name, p in saved.items() if "lora_B" in name)


class Unreached(Exception):
    """As httpx has them, on which the hub's client is built: no OSError."""


class Hub:
    """What was uploaded: of each commit its message, and the files of the folder."""

    def __init__(self):
        self.commits, self.down = [], False

    def create_repo(self, name, **kwargs):
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, *, repo_id, folder_path, commit_message, **kwargs):
        if self.down:
            raise Unreached("the hub is\nnot reached")
        self.commits.append((repo_id, commit_message, Path(folder_path)))
        return SimpleNamespace(done=lambda: True)


@pytest.mark.parametrize(("strategy", "saved"), [("end", []), ("every_save", ["Training in progress, step 2"])])
def test_the_trained_model_is_what_the_hub_has_in_the_end(tmp_path, tokenizer, monkeypatch, capsys, strategy, saved):
    hub = Hub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    monkeypatch.setattr("densepath.pipeline.standalone.HfApi", lambda: hub)
    rows = [{"prompt": f"{i} plus 1:", "completion": f"{i + 1}"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sft", "--model_name_or_path", save_tiny_model(tmp_path / "base"), "--output_dir", str(tmp_path / "mine")]
    words += ["--dataset_name", str(tmp_path / "rows.jsonl"), "--max_steps", "4", "--save_steps", "2"]
    words += ["--per_device_train_batch_size", "2", "--reference_fractions", "0.5"]
    words += ["--push_to_hub", "--hub_strategy", strategy]
    assert main(words) == 0, capsys.readouterr().err
    assert [message for _, message, _ in hub.commits] == [*saved, "End of training"]
    repo, _, folder = hub.commits[-1]
    assert (repo, folder) == ("me/mine", tmp_path / "mine/model")
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    hub.down = bool(capsys.readouterr())
    assert main(words) == 0  # it is there already
    assert "pushed to mine before" in capsys.readouterr().out
    words += ["--hub_model_id", "other"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "could not be pushed to other (the hub is not reached): the same command tries it again" in err
    assert err.count("\n") == 1
    hub.down = False
    assert main(words) == 0, capsys.readouterr().err
    assert [repo for repo, *_ in hub.commits][-2:] == ["me/mine", "me/other"]
