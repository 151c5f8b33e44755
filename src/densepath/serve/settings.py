"""What a server allows: sizes, times and who may call. Plain records, without FastAPI."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, fields

from densepath.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds on what clients may ask of a server.

    Attributes:
        max_request_bytes: longest request body.
        max_items: most items of a score request, or completions of a rank request.
        max_length: most tokens of one prompt with its completion; None: what the models' context holds.
        max_request_tokens: most tokens of one request, each prompt counted with each of its completions.
        max_queue_size: requests that may be waiting or in work at once.
        request_timeout: seconds from a request's acceptance to its answer.
        read_timeout: seconds that a client may take to send a request, and to start reading a long answer.
        max_connections: open connections.

    Raises:
        ConfigError: a bound that would refuse everything.
    """

    max_request_bytes: int = 1_048_576
    max_items: int = 128
    max_length: int | None = None
    max_request_tokens: int = 32_768
    max_queue_size: int = 512
    request_timeout: float = 60.0
    read_timeout: float = 10.0
    max_connections: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{field.name}={value} must be a number above 0")


@dataclass(frozen=True)
class Access:
    """Who may call a server.

    Attributes:
        api_key: bearer token that every request needs but those to public pages; None: no token.
        allowed_hosts: names by which clients may address the server, beside localhost and IP addresses; "*" for any.
            A page of another site can make a browser send requests to this machine under a name of its own (DNS
            rebinding); it cannot do so under these.
    """

    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()

    def trusts(self, origin: str, host: str) -> bool:
        """Whether a page from `origin` may call: this server's own, at the same port, or one of `allowed_hosts`.

        Args:
            origin: the header, such as "https://app.example".
            host: the request's `Host`. Another port of it is another program, whatever it is called.

        >>> access, pages = Access(allowed_hosts=("app.example",)), ("localhost:80", "localhost:81", "app.example")
        >>> [access.trusts(f"http://{page}", "localhost:80") for page in pages]
        [True, False, True]
        """
        authority, host = origin.partition("://")[2].strip().lower(), host.strip().lower()
        if authority == host or "*" in self.allowed_hosts:
            return bool(authority)
        name = authority.rpartition(":")[0] or authority
        others = {each.lower() for each in self.allowed_hosts} - {host.rpartition(":")[0] or host, "localhost"}
        return name in others and not is_ip_address(name.strip("[]"))

    def allows(self, authority: str) -> bool:
        """Whether a `Host` header names this server.

        >>> Access().allows("localhost:8000"), Access().allows("[::1]:8000"), Access().allows("evil.example")
        (True, True, False)
        """
        if "*" in self.allowed_hosts:
            return True
        host = authority.strip().lower()
        if host.startswith("["):
            host, closed, port = host[1:].partition("]")
            if not closed or (port and not port.startswith(":")):
                return False
        elif host.count(":") == 1:
            host = host.partition(":")[0]
        return host == "localhost" or is_ip_address(host) or host in {name.lower() for name in self.allowed_hosts}


def is_ip_address(host: str) -> bool:
    """Whether a host is given by number."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    return host == "localhost" or (is_ip_address(host) and ipaddress.ip_address(host).is_loopback)
