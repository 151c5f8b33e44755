"""Part (c): a step of DPR beside one of TRL's GRPO, scoring with and without padding, and memory."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from benchmarks.gpu.boxes import Report, compared
from benchmarks.gpu.shapes import (
    SHAPES,
    TINY,
    device_rates,
    random_model,
    save_configuration,
    settle,
    with_adapters,
    word_tokenizer,
)
from densepath.config.run import RunArguments
from densepath.models.flat_attention import in_one_call
from densepath.models.logits import layout_of
from densepath.models.packing import Layout
from densepath.models.quantized import parameter_count
from densepath.models.sampling import DEFAULT_TOKEN_BUDGET
from densepath.models.scoring import score_completions
from densepath.pipeline.plan import plan_recipe
from densepath.planning.plan import peak
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig

if TYPE_CHECKING:
    from benchmarks.gpu.check import Settings

STEPS = 2
"""Of each trainer; the first warms up and is not counted."""
PLAN = 0.1
"""Share by which peak memory may differ from the plan."""


@dataclass(frozen=True)
class Work:
    """One step: completions of prompts, in tokens, and how many are trained on at once."""

    completions: int = 64
    group: int = 4
    prompt: int = 256
    completion: int = 256
    rows: int = 8

    def arguments(self, folder: Path, device: str, checkpointing: bool) -> dict[str, Any]:
        """For both trainers."""
        return {
            "output_dir": str(folder / "out"),
            "max_steps": STEPS,
            "per_device_train_batch_size": self.rows,
            "gradient_accumulation_steps": self.completions // self.rows,
            "num_generations": self.group,
            "max_completion_length": self.completion,
            "gradient_checkpointing": checkpointing,
            "bf16": False,  # the base is in bfloat16 already
            "use_cpu": device == "cpu",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
        }


FULL, SMALL = Work(), Work(completions=4, group=2, prompt=8, completion=6, rows=2)


def run(settings: Settings, report: Report) -> None:
    """Every shape, the small one first."""
    device, work = settings.device, SMALL if settings.tiny else FULL
    with report.item("device") as values:
        values.update(device_rates(device, 256 if settings.tiny else 8192))
    rates = report.found["device"]
    for name in [TINY] if settings.tiny else SHAPES:
        for title, step in (("DPR", dpr_step), ("GRPO", grpo_step)):
            with report.item(f"{name}: {title}") as values:
                values.update(step(name, settings, work))
                values.update(roofline(values, rates, work) if title == "DPR" else {})
        with report.item(f"{name}: scoring") as values:
            values.update(scoring(name, device, work, rates["flops"]))


def empty() -> None:
    """Give back what the item before took, and let the peak of this one's memory be its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@dataclass
class Clock:
    """Seconds by phase, the device waited for; of the last step alone, since `reset` is called at its beginning."""

    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        settle(self.device)
        started = time.perf_counter()
        yield
        settle(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def around(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method as a phase."""
        call: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return call(*args, **kwargs)

        setattr(owner, method, timed)


def measured(trainer: Any, device: str, phases: dict[str, str], work: Work) -> dict[str, Any]:
    """Train, and say of the last step its seconds by phase, tokens/s, and the peak of the device's memory."""
    clock, steps = Clock(device), []
    for method, name in phases.items():
        clock.around(trainer, method, name)
    begin = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        if len(steps) % trainer.args.gradient_accumulation_steps == 0:
            clock.seconds.clear()
        steps.append(None)
        with clock.phase("step"):
            return begin(*args, **kwargs)

    trainer.training_step = training_step
    trainer.train()
    seconds = dict(clock.seconds)
    seconds["training"] = seconds["step"] - sum(seconds.get(name, 0.0) for name in phases.values())
    tokens = work.completions * work.completion
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else None
    rates = {f"{name} tokens/s": tokens / each for name, each in seconds.items() if each > 0}
    return {"seconds by phase": seconds, **rates, "peak bytes": memory}


def layout(model: Any) -> dict[str, Any]:
    """How the model's sequences share a batch: flat, where the device has a kernel for that."""
    found, kernel = layout_of(model), in_one_call(model.get_input_embeddings().weight)
    unused = compared(float(kernel and found is not Layout.FLAT), 0)
    return {"layout": found.name, "kernel of flat rows": kernel, "kernel unused": unused}


def prompts(tokenizer: Any, work: Work) -> Dataset:
    """Prompts of the work's length; as many as its steps need."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(0, len(tokenizer) - 1, (STEPS * work.completions // work.group, work.prompt), generator=draw)
    return Dataset.from_list([{"prompt": " ".join(f"w{token}" for token in row)} for row in rows.tolist()])


def dpr_step(name: str, settings: Settings, work: Work, *, checkpointing: bool = True) -> dict[str, Any]:
    """A step of DPR: policy, SFT model and reference are adapters on one base."""
    empty()
    model = random_model(name, settings.device)
    tokenizer = word_tokenizer(model.config.vocab_size)
    policy = with_adapters(model, "ref")
    arguments = work.arguments(settings.folder, settings.device, checkpointing)
    trainer = DPRTrainer(
        policy,
        FrozenPolicy(policy, "ref"),
        DPRConfig(**arguments, beta=0.5),
        prompts(tokenizer, work),
        processing_class=tokenizer,
    )
    phases = {"_generate_single_turn": "sampling", "_calculate_rewards": "scoring"}
    found = measured(trainer, settings.device, phases, work)
    found |= {"parameters": parameter_count(model), **layout(policy)}
    planned = _planned(name, settings.folder, work, checkpointing)
    found["planned bytes"] = planned
    if found["peak bytes"] is not None:
        found["plan"] = compared(abs(planned / found["peak bytes"] - 1), PLAN)
    return found


def grpo_step(name: str, settings: Settings, work: Work) -> dict[str, Any]:
    """A step of GRPO with TRL's own generation.

    Its reward is the sum of DPR's log-ratio, from padded passes, as it is usually written; its KL to its start, which
    TRL keeps as adapter "ref", is its own.
    """
    empty()
    model = random_model(name, settings.device)
    tokenizer = word_tokenizer(model.config.vocab_size)
    policy = with_adapters(model, "earlier")

    def reward(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        given, lengths = tokenizer(prompts).input_ids, [len(ids) for ids in completion_ids]
        sums = []
        for adapter in ("ref", "earlier"):
            with FrozenPolicy(policy, adapter).active() as frozen:
                found = _padded(frozen, given, completion_ids)
            sums.append([float(each.sum()) for each in found.split(lengths)])
        return [sft - ref for sft, ref in zip(*sums, strict=True)]

    trainer = GRPOTrainer(
        policy,
        reward,
        GRPOConfig(**work.arguments(settings.folder, settings.device, True), beta=0.5),
        prompts(tokenizer, work),
        processing_class=tokenizer,
    )
    phases = {"_generate_single_turn": "sampling", "_calculate_rewards": "scoring"}
    return measured(trainer, settings.device, phases, work)


def _planned(name: str, folder: Path, work: Work, checkpointing: bool) -> float:
    """Bytes of the DPR stage's largest moment in its plan, without the allowance for what is no tensor."""
    arguments = RunArguments(
        model_name_or_path=save_configuration(name, folder / "configuration"),
        dataset_name="text_tasks",
        dtype="bfloat16",
        use_peft=True,
        lora_r=16,
        reference="0.5",
        beta="0.5",
        num_generations=work.group,
        dpr_per_device_train_batch_size=work.rows,
        max_prompt_length=work.prompt,
        max_completion_length=work.completion,
        gpu_memory=1000,
    )
    others = {
        "dpr_gradient_accumulation_steps": work.completions // work.rows,
        "dpr_gradient_checkpointing": checkpointing,
        "dpr_bf16": False,  # as in `Work.arguments`
    }
    terms = peak(plan_recipe(arguments, others).stages["DPR"])[1]
    return sum(terms.values()) - terms["process"]


def roofline(found: dict[str, Any], rates: dict[str, float], work: Work) -> dict[str, float]:
    """Share of what the device reaches: of its bandwidth while sampling, of its matrix products otherwise.

    Sampling reads the weights, 2 bytes each, once for each token of a batch; batches are as many as the sampler's
    budget makes of the completions (TRL's GRPO decodes them all at once). Scoring multiplies 2 FLOPs a parameter and
    token under two models. Training with an adapter and gradient checkpointing takes 6: forward twice, backward to
    the activations alone.
    """
    seconds, parameters = found["seconds by phase"], found["parameters"]
    tokens = work.completions * work.completion + work.completions // work.group * work.prompt
    batches = math.ceil(work.completions / max(1, DEFAULT_TOKEN_BUDGET // (work.prompt + work.completion)))
    shares = {"sampling": 2 * parameters * work.completion * batches / rates["bytes"]}
    shares |= {
        "scoring": 4 * parameters * tokens / rates["flops"],
        "training": 6 * parameters * tokens / rates["flops"],
    }
    found_shares = {
        f"{name} share of the roofline": least / seconds[name] for name, least in shares.items() if seconds.get(name)
    }
    return {"sampling batches": batches, **found_shares}


def scoring(name: str, device: str, work: Work, flops: float) -> dict[str, Any]:
    """Seconds to score completions of many lengths: flat, and as padded batches through transformers."""
    empty()
    model = random_model(name, device).requires_grad_(False).eval()
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(work.completion // 4, work.completion + 1, (work.completions,), generator=draw).tolist()
    rows = [torch.randint(0, 500, (work.prompt + n,), generator=draw).tolist() for n in lengths]
    texts = [row[: work.prompt] for row in rows], [row[work.prompt :] for row in rows]
    found: dict[str, Any] = layout(model)
    scores = {}
    for title, score in (("flat", _flat), ("padded", _padded)):
        clock = Clock(device)
        score(model, *texts)
        with clock.phase(title):
            scores[title] = score(model, *texts)
        found[f"{title} seconds"] = clock.seconds[title]
        found[f"{title} tokens/s"] = sum(lengths) / clock.seconds[title]
    found["flat share of the roofline"] = (
        2 * parameter_count(model) * sum(map(len, rows)) / flops / found["flat seconds"]
    )
    found["root mean square between the two"] = float((scores["flat"] - scores["padded"]).square().mean().sqrt())
    return found


def _flat(model: Any, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> torch.Tensor:
    found = score_completions(model, prompt_ids, completion_ids, token_budget=16_384)
    return torch.cat(found.logprobs).double()


@torch.no_grad()
def _padded(model: Any, prompt_ids: list[list[int]], completion_ids: list[list[int]], rows: int = 16) -> torch.Tensor:
    """Right-padded batches, logits of the completions' positions, log-softmax, gather."""
    device, found = model.get_input_embeddings().weight.device, []
    for start in range(0, len(prompt_ids), rows):
        pairs = list(zip(prompt_ids[start : start + rows], completion_ids[start : start + rows], strict=True))
        width = max(len(p) + len(c) for p, c in pairs)
        ids = torch.tensor([[*p, *c, *[0] * (width - len(p) - len(c))] for p, c in pairs], device=device)
        mask = torch.tensor(
            [[1] * (len(p) + len(c)) + [0] * (width - len(p) - len(c)) for p, c in pairs], device=device
        )
        shortest = min(len(p) for p, _ in pairs)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=width - shortest + 1).logits
        for row, (p, c) in enumerate(pairs):
            own = logits[row, len(p) - shortest : len(p) - shortest + len(c)].float().log_softmax(-1)
            found.append(own.gather(-1, ids[row, len(p) : len(p) + len(c), None]).squeeze(-1).double().cpu())
    return torch.cat(found)
