"""The runs and figures of docs/is-it-working.md: `python -m benchmarks.is_it_working` makes them all again.

A 0.1M-parameter GPT-2 on the digit tasks of `densepath.data.regimes`: a model before SFT, SFT, and DPR runs that go
well and badly. Everything is seeded; what the folder holds already is not run again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from transformers import GPT2LMHeadModel, PrinterCallback, TrainerControl, TrainerState

from benchmarks.words import Parser, run_command
from densepath import DPRConfig, DPRTrainer
from densepath.data.encode import encode_pairs
from densepath.data.regimes import ANSWER_TOKENS, BEFORE_SFT, PROMPT_TOKENS, SFT, Regime, regime_rows, regime_tokenizer
from densepath.io import atomic_path, read_jsonl, write_jsonl_atomic
from densepath.pipeline.regimes import new_model
from densepath.trainers.early_stopping import SignalCallback, default_signals

MAX_COMPLETION_LENGTH = ANSWER_TOKENS + 1
HELD_OUT = 500
SFT_STEPS = 300
TOKENIZER = regime_tokenizer()


@dataclass(frozen=True)
class Run:
    """One DPR run from a regime's SFT model; the reference is the model before SFT, or the half-way checkpoint."""

    name: str
    title: str
    regime: Regime
    beta: float = 0.5
    learning_rate: float = 3e-4
    max_steps: int = 100
    reference: str = "before"


RUNS = (
    Run("good", "good run", Regime.HABIT),
    Run("novel", "SFT learned a new error", Regime.NOVEL),
    Run("small_beta", "beta 0.02", Regime.HABIT, beta=0.02),
    Run("high_rate", "learning rate 1e-2", Regime.HABIT, learning_rate=1e-2),
    Run("quiet", "SFT learned a new error, reference half-way", Regime.NOVEL, reference="half"),
)


# -- models ------------------------------------------------------------------------------------------------------


def encoded(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, tokens) ids, and where they are actions."""
    ids = torch.full((len(rows), PROMPT_TOKENS + ANSWER_TOKENS), TOKENIZER.pad_token_id)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        (pair,) = encode_pairs(row, TOKENIZER)
        tokens = torch.tensor([*pair.prompt_ids, *pair.completion_ids])
        ids[index, : len(tokens)] = tokens
        mask[index, PROMPT_TOKENS : len(tokens)] = True
    return ids, mask


def imitate(
    model: GPT2LMHeadModel,
    rows: list[dict[str, Any]],
    keep: Mapping[int, Path],
    *,
    batch: int,
    rate: float,
    warmup: int,
    seed: int,
) -> None:
    """Maximum likelihood of the answers, saved after the steps in `keep`; the last of them ends it.

    AdamW (0.9, 0.98), a cosine schedule, gradients clipped at 1.
    """
    ids, mask = encoded(rows)
    steps = max(keep)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    model.train()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(ids), (batch,), generator=generator)
        labels, counts = ids[chosen][:, 1:], mask[chosen][:, 1:]
        logits = model(input_ids=ids[chosen], attention_mask=torch.ones_like(ids[chosen])).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        loss = -logprobs[counts].sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step in keep:
            model.save_pretrained(keep[step])


def models_of(regime: Regime, folder: Path, seed: int) -> tuple[Path, Path, Path]:
    """Folders of the model before SFT, the checkpoint half-way, and the SFT model; made where they are not there."""
    before, half, sft = folder / "before_sft", folder / regime.value / "half", folder / regime.value / "sft"
    if not (before / "model.safetensors").exists():  # the regimes share its mixture
        rows = regime_rows(BEFORE_SFT[regime], 120_000, seed=seed)
        imitate(new_model(seed), rows, {1800: before}, batch=64, rate=2e-3, warmup=50, seed=seed)
    if not (sft / "model.safetensors").exists():
        rows = regime_rows(SFT[regime], 4_000, seed=seed + 1)
        model = GPT2LMHeadModel.from_pretrained(before)
        keep = {SFT_STEPS // 2: half, SFT_STEPS: sft}
        imitate(model, rows, keep, batch=32, rate=5e-4, warmup=10, seed=seed + 1)
    return before, half, sft


# -- DPR ---------------------------------------------------------------------------------------------------------


def exact_match(completion_ids: list[list[int]], answer: list[str], **kwargs: Any) -> list[float]:
    """1 where a completion is the right answer and ends there."""
    texts = TOKENIZER.batch_decode(completion_ids)
    return [float(text == f"{right} {TOKENIZER.eos_token}") for text, right in zip(texts, answer, strict=True)]


def train(run: Run, folder: Path, seed: int, **changes: Any) -> list[dict[str, Any]]:
    """The run's logs: of training at every step, of the held-out prompts and demonstrations at every fifth."""
    before, half, sft = models_of(run.regime, folder, seed)
    ref, other = (before, half) if run.reference == "before" else (half, before)
    prompts = regime_rows(SFT[run.regime], 32 * run.max_steps, seed=seed + 2)
    held_out = regime_rows(SFT[run.regime], HELD_OUT, seed=seed, held_out=True)
    arguments = {
        "output_dir": str(folder / run.name),
        "beta": run.beta,
        "learning_rate": run.learning_rate,
        "max_steps": run.max_steps,
        "per_device_train_batch_size": 128,
        "num_generations": 4,
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "eval_strategy": "steps",
        "eval_steps": 5,
        "eval_on_start": True,
        "num_generations_eval": 1,
        "per_device_eval_batch_size": HELD_OUT,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "seed": seed,
        **changes,
    }
    trainer = DPRTrainer(
        model=GPT2LMHeadModel.from_pretrained(sft),
        ref_model=GPT2LMHeadModel.from_pretrained(ref),
        held_out_ref_model=GPT2LMHeadModel.from_pretrained(other),
        args=DPRConfig(**arguments),
        train_dataset=datasets.Dataset.from_list(prompts),
        eval_dataset=datasets.Dataset.from_list(held_out),
        processing_class=TOKENIZER,
        reward_funcs=exact_match,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    rows: list[dict[str, Any]] = trainer.state.log_history
    return rows


def logs_of(run: Run, folder: Path, seed: int) -> list[dict[str, Any]]:
    """The logs of a run that was made before, or of one that is made now."""
    path = folder / f"{run.name}.jsonl"
    if not path.exists():
        started = time.process_time()
        rows = train(run, folder, seed)
        write_jsonl_atomic(path, rows)
        print(f"{run.name}: {time.process_time() - started:.0f} CPU s")
    return read_jsonl(path)


# -- what they show ----------------------------------------------------------------------------------------------


def last_before(rows: list[dict[str, Any]], name: str, step: int) -> float:
    """The newest value of a metric up to a step."""
    return next(row[name] for row in reversed(rows) if row["step"] <= step and row.get(name) is not None)


def stop_of(rows: list[dict[str, Any]], every: int = 5) -> tuple[int | None, str | None, int]:
    """Step and signal at which early stopping would have ended the run, and the checkpoint that it would have kept.

    Args:
        rows: logs of the whole run.
        every: steps between checkpoints.
    """
    signals = default_signals(DPRConfig(report_to="none", early_stopping=True))
    callback = SignalCallback(signals, early_stopping=True)
    state, kept = TrainerState(), 0
    for row in rows:
        state.global_step = row["step"]
        callback.on_log(None, state, TrainerControl(), logs=row)
        if callback.stopped_by is not None:
            return row["step"], callback.stopped_by, kept
        if row["step"] % every == 0 and "eval_nll" in row and not any(callback.beyond.values()):
            kept = row["step"]
    return None, None, state.global_step


def figure(run: Run, rows: list[dict[str, Any]], path: Path) -> None:
    """The curves of one run, with the threshold of each signal and the step of early stopping."""
    config = DPRConfig(report_to="none")
    panels = (
        ("dense reward (trained on)", "reward", "eval_reward", None),
        ("reward, held-out reference", "reward_held_out_ref", "eval_reward_held_out_ref", None),
        ("correlation of reward and truth", "reward_corr/exact_match", "eval_reward_corr/exact_match", None),
        ("TRUTH: exact match", "rewards/exact_match/mean", "eval_rewards/exact_match/mean", None),
        ("KL to SFT, nats per completion", "kl_sequence", "eval_kl_sequence", config.kl_sequence_threshold),
        ("held-out NLL less SFT's", None, "eval_nll_increase", config.nll_increase_threshold),
        ("length, tokens", "completions/mean_length", "eval_completions/mean_length", None),
        ("entropy, nats per token", "entropy", "eval_entropy", None),
    )
    stop, _, kept = stop_of(rows)
    drawing = Figure(figsize=(11, 4.6), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(drawing)
    for axes, (title, train_name, eval_name, threshold) in zip(drawing.subplots(2, 4).flat, panels, strict=True):
        for name, style in ((train_name, {"color": "#9ab8d6", "lw": 1}), (eval_name, {"color": "#12497d", "lw": 1.8})):
            points = [(row["step"], row[name]) for row in rows if name is not None and row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), **style)
        if threshold is not None:
            axes.axhline(threshold, color="#b3261e", lw=1, ls=":")
        if title.startswith("TRUTH"):
            axes.axhline(last_before(rows, eval_name, 0), color="#666666", lw=1, ls="--")
        if stop is not None:
            axes.axvline(kept, color="#2e7d32", lw=1)
            axes.axvline(stop, color="#b3261e", lw=1)
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.set_xlim(-2, rows[-1]["step"] + 2)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.supxlabel("step; thin: training batches, thick: held-out prompts, dotted: threshold", fontsize=8)
    ending = f"stops at {stop} (red), goes back to {kept} (green)" if stop is not None else "does not stop"
    drawing.suptitle(f"{run.title}: early stopping {ending}", fontsize=10, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def table(runs: Mapping[str, list[list[dict[str, Any]]]]) -> str:
    """One line a run, means over seeds: exact match of SFT, where early stopping ends, and at the end."""
    truth = "eval_rewards/exact_match/mean"
    names = ("run", "SFT", "early stopping", "at the end", "stops at", "by", "correlation at the start")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name, seeds in runs.items():
        stops = [stop_of(rows) for rows in seeds]
        columns = [
            statistics.mean(last_before(rows, truth, step) for rows, step in zip(seeds, steps, strict=True))
            for steps in ([0] * len(seeds), [kept for _, _, kept in stops], [rows[-1]["step"] for rows in seeds])
        ]
        at = ", ".join("-" if step is None else str(step) for step, _, _ in stops)
        by = ", ".join(sorted({f"`{metric}`" for _, metric, _ in stops if metric is not None})) or "-"
        starts = ", ".join(f"{last_before(rows, 'eval_reward_corr/exact_match', 0):.2f}" for rows in seeds)
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in columns)} | {at} | {by} | {starts} |")
    return "\n".join(lines)


LEVELS = {"eval_kl_sequence": (0.5, 1.0, 1.5, 2.0, 3.0), "eval_nll_increase": (0.05, 0.1, 0.2, 0.3, 0.5)}


def thresholds(runs: Mapping[str, list[list[dict[str, Any]]]]) -> str:
    """How often the policy is worse than SFT beyond a threshold, and below it, over all evaluations but the first."""
    lines = ["| signal | threshold | beyond it: worse than SFT | below it: worse than SFT |", "|---|---|---|---|"]
    for name, levels in LEVELS.items():
        points = []
        for rows in (rows for seeds in runs.values() for rows in seeds):
            start = last_before(rows, "eval_rewards/exact_match/mean", 0)
            points += [
                (row[name], row["eval_rewards/exact_match/mean"] < start)
                for row in rows
                if "eval_nll" in row and row["step"] > 0
            ]
        for level in levels:
            sides = [[worse for value, worse in points if (value > level) is beyond] for beyond in (True, False)]
            shown = [f"{sum(side)} of {len(side)}" for side in sides]
            lines.append(f"| `{name}` | {level:g} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/is-it-working"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="the figures are of the first")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    for run in RUNS:
        runs[run.title] = [logs_of(run, arguments.folder / f"seed-{seed}", seed) for seed in arguments.seeds]
        figure(run, runs[run.title][0], arguments.images / f"is-it-working-{run.name.replace('_', '-')}.png")
    print(table(runs), thresholds(runs), sep="\n\n")


if __name__ == "__main__":
    run_command(main)
