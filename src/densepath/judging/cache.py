"""Replies that were paid for, on disk: a file for each request, named by all that decides what it would say."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.errors import DataError, MissingFileError
from densepath.io import read_json, write_json_atomic
from densepath.judging.verdicts import Reply
from densepath.records.codec import from_json, to_json

_ABOUT = ("endpoint", "model", "parameters")


@dataclass(frozen=True)
class Asked:
    """A request as an endpoint gets it.

    Attributes:
        endpoint: its base URL.
        model: its name there.
        messages: `role` and `content` of each turn.
        parameters: everything else that is sent.
        repeat: which of the repeated requests, from 0; it is not sent.
    """

    endpoint: str
    model: str
    messages: tuple[Mapping[str, str], ...]
    parameters: Mapping[str, Any]
    repeat: int

    @property
    def key(self) -> str:
        """SHA-256 of all of it, in hex."""
        return _sha256(to_json(self))


class ReplyCache:
    """A folder of replies; several processes may use it at once.

    Args:
        folder: made where it is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, asked: Asked) -> Path:
        """Where the reply to a request lies."""
        key = asked.key
        return self.folder / key[:2] / f"{key}.json"

    def is_empty(self) -> bool:
        """Whether no reply was ever kept here."""
        return next(self.folder.glob("*/*.json"), None) is None

    def any_first(self, asked: Asked) -> bool:
        """Whether any reply of that endpoint and model, to the same parameters, tells tokens that might come first."""
        for path in self.folder.glob("*/*.json"):
            with suppress(MissingFileError, DataError):  # nothing may ask for it: where something does, `get` tells
                about, reply = _entry(path)
                if about == _about(asked) and reply.first is not None:
                    return True
        return False

    def get(self, asked: Asked) -> Reply | None:
        """The reply; None where there is none. A damaged one is told in a warning, and as good as none."""
        path = self.path(asked)
        try:
            return _entry(path)[1]
        except MissingFileError:
            return None
        except DataError as error:
            warnings.warn(f"{path}: damaged entry of the judge's cache ({error}); it is asked again", stacklevel=2)
            return None

    def put(self, asked: Asked, reply: Reply) -> None:
        """Keep a reply, on disk when this returns; the request is kept beside it without its messages.

        Raises:
            StorageError: it cannot be written.
        """
        said = to_json(reply)
        entry = {"sha256": _sha256(said), **_about(asked), "repeat": asked.repeat, "reply": said}
        write_json_atomic(self.path(asked), entry)


def _entry(path: Path) -> tuple[dict[str, Any], Reply]:
    """What stands beside a reply, and the reply.

    Raises:
        MissingFileError: there is none.
        DataError: it is damaged.
    """
    try:
        entry = read_json(path)
        if entry["sha256"] != _sha256(entry["reply"]):
            raise DataError("its content was changed")
        return {name: entry[name] for name in _ABOUT}, from_json(Reply, entry["reply"])
    except (MissingFileError, DataError):
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("it is cut short or no longer JSON") from error


def _about(asked: Asked) -> dict[str, Any]:
    """What is kept of a request beside its repeat."""
    return {name: getattr(asked, name) for name in _ABOUT}


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
