"""Spread weights over two processes on a CPU (gloo): `torchrun ... -m tests.models.sharded_script OUTPUT KIND`.

KIND is fsdp2 or zero3 (DeepSpeed).

Each process scores completions of its own, and differently many, with models whose weights are spread over both.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from tests.tiny_models import tiny_gemma3, tiny_llama, with_lora
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from densepath.models.adapters import add_frozen_copy
from densepath.models.logits import is_sharded
from densepath.models.scoring import score_completions
from densepath.rewards.frozen import FrozenPolicy

PROMPTS = [[5, 6, 7], [5, 6, 7], [8, 9], [3, 4, 10, 11, 12], [13]]
COMPLETIONS = [[8, 9, 2], [10, 2], [11, 12, 13, 14, 2], [4], [21, 22]]


def zero3(model):
    """As TRL does it, but without a size below which a weight stays whole: all of these are small."""
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    return deepspeed.initialize(model=model, config=config)[0].module.eval()


def fsdp2(model, mesh):
    """As accelerate does it: each block for itself, the embeddings, norm and head together, then the rest."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    for block in inner.model.layers:
        fully_shard(block, mesh=mesh)
    tied = inner.get_input_embeddings().weight is inner.get_output_embeddings().weight
    if not tied:
        fully_shard(inner.get_input_embeddings(), mesh=mesh)
    tail = [inner.model.norm, *([inner.get_input_embeddings()] if tied else []), inner.get_output_embeddings()]
    fully_shard(tail, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    return model


def main(output: Path, kind: str) -> None:
    """Score before and after the weights are spread, and save both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    spread = zero3 if kind == "zero3" else functools.partial(fsdp2, mesh=init_device_mesh("cpu", (2,)))
    rows = slice(0, 4) if rank == 0 else slice(4, 5)
    given = PROMPTS[rows], COMPLETIONS[rows]
    found = {}

    def adapter():
        model = with_lora(tiny_llama(seed=1))
        add_frozen_copy(model, name="sft")
        return model

    for name, make in (("llama", tiny_llama), ("gemma3", tiny_gemma3), ("adapter", adapter)):
        whole, pieces = make(), spread(make())
        assert is_sharded(pieces)
        assert not is_sharded(whole)
        views = {"": ("",)} if name != "adapter" else {"": ("sft", None)}
        for adapter_name in views[""]:
            for budget in (8, 2048):  # with 8 tokens a pass the processes need differently many
                before = FrozenPolicy(whole, adapter_name).score(*given, budget)
                after = FrozenPolicy(pieces, adapter_name).score(*given, budget)
                found[f"{name} {adapter_name!r} {budget}"] = (before.logprobs, after.logprobs, after.entropies)
        nothing = score_completions(pieces, [], []) if rank == 1 else score_completions(pieces, *given)
        found[f"{name} none"] = (nothing.logprobs, nothing.logprobs, nothing.entropies)
    torch.save(found, output / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
