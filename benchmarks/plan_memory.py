"""`densepath plan` against the peak resident memory of real small runs on the CPU.

Each case trains two steps of SFT, or of DPR, in a process of its own (`densepath sft`, `densepath dpr`) and reads the
peak from the kernel. The plan is what `densepath plan --json` says of a recipe with the same numbers.

    python -m benchmarks.plan_memory [--case NAME ...] [--smollm2 FOLDER]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.words import Parser, count, run_command

SMOLLM2 = "smollm2-135m-instruct"
MIDDLE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
"""A random Llama of 57 M parameters with SmolLM2's tokenizer."""
WIDE = {**MIDDLE, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12}
"""One of 74 M, wider and less deep."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        model: `smollm2`, `middle` or `wide`.
        stage: `sft` or `dpr`.
        lora: train an adapter.
        rows: sequences of a micro-batch.
        prompt: tokens of each prompt.
        completion: tokens of each completion. For SFT at least 512 in a batch, a chunk of the head: a plan of SFT
            counts whole sequences, as it does not know where the data's prompts end.
        checkpointing: gradient checkpointing.
        accumulation: micro-batches of a step.
    """

    model: str
    stage: str
    lora: bool
    rows: int
    prompt: int
    completion: int
    checkpointing: bool = False
    accumulation: int = 1


CASES = {
    "smollm2-sft-full": Case("smollm2", "sft", False, 8, 64, 64),
    "smollm2-sft-lora": Case("smollm2", "sft", True, 8, 64, 64),
    "smollm2-dpr-full": Case("smollm2", "dpr", False, 8, 48, 48),
    "smollm2-dpr-lora": Case("smollm2", "dpr", True, 8, 48, 48),
    "middle-sft-full": Case("middle", "sft", False, 16, 64, 64),
    "middle-sft-checkpointing": Case("middle", "sft", False, 24, 128, 128, checkpointing=True),
    "middle-sft-lora-checkpointing": Case("middle", "sft", True, 24, 128, 128, checkpointing=True),
    "middle-sft-accumulation": Case("middle", "sft", False, 8, 64, 64, accumulation=2),
    "middle-sft-lora": Case("middle", "sft", True, 16, 64, 64),
    "middle-dpr-full": Case("middle", "dpr", False, 16, 48, 48),
    "middle-dpr-lora": Case("middle", "dpr", True, 16, 300, 48),
    "wide-sft-full": Case("wide", "sft", False, 8, 16, 64),
    "wide-dpr-full": Case("wide", "dpr", False, 4, 32, 32),
    "wide-sft-checkpointing": Case("wide", "sft", False, 16, 64, 64, checkpointing=True),
    "wide-sft-lora-checkpointing": Case("wide", "sft", True, 16, 64, 128, checkpointing=True),
    "wide-sft-lora": Case("wide", "sft", True, 8, 28, 100),
    "wide-dpr-lora": Case("wide", "dpr", True, 16, 64, 64),
}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument(
        "--mmap_threshold",
        type=count,
        help="glibc's MALLOC_MMAP_THRESHOLD_, which ends its waste; its own if not given",
    )
    parser.add_argument("--smollm2", default=SMOLLM2, help="folder or catalogue name of the real model")
    given = parser.parse_args()
    if given.mmap_threshold:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(given.mmap_threshold)
    in_a_process(the_model, given.smollm2)
    print(f"{'case':<28}{'planned GiB':>12}{'measured GiB':>14}{'ratio':>8}", flush=True)
    for name in given.case:
        with tempfile.TemporaryDirectory() as folder:
            planned, measured = compare(CASES[name], Path(folder), given.smollm2)
        print(f"{name:<28}{planned:>12.2f}{measured:>14.2f}{planned / measured:>8.2f}", flush=True)


def compare(case: Case, folder: Path, smollm2: str = SMOLLM2) -> tuple[float, float]:
    """Planned and measured peak of a case, GiB."""
    model = smollm2
    if case.model != "smollm2":
        model = in_a_process(random_model, case.model, str(folder / "model"), smollm2)
    data = in_a_process(write_data, case, str(folder / "data.jsonl"), smollm2)
    keys = {
        "per_device_train_batch_size": case.rows,
        "gradient_accumulation_steps": case.accumulation,
        "gradient_checkpointing": str(case.checkpointing).lower(),
    }
    common = {"use_peft": str(case.lora).lower(), "model_name_or_path": model}
    recipe = {f"{case.stage}_{key}": value for key, value in keys.items()}
    lengths = {"max_prompt_length": case.prompt, "max_length": case.prompt + case.completion}
    recipe |= {**common, **lengths, "max_completion_length": case.completion, "reference": "0", "beta": "1"}
    plan = json.loads(run("plan", "--json", *words(recipe)).stdout)
    planned = plan["stages"][case.stage.upper()]["total"]
    command = {**common, **keys, "dataset_name": data, "output_dir": folder / "out", "max_steps": 2, "seed": 0}
    if case.stage == "dpr":
        command |= {"max_completion_length": case.completion, "ref_model_name_or_path": model}
        if case.lora:  # as in a run: the policy is an adapter on the reference, and shares that base
            command["model_name_or_path"] = in_a_process(save_adapter, model, str(folder / "adapter"))
        command |= {"num_generations": 4}
    done = run(case.stage, *words(command))
    return planned / 2**30, done.peak / 2**30


@dataclass(frozen=True)
class Done:
    """What a command printed, and its peak resident memory in bytes."""

    stdout: str
    peak: int


def run(command: str, *arguments: str) -> Done:
    """A densepath command in a process of its own; its memory is the kernel's count for that process alone."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(
            [sys.executable, "-m", "densepath.cli.main", command, *arguments], stdout=out, stderr=err
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text = out.read()
        # `plan` exits with 2 on a machine that is too small, after it printed the plan
        if child.returncode and not (command == "plan" and text):
            raise RuntimeError(f"densepath {command} failed: {err.read()[-2000:]}")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Done(text, peak)


def in_a_process(function: Callable[..., str], *arguments: object) -> str:
    """Its result, and none of its memory: what this process holds counts as the peak of each that it starts."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def the_model(name: str) -> str:
    """Its name, if its tokenizer is there.

    Raises:
        ModelError: it is not.
    """
    from densepath.models.load import load_tokenizer

    load_tokenizer(name)
    return name


def save_adapter(model: str, folder: str) -> str:
    """A new LoRA adapter of a model, of the size that the commands give it."""
    from peft import get_peft_model

    from densepath.config.mixins import TrainableArguments
    from densepath.models.load import load_model
    from densepath.trainers.trl_config import peft_config

    get_peft_model(load_model(model), peft_config(TrainableArguments(use_peft=True))).save_pretrained(folder)
    return folder


def words(values: dict[str, object]) -> list[str]:
    """`--key value` words."""
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def random_model(name: str, folder: str, tokenizer_of: str) -> str:
    """A Llama with random weights that never ends a completion, saved with the tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from densepath.models.load import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokenizer_of)
    sizes = {"middle": MIDDLE, "wide": WIDE}[name]
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_data(case: Case, path: str, tokenizer_of: str) -> str:
    """Demonstrations of exactly the case's lengths in plain text: words that are one token each."""
    from densepath.models.load import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_of)
    words = [f" {word}" for word in ("red", "blue", "green", "house", "tree", "river", "stone", "light")]

    def text(tokens: int, row: int) -> str:
        return "".join(words[(row // 8**k if k < 3 else k + row) % 8] for k in range(tokens))

    rows = []
    for row in range(max(64, case.rows * case.accumulation)):
        rows.append({"prompt": text(case.prompt, row), "completion": text(case.completion - 1, row)})
    length = len(tokenizer(rows[0]["prompt"])["input_ids"])
    if length != case.prompt:
        raise RuntimeError(f"a prompt has {length} tokens instead of {case.prompt}")
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    run_command(main)
