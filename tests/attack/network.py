"""Requests that are no requests, and a thousand clients at once."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import httpx2
from tests.serve.conftest import served, tiny_reward

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


def attack_http(rng: random.Random, requests: int, clients: int) -> Counter[str]:
    """Malformed requests one after the other, then clients at once; the server then answers as before."""
    found: Counter[str] = Counter()
    with served(tiny_reward()) as url:
        right = _sum(httpx2.post(f"{url}/v1/score", json=GOOD).json())
        address = (urlsplit(url).hostname, urlsplit(url).port)
        for _ in range(requests):
            found["tried"] += 1
            status = _sent(address, _request(rng))
            found["survived" if status != 500 else "tracebacks"] += 1
        answers = asyncio.run(_at_once(url, clients))
        for status, answer in answers:
            found["tried"] += 1
            # rows that are packed with others may differ in their last bits
            kept = status in (429, 503) or (status == 200 and abs(_sum(answer) - right) < 1e-9)
            found["survived" if kept else "lost"] += 1
        if abs(_sum(httpx2.post(f"{url}/v1/score", json=GOOD).json()) - right) > 1e-9:
            found["lost"] += 1
            print("HTTP: the server answers otherwise than before", file=sys.stderr)
    return found


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


def _sent(address: tuple[str | None, int | None], request: bytes) -> int:
    """The status that came back; 0 for none."""
    with socket.create_connection(address, timeout=20) as client:
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            head = client.recv(64)
        except OSError:
            return 0
    words = head.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


async def _at_once(url: str, clients: int) -> list[tuple[int, object]]:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one() -> tuple[int, object]:
            response = await client.post("/v1/score", json=GOOD)
            return response.status_code, response.json()

        return list(await asyncio.gather(*(one() for _ in range(clients))))
