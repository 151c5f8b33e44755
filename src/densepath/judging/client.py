"""One call of an endpoint that speaks OpenAI's protocol: a reply, or in which of three ways it failed."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import os
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from densepath.data.rows import short
from densepath.errors import ConfigError, DataError, UsageError
from densepath.judging.verdicts import REFUSED, Reply
from densepath.records.judging import Usage

OPENAI_URL = "https://api.openai.com/v1"
"""Where calls go without a base URL."""
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Statuses that may be gone when the call is sent again."""
_LEAST_SECRET = 8  # a shorter key is a placeholder, and may be a word of any reply


class Unwell(Exception):
    """A call that failed and may work when it is sent again.

    Attributes:
        wait: seconds after which the endpoint wants to be asked again; None where it says nothing.
        charged: whether the endpoint may charge for it.
        promising: whether it tells of an endpoint that answers others: nothing that came back does not, nor does a
            plain 500, which some servers say of each request for a model that they do not have.
    """

    def __init__(
        self, reason: str, *, wait: float | None = None, charged: bool = True, promising: bool = True
    ) -> None:
        super().__init__(reason)
        self.wait, self.charged, self.promising = wait, charged, promising


class Refused(Exception):
    """A call that the endpoint will always refuse: this request is not judged. It is not charged."""


@dataclass(frozen=True)
class Access:
    """Where an endpoint is, and what opens it.

    Attributes:
        base_url: of the endpoint, without user and password.
        key: of the endpoint; None where it needs none. It is shown nowhere.
        key_name: the environment variable that holds it.
    """

    base_url: str
    key: str | None
    key_name: str

    def __repr__(self) -> str:
        return f"Access({self.base_url!r}, key from {self.key_name})"

    def without_key(self, text: str) -> str:
        """The text with the key made unreadable wherever an endpoint repeats it, escaped as in JSON or a URL too."""
        if self.key is None or len(self.key) < _LEAST_SECRET:
            return text
        return re.sub("".join(map(_spelt, self.key)), f"<{self.key_name}>", text)

    def masked(self, value: Any) -> Any:
        """The same of every text in a JSON value."""
        if isinstance(value, str):
            return self.without_key(value)
        if isinstance(value, dict):
            return {self.without_key(name): self.masked(item) for name, item in value.items()}
        return [self.masked(item) for item in value] if isinstance(value, list) else value


def _spelt(letter: str) -> str:
    """A pattern of a letter as it is, behind the backslashes of JSON in JSON (four deep), or by its number."""
    code = f"{ord(letter):02x}"
    return rf"(?:\\{{0,15}}{re.escape(letter)}|(?i:\\{{1,15}}u00{code}|%{code}))"


def open_access(base_url: str | None, key_name: str | None) -> Access:
    """Where an endpoint is, with its key from the environment.

    Args:
        base_url: None for OpenAI's own.
        key_name: variable that holds the key; None: OPENAI_API_KEY for OpenAI's own endpoint, and no key for
            another, which it is not meant for.

    Raises:
        ConfigError: a URL that is none or holds a password, a variable that is not set, or a value that is no key.
    """
    url = (base_url or OPENAI_URL).rstrip("/")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"judge_base_url={short(url)} is no http or https address, like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ConfigError("judge_base_url holds a password or a query; put the key into a variable: judge_api_key_env")
    if key_name is None and parts.hostname != urllib.parse.urlsplit(OPENAI_URL).hostname:
        return Access(url, None, "judge_api_key_env")
    name = key_name or "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"no key: the environment variable {name} is not set; set it, or name another: judge_api_key_env"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"the environment variable {name} holds no key: a key is one word of ASCII characters")
    return Access(url, key, name)


class Client:
    """Calls one endpoint, one call at a time for each that waits. Lives in one event loop.

    Args:
        access: where, and with which key.
        timeout: seconds for a whole call, whatever it is that takes so long.

    Raises:
        ConfigError: `openai` is not installed.
    """

    def __init__(self, access: Access, timeout: float) -> None:
        openai = package()
        self.access, self.timeout = access, timeout
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=access.base_url, api_key=access.key or "none", max_retries=0, timeout=timeout
        )

    async def close(self) -> None:
        """Give the connections back."""
        with contextlib.suppress(Exception):
            await self._client.close()

    async def call(self, model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any]) -> Reply:
        """The endpoint's reply.

        Args:
            model: its name at the endpoint.
            messages: `role` and `content` of each turn.
            parameters: everything else of the call.

        Raises:
            Unwell: it failed and may work later.
            Refused: this request is never answered.
            UsageError: no request is answered: the key, the model or the endpoint is wrong.
        """
        openai = self._openai
        try:
            body = await asyncio.wait_for(self._body(model, messages, parameters), self.timeout)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise Unwell(f"no whole reply within {self.timeout:g} s", promising=False) from None
        except openai.APIStatusError as error:
            raise self._of_status(error, model) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            why = self.access.without_key(f"{type(cause).__name__}: {cause}" if cause else str(error))
            refused = isinstance(cause, Exception) and "Connect" in type(cause).__name__
            where = f"{self.access.base_url} cannot be reached" if refused else "the connection broke"
            raise Unwell(f"{where} ({short(why)})", charged=not refused, promising=not refused) from None
        except openai.OpenAIError as error:
            raise Refused(short(self.access.without_key(str(error)))) from None
        return self._read(body)

    async def _body(self, model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any]) -> bytes:
        """The bytes of the reply, whatever they are."""
        create = self._client.chat.completions.with_streaming_response.create
        try:
            async with create(model=model, messages=list(messages), extra_body=dict(parameters)) as response:
                found: bytes = await response.read()
                return found
        except (self._openai.OpenAIError, asyncio.CancelledError):
            raise
        except Exception as error:  # of the HTTP client that `openai` uses, while the body comes
            raise Unwell(f"the connection broke in the middle of the reply ({type(error).__name__})") from None

    def _of_status(self, error: Any, model: str) -> Exception:
        """What a status of 400 and more means."""
        status, said = int(error.status_code), self._said(error)
        code = str(getattr(error, "code", None) or "")
        if status == 403:  # of a key, or of what one request holds: a moderated one must not end all others
            return Refused(f"status 403: {said} (where all are refused so: is {self.access.key_name} the right key?)")
        if status == 401:
            has = f"the key in {self.access.key_name} is refused" if self.access.key else "a key is needed"
            return UsageError(
                f"{self.access.base_url}: {has} ({status}: {said}); put a valid key into an environment variable, and "
                "name it in judge_api_key_env"
            )
        if status == 404 or "model_not_found" in code:
            return UsageError(
                f"{self.access.base_url} knows no model {model!r}, or no chat completions ({status}: {said}); check "
                "judge, and judge_base_url, which mostly ends in /v1"
            )
        if "insufficient_quota" in code or status == 402:
            return UsageError(f"{self.access.base_url}: the account is used up ({status}: {said})")
        if status in _AGAIN or status >= 500:
            wait = retry_after(error.response.headers, time.time())
            promising = status != 500 or wait is not None
            return Unwell(f"status {status}: {said}", wait=wait, charged=False, promising=promising)
        return Refused(f"status {status}: {said}")

    def _said(self, error: Any) -> str:
        body = error.body if isinstance(error.body, Mapping) else {}
        message = body.get("message") or body.get("detail") or error.response.text
        return short(self.access.without_key(str(message or error.message)), 160)

    def _read(self, body: bytes) -> Reply:
        """The reply in a body.

        Raises:
            Unwell: it is cut short, or reports an error.
            UsageError: it is of another protocol.
        """
        text = body.decode("utf-8", "replace")
        try:
            value = self.access.masked(json.loads(text))
        except ValueError:
            if text.lstrip()[:1] == "{":
                raise Unwell("the reply is cut short: no whole JSON") from None
            raise self._foreign(text) from None
        if isinstance(value, Mapping) and value.get("error") and not value.get("choices"):
            raise Unwell(f"the reply is an error: {short(str(value['error']))}")
        try:
            return _reply_of(value)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise self._foreign(text) from None

    def _foreign(self, text: str) -> UsageError:
        return UsageError(
            f"{self.access.base_url} does not speak OpenAI's protocol: it replies "
            f"{short(self.access.without_key(text))!r}; check "
            "judge_base_url, which mostly ends in /v1"
        )


def package() -> Any:
    """The `openai` package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import openai
    except ImportError:
        raise ConfigError("an endpoint as judge needs the package openai: pip install openai") from None
    return openai


def _reply_of(value: Mapping[str, Any]) -> Reply:
    """What a chat completion says."""
    choices = value["choices"]
    charged = _usage_of(value.get("usage"))
    if not choices:
        return Reply("", None, charged, "no choice")
    choice = choices[0]
    message = choice["message"] or {}  # null where a filter held it back
    first = None
    told = (choice.get("logprobs") or {}).get("content")
    if told:
        tokens = (told[0], *(told[0].get("top_logprobs") or ()))
        top = {each["token"]: -math.inf if each["logprob"] is None else float(each["logprob"]) for each in tokens}
        first = tuple((token, logprob) for token, logprob in top.items() if math.isfinite(logprob))  # else it has none
    said, refused = message.get("content") or "", message.get("refusal")
    finish = REFUSED if refused and not said else choice.get("finish_reason")
    return Reply(str(said or refused or ""), first, charged, None if finish is None else str(finish))


def _usage_of(told: Any) -> Usage | None:
    """What a call was charged for, thoughts that stand in the total alone among it; None where numbers are missing."""
    if not isinstance(told, Mapping) or told.get("prompt_tokens") is None:
        return None
    try:
        read, total = int(told["prompt_tokens"]), int(told.get("total_tokens") or 0)
        return Usage(read, max(int(told.get("completion_tokens") or 0), total - read))
    except (TypeError, ValueError, OverflowError, DataError):
        return None


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds after which a response wants to be asked again; None where it says nothing that is understood.

    Args:
        headers: of the response.
        now: seconds since 1970, which a date in them is compared with.

    >>> retry_after({"retry-after": "2"}, 0.0), retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:09 GMT"}, 4.0)
    (2.0, 5.0)
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) * unit)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - now)
    return None
