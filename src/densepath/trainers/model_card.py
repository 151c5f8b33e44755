"""What a model card says beside TRL's: real names, a DPR run's arguments and controls, and what a run compared."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from trl import GRPOConfig

from densepath.io import write_text_atomic
from densepath.models.identity import CARD
from densepath.rewards.frozen import FrozenPolicy

_UNNAMED = ("[None](https://huggingface.co/None)", 'model="None"')
"""What TRL writes of a model that is no hub id, and of a place that it does not know."""
_COMPARED = "### Compared in its run"

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
    if model is None or isinstance(model, (str, Path)):
        return model if model is None else str(model)
    if isinstance(model, (list, tuple)):
        return ", ".join(public_name(name_of(each)) for each in model)
    model = getattr(model, "model", model) if isinstance(model, FrozenPolicy) else model
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return str(name) if name else None


def public_name(name: str | None) -> str:
    """A hub id as it is, the end of a local path, or "a model given as an object".

    The end is the last part, and with a folder that is called `model` or by a number those before it, which tell more.
    """
    if not name:
        return "a model given as an object"
    path = Path(name)
    if not path.exists() and not path.is_absolute():
        return name
    parts = path.resolve().parts
    telling = path.resolve().name not in ("model", "ema") and not re.fullmatch(r"[\d.]+", parts[-1])
    return parts[-1] if telling else "/".join(parts[-3:]).lstrip("/")


class NamedCard:
    """A trainer's card, with the model that training began with by name, and in the folder of each model it saves."""

    args: Any
    model: Any

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card, whose base is a model rather than None."""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        path = Path(self.args.output_dir) / CARD
        if self.is_world_process_zero():  # type: ignore[attr-defined]
            write_text_atomic(path, with_names(str(ModelCard.load(path)), public_name(name_of(self.model))))


def write_card(trainer: NamedCard, folder: Path) -> None:
    """Put the trainer's card, as it is now, beside a model that it saves."""
    trainer.create_model_card(model_name=Path(trainer.args.output_dir).name)
    text = (Path(trainer.args.output_dir) / CARD).read_text(encoding="utf-8")
    write_text_atomic(folder / CARD, text)


def with_names(card: str, base: str) -> str:
    """TRL's card with the base's name where it says None, and a place to put the model's own."""
    link, model = _UNNAMED
    return card.replace(link, f"`{base}`").replace(model, 'model="path/to/this/folder"')


def with_comparison(card: str, compared: str) -> str:
    """The card with what the run found of all its models, in the place of what it said of that before."""
    head, mark, tail = card.partition("### Framework versions")
    head = re.sub(r"^Compared with: .*\n\n", "", head.partition(_COMPARED)[0], flags=re.MULTILINE)
    return f"{head.rstrip()}\n\n{_COMPARED}\n\n{compared.strip()}\n\n{mark}{tail}"


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
