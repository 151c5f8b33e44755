"""Arguments of the whole job: `densepath run` and `densepath plan`. No torch: `--help` reads this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from densepath.config.coerce import coerce
from densepath.config.judge import JudgeArguments
from densepath.config.mixins import (
    TEMPLATE_SETTINGS,
    TEXT_TASKS,
    DenseRewardArguments,
    ReferencesArguments,
    SamplingArguments,
    TrainableArguments,
    TrainingRowsArguments,
)
from densepath.config.options import Arguments, check_no_effect, check_temperature, given_among, option
from densepath.errors import ConfigError, NoEffectError


@dataclass
class RecipeRowsArguments(TrainingRowsArguments):
    """Demonstrations and prompts of the job."""

    dataset_name: str = option(
        "",
        "Demonstrations: JSONL, CSV, Parquet, a folder or a hub id; text_tasks generates its own. With "
        "constrained: before the name each prompt also asks for a format, which verifier=instruction_format checks.",
        required=True,
    )
    max_train_samples: int | None = option(
        None, "Demonstrations used for SFT. None: all that are not held out (960 of text_tasks).", least=1
    )
    task_families: list[str] = option(
        ["reverse", "last_word", "capitals"],
        "Families that text_tasks generates: reverse, sort_words, last_word, capitals, count, sort_numbers.",
    )
    task_error_rate: float = option(0.35, "Share of wrong demonstrations that text_tasks generates.")
    task_errors: list[str] = option(
        [],
        "Their errors: copy (the list as it is), drop, swap, off_by_one. Empty: all that suit a family, mostly copy.",
    )
    rl_prompts: str | None = option(None, "Prompts for DPR, when they differ from those of the demonstrations.")
    max_prompt_length: int | None = option(
        None,
        "Longest prompt that DPR samples from, in tokens; longer ones are left out. None: what the context holds.",
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.task_error_rate <= 1:
            raise ConfigError(f"task_error_rate={self.task_error_rate} must lie in [0, 1]")

    def check_effect(self) -> None:
        """The settings of toy tasks are for these."""
        super().check_effect()
        if self.dataset_name and not self.dataset_name.endswith(TEXT_TASKS):
            toy = ("task_families", "task_error_rate", "task_errors")
            check_no_effect(self, toy, f"with dataset_name={self.dataset_name}: it is for {TEXT_TASKS}")


@dataclass
class GivenSFTArguments(Arguments):
    """An SFT model that is there already: no SFT is run."""

    sft_from: str | None = option(
        None, "Folder of densepath sft or run whose SFT model, references and model_name_or_path are taken."
    )
    sft_model_name_or_path: str | None = option(
        None, "SFT model to begin with; model_name_or_path is the model before it, reference 0."
    )
    ref_model_name_or_path: list[str] = option(
        [],
        "Earlier checkpoints of that SFT model: further references, which are called by the names of their folders.",
        needs="sft_model_name_or_path",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sft_from is not None and self.sft_model_name_or_path is not None:
            raise ConfigError("sft_from and sft_model_name_or_path both name the SFT model; give one of them")

    @property
    def gives_sft(self) -> bool:
        """Whether the SFT model is there already."""
        return self.sft_from is not None or self.sft_model_name_or_path is not None


@dataclass
class EvaluationArguments(Arguments):
    """What is held out, and what is asked of it."""

    eval_dataset_name: str | None = option(
        None, "Held-out rows for validation and test; by default split from dataset_name by content hash."
    )
    dataset_test_split: str = option("test", "Split of eval_dataset_name.", needs="eval_dataset_name")
    num_validation_samples: int = option(64, "Prompts that choose the reference.", least=1)
    num_test_samples: int = option(100, "Prompts that the final table is about; used once.", least=1)
    verifier: str | None = option(
        None,
        "Program that checks an answer: exact_match, final_number, instruction_format or package.module:function. "
        "None if there is none.",
    )
    eval_temperatures: list[float] = option([0.0, 1.0], "Temperatures of the final evaluation; 0 is greedy.")
    num_report_samples: int = option(12, "Completions shown token by token in the report.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for temperature in self.eval_temperatures:
            check_temperature("eval_temperatures: ", temperature)
        if len({f"{temperature:g}" for temperature in self.eval_temperatures}) < len(self.eval_temperatures):
            raise ConfigError(
                f"eval_temperatures={self.eval_temperatures}: give each once; six digits tell them apart"
            )
        if not self.eval_temperatures:
            raise ConfigError("eval_temperatures is empty; 0 is greedy, 1 the policy as it is")


@dataclass
class StageArguments(Arguments):
    """Arms, and steps, batches and learning rates of SFT, its continuation and DPR."""

    sft_learning_rate: float = option(5e-5, "Peak learning rate of SFT.")
    sft_max_steps: int | None = option(None, "Optimizer steps of SFT, in the place of epochs.", least=1)
    sft_num_train_epochs: float | None = option(
        None, "Passes of SFT over the demonstrations; where neither is given 1, or more as sft_most_epochs allows."
    )
    sft_most_epochs: int = option(
        2,
        "Most passes of SFT where neither steps nor passes are given: while the held-out NLL was still falling at its "
        "end, it begins anew with twice as many.",
        least=1,
    )
    sft_per_device_train_batch_size: int = option(16, "Demonstrations in one SFT step and device.", least=1)
    save_steps: int = option(20, "Optimizer steps between checkpoints for resuming, in every training stage.", least=1)
    report_to: list[str] = option(
        ["none"], "Trackers of every training stage, each a run of its own there: tensorboard, wandb, trackio, mlflow."
    )
    dpr_learning_rate: float = option(5e-6, "Peak learning rate of DPR.")
    dpr_max_steps: int = option(25, "Optimizer steps of DPR.", least=1)
    dpr_per_device_train_batch_size: int = option(32, "Completions in one DPR step and device.", least=1)
    arms: list[str] = option(
        ["base", "sft", "continued_sft", "dft", "dpr", "purified_sft"],
        "What the table compares, in its order; sft is always there. base: the model before SFT; sft; controls: "
        "continued_sft, dft, rejection_sampling, filtered_sft, contrastive, subtractive, extrapolation, spin, gsil, "
        "purified_random, purified_sft_logprob; and dpr, dpr_capped, purified_sft.",
    )
    continued_sft: str = option(
        "flops",
        "How long continued SFT goes on: for as many FLOPs as purified_sft took, or without it dpr (flops); or, as "
        "without both, on as many demonstrations as dpr samples completions (samples).",
        choices=("flops", "samples"),
    )
    continued_sft_learning_rate: float | None = option(None, "Peak learning rate of the control; SFT's if None.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.arms)) < len(self.arms):
            raise ConfigError(f"arms={self.arms}: give each once")
        epochs = self.sft_num_train_epochs
        if epochs is not None and epochs <= 0:
            raise ConfigError(f"sft_num_train_epochs={epochs} must be a number above 0")
        if epochs is not None and self.sft_max_steps is not None:
            raise ConfigError("sft_max_steps and sft_num_train_epochs both say how long SFT is; give one of them")
        for name in ("sft_learning_rate", "dpr_learning_rate", "continued_sft_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and rate < 0:
                raise ConfigError(f"{name}={rate} must be a number, at least 0")


@dataclass
class PurifyArguments(Arguments):
    """How the reward sorts the demonstrations, and how the better part of them is trained on again."""

    purify_behaviours: list[int] = option(
        [2, 3], "Numbers of behaviours that are looked for among the demonstrations; each of them is tried."
    )
    purify_score: str = option(
        "reward",
        "What the bands are made of that EM begins with: the reward, or, to show what it does, sft_logprob or random.",
        choices=("reward", "sft_logprob", "random"),
    )
    purify_rounds: int = option(
        1, "Rounds of EM. 0: no behaviours, demonstrations weighted by their own reward (two forward passes).", least=0
    )
    purify_steps: int = option(8, "Optimizer steps of a behaviour's model in a round, with SFT's batch.", least=1)
    purify_learning_rate: float | None = option(
        None, "Peak learning rate of purification; that of continued SFT, or SFT's, if None."
    )
    purify_final_steps: int = option(16, "Optimizer steps on the better part, with SFT's batch.", least=1)
    purify_final_loss: str = option("dft", "Loss of these: dft, or nll as in SFT.", choices=("dft", "nll"))
    purify_dft: bool = option(
        False,
        "With a verifier or judge: try DFT on all demonstrations too, and take it where it is better.",
    )
    purify_keep: float | None = option(
        0.5, "Share of each kind of prompt that is kept. None: demonstrations are drawn by their responsibility."
    )
    purify_kind_column: str | None = option(
        None, "Column that says of which kind a prompt is. None: kinds are clusters of the prompts."
    )
    purify_kinds: int = option(6, "Most clusters of the prompts; 1 takes them all together.", least=1)
    purify_samples: int = option(
        1000, "Answers of the model before SFT, from which is read how much SFT raised each behaviour.", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        few = [number for number in self.purify_behaviours if number < 2]
        if few or not self.purify_behaviours:
            raise ConfigError(
                f"purify_behaviours={self.purify_behaviours}: give numbers of 2 or more; with one, nothing is sorted"
            )
        if not self.purify_rounds and self.purify_score != "reward":
            raise ConfigError(
                f"purify_rounds=0 weighs by the reward, and makes no bands of purify_score={self.purify_score}; "
                "give one round or more"
            )
        if len(set(self.purify_behaviours)) < len(self.purify_behaviours):
            raise ConfigError(f"purify_behaviours={self.purify_behaviours}: give each number once")
        if self.purify_keep is not None and not 0 < self.purify_keep < 1:
            raise ConfigError(f"purify_keep={self.purify_keep} must lie between 0 and 1, or be left to None")
        rate = self.purify_learning_rate
        if rate is not None and rate <= 0:
            raise ConfigError(f"purify_learning_rate={rate} must be a number above 0")

    def check_effect(self) -> None:
        """Without rounds there are no behaviours, of which these ask."""
        super().check_effect()
        if not self.purify_rounds:
            check_no_effect(self, OF_BEHAVIOURS, "with purify_rounds=0")


PURIFICATIONS = ("purified_sft", "purified_random", "purified_sft_logprob")
"""Arms that sort the demonstrations: by the reward, and its controls."""
_GOES_ON = ("sft_", "sft_learning_rate", "sft_per_device_train_batch_size", "continued_sft_learning_rate")
"""What a training with SFT's loss and batch reads; `sft_` stands for every other such key."""
_BUDGET = (
    *("dpr_max_steps", "dpr_per_device_train_batch_size", "num_generations"),
    *("dpr_gradient_accumulation_steps", "dpr_num_iterations"),
)
"""What says how many completions DPR samples, which is the budget of controls too; by `num_generations` the batch is
divided."""
_DPR = ("dpr_", "dpr_learning_rate", *_BUDGET, "max_prompt_length")
READ_BY_ARMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("base", "sft", "contrastive", "subtractive", "extrapolation"), ()),
    **dict.fromkeys(("continued_sft", "dft", "rejection_sampling"), (*_GOES_ON, *_BUDGET)),
    "filtered_sft": (*_GOES_ON, *_BUDGET, "max_prompt_length"),
    **dict.fromkeys(PURIFICATIONS, (*_GOES_ON, "max_prompt_length")),
    **dict.fromkeys(("dpr", "dpr_capped", "spin", "gsil"), _DPR),
}
"""Arm -> what its training reads of the arguments that not every stage of a run reads. SFT reads `_GOES_ON` but for
the last. A method that is not here may read anything."""
_OF_TRAININGS = tuple(dict.fromkeys(key for keys in READ_BY_ARMS.values() for key in keys))

OF_BEHAVIOURS = ("purify_behaviours", "purify_steps", "purify_keep", "purify_kinds", "purify_samples")
"""Arguments that decide nothing without rounds of EM."""
_OF_PURIFICATION = tuple(f.name for f in fields(PurifyArguments) if f.name.startswith("purify_"))


@dataclass
class ChoiceArguments(GivenSFTArguments, ReferencesArguments, DenseRewardArguments):
    """Which references there are, and which of them makes the reward, with which strength."""

    reference_fractions: list[float] = option(
        [0.0, 0.25, 0.5, 0.75], "Shares of the SFT samples at which a reference is kept; 0 is the model before SFT."
    )
    reference: str = option(
        "auto", "Reference of the reward: auto (chosen on validation prompts), a fraction such as 0.5, ema, or a path."
    )
    beta: str = option("auto", "KL coefficient of DPR: auto (chosen with the reference) or a number.")
    candidate_betas: list[float] = option([0.5, 1.0], "Values of beta among which auto chooses.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for fraction in self.reference_fractions:
            if not 0 <= fraction < 1:
                raise ConfigError(f"reference_fractions: {fraction} must lie in [0, 1); 1 is the SFT model itself")
        if self.beta != "auto" and not 0 < _number(self.beta) < float("inf"):
            raise ConfigError(f"beta={self.beta} must be auto or a number above 0")
        for beta in self.candidate_betas:
            if beta <= 0:
                raise ConfigError(f"candidate_betas: {beta} must be a number above 0")
        if len({f"{beta:g}" for beta in self.candidate_betas}) < len(self.candidate_betas):
            raise ConfigError(f"candidate_betas={self.candidate_betas}: give each once")
        if self.beta == "auto" and not self.candidate_betas:
            raise ConfigError("candidate_betas is empty; give the values among which beta=auto chooses")
        if not self.gives_sft:
            self._check_reference()

    def check_effect(self) -> None:
        """A fixed beta is not chosen, and a given SFT model has the references that are there."""
        super().check_effect()
        if self.beta != "auto":
            check_no_effect(self, ["candidate_betas"], f"with beta={self.beta}")
        if self.gives_sft:
            kept = ("reference_fractions", "reference_ema_decay")
            check_no_effect(self, kept, "where the SFT model is given: it has the references that are there")

    def _check_reference(self) -> None:
        kept = [f"{fraction:g}" for fraction in self.reference_fractions]
        if self.reference == "ema" and self.reference_ema_decay is None:
            raise ConfigError("reference=ema needs reference_ema_decay, such as 0.95: SFT keeps the average only then")
        fraction = _number(self.reference)
        if self.reference == "auto" and not kept and self.reference_ema_decay is None:
            raise ConfigError("reference=auto needs reference_fractions to choose among")
        if fraction == fraction and not 0 <= fraction < 1:
            raise ConfigError(f"reference={self.reference} must be auto, a path, or a fraction in [0, 1)")
        if fraction == fraction and fraction != 0 and f"{fraction:g}" not in kept:
            raise ConfigError(
                f"reference={self.reference} is not among reference_fractions ({', '.join(kept)}), at which "
                "references are kept; add it there, or choose one of them"
            )


@dataclass
class MachineArguments(Arguments):
    """What the job runs on."""

    num_threads: int | None = option(None, "CPU threads; torch's default if None.", least=1)
    accelerate_config: str | None = option(
        None, "accelerate file that the recipe is launched with: the memory plan reads processes and sharding from it."
    )
    num_processes: int | None = option(
        None, "Processes that the memory plan counts with; those of accelerate_config.", least=1
    )
    gpu_memory: float | None = option(
        None, "GiB of one GPU that the recipe is made for; a plan that does not fit is refused before the first stage."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpu_memory is not None and self.gpu_memory <= 0:
            raise ConfigError(f"gpu_memory={self.gpu_memory} must be a number of GiB above 0")


@dataclass
class RunArguments(
    MachineArguments,
    EvaluationArguments,
    JudgeArguments,
    PurifyArguments,
    StageArguments,
    ChoiceArguments,
    SamplingArguments,
    RecipeRowsArguments,
    TrainableArguments,
):
    """Arguments of `densepath run`; any `sft_*` and `dpr_*` key of TRL's configs is taken too."""

    output_dir: str = option("runs/quickstart", "Run folder. The same command goes on where it stopped.")
    num_generations: int = option(4, "Completions sampled for each prompt.", least=2)
    max_completion_length: int | None = option(  # type: ignore[assignment]  # None is settled before the first stage
        None,
        "Longest sampled completion in tokens, EOS included. None: what 99 of 100 demonstrations need, at most half "
        "the context.",
        least=1,
    )
    seed: int = option(0, "Seed of data, training and sampling.", least=0)

    @property
    def open_ended(self) -> bool:
        """Whether how long SFT is was left to what the held-out demonstrations say."""
        return self.sft_max_steps is None and self.sft_num_train_epochs is None and not self.gives_sft

    @property
    def completion_tokens(self) -> int:
        """`max_completion_length`, once it is settled."""
        assert self.max_completion_length is not None
        return self.max_completion_length

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is not None and self.verifier is not None:
            raise ConfigError("judge and verifier both say what is better; give one of them")
        if self.dpr_per_device_train_batch_size % self.num_generations:
            raise ConfigError(
                f"dpr_per_device_train_batch_size={self.dpr_per_device_train_batch_size} must be a multiple of "
                f"num_generations={self.num_generations}"
            )

    def check_effect(self) -> None:
        """A given SFT model is not trained, and what an arm is told needs that arm."""
        super().check_effect()
        for arms, names in ((PURIFICATIONS, _OF_PURIFICATION), (("continued_sft",), ("continued_sft",))):
            if not {*arms}.intersection(self.arms):
                check_no_effect(self, names, f"without {arms[0]} among arms")
        lengths = ["sft_max_steps", "sft_num_train_epochs"]
        if self.gives_sft:
            check_no_effect(self, [*lengths, "sft_most_epochs"], "where the SFT model is given")
        if not self.open_ended:
            check_no_effect(self, ["sft_most_epochs"], f"beside {' or '.join(lengths)}")
        if self.verifier is None and self.judge is None:
            check_no_effect(self, ["purify_dft"], "without verifier or judge")
        self._check_read(given_among(self, {f.name for f in fields(RunArguments)} & {*_OF_TRAININGS}))

    def check_others_effect(self, others: Mapping[str, Any]) -> None:
        """The keys of a stage that is not trained are for nothing; a template is every stage's."""
        super().check_others_effect(others)
        self._check_read({key: value for key, value in others.items() if key[4:] not in TEMPLATE_SETTINGS})

    def _check_read(self, given: Mapping[str, Any]) -> None:
        """Refuse what no training of the run reads.

        Args:
            given: name -> value, of arguments in `READ_BY_ARMS` and of `sft_*` and `dpr_*` keys.
        """
        read = {key for arm in self.arms for key in READ_BY_ARMS.get(arm, _OF_TRAININGS)} | self._read_elsewhere()
        unread = {name: value for name, value in given.items() if name not in read and name[:4] not in read}
        of_sft = {name: value for name, value in unread.items() if name.startswith("sft_")}
        arms = f"arms={' '.join(self.arms)}, none of which reads that"
        if of_sft:
            raise NoEffectError(of_sft, f"where the SFT model is given, with {arms}")
        if unread:
            raise NoEffectError(unread, f"with {arms}")

    def _read_elsewhere(self) -> set[str]:
        """What is read by SFT, and by the memory plan."""
        by_sft = set() if self.gives_sft else {key for key in _GOES_ON if key.startswith("sft_")}
        return by_sft | ({"max_prompt_length"} if self.gpu_memory is not None else set())


@dataclass
class RunCommandArguments(RunArguments):
    """Arguments of `densepath run`: the recipe, and whether to look only."""

    dry_run: bool = option(
        False,
        "Look only: configuration, data with the tokens of its first rows, memory, what a judge will be asked and "
        "cost, and one step of each stage, in a folder that is removed.",
    )


@dataclass
class PlanArguments(RunArguments):
    """Arguments of `densepath plan`: those of `densepath run`, whose recipe it reads."""

    dataset_name: str = option("", "Demonstrations, which are not read.")
    json: bool = option(False, "Print every term of every moment as JSON, in bytes.")
    output_file: str | None = option(None, "Also write that JSON here.")

    def _read_elsewhere(self) -> set[str]:
        return super()._read_elsewhere() | {"max_prompt_length"}  # of the answers that are planned


def with_one_template(
    arguments: RunArguments, others: Mapping[str, Any] | None
) -> tuple[RunArguments, dict[str, Any]]:
    """The recipe with template settings that were given for one stage (`dpr_chat_template_kwargs`) set for all.

    Every stage must put the same text before a completion, so there is one setting, whatever prefix it was given with.

    Returns:
        The arguments, and the other `sft_*` and `dpr_*` keys.

    Raises:
        ConfigError: two different values for one setting.
    """
    given = {name: getattr(arguments, name) for name in TEMPLATE_SETTINGS}
    rest = one_template({**given, **(others or {})})
    return replace(arguments, **{name: rest.pop(name) for name in TEMPLATE_SETTINGS}), rest


def one_template(keys: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Keys of a recipe, or of a part of it, with each template setting under its own name whatever prefix it had.

    Args:
        keys: name -> value; text is read as a recipe's.
        place: before a key in messages.

    Raises:
        ConfigError: two different values for one setting.
    """
    found, hints = dict(keys), get_type_hints(RunArguments)
    for key in [key for key in found if key.startswith(("sft_", "dpr_")) and key[4:] in TEMPLATE_SETTINGS]:
        name = key[4:]
        value = coerce(found.pop(key), hints[name], f"{place}{key}")
        present = coerce(found.get(name), hints[name], f"{place}{name}")
        if present not in (None, value):
            raise ConfigError(
                f"{place}{key}={value!r}, but {name}={present!r}: it is one setting for every stage; give one"
            )
        found[name] = value
    return found


def _number(text: str) -> float:
    """The number that a text says, or NaN."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
