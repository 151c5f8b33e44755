"""What a method is given, and what it leaves: an SFT run that is only read, a folder to train in, and what it cost."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback
from trl import SFTConfig

from densepath.config.run import RunArguments
from densepath.data.formats import dataset_fingerprint
from densepath.data.training_rows import Rows
from densepath.errors import ConfigError, DamagedFileError
from densepath.evals.verifiers import AnswerJudge, Verifier
from densepath.io import read_json, read_jsonl, read_log
from densepath.models.kept import BASE, KeptModels, kept_models
from densepath.models.load import load_tokenizer, model_context
from densepath.models.quantized import parameter_count
from densepath.models.references import EMA_NAME, reference_name
from densepath.models.sampling import Contrast
from densepath.progress import StageProgress
from densepath.rewards.frozen import FrozenPolicy
from densepath.terminal import Console
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.processes import process_count
from densepath.trainers.progress import ProgressCallback
from densepath.trainers.sft import train_resumable
from densepath.trainers.tracked import end_tracked_run
from densepath.trainers.trl_config import QUIET, device_defaults, trl_config

FORWARD_FLOPS = 2
TRAIN_FLOPS = 6
"""FLOPs a parameter and token: 2 forward, 4 backward; scoring and sampling go forward alone."""


@dataclass(frozen=True)
class SFTRun:
    """The folder of an SFT run: `data/<split>.jsonl`, `sft/model` and `sft/references/<fraction>`.

    The models may also be those that the user has already (`sft_from`, `sft_model_name_or_path`).

    Attributes:
        path: the folder.
        arguments: the recipe that it was made with.
    """

    path: Path
    arguments: RunArguments

    @functools.cached_property
    def given(self) -> KeptModels | None:
        """The models that were there already; None where this run makes its own.

        Raises:
            MissingFileError, ConfigError: `sft_from` is no folder of an SFT run.
        """
        arguments = self.arguments
        if arguments.sft_from is not None:
            return kept_models(Path(arguments.sft_from).expanduser())
        if arguments.sft_model_name_or_path is not None:
            checkpoints = named_models(arguments.ref_model_name_or_path)
            return KeptModels(
                arguments.sft_model_name_or_path, {BASE: arguments.model_name_or_path, **checkpoints}, {}
            )
        return None

    @property
    def model(self) -> Path:
        """Folder, or name, of the SFT model."""
        return self.path / "sft/model" if self.given is None else Path(self.given.sft)

    @property
    def base(self) -> str:
        """The model before SFT."""
        own = self.arguments.model_name_or_path
        return own if self.given is None else self.given.references.get(BASE, own)

    @property
    def references(self) -> list[str]:
        """Names of the references that there are, the model before SFT among them if the recipe keeps it."""
        if self.given is not None:
            return list(self.given.references)
        kept = [reference_name(fraction) for fraction in self.arguments.reference_fractions]
        return kept if self.arguments.reference_ema_decay is None else [*kept, EMA_NAME]

    @property
    def context(self) -> int:
        """Tokens that every model of the run reads at most, as their configurations say."""
        names = [self.base] if self.given is None else [self.given.sft, *self.given.references.values()]
        return min(model_context(name, self.arguments.trust_remote_code) for name in names)

    def tokenizer(self) -> Any:
        """A fresh copy of the tokenizer of every stage after SFT: with the recipe's EOS and chat template.

        The recipe's SFT saved it so, and the file of its template may be gone since; a given model was told nothing.

        Raises:
            MissingFileError, ModelError: there is none, or it cannot take what the recipe says.
        """
        options = self.arguments.tokenizer_options()
        if self.given is None:
            options = {"trust_remote_code": options["trust_remote_code"]}
        return load_tokenizer(self.model, **options)

    def rows(self, split: str) -> Rows:
        """Rows that the data stage wrote.

        Raises:
            MissingFileError, DamagedFileError: they are not all there, or not what that stage counted and hashed.
        """
        path, record = self.path / f"data/{split}.jsonl", self.path / "data.json"
        remedy = "put a whole copy in its place; densepath run and experiment make it again where its source is there"
        rows = read_jsonl(path, remedy)
        stored = read_json(record, remedy).get(split) if record.exists() else None
        if stored is not None and (len(rows), dataset_fingerprint(rows)) != (stored["rows"], stored["sha256"]):
            raise DamagedFileError(
                f"{path} is damaged: its {len(rows)} rows are not the {stored['rows']} that {record} counts: {remedy}"
            )
        return rows

    def reference(self, name: str) -> str:
        """Where a reference lies: the model before SFT for 0, what was kept by that name, or a path.

        Raises:
            ConfigError: a fraction at which no reference was kept.
        """
        try:
            name = reference_name(float(name))
        except ValueError:
            if name not in self.references and name != EMA_NAME:
                return name
        if name == BASE:
            return self.base
        own = self.path / f"sft/references/{name}"
        kept = {name: str(own)} if self.given is None and own.exists() else {}
        path = (kept if self.given is None else self.given.references).get(name)  # a given one may lie on the hub
        if path is None:
            raise ConfigError(
                f"reference={name}: none was kept there; choose one of {', '.join(self.references)}, auto, or a path"
            )
        return path


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Name -> model: the name of its folder, or all of it where two folders are called alike, or like `BASE`.

    >>> named_models(["runs/a/checkpoint-20", "runs/a/checkpoint-40"])
    {'checkpoint-20': 'runs/a/checkpoint-20', 'checkpoint-40': 'runs/a/checkpoint-40'}
    >>> named_models(["a/model", "b/model"])
    {'a/model': 'a/model', 'b/model': 'b/model'}
    """
    names = [BASE, *(Path(model).name for model in models)]
    return {name if names.count(name) == 1 else model: model for name, model in zip(names[1:], models, strict=True)}


@dataclass(frozen=True)
class Stage:
    """A training that goes on from the SFT model.

    Attributes:
        sft: the run that is read.
        folder: where the model, its metrics and checkpoints go.
        arguments: the recipe, with the method's own keys; `reference` and `beta` are settled.
        others: its `sft_*` and `dpr_*` keys, for TRL's configs.
        console: where progress goes.
        title: of the progress.
        matched: steps of continued SFT that have the compute of the method that it matches; None for its samples.
        check: makes what says how good an answer is, a verifier or a judge, beside a model that is in memory; None
            where nothing does.
    """

    sft: SFTRun
    folder: Path
    arguments: Any
    others: Mapping[str, Any]
    console: Console
    title: str
    matched: int | None = None
    check: Callable[[FrozenPolicy], Verifier | AnswerJudge] | None = None

    @property
    def samples(self) -> int:
        """Completions that DPR samples in training: the budget that others are given."""
        accumulated = int(self.others.get("dpr_gradient_accumulation_steps", 1))
        updates = int(self.others.get("dpr_num_iterations", 1))  # on one batch of completions
        trained = self.arguments.dpr_max_steps * self.arguments.dpr_per_device_train_batch_size * accumulated
        return max(1, int(trained) // updates)

    @property
    def demonstrations_per_step(self) -> int:
        """Of SFT, over all processes."""
        accumulated = int(self.others.get("sft_gradient_accumulation_steps", 1))
        return int(self.arguments.sft_per_device_train_batch_size * accumulated * process_count())

    @property
    def continued_rate(self) -> float:
        """Peak learning rate of SFT that goes on: continued SFT's, 0 included, or SFT's where none was given."""
        rate = self.arguments.continued_sft_learning_rate
        return float(self.arguments.sft_learning_rate if rate is None else rate)

    def train(self, trainer: Any, folder: Path | None = None) -> None:
        """Train with a progress bar, resuming if there is something to resume, in the stage's folder or another."""
        train_shown(trainer, folder or self.folder, self.console, self.title)


@dataclass(frozen=True)
class Policy:
    """What is sampled from.

    Attributes:
        model: folder or name of its weights.
        contrast: where the model lies that decoding moves away from, and how; None without one.
    """

    model: str
    contrast: Contrast | None = None


def trained(stage: Stage) -> Policy:
    """The model that the method left."""
    return Policy(str(stage.folder / "model"))


def trained_or_sft(stage: Stage) -> Policy:
    """The model that the method left, or the SFT model where it left none."""
    return trained(stage) if (stage.folder / "model").exists() else Policy(str(stage.sft.model))


def train_shown(trainer: Any, folder: Path, console: Console, title: str) -> None:
    """Train with a progress bar, resuming if there is something to resume."""
    trainer.remove_callback(PrinterCallback)
    with StageProgress(console, title, None) as progress:
        trainer.add_callback(ProgressCallback(progress))
        train_resumable(trainer, folder)
    end_tracked_run()


def free_models() -> None:
    """Give back models that nobody uses: a trainer is a reference cycle around its model, gradients and optimizer.

    Called before the next model is loaded, beside which they would stand in memory.
    """
    gc.collect()


def tokens_trained(folder: Path) -> int:
    """Cumulative tokens at the end of a training stage, as TRL counts them."""
    rows = [row for row in read_log(folder / "metrics.jsonl") if row.get("num_tokens")]
    return int(rows[-1]["num_tokens"]) if rows else 0


def parameters_of(trainer: Any) -> int:
    """Parameters that a forward pass multiplies: the adapters of a PEFT model included."""
    return parameter_count(trainer.model)


def prefixed(others: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The keys with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in others.items() if key.startswith(prefix)}


def tracking(arguments: RunArguments, folder: Path) -> dict[str, Any]:
    """What a training in a folder tells the recipe's trackers, as arguments of TRL's configs: a run of its own."""
    if arguments.report_to == ["none"]:
        return {}
    return {"report_to": arguments.report_to, "run_name": "/".join(folder.absolute().parts[-3:])}


def sft_config(arguments: RunArguments, others: Mapping[str, Any], folder: Path, **changes: Any) -> SFTConfig:
    """TRL's config of an SFT stage: densepath's defaults, the recipe's `sft_*` keys, then `changes`."""
    steps = arguments.sft_max_steps
    length: dict[str, Any] = {"num_train_epochs": arguments.sft_num_train_epochs or 1.0, "warmup_steps": 0.05}
    values = {
        **QUIET,
        **device_defaults(),
        "output_dir": str(folder),
        "seed": arguments.seed,
        "learning_rate": arguments.sft_learning_rate,
        **(length if steps is None else {"max_steps": steps, "warmup_steps": steps // 20}),
        "per_device_train_batch_size": arguments.sft_per_device_train_batch_size,
        "save_steps": arguments.save_steps,
        "lr_scheduler_type": "cosine",
        "max_length": None,  # rows were cut when they were encoded
        **tracking(arguments, folder),
        **prefixed(others, "sft_"),
        **changes,
    }
    return trl_config(SFTConfig, values, "sft_")


def dpr_config(arguments: RunArguments, others: Mapping[str, Any], folder: Path, beta: float) -> DPRConfig:
    """The config of the DPR stage: densepath's defaults, the recipe's `dpr_*` keys, then `beta`."""
    values = {
        **QUIET,
        **device_defaults(),
        "output_dir": str(folder),
        "seed": arguments.seed,
        "learning_rate": arguments.dpr_learning_rate,
        "max_steps": arguments.dpr_max_steps,
        "per_device_train_batch_size": arguments.dpr_per_device_train_batch_size,
        "num_generations": arguments.num_generations,
        "max_completion_length": arguments.max_completion_length,
        "save_steps": arguments.save_steps,
        "lr_scheduler_type": "constant",
        "dense_reward": arguments.dense_reward,
        **tracking(arguments, folder),
        **prefixed(others, "dpr_"),
        "beta": beta,
    }
    return trl_config(DPRConfig, values, "dpr_")
