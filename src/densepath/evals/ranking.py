"""Best of n: the completions of a prompt by falling dense reward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from densepath.data.context import check_context
from densepath.data.encode import Encoded, encode_pair
from densepath.data.rows import Row, Turns, canonical_json, is_conversational, short, template_arguments
from densepath.errors import DataError, ModelError, UsageError
from densepath.evals.signals import Aggregation, aggregate
from densepath.models.compat import eos_token_ids
from densepath.rewards.dense import DenseReward


@dataclass(frozen=True)
class Ranking:
    """The completions of one prompt, ranked.

    Attributes:
        order: index of each completion as given, the best first; of equal ones the earlier first.
        scores: what each is ranked by, as given; `sums` or `means` or the lowest token.
        sums: reward of each whole completion, nats.
        means: mean reward of its tokens, nats per token.
        num_tokens: its length, EOS included.
    """

    order: list[int]
    scores: list[float]
    sums: list[float]
    means: list[float]
    num_tokens: list[int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, in the layout of the server's `/v1/rank`."""
        columns = zip(self.scores, self.sums, self.means, self.num_tokens, strict=True)
        return {
            "order": self.order,
            "results": [{"score": a, "sum": b, "mean": c, "num_tokens": n} for a, b, c, n in columns],
        }


@dataclass(frozen=True)
class CompletionGroup:
    """The completions of one prompt.

    Attributes:
        prompt: text, or a list of turns.
        completions: text, or a list of one assistant turn, each.
        rows: number of the row (from 1) that each completion came from.
        row: the first of these rows, for its other columns.
    """

    prompt: Any
    completions: list[Any]
    rows: list[int]
    row: Row

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the row gives the chat template: part of what was asked."""
        return template_arguments(self.row)


def group_completions(rows: Iterable[Row], source: str = "the data set") -> list[CompletionGroup]:
    """Groups to rank: each row with `completions`, or all rows with one `prompt` and a `completion` each.

    Turns that are asked with other `tools` or `chat_template_kwargs` are another prompt.

    Args:
        rows: with `prompt` and either `completions` or `completion`.
        source: their name in messages.

    Returns:
        Groups in the order in which their prompts first appear.

    Raises:
        DataError: a row without prompt or completion, an empty group, or both kinds in one data set.
    """
    groups: dict[str, CompletionGroup] = {}
    kinds: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if not row.get("prompt"):
            raise DataError(
                f'{where}: no "prompt"; give rows with "prompt" and "completions", or one "completion" each'
            )
        many, one = row.get("completions"), row.get("completion")
        if (many is None) == (one is None):
            raise DataError(
                f'{where}: give either "completions", a list, or "completion", to be grouped by the prompt; '
                f"{'neither is' if many is None else 'both are'} there"
            )
        kinds.setdefault("completion" if many is None else "completions", number)
        if len(kinds) > 1:
            raise DataError(f'{where}: rows with "completions" and rows with "completion" in one data set; split it')
        if many is not None:
            if not isinstance(many, (list, tuple)) or not many:
                raise DataError(
                    f'{where}: "completions" is {short(repr(many))}, not a list of at least one completion'
                )
            groups[str(number)] = CompletionGroup(row["prompt"], list(many), [number] * len(many), row)
            continue
        new = CompletionGroup(row["prompt"], [], [], row)
        try:
            group = groups.setdefault(canonical_json([row["prompt"], new.template_arguments]), new)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        group.completions.append(one)
        group.rows.append(number)
    if not groups:
        raise DataError(f"{source}: no rows; give at least one example")
    return list(groups.values())


def rank_completions(
    reward: DenseReward,
    prompts: Sequence[str | Turns],
    completions: Sequence[Sequence[str | Turns]],
    *,
    aggregation: Aggregation | str = Aggregation.SUM,
    on_progress: Callable[[int], None] | None = None,
    places: Sequence[str] | None = None,
    chat_template_kwargs: Sequence[Mapping[str, Any]] | None = None,
) -> list[Ranking]:
    """The completions of each prompt by falling reward.

    The sum is the undiscounted return of the method, and grows with the length of the answer: a token of the SFT
    policy earns a positive reward on average. The mean does not, and prefers short, sure answers. Look at both.

    Args:
        reward: the reward, with a tokenizer.
        prompts: text, or a list of turns, each.
        completions: for each prompt one or more completions: text, or a list of one assistant turn.
        aggregation: `sum`, `mean`, or `min`, the lowest token.
        on_progress: called with the number of completions that each forward pass finished.
        places: what to call each prompt in messages; its index by default.
        chat_template_kwargs: further arguments of the chat template for each prompt, `tools` among them.

    Returns:
        One ranking a prompt, in their order.

    Raises:
        DataError: a prompt without completions, or a completion that cannot be encoded or is too long for the models.
        UsageError: the reward has no tokenizer, or an aggregation that does not exist.
        NumericalError: NaN or infinity, with its place.
    """
    tokenizer = reward.tokenizer
    if tokenizer is None:
        raise UsageError("this DenseReward has no tokenizer to read text with: give it tokenizer=")
    how = Aggregation.of(aggregation)
    if len(prompts) != len(completions):
        raise DataError(f"{len(prompts)} prompts but {len(completions)} groups of completions")
    names = [f"prompt {index}" for index in range(len(prompts))] if places is None else places
    own = [{}] * len(prompts) if chat_template_kwargs is None else chat_template_kwargs
    groups = [
        _encode(
            prompt,
            group,
            functools.partial(encode_pair, tokenizer=tokenizer, chat_template_kwargs=given),
            reward.context,
            name,
        )
        for prompt, group, given, name in zip(prompts, completions, own, names, strict=True)
    ]
    # Equal completions are scored once, so that rounding cannot part them.
    distinct = {pair: index for index, pair in enumerate(dict.fromkeys(pair for group in groups for pair in group))}
    scores = reward.score_ids(
        [pair.prompt_ids for pair in distinct],
        [pair.completion_ids for pair in distinct],
        eos_token_ids=eos_token_ids(reward.sft.model, tokenizer),
        on_progress=on_progress,
    )
    tokens = [values.double().cpu().numpy() for values in scores.rewards]
    rankings = []
    for group in groups:
        found = [tokens[distinct[pair]] for pair in group]
        ranked_by = [aggregate(values, how) for values in found]
        rankings.append(
            Ranking(
                order=sorted(range(len(found)), key=lambda index: -ranked_by[index]),
                scores=ranked_by,
                sums=[aggregate(values, Aggregation.SUM) for values in found],
                means=[aggregate(values, Aggregation.MEAN) for values in found],
                num_tokens=[values.size for values in found],
            )
        )
    return rankings


def _encode(
    prompt: str | Turns,
    completions: Sequence[str | Turns],
    encode: Callable[[str | Turns, str | Turns], Encoded],
    context: int,
    place: str,
) -> list[Encoded]:
    if isinstance(completions, str) or any(isinstance(each, Mapping) for each in completions):
        raise DataError(f'{place}: "completions" is one completion, {short(repr(completions))}; give a list of them')
    if not completions:
        raise DataError(f'{place}: "completions" is empty; give at least one, or leave the prompt out')
    found = []
    for index, completion in enumerate(completions):
        if is_conversational(completion) != is_conversational(prompt):
            raise DataError(f"{place}: completion {index} and the prompt differ in kind; make both text or both turns")
        if is_conversational(completion) and len(completion) != 1:
            raise DataError(
                f"{place}: completion {index} has {len(completion)} turns, and answers to one prompt are ranked: "
                "give the last turn alone, with those before it in the prompt"
            )
        try:
            found.append(encode(prompt, completion))
        except (DataError, ModelError) as error:
            raise type(error)(f"{place}, completion {index}: {error}") from error
        tokens = len(found[-1].prompt_ids) + len(found[-1].completion_ids)
        check_context(tokens, context, f"{place}, completion {index}")
    return found
