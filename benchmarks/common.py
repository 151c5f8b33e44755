"""Side-by-side timing: arms run in turn within one process, and ratios are reported beside seconds.

Every table gives CPU and wall seconds, how many times its floor an arm takes (`Floor`), and at its end the processor
and what it reaches; `--json` keeps all of them. Memory: each arm in a process of its own that loads the model and runs
it once; the most that was resident (VmHWM), libraries and weights included.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.words import Parser, count, output
from densepath.data.encode import encode_pairs
from densepath.data.formats import load_dataset_rows
from densepath.data.tasks import generate_tasks
from densepath.models.load import load_model, load_tokenizer
from densepath.pipeline.environment import environment, rates, resident_bytes, speed

Pairs = tuple[list[list[int]], list[list[int]]]
MEDIAN_PROMPT, MEDIAN_COMPLETION, SPREAD = 90, 110, 0.5  # tokens of made-up rows: about those of GSM8K


OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"default": "smollm2-135m-instruct"},
    "rounds": {"type": count, "default": 5},
    "prompts": {"type": count, "default": 8},
    "num-generations": {"type": count, "default": 4},
    "dataset_name": {"help": "rows in any TRL format; made up, of real lengths, if left out"},
}
"""Of which each benchmark takes those that it reads."""


def parser(description: str | None, *names: str, arms: Iterable[str] = ()) -> Parser:
    """A command line with threads, JSON, those of `OPTIONS`, and a process for each arm if there are any."""
    found = Parser(description)
    for name in names:
        found.add_argument(f"--{name}", **OPTIONS[name])
    found.add_argument("--threads", type=count, default=torch.get_num_threads())
    found.add_argument("--json", type=output, help="write what was measured into this file")
    if arms:
        found.add_argument("--only", choices=arms, help="run one arm alone, in this process, for its peak memory")
    return found


def load(name: str):
    tokenizer = load_tokenizer(name)
    return load_model(name), tokenizer


def batch(tokenizer, prompts: int, num_generations: int) -> Pairs:
    """Prompts of the text tasks, each repeated, with completions of about their answers' lengths: short ones."""
    rng = random.Random(0)
    pairs = [encode_pairs(row, tokenizer)[0] for row in generate_tasks(prompts, seed=0)]
    prompt_ids, completion_ids = [], []
    for pair in pairs:
        for _ in range(num_generations):
            prompt_ids.append(list(pair.prompt_ids))
            length = max(2, len(pair.completion_ids) + rng.randrange(-3, 6))
            completion_ids.append([rng.randrange(1000, 40000) for _ in range(length)])
    return prompt_ids, completion_ids


def rows(options, tokenizer) -> Pairs:
    """Prompts and completions, of a file in its order or made up; several completions of a prompt stand together."""
    rng = random.Random(0)
    if options.dataset_name is None:
        vocabulary = len(tokenizer)
        prompts = [_ids(rng, vocabulary, MEDIAN_PROMPT) for _ in range(options.prompts)]
        completions = [_ids(rng, vocabulary, MEDIAN_COMPLETION) for _ in prompts]
    else:
        found = load_dataset_rows(options.dataset_name, limit=options.prompts, needs="demonstrations")
        pairs = [pair for row in found for pair in encode_pairs(row, tokenizer)]
        prompts = [list(pair.prompt_ids) for pair in pairs]
        completions = [list(pair.completion_ids) for pair in pairs]
    if options.num_generations > 1:  # the others are of real lengths, and none is there twice: it would be read once
        others = options.num_generations - 1
        several = [[c, *(rng.sample(o, len(o)) for o in rng.choices(completions, k=others))] for c in completions]
        prompts = [prompt for prompt, group in zip(prompts, several, strict=True) for _ in group]
        completions = [completion for group in several for completion in group]
    return prompts, completions


def _ids(rng: random.Random, vocabulary: int, median: int) -> list[int]:
    return [rng.randrange(vocabulary) for _ in range(max(4, round(median * rng.lognormvariate(0, SPREAD))))]


class Floor:
    """CPU seconds that work on a model takes at least at this machine's rates.

    2 FLOPs a weight and distinct token forward, 4 backward, at the rate of torch's BLAS, and the head at completion
    tokens alone; a decoding step reads all weights at the bandwidth of memory if that takes longer; AdamW reads four
    numbers a weight and writes three. Attention counts nothing.
    """

    def __init__(self, model) -> None:
        products, self._bandwidth = rates()
        self._rate = products.blas * 1e9
        self._weights = sum(p.numel() for p in model.parameters())
        self._head = model.get_output_embeddings().weight.numel()

    def forward(self, tokens: float, projected: float) -> float:
        """Of so many distinct tokens, `projected` of them through the head; backward takes twice as long."""
        return (2 * (self._weights - self._head) * tokens + 2 * self._head * projected) / self._rate

    def decode(self, rows: int, length: int) -> float:
        """Of `length` steps, a token for each row."""
        return length * max(2 * self._weights * rows / self._rate, 4 * self._weights / self._bandwidth)

    def update(self) -> float:
        """Of AdamW."""
        return 7 * 4 * self._weights / self._bandwidth


def distinct(sequences: Iterable[Sequence[int]]) -> int:
    """Tokens of all sequences; what several begin with alike counts once.

    >>> distinct([[1, 2, 3], [1, 2, 4], [5]])
    5
    """
    ordered = sorted(map(list, sequences))
    beside = (zip(*each, strict=False) for each in itertools.pairwise(ordered))
    alike = (itertools.takewhile(lambda pair: pair[0] == pair[1], each) for each in beside)
    return sum(map(len, ordered)) - sum(len(list(each)) for each in alike)


def side_by_side(
    arms: dict[str, Callable[[], object]],
    rounds: int,
    *,
    tokens: int,
    floor: Mapping[str, float],
    warm_up: bool = True,
) -> dict[str, dict[str, float]]:
    """Run the arms in turn, once to warm up and then `rounds` times; print and return medians and ratios to the last.

    Args:
        arms: name -> what to run.
        rounds: that count.
        tokens: that one run of an arm handles.
        floor: phase -> CPU seconds that it takes at least.
        warm_up: run all once before.
    """
    wall: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(-int(warm_up), rounds):
        for name, run in arms.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            run()
            if turn >= 0:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - started_cpu)
    last, found = list(arms)[-1], {}
    columns = f"{'wall s':>9}{'CPU s':>9}{'tokens/CPU s':>14}{'x floor':>9}"
    print(f"{'arm':<34}{columns}{'CPU ratio, min-max over rounds':>34}")
    for name in arms:
        ratios = [mine / other for mine, other in zip(cpu[name], cpu[last], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        seconds = statistics.median(cpu[name])
        rate, times = tokens / seconds, seconds / sum(floor.values())
        found[name] = {"wall_s": statistics.median(wall[name]), "cpu_s": seconds, "ratio": statistics.median(ratios)}
        found[name] |= {"ratio_min": min(ratios), "ratio_max": max(ratios)}
        found[name] |= {"tokens_per_cpu_s": rate, "times_floor": times}
        print(f"{name:<34}{found[name]['wall_s']:>9.2f}{seconds:>9.2f}{rate:>14.0f}{times:>9.2f}{spread:>34}")
    end_table(floor)
    return found


def end_table(floor: Mapping[str, float]) -> None:
    """The last lines of a table: its floor in CPU seconds by phase, if it has one, and what its figures rest on."""
    if floor:
        print("floor: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in floor.items()) + " CPU s")
    print("; ".join(machine().values()), end="\n\n")


@functools.cache
def machine() -> dict[str, str]:
    """What the figures of a table rest on."""
    return {"cpu": environment()["cpu"], **speed(), "torch": f"torch {torch.__version__}"}


def commit() -> str:
    """What is measured: the commit of the code, and whether it was changed since; empty outside of a repository."""
    asked = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def peaks(module: str, arms: Iterable[str]) -> dict[str, int]:
    """Bytes at most of a fresh process for each arm, which runs `module` with `--only`; printed with ratios."""
    found = {}
    for arm in arms:
        command = [sys.executable, "-m", module, *sys.argv[1:], "--only", arm]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
        if done.returncode:  # it has said why
            raise SystemExit(done.returncode)
        found[arm] = int(done.stdout.split()[-1])
    print(f"{'arm':<34}{'peak MiB':>10}{'x last':>8}")
    for arm, peak in found.items():
        print(f"{arm:<34}{peak / 2**20:>10.0f}{peak / list(found.values())[-1]:>8.2f}")
    print()
    return found


def print_peak() -> None:
    """The last word of a process that `peaks` started."""
    print(int(resident_bytes()))


def keep(options, **measured: Any) -> None:
    """Write tables as JSON, with machine and settings, if `--json` asks for it."""
    if options.json is not None:
        record = {"machine": machine(), "settings": vars(options), **measured}
        options.json.write_text(json.dumps(record, indent=1, default=str))
