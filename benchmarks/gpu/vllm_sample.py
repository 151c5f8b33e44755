"""A few completions by vLLM, and how far its log-probabilities are from densepath's: one JSON object, the last line.

    python -m benchmarks.gpu.vllm_sample MODEL_FOLDER

In a process of its own: vLLM takes a share of the GPU, starts processes, and may be built for another torch.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
SHARE = 0.1
"""Of the GPU's memory."""


def sampled(model: str) -> dict[str, Any]:
    """Completions of three prompts in float32; or why there are none, where vLLM does not import."""
    try:
        from vllm import LLM
    except Exception as error:
        return {"not used": f"it does not import here: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    from densepath.models.load import load_model
    from densepath.models.scoring import score_completions
    from densepath.rewards.vllm_policy import VLLMPolicy

    engine = LLM(
        model=model,
        dtype="float32",
        skip_tokenizer_init=True,
        generation_config="vllm",
        gpu_memory_utilization=SHARE,
        logprobs_mode="processed_logprobs",
        enforce_eager=True,  # compiling takes longer than the box
    )
    own, prompts = load_model(model), [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    ids, logprobs, _ = VLLMPolicy(own, engine=engine).sample(prompts, max_completion_length=8, eos_token_ids=())
    told = torch.tensor([value for row in logprobs for value in row])
    apart = (told - torch.cat(score_completions(own, prompts, ids).logprobs)).abs()
    return {"completions": ids, "largest difference": float(apart.max())}


if __name__ == "__main__":
    os.environ.update({**SETTINGS, **os.environ})
    print(json.dumps(sampled(sys.argv[1])))
