"""How the cost of each part of a step grows: sampling, scoring, and the policy's forward and backward pass.

    python -m benchmarks.growth [--rounds 5] [--json growth.json] [--plot growth.svg]

A small random Llama, so that an axis takes a minute; one axis moves at a time, the others stand at `BASE`. The
exponent is the slope of log CPU seconds over log size, by least squares over the larger half of the sizes: 1 is
linear. Attention costs the square of a length, and is a small part of a step until a length passes some thousand.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from benchmarks.common import Floor, end_table, keep, parser
from benchmarks.words import count, output, run_command
from densepath.models.packed_forward import add_packed_forward
from densepath.models.sampling import sample
from densepath.models.scoring import score_completions

BASE = {"completion length": 64, "prompts": 2, "generations": 4, "vocabulary": 4000}
AXES = {
    "completion length": (32, 64, 128, 256, 512, 1024),
    "prompts": (2, 4, 8, 16, 32),
    "generations": (2, 4, 8, 16, 32),
    "vocabulary": (1_000, 4_000, 16_000, 50_000, 150_000),
}
PROMPT = 96
WIDTHS = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 4}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log value over log size by least squares, over the larger half of the sizes."""
    half = slice(len(sizes) // 2 - 1, None)
    across, up = ([math.log(each) for each in series[half]] for series in (sizes, values))
    return statistics.linear_regression(across, up).slope


def parts_of(setting: dict[str, int]) -> dict[str, tuple[Callable[[], object], float]]:
    """The parts of a step of one size, ready to run, each with its floor in CPU seconds."""
    rng, vocabulary = random.Random(0), setting["vocabulary"]
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=True, **WIDTHS)
    frozen, policy = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).train()
    add_fused_lm_head(policy, outputs=("log_probs", "entropy"))
    add_packed_forward(policy)
    prompts = [[rng.randrange(vocabulary) for _ in range(PROMPT)] for _ in range(setting["prompts"])]
    length, generations = setting["completion length"], setting["generations"]
    repeated = [prompt for prompt in prompts for _ in range(generations)]
    completions = [[rng.randrange(vocabulary) for _ in range(length)] for _ in repeated]
    ids = torch.tensor([p + c for p, c in zip(repeated, completions, strict=True)])
    labels = ids.clone()
    labels[:, :PROMPT] = -100

    def train() -> None:
        policy.zero_grad()
        mask = torch.ones_like(ids)
        policy(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).loss.backward()

    lengths = {"num_generations": generations, "max_completion_length": length}
    least, read, answered = Floor(frozen), len(prompts) * PROMPT, len(repeated) * length
    forward = least.forward(read + answered, answered)
    return {
        "sample": (
            lambda: sample(frozen, prompts, eos_token_ids=(), **lengths),
            least.forward(read, 0) + least.decode(len(repeated), length),
        ),
        "score": (lambda: score_completions(frozen, repeated, completions), forward),
        "train": (train, 3 * forward),
    }


def measured(axis: str, sizes: Sequence[int], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Of each part at each size: median CPU and wall seconds, and CPU by floor; the sizes take turns."""
    ready = [parts_of({**BASE, axis: size}) for size in sizes]
    cpu: dict[str, list[list[float]]] = {part: [[] for _ in sizes] for part in ready[0]}
    wall: dict[str, list[list[float]]] = {part: [[] for _ in sizes] for part in ready[0]}
    for turn in range(-1, rounds):
        for place, parts in enumerate(ready):
            for part, (run, _) in parts.items():
                started, started_cpu = time.perf_counter(), time.process_time()
                run()
                if turn >= 0:
                    wall[part][place].append(time.perf_counter() - started)
                    cpu[part][place].append(time.process_time() - started_cpu)
    seconds = {part: list(map(statistics.median, each)) for part, each in cpu.items()}
    times = {
        part: [mine / parts[part][1] for mine, parts in zip(each, ready, strict=True)]
        for part, each in seconds.items()
    }
    walls = {part: list(map(statistics.median, each)) for part, each in wall.items()}
    return {"cpu_s": seconds, "wall_s": walls, "times_floor": times}


def plot(path: Path, found: dict[str, dict]) -> None:
    """One panel an axis, both scales logarithmic."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3.2), layout="constrained")
    for panel, (axis, table) in zip(figure.axes if len(found) > 1 else [panels], found.items(), strict=True):
        for part, seconds in table["cpu_s"].items():
            label = f"{part}, exponent {table['exponents'][part]:.2f}"
            panel.loglog(table["sizes"], seconds, marker="o", label=label)
        panel.set(xlabel=axis, ylabel="CPU seconds")
        panel.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    given = parser(__doc__, "rounds")
    given.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    given.add_argument("--most", type=count, help="leave larger sizes out")
    given.add_argument("--plot", type=output, help="draw into this file")
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    found, most = {}, math.inf if options.most is None else options.most
    if few := [axis for axis in options.axes if AXES[axis][1] > most]:
        given.error(f"--most {options.most} leaves less than two sizes of {few[0]}, and no exponent: give more")
    for axis in options.axes:
        sizes = [size for size in AXES[axis] if size <= most]
        figures = measured(axis, sizes, options.rounds)
        exponents = {part: exponent(sizes, each) for part, each in figures["cpu_s"].items()}
        found[axis] = {"sizes": sizes, **figures, "exponents": exponents}
        print(f"{axis:<20}" + "".join(f"{size:>10}" for size in sizes) + f"{'exponent':>10}")
        for part, slope in exponents.items():
            for figure, name in (("cpu_s", "CPU s"), ("wall_s", "wall s"), ("times_floor", "x floor")):
                values = "".join(f"{each:>10.2f}" for each in figures[figure][part])
                print(f"{part + ', ' + name:<20}{values}" + (f"{slope:>10.2f}" if figure == "cpu_s" else ""))
        end_table({})
    if options.plot is not None:
        plot(options.plot, found)
    keep(options, **found)


if __name__ == "__main__":
    run_command(main)
