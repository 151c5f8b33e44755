"""The models that a view may score with: those named when it was started, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from densepath.data.context import check_context
from densepath.data.rows import Turns
from densepath.errors import UsageError
from densepath.report.view import ScoreView, view_scores
from densepath.rewards.dense import DenseReward, RewardKind
from densepath.rewards.loading import load_common_tokenizer, load_policies


class RewardChoices:
    """SFT models and references, loaded once, of which any pair may be asked for by name.

    Adapters of one base share it in memory. Not for several threads at once.

    Args:
        sft: names of SFT models, at least one.
        ref: names of references; without any there are only readings that need none.
        first: the reading that stands first among the choices.
        token_budget: tokens in one forward pass.
        tokenizer: how text is read: the options of `load_tokenizer`.
        places: `dtype`, `device` and `trust_remote_code` of the models.

    Raises:
        MissingFileError, ModelError: a model that cannot be loaded, or tokenizers that differ.
    """

    def __init__(
        self,
        sft: Sequence[str],
        ref: Sequence[str] = (),
        *,
        first: str,
        token_budget: int,
        tokenizer: Mapping[str, Any] | None = None,
        **places: Any,
    ) -> None:
        self.sft, self.ref = list(dict.fromkeys(sft)), list(dict.fromkeys(ref))
        names = list(dict.fromkeys([*self.sft, *self.ref]))
        self.tokenizer = load_common_tokenizer(names[0], names[1:], **(tokenizer or {}))
        self._policies = dict(zip(names, load_policies(names, **places), strict=True))
        self._token_budget = token_budget
        kinds = [kind.value for kind in RewardKind if self.ref or kind is not RewardKind.BASELINE_RELATIVE]
        self.dense_rewards = [first, *(kind for kind in kinds if kind != first)]

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer can render turns."""
        return getattr(self.tokenizer, "chat_template", None) is not None

    def reward(self, sft: str, ref: str | None, dense_reward: str) -> DenseReward:
        """The reward of a pair.

        Raises:
            UsageError: a name that is not among the choices.
        """
        for name, value, known in (("sft", sft, self.sft), ("dense_reward", dense_reward, self.dense_rewards)):
            if value not in known:
                raise UsageError(f"{name}={value!r} is not among the choices of this server: {', '.join(known)}")
        if dense_reward == RewardKind.BASELINE_RELATIVE.value and ref not in self.ref:
            raise UsageError(f"ref={ref!r} is not among the choices of this server: {', '.join(self.ref)}")
        return DenseReward(
            self._policies[sft],
            self._policies.get(ref) if ref is not None else None,
            kind=dense_reward,
            tokenizer=self.tokenizer,
            token_budget=self._token_budget,
        )

    def view(
        self, prompt: str, completions: Sequence[str], *, sft: str, ref: str | None, dense_reward: str, chat: bool
    ) -> ScoreView:
        """One answer scored, or two of them compared.

        Args:
            prompt: what they answer.
            completions: one or two.
            sft, ref, dense_reward: as in `reward`.
            chat: read the prompt as a user's turn, where the tokenizer has a chat template.

        Raises:
            UsageError: a name that is not among the choices.
            DataError, ModelError: text that cannot be encoded, or that the context does not hold.
        """
        ref = ref if dense_reward == RewardKind.BASELINE_RELATIVE.value else None
        reward = self.reward(sft, ref, dense_reward)
        state: str | Turns = [{"role": "user", "content": prompt}] if chat and self.has_chat_template else prompt
        names = ["A", "B"] if len(completions) > 1 else ["answer"]
        for name, completion in zip(names, completions, strict=True):
            pair = reward.encode(state, completion)
            check_context(len(pair.prompt_ids) + len(pair.completion_ids), reward.context, name)
        scores = reward.score([state] * len(completions), list(completions))
        pair_shown = (0, 1) if len(completions) > 1 else None
        found = view_scores(
            scores, prompts=[prompt] * len(completions), labels=names, pair=pair_shown, tokenizer=self.tokenizer
        )
        facts = [("SFT model", sft), ("reference", ref), ("reward", dense_reward)]
        return ScoreView(
            rows=found.rows,
            comparison=found.comparison,
            title="A against B" if pair_shown else "answer",
            facts=tuple((name, value) for name, value in facts if value is not None),
        )
