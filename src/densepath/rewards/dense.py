"""`DenseReward`: an SFT model and its references as one object that grades every token of a completion."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densepath.core.masks import lengths_to_mask
from densepath.core.rewards import ReferenceMean, inverse_bellman, pair_rewards, reference_logprobs
from densepath.data.context import check_context
from densepath.data.encode import Encoded, encode_pair, encode_row_prompt
from densepath.data.rows import TEMPLATE_COLUMNS, Turns, template_arguments
from densepath.data.spans import read_tokens
from densepath.errors import ConfigError, DataError, ModelError, UsageError
from densepath.io import read_json, write_json_atomic
from densepath.models.compat import check_vocabularies
from densepath.models.compat import eos_token_ids as ending_ids
from densepath.models.identity import differences, model_identity
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET, CompletionScores, naming
from densepath.rewards.frozen import FrozenPolicy
from densepath.rewards.loading import load_common_tokenizer, load_policies
from densepath.rewards.scores import DenseScores

REWARD_FILE = "dense_reward.json"
_SAVED = ("kind", "reference_mean", "scale", "clip", "floor")


class RewardKind(str, Enum):
    """How a pair of models is read; see `densepath.core.rewards`."""

    BASELINE_RELATIVE = "baseline_relative"
    LOGPROB = "logprob"
    INVERSE_BELLMAN = "inverse_bellman"


class DenseReward:
    """The token-level reward hidden in an SFT model: `log pi_SFT - log pi_ref` on given tokens, in nats.

    It is also a reward function for TRL's trainers: `GRPOTrainer(reward_funcs=[DenseReward.from_models(...)])`.

    Args:
        sft: the SFT policy.
        ref: the reference, or several: an earlier checkpoint of the same run, an average of its weights, the model
            before SFT, or any model with the same tokenizer. Needed by `baseline_relative` alone.
        kind: which reading; `baseline_relative` is the method's.
        tokenizer: needed by `score` and by the call as a reward function, and for models with different numbers of
            embedding rows (padding to a multiple, added tokens); `score_ids` does without.
        reference_mean: several references are one by the arithmetic mean of their probabilities, or the geometric
            (the mean of the rewards against each).
        scale: factor on the reward; for a DPO model and its reference, DPO's beta.
        clip: rewards are cut at plus and minus this, nats; None for none.
        floor: log-probabilities are raised to at least this, nats; None for none.
        token_budget: tokens in one forward pass.

    Raises:
        ModelError: `baseline_relative` without a reference, or models that do not score every id of the tokenizer.
        ConfigError: a scale, clip or floor that makes no sense.

    Source: the paper; `core.rewards.pair_rewards` says what is ours.
    """

    def __init__(
        self,
        sft: FrozenPolicy | Any,
        ref: FrozenPolicy | Any | Sequence[Any] | None = None,
        *,
        kind: RewardKind | str = RewardKind.BASELINE_RELATIVE,
        tokenizer: Any = None,
        reference_mean: ReferenceMean | str = ReferenceMean.ARITHMETIC,
        scale: float = 1.0,
        clip: float | None = None,
        floor: float | None = None,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
    ) -> None:
        self.kind = RewardKind(kind)
        self.sft = _frozen(sft)
        given = [] if ref is None else list(ref) if isinstance(ref, (list, tuple)) else [ref]
        self.refs = tuple(map(_frozen, given)) if self.kind is RewardKind.BASELINE_RELATIVE else ()
        self.tokenizer = tokenizer
        self.reference_mean = ReferenceMean(reference_mean)
        self.scale, self.clip, self.floor = scale, clip, floor
        self.token_budget = token_budget
        self.sources: dict[str, Any] | None = None
        self.__name__ = "dense_reward"  # what TRL calls the reward in its logs
        if not self.refs and self.kind is RewardKind.BASELINE_RELATIVE:
            raise ModelError("the baseline_relative reward needs a reference model; name one, or use reward=logprob")
        _check_shaping(self.kind, scale, clip, floor)
        names = ["reference" if len(self.refs) == 1 else f"reference {i}" for i, _ in enumerate(self.refs, start=1)]
        models = {"SFT model": self.sft.model, **dict(zip(names, (ref.model for ref in self.refs), strict=True))}
        check_vocabularies(models, tokenizer)

    def __repr__(self) -> str:
        """The models by name, the reading, and whatever is not as usual."""
        given = self.sources or {"sft": self.sft.name, "refs": [ref.name for ref in self.refs]}
        refs = {"ref": given["refs"] if len(self.refs) > 1 else given["refs"][0]} if self.refs else {}
        models = {"sft": given["sft"], **refs, "kind": self.kind.value}
        usual = {"scale": 1.0, "clip": None, "floor": None}
        own = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        own |= {"reference_mean": self.reference_mean.value} if len(self.refs) > 1 else {}
        return f"DenseReward({', '.join(f'{name}={value!r}' for name, value in {**models, **own}.items())})"

    # -- from and to disk --------------------------------------------------------------------------------------

    @classmethod
    def from_models(
        cls,
        sft: str | Path,
        ref: str | Path | Sequence[str | Path] | None = None,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
        eos_token: str | None = None,
        chat_template_path: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        load: Callable[..., Sequence[FrozenPolicy]] = load_policies,
        **settings: Any,
    ) -> DenseReward:
        """The reward of models by name: hub ids, model folders or adapter folders.

        Adapters of one base, and that base, share it in memory.

        Args:
            sft: the SFT policy.
            ref: the reference, or several.
            dtype: of the weights. Scorers stay float32: bfloat16 added 0.08 nats a token (docs/reward.md).
            device: None: CPU; "auto": CUDA where there is one.
            trust_remote_code: run Python code that comes with the weights.
            eos_token, chat_template_path, chat_template_kwargs: how text is read, as for `load_tokenizer`.
            load: makes policies of the names; `rewards.vllm_policy.load_vllm_policies` puts them into vLLM.
            settings: the other arguments of `DenseReward`.

        Raises:
            MissingFileError, ModelError: models that cannot be loaded or do not fit each other.
        """
        refs: list[str | Path] = [] if ref is None else [ref] if isinstance(ref, (str, Path)) else list(ref)
        if RewardKind(settings.get("kind", RewardKind.BASELINE_RELATIVE)) is not RewardKind.BASELINE_RELATIVE:
            refs = []
        tokenizer = load_common_tokenizer(
            sft,
            refs,
            trust_remote_code=trust_remote_code,
            eos_token=eos_token,
            chat_template_path=chat_template_path,
            chat_template_kwargs=chat_template_kwargs,
        )
        policies = load([sft, *refs], dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        reward = cls(policies[0], policies[1:], tokenizer=tokenizer, **settings)
        reward.sources = {"sft": str(sft), "refs": [str(name) for name in refs]}
        return reward

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `dense_reward.json`: which models, and how they are read. The weights stay where they are.

        A model below `save_directory` is named relative to it, so that the folder may move.

        Raises:
            UsageError: the models were given as objects, which have no place on disk.
        """
        if self.sources is None:
            raise UsageError(
                "this DenseReward was made from model objects: save the models, then use DenseReward.from_models"
            )
        folder = Path(save_directory).expanduser().resolve()
        models = {
            "sft": _portable(self.sources["sft"], folder),
            "refs": [_portable(name, folder) for name in self.sources["refs"]],
        }
        settings = {name: getattr(self, name) for name in _SAVED}
        identities = [model_identity(name) for name in (self.sources["sft"], *self.sources["refs"])]
        write_json_atomic(folder / REWARD_FILE, {"format": 1, **models, **settings, "identities": identities})

    @classmethod
    def from_pretrained(cls, pretrained_path: str | Path, **kwargs: Any) -> DenseReward:
        """The reward that `save_pretrained` wrote.

        Args:
            pretrained_path: the folder that holds `dense_reward.json`.
            kwargs: what the file does not say: `dtype`, `device`, `token_budget`, and how text is read.

        Raises:
            MissingFileError: no such file. DamagedFileError: it is no JSON. ConfigError: it is not one of ours.
            ModelError: see `from_models`.
        """
        settings, (sft, *refs) = saved_reward(pretrained_path)
        return cls.from_models(sft, refs, **{**settings, **kwargs})

    # -- scoring -----------------------------------------------------------------------------------------------

    @property
    def passes(self) -> int:
        """Models scored for one reward: how often each completion is counted by `on_progress`."""
        return 1 + len(self.refs)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its completion that every model scores."""
        return min(policy.context for policy in (self.sft, *self.refs))

    def from_logprobs(self, sft_logprobs: Tensor, ref_logprobs: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Rewards from log-probabilities, of sampled tokens or of whole-vocabulary rows alike.

        Not for `inverse_bellman`, which reads the value of the next state too.

        Args:
            sft_logprobs: (...) float, nats.
            ref_logprobs: one such tensor for each reference.
            mask: (...) bool, True = counts.
        """
        return pair_rewards(
            sft_logprobs,
            ref_logprobs,
            mask,
            reference_mean=self.reference_mean,
            scale=self.scale,
            floor=self.floor,
            clip=self.clip,
        )

    def score_ids(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        eos_token_ids: Sequence[int] | None = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> DenseScores:
        """Rewards of completions given as the very token ids that were sampled or demonstrated.

        Args:
            prompt_ids: ids of each prompt.
            completion_ids: ids of each completion, EOS included.
            eos_token_ids: ids that end a completion; only `inverse_bellman` asks whether one did. None: every
                completion is taken as ended, which pays V back where one was cut, as what is trained on needs it.
            on_progress: called with the number of sequences that each forward pass finished.

        Raises:
            NumericalError: NaN or infinity, with the model and the place.
        """
        with naming("the SFT model"):
            sft = self.sft.score(prompt_ids, completion_ids, self.token_budget, on_progress)
        ids = [list(tokens) for tokens in completion_ids]
        if self.kind is RewardKind.INVERSE_BELLMAN:
            rewards = self._inverse_bellman(prompt_ids, completion_ids, sft, eos_token_ids)
            return DenseScores(rewards, sft.logprobs, [], sft.entropies, ids)
        found = []
        for number, ref in enumerate(self.refs, start=1):
            with naming("the reference" if len(self.refs) == 1 else f"reference {number}"):
                found.append(ref.score(prompt_ids, completion_ids, self.token_budget, on_progress).logprobs)
        refs = list(zip(*found, strict=True))  # by completion
        rewards = [
            self.from_logprobs(values, refs[index] if refs else (), torch.ones_like(values, dtype=torch.bool))
            for index, values in enumerate(sft.logprobs)
        ]
        ref_logprobs = [reference_logprobs(values, self.reference_mean) for values in refs]
        return DenseScores(rewards, sft.logprobs, ref_logprobs, sft.entropies, ids)

    def score(
        self,
        prompts: Sequence[str | Turns],
        completions: Sequence[str | Turns],
        *,
        chat_template_kwargs: Sequence[Mapping[str, Any]] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> DenseScores:
        """Rewards of completions given as text or as an assistant turn, each with its prompt.

        EOS is appended to a completion and scored: ending there is an action too.

        Args:
            prompts: text, or a list of turns, each.
            completions: text where the prompt is text, a list of one assistant turn where it is turns.
            chat_template_kwargs: further arguments of the chat template for each prompt, `tools` among them.
            on_progress: called with the number of completions that each forward pass finished.

        Returns:
            DenseScores, texts and offsets included.

        Raises:
            DataError: not one completion a prompt, or one that cannot be encoded or is longer than `context`; the
                message names which.
            UsageError: no tokenizer was given.
            NumericalError: NaN or infinity, with its place.
        """
        tokenizer = self._tokenizer()
        if len(prompts) != len(completions):
            raise DataError(f"{len(prompts)} prompts but {len(completions)} completions")
        own = [{}] * len(prompts) if chat_template_kwargs is None else chat_template_kwargs
        pairs = [
            self._encoded(index, prompt, completion, given)
            for index, (prompt, completion, given) in enumerate(zip(prompts, completions, own, strict=True))
        ]
        scores = self.score_ids(
            [pair.prompt_ids for pair in pairs],
            [pair.completion_ids for pair in pairs],
            eos_token_ids=ending_ids(self.sft.model, tokenizer),
            on_progress=on_progress,
        )
        for pair in pairs:
            scores.read.append(read_tokens(pair.completion_ids, tokenizer))
        return scores

    def __call__(
        self,
        prompts: Sequence[str | Turns],
        completions: Sequence[str | Turns],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """A reward function in TRL's form: the reward of each completion, summed over its tokens, nats.

        `inverse_bellman` pays V back where a completion was cut: else a policy would be trained away from the cut.

        A trainer of TRL tells it neither its `chat_template_kwargs` nor its `tools`: give the former to `from_models`
        too, and train with tools by `DPRTrainer`. Else another prompt is scored than was sampled from.

        Args:
            prompts: text, or a list of turns, each.
            completions: the completions; read only where `completion_ids` are missing.
            completion_ids: the sampled ids, which TRL's trainers give; scored as they are.
            kwargs: the other columns and arguments that TRL passes; of these a row's template arguments are read.

        Raises:
            UsageError: a completion with a tool's turn, whose tokens are no actions; or no tokenizer was given.
            DataError, NumericalError: as `score`.
        """
        for index, completion in enumerate(completions):
            turns = completion if isinstance(completion, (list, tuple)) else ()
            if any(isinstance(turn, Mapping) and turn.get("role") == "tool" for turn in turns):
                raise UsageError(
                    f"completion {index} holds a tool's turn, whose tokens would be graded as the policy's: train "
                    "with DPRTrainer, which leaves them out"
                )
        own = {name: kwargs[name] for name in TEMPLATE_COLUMNS if kwargs.get(name) is not None}
        rows = [{"prompt": p, **{name: own[name][i] for name in own}} for i, p in enumerate(prompts)]
        if completion_ids is None:
            given = [template_arguments(row) for row in rows]
            return list(map(float, self.score(prompts, completions, chat_template_kwargs=given).sums))
        tokenizer = self._tokenizer()
        scores = self.score_ids(
            [encode_row_prompt(row, tokenizer) for row in rows],
            completion_ids,
            eos_token_ids=None,
        )
        return list(map(float, scores.sums))

    def encode(
        self,
        prompt: str | Turns,
        completion: str | Turns,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoded:
        """Token ids of a prompt and a completion, as `score` reads them: EOS is appended to the completion.

        Args:
            prompt: text, or a list of turns.
            completion: text, or, where the prompt is turns, a list of one assistant turn.
            chat_template_kwargs: further arguments of the chat template, `tools` among them.

        Raises:
            DataError, ModelError: what cannot be encoded. UsageError: no tokenizer was given.
        """
        if isinstance(completion, str) and not isinstance(prompt, str):
            completion = [{"role": "assistant", "content": completion}]
        return encode_pair(prompt, completion, self._tokenizer(), chat_template_kwargs=chat_template_kwargs)

    def _encoded(
        self, index: int, prompt: str | Turns, completion: str | Turns, chat_template_kwargs: Mapping[str, Any]
    ) -> Encoded:
        try:
            pair = self.encode(prompt, completion, chat_template_kwargs)
        except (DataError, ModelError) as error:
            raise type(error)(f"completion {index}: {error}") from error
        check_context(len(pair.prompt_ids) + len(pair.completion_ids), self.context, f"completion {index}")
        return pair

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise UsageError(
                "this DenseReward has no tokenizer to read text with: give it tokenizer=, or use score_ids"
            )
        return self.tokenizer

    def _inverse_bellman(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        sft: CompletionScores,
        eos_token_ids: Sequence[int] | None,
    ) -> list[Tensor]:
        # V of the state after the last token is read where one more token would be predicted; which one that
        # is does not matter to the normaliser.
        longer = [[*ids, 0] for ids in completion_ids]
        values = self.sft.score(prompt_ids, longer, self.token_budget).log_normalizers
        rewards = []
        for ids, logprobs, state_values in zip(completion_ids, sft.logprobs, values, strict=True):
            mask = lengths_to_mask(torch.tensor([len(ids)]), len(ids))
            ended = torch.tensor([eos_token_ids is None or (bool(ids) and ids[-1] in set(eos_token_ids))])
            logits = logprobs + state_values[:-1]
            rewards.append(inverse_bellman(logits.unsqueeze(0), state_values.unsqueeze(0), mask, ended)[0])
        return rewards


def _frozen(model: Any) -> FrozenPolicy:
    return model if isinstance(model, FrozenPolicy) else FrozenPolicy(model)


def _check_shaping(kind: RewardKind, scale: float, clip: float | None, floor: float | None) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"scale={scale} must be a number above 0")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip={clip} must be above 0, in nats")
    if floor is not None and not floor < 0:
        raise ConfigError(f"floor={floor} must be below 0: it is a log-probability, in nats")
    if kind is RewardKind.INVERSE_BELLMAN and (scale != 1.0 or clip is not None or floor is not None):
        raise ConfigError("scale, clip and floor are for rewards made of log-probabilities, not for inverse_bellman")


def _portable(name: str, folder: Path) -> str:
    """A model's name for the file: relative below `folder`, absolute elsewhere; a hub id as it is."""
    path = Path(name).expanduser().resolve()
    if not path.is_dir():
        return name
    return os.path.join(".", path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def saved_reward(pretrained_path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Settings of a reward that `save_pretrained` wrote, and its models, the SFT model first; loads none.

    Raises:
        MissingFileError: no such file. DamagedFileError: it is no JSON. ConfigError: it is not one of ours.
        ModelError: a model is another than it was.
    """
    folder = Path(pretrained_path).expanduser()
    path = folder / REWARD_FILE
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != 1 or not {"sft", "refs", *_SAVED} <= set(record):
        raise ConfigError(f"{path}: not a file that DenseReward.save_pretrained of this version wrote")
    models = [_resolved(name, folder) for name in (record["sft"], *record["refs"])]
    for name, identity in zip(models, record.get("identities", ()), strict=False):  # early files have none
        changed = differences(identity, model_identity(name)) if identity else []
        if changed:
            raise ModelError(f"{path}: {name} is another model than it was ({', '.join(changed)} changed): save anew")
    return {name: record[name] for name in _SAVED}, models


def _resolved(name: str, folder: Path) -> str:
    return str(folder / name) if name.startswith(f".{os.sep}") else name
