"""What clients send and get, as pydantic models: they check requests, and the OpenAPI description is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

_QUESTION = "Name a prime number."


def _kind(value: Any) -> str:
    """Which of two request models reads a value: by its prompt, so that an error names the right fields."""
    prompt = value.get("prompt") if isinstance(value, Mapping) else getattr(value, "prompt", None)
    return "chat" if isinstance(prompt, list) else "text"


def _unicode(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can say and no text holds: a tokenizer would fail on it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "unicode", "no text: character {place} is half of a surrogate pair", {"place": error.start}
        ) from None
    return text


Unicode = Annotated[str, AfterValidator(_unicode)]
"""Text that has a UTF-8 form."""


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(_Sent):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: Unicode


class AssistantMessage(_Sent):
    """The answer, as a turn."""

    role: Literal["assistant"]
    content: Unicode


_Text = Annotated[str, Field(min_length=1, description="Plain text, tokenised as it is."), AfterValidator(_unicode)]
_Turns = Annotated[
    list[Message], Field(min_length=1, description="The turns before the answer, rendered by the chat template.")
]
_Turn = Annotated[list[AssistantMessage], Field(min_length=1, max_length=1)]
_Aggregation = Annotated[
    Literal["sum", "mean"], Field(description="Rank by the sum of the rewards, or by their mean per token.")
]


class TextItem(_Sent):
    """A prompt and a completion as plain text. EOS is appended to the completion and scored."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": _QUESTION, "completion": " Seven."}})

    prompt: _Text
    completion: Unicode


class ChatItem(_Sent):
    """A conversation and its answer: text or one assistant turn, rendered by the chat template."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": [{"role": "user", "content": _QUESTION}], "completion": "Seven."}}
    )

    prompt: _Turns
    completion: Unicode | _Turn


Item = Annotated[Annotated[TextItem, Tag("text")] | Annotated[ChatItem, Tag("chat")], Discriminator(_kind)]


class ScoreRequest(_Sent):
    """Completions to grade, each with its prompt."""

    items: Annotated[list[Item], Field(min_length=1)]
    logprobs: bool = Field(False, description="Also return the log-probabilities that the rewards are made of.")


class TextRank(_Sent):
    """A prompt and completions of it as plain text."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": _QUESTION, "completions": [" Seven.", " Six."]}}
    )

    prompt: _Text
    completions: Annotated[list[Unicode], Field(min_length=1)]
    aggregation: _Aggregation = "sum"


class ChatRank(_Sent):
    """A conversation and answers to it: text or one assistant turn each."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"prompt": [{"role": "user", "content": _QUESTION}], "completions": ["Seven.", "Six."]}
        }
    )

    prompt: _Turns
    completions: Annotated[list[Unicode | _Turn], Field(min_length=1)]
    aggregation: _Aggregation = "sum"


RankRequest = Annotated[Annotated[TextRank, Tag("text")] | Annotated[ChatRank, Tag("chat")], Discriminator(_kind)]


class GetRewardRequest(_Sent):
    """What OpenRLHF sends to its `remote_rm_url`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"query": [f"{_QUESTION} Seven."], "prompts": [_QUESTION], "labels": [""]}}
    )

    query: Annotated[list[_Text], Field(min_length=1, description="Prompt and answer, special tokens written out.")]
    prompts: list[Unicode] | None = Field(
        None, description="The prompts; null: answers begin behind the chat template's generation prompt."
    )
    labels: Any = Field(None, description="Not read.")


class GetRewardResponse(BaseModel):
    """One reward an item, in the order sent."""

    rewards: list[float] = Field(description="Reward of each whole answer, nats.")


class ClassifyRequest(BaseModel):
    """What verl sends to its reward model's server: vLLM's form; further fields are not read."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "example": {"input": f"<|im_start|>user\n{_QUESTION}<|im_end|>\n<|im_start|>assistant\nSeven.<|im_end|>\n"}
        },
    )

    input: _Text | Annotated[list[_Text], Field(min_length=1)] = Field(
        description="Conversations as the chat template renders them, each with its answer at the end."
    )
    model: str | None = Field(None, description="Not read: the server has one reward.")
    use_activation: Literal[False] | None = Field(None, description="The reward is given as it is, in nats.")


class Classified(BaseModel):
    """The reward of one conversation's last answer."""

    index: int
    label: str = "reward"
    probs: list[float] = Field(description="One number, which is no probability: the reward of the answer, nats.")
    num_classes: int = 1


class ClassifyResponse(BaseModel):
    """One result a conversation, in the order sent."""

    object: Literal["list"] = "list"
    model: str
    data: list[Classified]


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int = Field(description="Of the prompts, each counted with each of its completions.")
    completion_tokens: int = Field(description="Of the completions, EOS included.")


class ItemScores(BaseModel):
    """The dense reward of one completion; the lists have one entry a token, EOS included."""

    text: str = Field(description="The completion as its tokens decode, without EOS.")
    token_ids: list[int]
    tokens: list[str] = Field(description="Text of each token; tokens that share a character repeat it.")
    offsets: list[tuple[int, int]] = Field(description="Start and end of each token in text, in code points.")
    rewards: list[float] = Field(description="Nats.")
    sum: float = Field(description="Reward of the whole completion, nats.")
    mean: float = Field(description="Nats per token.")
    sft_logprobs: list[float] | None = Field(None, description="log pi_SFT, nats; if asked for.")
    ref_logprobs: list[float] | None = Field(None, description="log pi_ref, nats; if asked for and there is one.")


class ScoreResponse(BaseModel):
    """One result an item, in the order sent."""

    results: list[ItemScores]
    usage: Usage


class CompletionReward(BaseModel):
    """The reward of a whole completion."""

    score: float = Field(description="What it is ranked by: sum or mean.")
    sum: float = Field(description="Nats.")
    mean: float = Field(description="Nats per token.")
    num_tokens: int = Field(description="EOS included.")


class RankResponse(BaseModel):
    """Completions by falling score; of equal ones the earlier first."""

    order: list[int] = Field(description="Index of each completion as sent, the best first.")
    results: list[CompletionReward] = Field(description="In the order sent.")
    usage: Usage


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"


class ModelInfo(BaseModel):
    """What this server scores with, and its limits."""

    model_name_or_path: str
    ref_model_name_or_path: list[str]
    dense_reward: str
    max_length: int | None = Field(description="Most tokens of one prompt with its completion; null: no bound.")
    max_items: int
    max_request_bytes: int
    max_request_tokens: int
    request_timeout: float = Field(description="Seconds.")


class ErrorDetail(BaseModel):
    """Why a request was not answered as asked."""

    message: str
    type: str
    param: str | None = Field(description="Which part of the request, as in items[3].prompt.")
    code: int = Field(description="The HTTP status.")


class ErrorResponse(BaseModel):
    """The shape of every error."""

    error: ErrorDetail
