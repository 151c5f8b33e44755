"""A whole DPR step, sampled and with all actions, against a step of TRL's RLOO and GRPO with equal work.

    python -m benchmarks.step [--settings 2x4x64 8x2x128] [--pairs 5] [--json step.json] [--plot step.svg]

A setting is prompts x completions of each x tokens of each; no completion ends before. Prompts are word problems of
about the length of GSM8K's, 95 tokens with the system turn. Every arm samples, scores a frozen SFT model and a frozen
reference, holds the policy to the SFT model by a KL, goes forward and backward, and takes a step of AdamW. TRL's
reward function is the sum of the two models' log-ratio, by padded forward passes that project completions alone; its
KL reads a copy of its own.

Each arm lives in a process of its own, whose peak is its memory (VmHWM, libraries and weights included); the arms
take turns, a step each, after one that is not counted. A file of `--json` that is there already is gone on with:
`--pairs 5` measures what is missing of five, and `--arms` some of them, beside those that are there; turns of another
model, machine, commit or number of threads are refused.

The floor is computed (`benchmarks.common.Floor`).
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import selective_log_softmax

from benchmarks.common import Floor, commit, end_table, keep, load, machine, parser
from benchmarks.words import count, output, run_command
from densepath.io import read_json
from densepath.pipeline.environment import resident_bytes
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig

BETA = 0.05
QUESTION = 62
"""Tokens of a question: with SmolLM2's system turn and marks about 95."""
ARMS = ("densepath, sampled", "densepath, all actions", "TRL RLOO", "TRL GRPO")
OTHER_FILE = "give another file"
SETTINGS = ("2x4x64", "8x2x64", "2x4x128", "8x2x128")


class Setting(NamedTuple):
    """Prompts of a batch, completions of each, tokens of each."""

    prompts: int
    generations: int
    length: int

    @classmethod
    def of(cls, text: str) -> Setting:
        """Of `8x2x64`.

        Raises:
            ArgumentTypeError: it is no such setting, or RLOO and GRPO would have nothing to compare.
        """
        sizes = [int(each) if each.isdecimal() else 0 for each in text.split("x")]
        if len(sizes) != 3 or min(sizes) < 1 or sizes[1] < 2:
            raise argparse.ArgumentTypeError(
                f"{text} is not prompts x completions of each x tokens of each, as 2x4x64, with at least 2 completions"
            )
        return cls(*sizes)

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def tokens(self) -> int:
        """Completion tokens of a step."""
        return self.prompts * self.generations * self.length


def problems(tokenizer, count: int) -> list[str]:
    """Word problems of about `QUESTION` tokens."""
    rng, found = random.Random(0), []
    who, what = (
        ("Mia", "Tom", "Ana", "Leo", "Ida", "Sam"),
        ("apples", "pencils", "tickets", "cards", "books", "shells"),
    )
    does = ("buys", "sells", "gives away", "finds", "packs", "counts")
    while len(found) < count:
        text = ""
        while len(tokenizer(text).input_ids) < QUESTION - 14:
            numbers = rng.randrange(2, 90), rng.randrange(2, 30)
            text += (
                f"{rng.choice(who)} {rng.choice(does)} {numbers[0]} {rng.choice(what)} at {numbers[1]} dollars each. "
            )
        found.append(f"{text}How many dollars are there in all after that?")
    return found


# --- an arm, in a process of its own ---------------------------------------------------------------------------------


class Turns(TrainerCallback):
    """Before each step wait for a line, and after it say what it took."""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        self.started = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        print("@" + json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_bytes": resident_bytes()}), flush=True)


def log_ratio_of(sft, ref):
    """TRL's reward function: `sum_t log pi_SFT - log pi_ref` of each completion, as it is usually written."""

    @torch.no_grad()
    def reward(prompts, completions, completion_ids, **columns) -> list[float]:
        tokenizer = reward.tokenizer
        given = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True).input_ids for prompt in prompts]
        rows = [[*prompt, *ids] for prompt, ids in zip(given, completion_ids, strict=True)]
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left")
        width = len(completion_ids[0])  # all are equally long
        sums = []
        for model in (sft, ref):
            logits = model(**padded, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
            sums.append(selective_log_softmax(logits, padded["input_ids"][:, -width:]).sum(dim=1))
        return (sums[0] - sums[1]).tolist()

    return reward


def trainer_of(arm: str, setting: Setting, model_name: str):
    """The arm's trainer, whose completions are all of one length."""
    model, tokenizer = load(model_name)
    sft, ref = model, copy.deepcopy(model)
    policy = copy.deepcopy(model).requires_grad_(True)
    prompts = [[{"role": "user", "content": text}] for text in problems(tokenizer, 64)]
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": setting.prompts * setting.generations,
        "num_generations": setting.generations,
        "max_completion_length": setting.length,
        "max_steps": 1000,
        "learning_rate": 1e-6,
        "beta": BETA,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
    }
    given = {"train_dataset": Dataset.from_list([{"prompt": prompt} for prompt in prompts]), "callbacks": [Turns()]}
    if arm.startswith("densepath"):
        estimator = "sampled" if arm == ARMS[0] else "all_action"
        args = DPRConfig(**settings, estimator=estimator)
        trainer = DPRTrainer(policy, ref, args, processing_class=tokenizer, sft_model=sft, **given)
        trainer.eos_token_ids = ()
        return trainer
    reward = log_ratio_of(sft, ref)
    reward.tokenizer = tokenizer
    make, config = (RLOOTrainer, RLOOConfig) if arm == "TRL RLOO" else (GRPOTrainer, GRPOConfig)
    args = config(**settings, generation_kwargs={"min_new_tokens": setting.length})
    return make(model=policy, reward_funcs=reward, args=args, processing_class=tokenizer, **given)


class Worker:
    """An arm's process, for the length of a with-block."""

    def __init__(self, arm: str, setting: str, options) -> None:
        command = [sys.executable, "-m", "benchmarks.step", "--only", arm, "--settings", setting]
        command += ["--model", options.model, "--threads", str(options.threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def step(self) -> dict[str, float]:
        """One step; what it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit("an arm ended before its step")


# --- the table -------------------------------------------------------------------------------------------------------


def floor(setting: Setting, model, prompt_tokens: float) -> dict[str, float]:
    """CPU seconds that a step takes at least at this machine's rates, by phase."""
    least, read = Floor(model), setting.prompts * prompt_tokens
    forward = least.forward(read + setting.tokens, setting.tokens)
    sample = least.forward(read, 0) + least.decode(setting.prompts * setting.generations, setting.length)
    return {"sample": sample, "score": 2 * forward, "train": 3 * forward, "update": least.update()}


def measured(name: str, arms: list[str], before: list[dict], options, done) -> list[dict]:
    """Turns of all arms until there are `--pairs`; after each, `done` is given them behind those of other arms."""
    others, turns = [turn for turn in before if not set(arms) <= set(turn)], having(arms, before)
    if len(turns) >= options.pairs:
        return turns
    with ExitStack() as stack:
        workers = {arm: stack.enter_context(Worker(arm, name, options)) for arm in arms}
        for number in range(options.pairs - len(turns) + 1):
            turn = {arm: worker.step() for arm, worker in workers.items()}
            if number:
                turns.append(turn)
                done([*others, *turns])
    return turns


def having(arms: list[str], turns: list[dict]) -> list[dict]:
    """Turns in which all of these arms took part."""
    return [turn for turn in turns if set(arms) <= set(turn)]


def table(setting: Setting, turns: list[dict], least: dict[str, float]) -> dict[str, dict[str, float]]:
    """Print and return the medians of each arm, with its ratio to each of TRL's over the turns."""
    found: dict[str, dict[str, float]] = {}
    others = [arm for arm in turns[0] if arm.startswith("TRL")]
    print(
        f"{setting.prompts} prompts x {setting.generations} completions of {setting.length} tokens, {len(turns)} turns"
    )
    print(f"{'arm':<24}{'CPU s':>8}{'wall s':>8}{'tokens/CPU s':>14}{'x floor':>9}{'peak GiB':>10}", end="")
    print("".join(f"{'CPU : ' + other + ' (range)':>30}" for other in others))
    for arm in turns[0]:
        middle = {key: statistics.median(turn[arm][key] for turn in turns) for key in ("cpu_s", "wall_s")}
        middle["peak_bytes"] = max(turn[arm]["peak_bytes"] for turn in turns)
        middle["tokens_per_cpu_s"] = setting.tokens / middle["cpu_s"]
        middle["times_floor"] = middle["cpu_s"] / sum(least.values())
        print(f"{arm:<24}{middle['cpu_s']:>8.2f}{middle['wall_s']:>8.2f}{middle['tokens_per_cpu_s']:>14.1f}", end="")
        print(f"{middle['times_floor']:>9.2f}{middle['peak_bytes'] / 2**30:>10.2f}", end="")
        for other in others:
            ratios = [turn[arm]["cpu_s"] / turn[other]["cpu_s"] for turn in turns]
            middle[f"to {other}"] = statistics.median(ratios)
            print(f"{middle[f'to {other}']:>16.2f} ({min(ratios):.2f}-{max(ratios):.2f})".rjust(30), end="")
        print()
        found[arm] = middle
    end_table(least)
    return found


def plot(path: Path, tables: dict[str, dict], arms: list[str]) -> None:
    """Bars of CPU seconds, a group for each setting, with the floor as a line over each."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    width = 0.8 / len(arms)
    for place, arm in enumerate(arms):
        heights = [each["arms"][arm]["cpu_s"] for each in tables.values()]
        axes.bar([k + place * width for k in range(len(tables))], heights, width, label=arm, align="edge")
    for k, each in enumerate(tables.values()):
        axes.hlines(sum(each["floor"].values()), k, k + 0.8, color="black", label="floor" if k == 0 else None)
    axes.set(ylabel="CPU seconds a step", xticks=[k + 0.4 for k in range(len(tables))], xticklabels=list(tables))
    axes.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    given = parser(__doc__, "model", arms=ARMS)
    settings = list(map(Setting.of, SETTINGS))
    given.add_argument(
        "--settings", nargs="+", type=Setting.of, default=settings, help="prompts x completions x tokens"
    )
    given.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    given.add_argument(
        "--pairs", type=count, default=5, help="turns of each arm, those in the file of --json included"
    )
    given.add_argument("--plot", type=output, help="draw into this file")
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        trainer_of(options.only, options.settings[0], options.model).train()
        return
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """All settings, one after the other; what is measured is kept at once."""
    known = read_json(options.json, OTHER_FILE) if options.json is not None and options.json.exists() else {}
    alike = {"model": options.model, "threads": options.threads, "cpu": machine()["cpu"], "torch": torch.__version__}
    alike["commit"] = commit()
    other = [key for key, value in alike.items() if known and known.get("alike", {}).get(key) != value]
    if other:
        raise SystemExit(f"{options.json}: its turns were taken with another {', '.join(other)}: {OTHER_FILE}")
    tables: dict[str, dict] = known.get("tables", {})
    model, tokenizer = load(options.model)
    prompts = [[{"role": "user", "content": text}] for text in problems(tokenizer, 64)]
    lengths = [len(tokenizer.apply_chat_template(p, add_generation_prompt=True).input_ids) for p in prompts]
    floors = {str(setting): floor(setting, model, statistics.mean(lengths)) for setting in options.settings}
    del model
    print(f"prompts of {statistics.mean(lengths):.0f} tokens\n")
    for setting in options.settings:
        name = str(setting)
        entry = tables.setdefault(name, {"turns": []})

        def done(turns: list[dict], entry: dict = entry) -> None:
            entry["turns"] = turns
            keep(options, alike=alike, tables=tables)

        turns = measured(name, options.arms, entry["turns"], options, done)
        shown = [{arm: turn[arm] for arm in options.arms} for turn in turns[: options.pairs]]
        found = {**entry.get("arms", {}), **table(setting, shown, floors[name])}
        entry |= {"floor": floors[name], "arms": found}
        keep(options, alike=alike, tables=tables)
    if options.plot is not None:
        plot(options.plot, {name: tables[name] for name in map(str, options.settings)}, options.arms)


if __name__ == "__main__":
    run_command(main)
