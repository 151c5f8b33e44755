"""What a base in bfloat16 or 4 bits adds to the reward: signal and noise per token, for close and distant models.

SFT trains a LoRA adapter on the real model and keeps references on the way. The reward `log pi_SFT - log pi_ref` of
held-out demonstrations is computed once in float64, which is the truth, and again as a run would hold the models.
Signal: root mean square of the true reward's tokens; noise: that of what is added to it. 4 bits without bitsandbytes
are left out.

    python -m benchmarks.reward_noise --dataset_name demonstrations.jsonl [--json noise.json]
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import is_bitsandbytes_available
from trl import SFTConfig

from benchmarks.common import Pairs, keep, machine, parser, rows
from benchmarks.words import count, run_command
from densepath.config.mixins import TrainableArguments
from densepath.data.encode import encode_demonstrations
from densepath.data.sources import load_rows
from densepath.errors import DataError
from densepath.models.load import load_model, load_tokenizer, load_trainable
from densepath.rewards.frozen import FrozenPolicy
from densepath.rewards.loading import load_policies
from densepath.trainers.sft import save_model_atomic, sft_trainer
from densepath.trainers.trl_config import QUIET, device_defaults, peft_config, trl_config

REFERENCES = (0.5, 0.9)
"""Shares of the SFT samples at which references are kept, beside the model before SFT, which is the most distant."""
FOUR_BIT = {"model_init_kwargs": {"load_in_4bit": True}}
SHARED: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "4 bits, computed in float32": {"dtype": "float32", **FOUR_BIT},
    "4 bits, computed in bfloat16": {"dtype": "bfloat16", **FOUR_BIT},
}
"""One base for all models, as a run with LoRA holds it."""
APART = "bfloat16, weights of their own"
"""Adapters folded into their bases, whose sum is rounded: what full fine-tuning in bfloat16 saves."""


def main() -> None:
    arguments = parser(__doc__, "model", "prompts", "dataset_name")
    arguments.add_argument("--steps", type=count, default=20, help="optimizer steps of SFT, 4 demonstrations each")
    arguments.add_argument("--max_length", type=count, default=192, help="tokens of a demonstration")
    arguments.set_defaults(prompts=24, num_generations=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model)
    texts = cut(rows(options, tokenizer), options.max_length)
    if not texts[0]:
        arguments.error(f"--max_length {options.max_length} leaves no text with room for an answer: give more")
    demonstrations = demonstrations_of(options)
    with tempfile.TemporaryDirectory() as folder:
        names = trained(options, tokenizer, demonstrations, Path(folder))
        truth = rewards(load_policies(list(names.values()), dtype="float64"), texts)
        print(f"{sum(map(len, texts[1]))} tokens; {'; '.join(machine().values())}\n")
        print(
            "| base | reference | signal | noise | signal to noise | mean error |\n|---|---|---|---|---|---|",
            flush=True,
        )
        found = {}
        for scorer in (*SHARED, APART):
            if scorer in SHARED and "model_init_kwargs" in SHARED[scorer] and not is_bitsandbytes_available():
                continue
            found[scorer] = noise(truth, rewards(loaded(scorer, list(names.values())), texts), list(names)[1:])
            show(scorer, found[scorer])
            gc.collect()
    keep(options, noise=found)


def demonstrations_of(options: Any) -> list[Any]:
    """What SFT learns: the rows of the data set behind those that are scored."""
    source = options.dataset_name or "text_tasks"
    held_out = options.prompts if options.dataset_name else 0
    found = load_rows(source, "train", "demonstrations", limit=held_out + 4 * options.steps, seed=None)
    if len(found) <= held_out:
        raise DataError(f"{source} has {len(found)} rows, and --prompts scores {held_out}: give less, or more rows")
    return list(found[held_out:])


def trained(options: Any, tokenizer: Any, demonstrations: Sequence[Any], folder: Path) -> dict[str, str]:
    """Name -> place of the SFT model and of its references, the closest first."""
    encoded, _ = encode_demonstrations(demonstrations, tokenizer, options.max_length, drop_overlong=True)
    lora = TrainableArguments(model_name_or_path=options.model, use_peft=True)
    values = {"learning_rate": 2e-4, "per_device_train_batch_size": 4, "max_steps": options.steps}
    values |= {"max_length": None, "save_strategy": "no"}
    config = trl_config(SFTConfig, {**QUIET, **device_defaults(), **values, "output_dir": str(folder / "out")})
    trainer = sft_trainer(
        load_trainable(lora, options.model),
        tokenizer,
        encoded,
        config,
        peft_config=peft_config(lora),
        reference_folder=folder / "references",
        fractions=REFERENCES,
    )
    trainer.train()
    save_model_atomic(trainer, tokenizer, folder / "model", {})
    kept = {f"{share:g} of SFT": str(folder / f"references/{share:g}") for share in sorted(REFERENCES, reverse=True)}
    return {"SFT": str(folder / "model"), **kept, "before SFT": options.model}


def cut(texts: Pairs, length: int) -> Pairs:
    """The texts that have room for an answer, their answers cut."""
    both = [(p, c[: length - len(p)]) for p, c in zip(*texts, strict=True) if len(p) < length - 8]
    return [prompt for prompt, _ in both], [completion for _, completion in both]


def loaded(scorer: str, names: Sequence[str]) -> list[FrozenPolicy]:
    """The models as a run would hold them."""
    if scorer in SHARED:
        return load_policies(names, **SHARED[scorer])
    return [FrozenPolicy(load_model(name, merge=True).to(torch.bfloat16)) for name in names]


def rewards(policies: Sequence[FrozenPolicy], texts: Pairs) -> list[Tensor]:
    """(tokens,) float64 reward of all texts for each reference, nats."""
    sft, *refs = (torch.cat([each.double() for each in policy.score(*texts).logprobs]) for policy in policies)
    return [sft - ref for ref in refs]


def noise(truth: Sequence[Tensor], found: Sequence[Tensor], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each reference: root mean square of the reward and of what was added to it, and the mean of that."""
    figures = {}
    for name, exact, scored in zip(names, truth, found, strict=True):
        signal, error = exact.square().mean().sqrt(), scored - exact
        spread = error.square().mean().sqrt()
        figures[name] = {"signal": float(signal), "noise": float(spread), "bias": float(error.mean())}
    return figures


def show(scorer: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """A scorer's rows of the table, in Markdown."""
    for name, one in found.items():
        ratio = one["signal"] / max(one["noise"], 1e-12)
        figures = f"{one['signal']:.4f} | {one['noise']:.2g} | {ratio:.3g} | {one['bias']:+.1g}"
        print(f"| {scorer} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    run_command(main)
