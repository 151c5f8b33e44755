"""A policy that vLLM holds: it samples completions and scores them, token ids in and out.

vLLM is imported when a model is loaded, and only then. What it computes in float32 is the model's own distribution up
to rounding (docs/engines.md has the measurement).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from densepath.errors import ModelError, UsageError
from densepath.models import locate
from densepath.models.load import text_part
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET, CompletionScores, check_finite, check_ids
from densepath.rewards.frozen import FrozenPolicy

_SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
"""Of vLLM, unless the environment says otherwise: it computes in this process, and says what is wrong alone."""


@dataclass(frozen=True)
class VLLMPolicy(FrozenPolicy):
    """A causal LM in vLLM.

    Attributes:
        model: the model on the meta device: its configuration and sizes, no weights.
        engine: `vllm.LLM`.
    """

    engine: Any = None

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its completion that it scores: vLLM must have room to go on by one."""
        return super().context - 1

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        *,
        num_generations: int = 1,
        max_completion_length: int,
        temperature: float = 1.0,
        eos_token_ids: Sequence[int],
        seed: int = 0,
    ) -> tuple[list[list[int]], list[list[float]], list[bool]]:
        """Completions of each prompt, from random numbers of vLLM's own.

        Args:
            prompt_ids: token ids of each prompt.
            num_generations: completions of each.
            max_completion_length: tokens, the EOS included.
            temperature: divides the logits; 0 takes the most probable token.
            eos_token_ids: a completion ends after the first of them.
            seed: the same one gives the same completions of the same batch.

        Returns:
            Ids, log-probabilities (nats) and whether it was cut off, of each completion: the fields of
            `models.sampling.Samples`.
        """
        from vllm import SamplingParams

        params = [
            SamplingParams(
                n=num_generations,
                temperature=temperature,
                max_tokens=max_completion_length,
                # vLLM gives the siblings of a prompt this seed and those that follow it.
                seed=(seed + number * num_generations) % 2**62,
                stop_token_ids=list(eos_token_ids),
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
            )
            for number in range(len(prompt_ids))
        ]
        given = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
        answers = self.engine.generate(given, params, use_tqdm=False)
        found = [each for answer in answers for each in answer.outputs]
        return (
            [list(each.token_ids) for each in found],
            [[at[token].logprob for at, token in zip(each.logprobs, each.token_ids, strict=True)] for each in found],
            [each.finish_reason == "length" for each in found],
        )

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_progress: Callable[[int], None] | None = None,
        keep_hidden: Collection[int] = (),
    ) -> CompletionScores:
        """Log-probabilities of the completions; no entropies or normalisers, which vLLM does not give.

        Args:
            prompt_ids: ids of each prompt, not empty; with its completion at least one token less than the context.
            completion_ids: ids of each completion.
            token_budget: without effect: vLLM was told when it was loaded.
            on_progress: called once, with the number of sequences.
            keep_hidden: without effect: vLLM keeps hidden states to itself.

        Raises:
            ModelError, NumericalError: as `score_completions`.
        """
        from vllm import SamplingParams

        check_ids(self.model, prompt_ids, completion_ids)
        given = [{"prompt_token_ids": [*p, *c]} for p, c in zip(prompt_ids, completion_ids, strict=True)]
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        read = self.engine.generate(given, params, use_tqdm=False) if given else []
        found = []
        for answer, prompt, ids in zip(read, prompt_ids, completion_ids, strict=True):
            places = answer.prompt_logprobs[len(prompt) :]
            found.append(torch.tensor([at[token].logprob for at, token in zip(places, ids, strict=True)]))
        check_finite(found, completion_ids)
        if on_progress is not None:
            on_progress(len(found))
        return CompletionScores(found, [], [])

    def hidden_states(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Refused: vLLM keeps them to itself."""
        raise UsageError("vLLM gives log-probabilities, and no hidden states: leave use_vllm out")


def load_vllm_policy(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    trust_remote_code: bool = False,
    gpu_memory_utilization: float = 0.3,
    token_budget: int | None = None,
) -> VLLMPolicy:
    """A model in vLLM, on the device that vLLM takes.

    Args:
        name_or_path: hub id, model folder or catalogue name.
        dtype: of the weights and of what is computed; float32 gives the probabilities that densepath gives.
        trust_remote_code: run Python code that comes with the weights.
        gpu_memory_utilization: share of the device's memory that the model takes with its cache. On a CPU the
            variable `VLLM_CPU_KVCACHE_SPACE` sets the cache instead, in GiB.
        token_budget: tokens in one pass; None: vLLM's own.

    Raises:
        ModelError: vLLM is not installed or cannot run the model; an adapter.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ModelError("use_vllm needs vLLM: pip install 'densepath[vllm]'; on a CPU see docs/engines.md")
    source = locate.locate(name_or_path)
    if locate.is_adapter(source):
        raise ModelError(f"{name_or_path} is an adapter: merge it into its base for vLLM, or leave use_vllm out")
    locate.check_model_folder(source)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    with locate.explained(source, "model"):
        shape = _shape(source, trust_remote_code)
        engine = LLM(
            model=source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            skip_tokenizer_init=True,
            generation_config="vllm",  # what the model's own says of sampling is not asked for
            gpu_memory_utilization=gpu_memory_utilization,
            max_num_batched_tokens=token_budget,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            enforce_eager=not torch.accelerator.is_available(),  # compiling takes minutes there
            disable_log_stats=True,
        )
    return VLLMPolicy(shape, engine=engine)


def _shape(source: str, trust_remote_code: bool) -> Any:
    """The model on the meta device."""
    config = text_part(source, trust_remote_code, None).get("config") or AutoConfig.from_pretrained(
        source, trust_remote_code=trust_remote_code
    )
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    if (Path(source) / "generation_config.json").is_file() or not Path(source).is_dir():
        shape.generation_config = GenerationConfig.from_pretrained(source)
    return shape.eval()


def load_vllm_policies(
    names: Sequence[str | Path], *, device: str | torch.device | None = None, **options: Any
) -> list[VLLMPolicy]:
    """`rewards.loading.load_policies` with vLLM: each model once.

    Args:
        names: of the models.
        device: "auto" or None; vLLM chooses its own.
        options: of `load_vllm_policy`.

    Raises:
        UsageError: another device. ModelError: see `load_vllm_policy`.
    """
    if device not in (None, "auto"):
        raise UsageError(f"device={device} has no effect on vLLM, which takes the first it sees: leave it at auto")
    loaded = {name: load_vllm_policy(name, **options) for name in dict.fromkeys(map(str, names))}
    return [loaded[str(name)] for name in names]
