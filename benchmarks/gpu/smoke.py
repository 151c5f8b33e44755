"""Part (a): scores, samples, SFT, DPR and a whole run on tiny models; in float32 the device says what the CPU says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig
from trl.trainer.utils import add_fused_lm_head

from benchmarks.gpu.boxes import Report, compared
from benchmarks.gpu.speed import layout
from densepath.cli.main import main
from densepath.data.encode import encode_demonstrations, encode_row_prompt
from densepath.data.tasks import generate_tasks
from densepath.io import read_jsonl
from densepath.models.load import eos_token_ids, load_model, load_tokenizer
from densepath.models.packed_forward import add_packed_forward
from densepath.models.packing import IGNORED_LABEL
from densepath.models.sampling import sample
from densepath.models.scoring import score_completions
from densepath.rewards.loading import load_policies
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.sft import sft_trainer

if TYPE_CHECKING:
    from benchmarks.gpu.check import Settings

NATS = 1e-4
"""Largest difference of two float32 computations of a log-probability, reward or weight."""
DPR = {
    "dpr sampled": {"estimator": "sampled"},
    "dpr all_action": {"estimator": "all_action"},
    "dpr capped": {"sequence_cap": 0.0, "reward_scale": 2.0},
}
ARMS = ["base", "sft", "continued_sft", "contrastive", "dpr", "purified_sft"]


def run(settings: Settings, report: Report) -> None:
    """Every stage on the device and on the CPU."""
    from tests.pipeline.runs import save_tiny_model

    folder, device = settings.folder / "smoke", settings.device
    models = [save_tiny_model(folder / name, seed=seed) for seed, name in enumerate(("sft", "base"))]
    with report.item("scores") as values:
        values["float32"] = compared(_largest(_scores(models[0], device), _scores(models[0], "cpu")), NATS)
        exact = _scores(models[0], "cpu")
        own, other = (
            float((_scores(models[0], d, "bfloat16") - exact).square().mean().sqrt()) for d in ("cpu", device)
        )
        values["bfloat16"] = {"cpu": own, "device": other, **compared(other, 2 * own + NATS)}
    with report.item("samples") as values:
        (ours, logprobs), (theirs, known) = (_samples(models[0], where) for where in (device, "cpu"))
        values["tokens that differ"] = compared(float(sum(a != b for a, b in zip(ours, theirs, strict=True))), 0)
        values["logprobs"] = compared(_largest(logprobs, known), NATS)
    with report.item("gradients in bfloat16") as values:
        values.update(flat_against_padded(models[0], device))
    _trained(report, "sft", lambda where: _sft(models[0], where, folder), device)
    for name, changes in DPR.items():
        _trained(report, name, lambda where, changes=changes: _dpr(models, where, folder, changes), device)
    with report.item("run") as values:
        values["rewards"] = compared(_whole_run(models[0], folder / "run"), NATS)


def _largest(found: Tensor, known: Tensor) -> float:
    return float((found - known).abs().max())


def _scores(model: str, device: str, dtype: str = "float32") -> Tensor:
    loaded = load_model(model, device=device, dtype=dtype)
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 380, (24,), generator=draw).tolist() for _ in range(16)]
    scores = score_completions(loaded, [each[:8] for each in ids], [each[8:] for each in ids])
    return torch.cat(scores.logprobs).double()


def _samples(model: str, device: str) -> tuple[list[int], Tensor]:
    loaded, tokenizer = load_model(model, device=device), load_tokenizer(model)
    prompts = [encode_row_prompt(row, tokenizer) for row in generate_tasks(8, seed=0)]
    drawn = sample(
        loaded,
        prompts,
        num_generations=2,
        max_completion_length=12,
        eos_token_ids=eos_token_ids(loaded, tokenizer),
        generator=torch.Generator().manual_seed(0),
    )
    tokens = [token for row in drawn.completion_ids for token in row]
    return tokens, torch.tensor([value for row in drawn.logprobs for value in row])


@dataclass(frozen=True)
class _Pass:
    """A forward and backward pass.

    Attributes:
        layout: how its sequences shared a batch, and whether a kernel for that was left unused.
        figures: log-probabilities of the labelled tokens, loss, and gradients of all weights; float64 on the CPU.
    """

    layout: Mapping[str, Any]
    figures: Mapping[str, Tensor]


def flat_against_padded(model: str, device: str) -> dict[str, Any]:
    """A training pass in bfloat16 as trainers make it, which is flat on a GPU too, and a padded one beside it.

    Trained in float32, as the other items are, a GPU packs rows under a mask: its kernel of flat rows takes half
    precision alone. The truth is a padded pass of the same weights in float32 on the CPU; figures are relative root
    mean squares, and what bfloat16 costs is what the padded pass is off by.
    """

    def loaded(where: str) -> Any:
        return load_model(model, device=where, dtype="bfloat16", for_training=True)

    truth, padded = _padded_pass(loaded("cpu").float()), _padded_pass(loaded(device))
    trained = _trained_pass(loaded(device))
    found = dict(trained.layout)
    for name, exact in truth.figures.items():
        own, other = (_apart(each.figures[name], exact) for each in (padded, trained))
        # A loss may be right by chance; its error is at most that of its tokens.
        noise = max(own, found["log-probabilities"]["padded"]) if name == "loss" else own
        found[name] = {"padded": own, "as trained": other, **compared(other, 2 * noise + NATS)}
    return found


def _apart(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _rows(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels of four completions of each of three prompts, all of several lengths, on the right."""
    draw = torch.Generator().manual_seed(0)
    rows, width = [], 0
    for prompt in (8, 21, 34):
        begins = torch.randint(3, 380, (prompt,), generator=draw)
        for completion in (5, 9, 14, 23):
            rows.append((begins, torch.randint(3, 380, (completion,), generator=draw)))
            width = max(width, prompt + completion)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED_LABEL)
    for row, (begins, ends) in enumerate(rows):
        length = len(begins) + len(ends)
        ids[row, :length], mask[row, :length] = torch.cat([begins, ends]), 1
        labels[row, len(begins) : length] = ends
    return ids.to(device), mask.to(device), labels.to(device)


def _padded_pass(model: Any) -> _Pass:
    ids, mask, labels = _rows(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)[labels[:, 1:] != IGNORED_LABEL]
    return _passed(model, -logprobs.mean(), logprobs, {"layout": "PADDED"})


def _trained_pass(model: Any) -> _Pass:
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    add_packed_forward(model)
    where = layout(model)
    ids, mask, labels = _rows(model.device)
    out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return _passed(model, out.loss, out.log_probs[labels[:, 1:] != IGNORED_LABEL], where)


def _passed(model: Any, loss: Tensor, logprobs: Tensor, where: Mapping[str, Any]) -> _Pass:
    loss.backward()
    gradients = torch.cat([weight.grad.flatten().double().cpu() for weight in model.parameters()])
    figures = {"log-probabilities": logprobs, "loss": loss, "gradients": gradients}
    return _Pass(where, {name: each.detach().double().cpu() for name, each in figures.items()})


@dataclass(frozen=True)
class Trained:
    """What a training logged and the weights that it left, and the device that it ran on."""

    device: torch.device
    figures: Mapping[str, Tensor]


def _trained(report: Report, name: str, train: Callable[[str], Trained], device: str) -> None:
    with report.item(name) as values:
        found, known = train(device), train("cpu")
        values["device"] = str(found.device)
        values["another device"] = compared(float(found.device.type != torch.device(device).type), 0)
        for key, truth in known.figures.items():
            values[key] = compared(_largest(found.figures[key], truth), NATS)


def _arguments(device: str, folder: Path) -> dict[str, Any]:
    # Plain gradient steps: AdamW would make a rounding error of a gradient near 0 a whole step.
    return {
        "output_dir": str(folder / "out"),
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "use_cpu": device == "cpu",
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def _sft(model: str, device: str, folder: Path) -> Trained:
    tokenizer = load_tokenizer(model)
    encoded, _ = encode_demonstrations(generate_tasks(16, seed=0), tokenizer, 256, drop_overlong=True)
    config = SFTConfig(**_arguments(device, folder), max_length=None)
    return _figures(sft_trainer(load_model(model, for_training=True), tokenizer, encoded, config), ("loss",))


def _dpr(models: list[str], device: str, folder: Path, changes: dict[str, Any]) -> Trained:
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in generate_tasks(8, seed=0)])
    config = DPRConfig(**_arguments(device, folder), num_generations=4, max_completion_length=8, beta=0.5, **changes)
    trainer = DPRTrainer(
        load_model(models[0], for_training=True),
        models[1],
        config,
        prompts,
        processing_class=load_tokenizer(models[0]),
    )
    return _figures(trainer, ("loss", "reward", "kl"))


def _figures(trainer: Any, logged: tuple[str, ...]) -> Trained:
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    found = {name: torch.tensor([row[name] for row in rows]).double() for name in logged if name in rows[0]}
    weights = list(trainer.accelerator.unwrap_model(trainer.model).parameters())
    found["weights"] = torch.cat([weight.detach().double().cpu().flatten() for weight in weights])
    return Trained(weights[0].device, found)


def _whole_run(model: str, folder: Path) -> float:
    """A run with every stage where torch finds a GPU; how far its recorded rewards are from the CPU's."""
    from tests.pipeline.runs import run_argv

    purify = {"purify_steps": 2, "purify_final_steps": 2, "purify_samples": 4, "purify_behaviours": [2]}
    if code := main(run_argv(model, folder, arms=ARMS, beta="auto", sft_max_steps=4, dpr_max_steps=2, **purify)):
        raise RuntimeError(f"densepath run ended with {code}")
    policies = load_policies([folder / "sft/model", folder / "sft/references/0.5"])
    tokenizer, differences = load_tokenizer(str(folder / "sft/model")), []
    prompts = [encode_row_prompt(row, tokenizer) for row in read_jsonl(folder / "data/test.jsonl")]
    for arm in ARMS:
        answers = read_jsonl(folder / f"{arm}/eval/test-1.jsonl")
        texts = [prompts[each["row"]] for each in answers], [each["completion_ids"] for each in answers]
        sft, ref = (torch.cat([each.double() for each in policy.score(*texts).logprobs]) for policy in policies)
        told = torch.tensor([value for each in answers for value in each["rewards"]], dtype=torch.float64)
        differences.append(_largest(told, sft - ref))
    return max(differences)
