"""Requests that are no requests, a thousand clients at once, and a soak."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from tests.attack.place import Place

GOOD = {"items": [{"prompt": "Say 7:", "completion": "7"}]}
PATHS = ("/v1/score", "/v1/rank", "/health", "/metrics", "/", "/../etc/passwd", "/%00", "/v1/score?x=" + "a" * 5000)
HEADERS = (
    *(
        "Content-Type: application/json",
        "Content-Type: text/plain",
        "Content-Length: 99999999999",
        "Content-Length: -1",
    ),
    *("Transfer-Encoding: chunked", "Origin: http://evil.example", "Host: evil.example", "Sec-Fetch-Site: cross-site"),
    *(
        "Expect: 100-continue",
        "Upgrade: websocket",
        "X: " + "y" * 9000,
        "Content-Encoding: gzip",
        "Authorization: \xff",
    ),
)
BODIES = (
    *(b"", b"{", b"[" * 2000, b"null", b'{"items": []}', b'{"items": [{"prompt": "a", "completion": "x\\ud83d"}]}'),
    *(json.dumps(GOOD).encode(), b'{"items": [{"prompt": 1e999, "completion": NaN}]}', b"\xff\xfe", b"0\r\n\r\n"),
)


_PACE, _WARM = 5.0, 60.0
"""Of the soak: requests a second, and seconds after which the memory is looked at for the first time."""
_GROWTH = 8.0
"""MiB that the memory may grow after that."""


class Server:
    """`densepath serve` in a process of its own.

    Args:
        place: whose models it serves.
    """

    def __init__(self, place: Place) -> None:
        pair = ["--model_name_or_path", place.model, "--ref_model_name_or_path", place.before]
        words = [sys.executable, "-W", "ignore", "-m", "densepath.cli.main", "serve", "--port", "0", *pair]
        self._log = (place.folder / "serve.log").open("w+")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=self._log, env=environment)
        while (found := re.search(r"http://[^,\s]+", Path(self._log.name).read_text())) is None:
            assert self._process.poll() is None, Path(self._log.name).read_text()
            time.sleep(0.1)
        self.url = found[0]
        self.right = _sum(self.ask())

    def ask(self) -> Any:
        """The answer to a request as it should be."""
        return httpx2.post(f"{self.url}/v1/score", json=GOOD, timeout=60).json()

    @property
    def megabytes(self) -> float:
        """Of memory that it holds."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    @property
    def tracebacks(self) -> int:
        """In its log until now."""
        return Path(self._log.name).read_text().count("Traceback")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


_SERVERS: dict[Path, Server] = {}


def _server(place: Place) -> Server:
    """The server of a place, started at the first call and ended with the place."""
    if place.folder not in _SERVERS:
        _SERVERS[place.folder] = server = Server(place)
        place.at_end.append(server.close)
    return _SERVERS[place.folder]


def attack_http(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """Malformed requests one after the other; the server then answers as before."""
    server, found = _server(place), Counter[str]()
    before, address = server.tracebacks, _address(server)
    for _ in range(min(most, 500)):
        request = _request(rng)
        status = _sent(address, request)
        kept = status not in (0, 500) or (status == 0 and not is_whole(request))
        found.update(("tried", "survived" if kept else "lost"))
        if not kept:
            print(f"status {status} for {request[:300]!r}", file=sys.stderr)
    found["tracebacks"] += server.tracebacks - before
    found["lost"] += abs(_sum(server.ask()) - server.right) > 1e-9
    return "HTTP requests", found


def attack_clients(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """Clients at once: each gets the right answer, or is told to come again."""
    server, found = _server(place), Counter[str]()
    before = server.tracebacks
    for status, answer in asyncio.run(_at_once(server.url, most)):
        # rows that are packed with others may differ in their last bits
        kept = status in (429, 503) or (status == 200 and abs(_sum(answer) - server.right) < 1e-9)
        found.update(("tried", "survived" if kept else "lost", str(status)))
    found["tracebacks"] += server.tracebacks - before
    return "clients at once", found


def attack_soak(place: Place, rng: random.Random, most: int) -> tuple[str, Counter[str]]:
    """Requests for so many seconds, half of them malformed: the memory stays what it was, and so do the answers."""
    server, found, held = _server(place), Counter[str](), [0.0]
    before, started, address = server.tracebacks, time.monotonic(), _address(server)
    while (passed := time.monotonic() - started) < most:
        if rng.random() < 0.5:
            found["lost"] += abs(_sum(server.ask()) - server.right) > 1e-9
        else:
            _sent(address, _request(rng))
        found["requests"] += 1
        if passed > min(_WARM, most / 2) * len(held):
            held.append(server.megabytes)
        time.sleep(max(0.0, started + found["requests"] / _PACE - time.monotonic()))
    found["tracebacks"] += server.tracebacks - before
    found["tried"] += most
    found["lost"] += held[-1] - held[min(1, len(held) - 1)] > _GROWTH
    print(f"memory of the server, MiB: {', '.join(f'{each:.0f}' for each in held[1:])}", file=sys.stderr)
    found["survived"] += 0 if found["lost"] or found["tracebacks"] else most
    return "soak", found


def _address(server: Server) -> tuple[str | None, int | None]:
    return urlsplit(server.url).hostname, urlsplit(server.url).port


def _sum(answer: Any) -> float:
    return float(answer["results"][0]["sum"])


def _request(rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(200))
    body = rng.choice(BODIES)
    lines = [f"{rng.choice(('POST', 'GET', 'PUT', 'x'))} {rng.choice(PATHS)} HTTP/{rng.choice(('1.1', '1.0', '2'))}"]
    lines += [*(["Host: localhost"] if rng.random() < 0.9 else []), *rng.choices(HEADERS, k=rng.randrange(4))]
    if rng.random() < 0.7:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def is_whole(request: bytes) -> bool:
    """Whether the client sent all that it announced before it closed its side: else it need not be answered."""
    head, end, body = request.partition(b"\r\n\r\n")
    lengths = re.findall(rb"\r\nContent-Length: (\S+)", head)
    return bool(end) and b"Transfer-Encoding" not in head and all(each == b"%d" % len(body) for each in lengths)


def _sent(address: tuple[str | None, int | None], request: bytes) -> int:
    """The status that came back, also to a client that the server did not let end; 0 for none."""
    head = b""
    with socket.create_connection(address, timeout=20) as client:
        with contextlib.suppress(OSError):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            head = client.recv(64)
    words = head.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


async def _at_once(url: str, clients: int) -> list[tuple[int, object]]:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one() -> tuple[int, object]:
            response = await client.post("/v1/score", json=GOOD)
            return response.status_code, response.json()

        return list(await asyncio.gather(*(one() for _ in range(clients))))
