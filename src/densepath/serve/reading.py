"""Requests as token ids, checked against the limits; scores as the texts and numbers that clients get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from densepath.data.encode import Encoded, encode_rendered
from densepath.data.spans import read_tokens
from densepath.errors import DataError, ModelError
from densepath.records.completion import completion_of
from densepath.rewards.scores import shortest_floats
from densepath.serve.engine import Scored
from densepath.serve.errors import ApiError
from densepath.serve.schemas import (
    ChatItem,
    ChatRank,
    CompletionReward,
    ItemScores,
    RankResponse,
    ScoreResponse,
    TextItem,
    TextRank,
    Usage,
)
from densepath.serve.settings import Limits

Encode = Callable[[Any, Any], Encoded]


def read_score_request(items: Sequence[TextItem | ChatItem], encode: Encode, limits: Limits) -> list[Encoded]:
    """Token ids of the items of a score request.

    Args:
        items: as sent.
        encode: (prompt, completion) -> ids, each text or turns.
        limits: `max_items`, `max_length`, `max_request_tokens`.

    Raises:
        ApiError: 413 for too much, 422 for an item that cannot be read; `param` says which.
    """
    _check_count(len(items), "items", limits)
    return _read([(item.prompt, item.completion, f"items[{i}]") for i, item in enumerate(items)], encode, limits)


def read_rank_request(request: TextRank | ChatRank, encode: Encode, limits: Limits) -> list[Encoded]:
    """Token ids of a rank request: its prompt with each completion; raises as `read_score_request`."""
    _check_count(len(request.completions), "completions", limits)
    prompt, completions = request.prompt, request.completions
    return _read([(prompt, text, f"completions[{i}]") for i, text in enumerate(completions)], encode, limits)


def read_rendered(
    texts: Sequence[str], prompts: Sequence[str] | None, name: str, tokenizer: Any, limits: Limits
) -> list[Encoded]:
    """Token ids of texts that hold a prompt and its answer each, as another trainer rendered them.

    Args:
        texts: as sent.
        prompts: the prompt of each; None where they are to be found by the chat template.
        name: of the field that holds the texts, for messages.
        tokenizer: of the reward.
        limits: as for `read_score_request`.

    Raises:
        ApiError: as `read_score_request`; 422 also where there are not as many prompts.
    """
    if prompts is not None and len(prompts) != len(texts):
        raise ApiError(
            422, f"{len(prompts)} prompts, and {name} has {len(texts)} texts; send one for each", param="prompts"
        )
    _check_count(len(texts), name, limits)
    given = [(None if prompts is None else prompts[i], text, f"{name}[{i}]") for i, text in enumerate(texts)]
    return _read(given, lambda prompt, text: encode_rendered(text, tokenizer, prompt), limits)


def _check_count(count: int, name: str, limits: Limits) -> None:
    if count > limits.max_items:
        raise ApiError(413, f"{count} {name}; at most {limits.max_items} in one request (max_items)", param=name)


def _read(given: Sequence[tuple[Any, Any, str]], encode: Encode, limits: Limits) -> list[Encoded]:
    pairs: list[Encoded] = []
    total = 0
    for prompt, completion, place in given:
        with _placed(place):
            pair = encode(_plain(prompt), _plain(completion))
        length = len(pair.prompt_ids) + len(pair.completion_ids)
        if limits.max_length is not None and length > limits.max_length:
            raise ApiError(
                422,
                f"{place}: prompt and completion have {length} tokens, at most {limits.max_length} (max_length) fit",
                param=place,
            )
        total += length
        if total > limits.max_request_tokens:
            raise ApiError(
                413, f"more than {limits.max_request_tokens} tokens in one request (max_request_tokens)", param=place
            )
        pairs.append(pair)
    return pairs


def _plain(value: Any) -> Any:
    """Text, and what is not there, as it is; turns as mappings."""
    return value if value is None or isinstance(value, str) else [turn.model_dump() for turn in value]


@contextmanager
def _placed(place: str) -> Iterator[None]:
    try:
        yield
    except (DataError, ModelError) as error:
        raise ApiError(422, f"{place}: {error}", param=place) from error


def score_response(
    pairs: Sequence[Encoded], scores: Sequence[Scored], logprobs: bool, tokenizer: Any
) -> ScoreResponse:
    """The answer to a score request."""
    results = []
    for pair, found in zip(pairs, scores, strict=True):
        ref = None if found.ref_logprobs is None else shortest_floats(found.ref_logprobs)
        completion = completion_of(
            read_tokens(pair.completion_ids, tokenizer),
            shortest_floats(found.rewards),
            sft_logprobs=shortest_floats(found.sft_logprobs) if logprobs else None,
            ref_logprobs=ref if logprobs else None,
        )
        results.append(ItemScores(**completion.to_json()))
    return ScoreResponse(results=results, usage=_usage(pairs))


def rank_response(pairs: Sequence[Encoded], scores: Sequence[Scored], aggregation: str) -> RankResponse:
    """The answer to a rank request."""
    results = []
    for found in scores:
        total, mean = float(found.rewards.sum()), float(found.rewards.mean())
        score = total if aggregation == "sum" else mean
        results.append(CompletionReward(score=score, sum=total, mean=mean, num_tokens=len(found.rewards)))
    order = sorted(range(len(results)), key=lambda index: -results[index].score)
    return RankResponse(order=order, results=results, usage=_usage(pairs))


def _usage(pairs: Sequence[Encoded]) -> Usage:
    return Usage(
        prompt_tokens=sum(len(pair.prompt_ids) for pair in pairs),
        completion_tokens=sum(len(pair.completion_ids) for pair in pairs),
    )
