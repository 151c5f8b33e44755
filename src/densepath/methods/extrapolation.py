"""Extrapolated weights, `theta_SFT + alpha (theta_SFT - theta_ref)`: ExPO (Zheng et al. 2024, arXiv 2404.16792).

Nothing is trained: a difference, a product and a sum for each weight.
"""

from __future__ import annotations

from pathlib import Path

from densepath.methods import Method, Outcome, Stage
from densepath.methods.contrastive import AlphaArguments
from densepath.models.extrapolation import save_extrapolated
from densepath.records.arm import Budget
from densepath.trainers.callbacks import save_folder_atomic

FLOPS_PER_WEIGHT = 3


def train(stage: Stage) -> Outcome:
    """Write the extrapolated weights."""
    arguments, sft = stage.arguments, stage.sft.model
    written = 0

    def save(folder: Path) -> None:
        nonlocal written
        written = save_extrapolated(
            sft,
            stage.sft.reference(arguments.reference),
            arguments.alpha,
            folder,
            trust_remote_code=arguments.trust_remote_code,
        )
        stage.sft.tokenizer().save_pretrained(str(folder))

    record = {"alpha": arguments.alpha, "reference": arguments.reference}
    save_folder_atomic(stage.folder / "model", save, record)
    return Outcome(Budget(flops=FLOPS_PER_WEIGHT * written))


METHOD = Method("weight extrapolation", control=True, train=train, arguments=AlphaArguments, needs_reference=True)
