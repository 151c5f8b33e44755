"""EM over the demonstrations: models of single behaviours, each trained on the rows that are its own.

    M  pi_k <- pi_SFT trained S steps on demonstrations drawn in proportion to gamma_ik
    E  gamma_ik = softmax_k(log rho_k + sum_t log pi_k(y_it)),  rho_k = mean_i gamma_ik

The reward breaks the symmetry: round 1 begins with bands of it. One model is trained after the other, and what is kept
of each is what it says of the demonstrations (docs/purify.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from densepath.core.mixture import log_share_errors, responsibilities, settled_shares, systematic_draws
from densepath.errors import DamageWarning
from densepath.io import changed_files, recalled, remember, remove, sealed
from densepath.methods._demonstrations import Demonstrations
from densepath.methods._stage import (
    FORWARD_FLOPS,
    TRAIN_FLOPS,
    Stage,
    free_models,
    parameters_of,
    sft_config,
    tokens_trained,
)
from densepath.models.load import load_frozen, load_trainable
from densepath.models.quantized import parameter_count
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.callbacks import LOG
from densepath.trainers.processes import from_first
from densepath.trainers.sft import save_model_atomic, sft_trainer
from densepath.trainers.trl_config import peft_config


@dataclass(frozen=True)
class Corpus:
    """What the models of behaviours are trained on, and what they are asked about.

    Attributes:
        train: demonstrations that are sorted.
        dataset: the same rows, tokenised for SFT.
        validation: held-out demonstrations.
        samples: answers of the model before SFT.
        tokenizer: of all.
        cut: share of the samples that did not end within the budget of tokens.
    """

    train: Demonstrations
    dataset: Dataset
    validation: Demonstrations
    samples: Demonstrations
    tokenizer: Any
    cut: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """Behaviours after the last round.

    Attributes:
        log_likelihoods: (rows, K) of the training demonstrations, nats.
        shares: (K,) of the demonstrations.
        reference_shares: (K,) of the answers of the model before SFT; None where there are none.
        lift_errors: (K,) standard error of each lift, nats; None likewise.
        held_out: mean log-likelihood of the validation demonstrations under the mixture, nats; None without any.
        models: folder of each behaviour's model.
        tokens: that were trained on.
        flops: of training and of the forward passes.
    """

    log_likelihoods: Tensor
    shares: Tensor
    reference_shares: Tensor | None
    lift_errors: Tensor | None
    held_out: float | None
    models: tuple[Path, ...]
    tokens: float
    flops: float

    @property
    def responsibilities(self) -> Tensor:
        """(rows, K) float64 in [0, 1]."""
        return responsibilities(self.log_likelihoods, self.shares.log())


def fit(stage: Stage, corpus: Corpus, bands: Tensor, number: int) -> Fitted:
    """EM from bands of the reward; goes on where a killed process stopped.

    Args:
        stage: what it reads, and where it writes: `behaviours-K/round-r/k`.
        corpus: the demonstrations.
        bands: (rows,) int64, the band of each demonstration, -1 outside of all.
        number: K.
    """
    gamma = torch.nn.functional.one_hot(bands.clamp(min=0), number).double() * (bands >= 0).unsqueeze(1)
    found: list[_Said] = []
    tokens = flops = 0.0
    place = stage.folder / f"behaviours-{number}"
    for turn in range(1, stage.arguments.purify_rounds + 1):
        last = turn == stage.arguments.purify_rounds
        found = []
        for behaviour in range(number):
            seed = stage.arguments.seed + 1000 * number + 100 * turn + behaviour
            step = _Step(place / f"round-{turn}/{behaviour + 1}", gamma[:, behaviour], seed, last)
            found.append(_trained_and_asked(stage, corpus, step))
        log_likelihoods = torch.stack([said.train for said in found], dim=1)
        shares = settled_shares(log_likelihoods)
        gamma = _with_all_alive(responsibilities(log_likelihoods, shares.log()), gamma)
        tokens += sum(said.tokens for said in found)
        flops += sum(said.flops for said in found)
    reference = errors = None
    if len(corpus.samples):
        of_samples = _stacked(found, "samples")
        reference = settled_shares(of_samples)
        errors = torch.hypot(log_share_errors(log_likelihoods, shares), log_share_errors(of_samples, reference))
    return Fitted(
        log_likelihoods,
        shares,
        reference,
        errors,
        None if not len(corpus.validation) else _mixture_likelihood(_stacked(found, "validation"), shares),
        tuple(place / f"round-{stage.arguments.purify_rounds}/{k + 1}/model" for k in range(number)),
        tokens,
        flops,
    )


def _with_all_alive(gamma: Tensor, before: Tensor) -> Tensor:
    """(rows, K) responsibilities, in which a behaviour that has no row any more keeps those that it had."""
    return torch.where(gamma.sum(dim=0, keepdim=True) > 0, gamma, before)


@dataclass(frozen=True)
class _Step:
    """One M step of one behaviour: its folder, (rows,) weights, the seed of draw and training, whether to keep it."""

    folder: Path
    weights: Tensor
    seed: int
    keep: bool


@dataclass(frozen=True)
class _Said:
    """What a behaviour's model says: (rows,) log-likelihoods, nats; and what it cost."""

    train: Tensor
    validation: Tensor
    samples: Tensor
    tokens: float
    flops: float


def _trained_and_asked(stage: Stage, corpus: Corpus, step: _Step) -> _Said:
    place, steps = step.folder / "said.json", stage.arguments.purify_steps
    record = from_first(lambda: recalled(place))
    if record is None:
        generator = torch.Generator().manual_seed(step.seed)
        draws = systematic_draws(step.weights, steps * stage.demonstrations_per_step, generator).tolist()
        spent = train_on(stage, corpus, draws, Training(step.folder, steps, step.seed, "nll"))
        free_models()
        record = from_first(lambda: remember(place, _asked(stage, corpus, step.folder, spent)))
    from_first(lambda: _tidied(step, record["files"]))
    said = {name: torch.tensor(record[name], dtype=torch.float64) for name in ("train", "validation", "samples")}
    return _Said(**said, tokens=record["tokens"], flops=record["flops"])


def _asked(stage: Stage, corpus: Corpus, folder: Path, spent: tuple[float, float]) -> dict[str, Any]:
    """What the model there says of all; with what training it took."""
    policy = FrozenPolicy(load_frozen(stage.arguments, folder / "model"))
    said = {
        name: [] if not len(part) else part.log_likelihoods(policy, stage.console, f"{stage.title}, {name}").tolist()
        for name, part in (("train", corpus.train), ("validation", corpus.validation), ("samples", corpus.samples))
    }
    scored = sum(scored_tokens(part) for part in (corpus.train, corpus.validation, corpus.samples))
    parameters = parameter_count(policy.model)
    files = sealed(folder, [folder / LOG])
    return {**said, "files": files, "tokens": spent[0], "flops": spent[1] + FORWARD_FLOPS * scored * parameters}


def _tidied(step: _Step, files: dict[str, Any]) -> None:
    """Say what is damaged, and remove what nobody reads any more."""
    if changed := changed_files(step.folder, files):
        said_of = f"{step.folder / changed[0]} is damaged; nothing is computed from it, and it stays as it is"
        warnings.warn(said_of, DamageWarning, stacklevel=2)
    for checkpoint in step.folder.glob("*checkpoint-*"):
        remove(checkpoint)
    if not step.keep:
        remove(step.folder / "model")


@dataclass(frozen=True)
class Training:
    """A training that goes on from the SFT model: where, how long, with which seed and loss (`nll` or `dft`)."""

    folder: Path
    steps: int
    seed: int
    loss: str


def train_on(stage: Stage, corpus: Corpus, draws: Sequence[int], training: Training) -> tuple[float, float]:
    """SFT that goes on with the drawn demonstrations; leaves `model`. Returns tokens and FLOPs.

    The rows are drawn beforehand, so a training that is resumed sees what an uninterrupted one sees.
    """
    free_models()  # of the behaviour before
    arguments = stage.arguments
    rate = arguments.purify_learning_rate
    config = sft_config(
        arguments,
        stage.others,
        training.folder,
        max_steps=training.steps,
        learning_rate=stage.continued_rate if rate is None else rate,
        warmup_steps=training.steps // 20,
        seed=training.seed,
        loss_type=training.loss,
    )
    model = load_trainable(arguments, stage.sft.model)
    adapter = peft_config(arguments, model)
    trainer = sft_trainer(model, corpus.tokenizer, corpus.dataset.select(draws), config, peft_config=adapter)
    stage.train(trainer, training.folder)
    save_model_atomic(trainer, corpus.tokenizer, training.folder / "model", {"steps": training.steps})
    tokens = float(tokens_trained(training.folder))
    return tokens, TRAIN_FLOPS * tokens * parameters_of(trainer)


def scored_tokens(part: Demonstrations) -> int:
    """Tokens that a forward pass over its pairs reads."""
    return sum(len(pair.prompt_ids) + len(pair.completion_ids) for _, pair in part.pairs)


def _stacked(found: Sequence[_Said], name: str) -> Tensor:
    return torch.stack([getattr(said, name) for said in found], dim=1)


def _mixture_likelihood(log_likelihoods: Tensor, shares: Tensor) -> float:
    return float((log_likelihoods + shares.log()).logsumexp(dim=1).mean())
