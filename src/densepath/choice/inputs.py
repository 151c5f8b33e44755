"""What a choice is measured on: the models, the rows, and how much is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from densepath.data.rows import Row
from densepath.errors import ConfigError
from densepath.records.choice import Criterion

if TYPE_CHECKING:
    from densepath.evals.verifiers import AnswerJudge, Verifier
    from densepath.rewards.frozen import FrozenPolicy

Model: TypeAlias = Any
"""A path or hub id, a model, or a `FrozenPolicy`."""


@dataclass(frozen=True)
class SFTModels:
    """An SFT model and what it came from.

    A reference that is a part of the SFT model's base is an adapter on that base in memory; of all others, one at a
    time is in memory beside it.

    Attributes:
        sft: path, model or `FrozenPolicy`.
        references: name -> candidate: earlier checkpoints under their fraction ("0.5"), the model before SFT ("0").
        tokenizer: that of all models.
        model_options: keywords of `load_policies` for what is loaded here: `dtype`, `device`, `trust_remote_code`.

    Raises:
        ConfigError: no reference.
    """

    sft: Model
    references: Mapping[str, Model]
    tokenizer: Any
    model_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.references:
            raise ConfigError("there is no reference to preview; SFT keeps some at reference_fractions")

    @property
    def context(self) -> int:
        """Tokens of the longest text that the SFT model and every candidate hold; none is loaded for it."""
        from densepath.models.load import context_length, model_context
        from densepath.rewards.frozen import FrozenPolicy

        def of(model: Model) -> int:
            if isinstance(model, (str, Path)):
                return model_context(str(model), bool(self.model_options.get("trust_remote_code")))
            return model.context if isinstance(model, FrozenPolicy) else context_length(model)

        return min(map(of, (self.sft, *self.references.values())))

    def load(self, model: Model, beside: FrozenPolicy | None = None, name: str = "") -> FrozenPolicy:
        """The model frozen.

        Args:
            model: path, model or `FrozenPolicy`.
            beside: what is in memory already, on whose base it is put where it is a part of that.
            name: what its adapter is called there.
        """
        from densepath.rewards.frozen import FrozenPolicy
        from densepath.rewards.loading import load_policies, view_on_base

        if isinstance(model, FrozenPolicy):
            return model
        if not isinstance(model, (str, Path)):
            return FrozenPolicy(model)
        shared = None if beside is None else view_on_base(beside.model, model, name)
        return shared or load_policies([model], **self.model_options)[0]


@dataclass(frozen=True)
class Evidence:
    """Rows that were never trained on and are not the test's, and what says that an answer is right.

    Attributes:
        rows: prompts, or demonstrations in any format.
        verifier: checks completions against their row; a name of `get_verifier` or a function
            `(completion, row) -> float`; or a judge. None: previews can be described, not judged.
        preferences: rows with `prompt`, `chosen`, `rejected`.
        source: name of the rows in messages.
    """

    rows: Sequence[Row]
    verifier: str | Verifier | AnswerJudge | None = None
    preferences: Sequence[Row] = ()
    source: str | Path = "the data set"


@dataclass(frozen=True)
class MeasurePlan:
    """How much is tried.

    Attributes:
        betas: candidates; a preview has the strength 1/beta. Empty: no previews, the reward alone.
        every_beta: preview each reference at each beta. Else each at the first one, and only the best at the others;
            and nothing where no verifier would judge it.
        num_generations: completions of each prompt above temperature 0; 0: nothing is sampled.
        max_completion_length: longest of them, tokens; demonstrations are compared over the same stretch.
        criterion: what decides; None: the answers with a verifier, else the reward's agreement with preferences, with
            altered numbers or, last, its margin of demonstrations over samples: the first that there is.
        capped: preview DPR with the capped reward too, at the references that further betas are tried at.
        ensemble: with two or more references, the reward of the mean of their probabilities is judged too, as "all".
        seed: of sampling, altered digits and bootstrap; every policy draws with the same random numbers.
        token_budget: tokens in one forward pass.

    Raises:
        ConfigError: impossible betas, or a criterion that does not exist.
    """

    betas: tuple[float, ...] = (1.0, 0.5)
    every_beta: bool = True
    num_generations: int = 1
    max_completion_length: int = 128
    criterion: Criterion | None = None
    capped: bool = True
    ensemble: bool = True
    seed: int = 0
    token_budget: int = 2048

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if any(beta <= 0 for beta in self.betas) or len(set(self.betas)) < len(self.betas):
            raise ConfigError(f"betas={list(self.betas)} must be different positive numbers")
        if self.criterion is not None:
            try:
                object.__setattr__(self, "criterion", Criterion(self.criterion))
            except ValueError:
                known = ", ".join(criterion.value for criterion in Criterion)
                raise ConfigError(f"criterion={self.criterion} is not one of {known}") from None
