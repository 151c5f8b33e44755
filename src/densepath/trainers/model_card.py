"""What a DPR model card says beside TRL's: the arguments of the run, its controls, and where it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from densepath.rewards.frozen import FrozenPolicy

FOLLOWED = (
    ("kl_sequence", "KL to SFT, nats per completion"),
    ("reward", "reward per completion"),
    ("completions/mean_length", "length, tokens"),
    ("completions/clipped_ratio", "share truncated"),
    ("entropy", "entropy, nats per token"),
)
"""Metrics shown at the first and the last logged step."""


def own_arguments(args: Any) -> dict[str, Any]:
    """The arguments that `GRPOConfig` does not have, or has another default for."""
    theirs = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    return {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(args)
        if field.name not in theirs or field.default != theirs[field.name]
    }


def name_of(model: Any) -> str | None:
    """The name or path that a model was given by or loaded from, several joined by commas; None if it has none."""
    if model is None or isinstance(model, str):
        return model
    if isinstance(model, (list, tuple)):
        return ", ".join(public_name(name_of(each)) for each in model)
    model = getattr(model, "model", model) if isinstance(model, FrozenPolicy) else model
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return str(name) if name else None


def public_name(name: str | None) -> str:
    """A hub id as it is, the last part of a local path, or "a model given as an object"."""
    if not name:
        return "a model given as an object"
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def run_section(
    args: Any,
    *,
    sft: str,
    reference: str,
    reward_functions: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    max_steps: int,
    compared_with: Sequence[str] = (),
) -> str:
    """The Markdown of "This run": models, arguments, first and last figures, and what the run was compared with.

    Args:
        args: the `DPRConfig`.
        sft: name of the SFT policy.
        reference: name of the reward's reference.
        reward_functions: names of TRL's reward functions, if there are any.
        history: the trainer's log history.
        max_steps: optimizer steps of the run.
        compared_with: controls that were run beside it.
    """
    rows = [row for row in history if "kl_sequence" in row]
    held_out = [row for row in history if "eval_reward" in row]
    lines = ["### This run", "", "| | |", "|---|---|", f"| SFT policy | {sft} |", f"| reference | {reference} |"]
    if reward_functions:
        lines.append(f"| reward functions | {', '.join(reward_functions)} |")
    lines += [f"| `{name}` | {_shown(value)} |" for name, value in own_arguments(args).items()]
    if rows:
        steps = [row.get("step", 0) for row in (rows[0], rows[-1])]
        lines += ["", f"| | step {steps[0]} | step {steps[1]} of {max_steps} |", "|---|---|---|"]
        for name, text in FOLLOWED:
            if name in rows[0] and name in rows[-1]:
                lines.append(f"| {text} | {_shown(rows[0][name])} | {_shown(rows[-1][name])} |")
    if held_out:
        lines += ["", f"Held-out prompts at step {held_out[-1].get('step', 0)}: "]
        lines[-1] += ", ".join(
            f"{text} {_shown(held_out[-1]['eval_' + name])}"
            for name, text in FOLLOWED
            if "eval_" + name in held_out[-1]
        )
    controls = ", ".join(compared_with) or (
        "nothing but the SFT policy, which sampled the completions of the first step. Continued SFT at the same "
        "compute and contrastive decoding are the controls to run"
    )
    lines += [
        "",
        f"Compared with: {controls}.",
        "",
        "The reward is `log pi_SFT - log pi_ref`: training on it extrapolates whatever changed from the reference to "
        "the SFT policy. A rising reward is no evidence of quality; a held-out metric against a control is.",
        "",
    ]
    return "\n".join(lines)


def with_section(card: str, section: str) -> str:
    """TRL's card with a section put before its "Framework versions", or at its end."""
    head, mark, tail = card.partition("### Framework versions")
    return f"{head}{section}\n{mark}{tail}" if mark else f"{card}\n{section}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
