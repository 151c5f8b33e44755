"""Who may use a server, from its arguments: the key, and a word where the door is open."""

from __future__ import annotations

import os
from pathlib import Path

from densepath.errors import ConfigError, MissingFileError
from densepath.serve.settings import Access, is_loopback
from densepath.terminal import Console, warn

API_KEY_VARIABLE = "DENSEPATH_API_KEY"
_SHORTEST_KEY = 16


def warn_if_open(host: str, access: Access, console: Console) -> None:
    """Say so where a server is reached from other machines."""
    if is_loopback(host):
        return
    guard = "who has the key" if access.api_key else "anyone, since there is no key (api_key_file)"
    warn(
        console, f"{host} is reached from other machines, by {guard}, and not encrypted; put a proxy with TLS in front"
    )


def read_api_key(path: str | None) -> str | None:
    """The bearer token: from a file, else from the environment, so that no list of processes shows it.

    Raises:
        MissingFileError: no such file. ConfigError: too short, or not printable ASCII without spaces.
    """
    if path is None:
        key, place = os.environ.get(API_KEY_VARIABLE), API_KEY_VARIABLE
        if key is None:
            return None
    else:
        place = f"api_key_file={path}"
        try:
            key = Path(path).expanduser().read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{place}: the key must be printable ASCII without spaces") from None
        except OSError as error:
            raise MissingFileError(f"{place}: cannot be read ({error.strerror})") from None
    key = key.strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{place}: the key must be printable ASCII without spaces")
    if len(key) < _SHORTEST_KEY:
        raise ConfigError(
            f"{place}: the key has {len(key)} characters, at least {_SHORTEST_KEY} are needed; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return key
