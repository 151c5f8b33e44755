"""Whether a plan fits its device: one line that names the term that is too large, and what to change."""

from __future__ import annotations

import math

from densepath.planning import memory
from densepath.planning.memory import GIB
from densepath.planning.plan import Plan, Setup, Stage


def check_fits(plan: Plan) -> str | None:
    """One line that says which term is too large and what to change, or None where the plan fits."""
    limit = plan.machine.memory
    if limit is None:
        return None
    stage = plan.peak
    moment = stage.peak
    if moment.total <= limit:
        return _check_vllm(plan.setup, limit)
    name = max((term for term in moment.terms if term != "process"), key=lambda term: moment.terms[term])
    place = "GPU" if plan.machine.cuda else "process"
    return (
        f"{stage.name} needs {moment.total / GIB:.1f} GiB per {place} and there are {limit / GIB:.1f}: "
        f"{name} take{'s' if name in ('policy', 'optimizer', 'KV cache', 'vLLM') else ''} "
        f"{moment.terms[name] / GIB:.1f} GiB; {_remedy(name, plan, stage)}"
    )


def _check_vllm(setup: Setup, limit: float) -> str | None:
    """A colocated vLLM keeps weights of its own, in half precision, and at least one sequence's cache in its share."""
    if not setup.vllm:
        return None
    weights = memory.weight_bytes(setup.architecture, 2) / setup.vllm_parallel
    need = weights + memory.cache_bytes(setup.architecture, 2, 1, setup.vllm_length) / setup.vllm_parallel
    share = setup.vllm * limit
    if need <= share:
        return None
    return (
        f"vLLM's share is {share / GIB:.1f} GiB, and its own half-precision weights take {weights / GIB:.1f}: "
        f"raise dpr_vllm_gpu_memory_utilization to {math.ceil(100 * need / limit) / 100:.2f}, or set "
        "dpr_vllm_mode: server"
    )


def _remedy(term: str, plan: Plan, stage: Stage) -> str:
    setup, prefix = plan.setup, "sft" if stage.name == "SFT" else "dpr"
    batch = f"lower {prefix}_per_device_train_batch_size (and raise {prefix}_gradient_accumulation_steps)"
    training = setup.sft if stage.name == "SFT" else setup.dpr
    adapters = "set use_peft: true"
    several = "shard it over more GPUs (accelerate_config: recipes/accelerate/fsdp2.yaml)"
    if term in ("optimizer", "gradients"):
        return f"{adapters}, or {several}" if setup.adapter is None else several
    if term == "policy":
        return f"set dtype: bfloat16, or {several}" if setup.weights > 2 and not setup.four_bit else several
    if term == "frozen models":
        return f"{adapters}: adapters share one base" if setup.adapter is None else "choose a smaller model or dtype"
    if term == "activations":
        return batch if training.checkpointing else f"set {prefix}_gradient_checkpointing: true, or {batch}"
    if term == "KV cache":
        return "lower max_completion_length or num_generations"
    if term == "vLLM":
        return "lower dpr_vllm_gpu_memory_utilization, or set dpr_vllm_enable_sleep_mode: true"
    return batch
