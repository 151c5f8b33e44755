"""A real server on loopback: 200 requests at once, and clients that are malformed, huge, slow, hostile or gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import time

import httpx2
import pytest
from tests.serve.conftest import served, tiny_reward

from densepath.serve.settings import Limits

NUM_REQUESTS = 200
WORDS = ("cat", "dog", "sun", "tree", "moon", "3", "4 5", "12,", "é", "🐢", "\n\n")
GOOD = b'{"items": [{"prompt": "Say 3:", "completion": "3"}]}'


def address(url: str) -> tuple[str, int]:
    parsed = httpx2.URL(url)
    return parsed.host, parsed.port


@contextlib.contextmanager
def connected(url: str, timeout: float = 10):
    with socket.create_connection(address(url), timeout=timeout) as client:
        yield client


def head(length: int | str = len(GOOD), path: str = "/v1/score", *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", *more, "", ""]).encode("latin-1")


def answer(client: socket.socket) -> bytes:
    """All that the server sends until it closes, or until a moment after it has sent something."""
    received = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while chunk := client.recv(65536):
            received += chunk
            client.settimeout(0.2)
    return received


def metric(url: str, name: str) -> float:
    text = httpx2.get(f"{url}/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def still_well(url: str) -> bool:
    return (
        httpx2.post(f"{url}/v1/score", content=GOOD, headers={"content-type": "application/json"}).status_code == 200
    )


# -- many at once --------------------------------------------------------------------------------------------------


def some_requests(seed: int) -> list[dict]:
    """Requests of both kinds, of one item to five, text and turns, some of them larger than a batch."""
    rng = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    found = []
    for _ in range(NUM_REQUESTS):
        prompt = text(12) if rng.random() < 0.5 else [{"role": "user", "content": text(12)}]
        if rng.random() < 0.3:
            found.append({"prompt": prompt, "completions": [text(10) for _ in range(rng.randint(1, 5))]})
        else:
            found.append({"items": [{"prompt": prompt, "completion": text(20)} for _ in range(rng.randint(1, 5))]})
    return found


def test_200_requests_at_once_get_what_the_reward_gives_alone():
    reward = tiny_reward(token_budget=512)
    requests = some_requests(seed=0)

    async def ask(url: str) -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=NUM_REQUESTS)
        async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            paths = ["/v1/rank" if "completions" in body else "/v1/score" for body in requests]
            return await asyncio.gather(
                *(client.post(path, json=body) for path, body in zip(paths, requests, strict=True))
            )

    with served(reward) as url:
        responses = asyncio.run(ask(url))
        batches = metric(url, "densepath_batch_items_count")
        items = metric(url, "densepath_batch_items_sum")
    assert [response.status_code for response in responses] == [200] * NUM_REQUESTS
    scored = 0
    for body, response in zip(requests, responses, strict=True):
        found = response.json()
        if "completions" in body:
            count = len(body["completions"])
            expected = reward.score([body["prompt"]] * count, body["completions"])
            sums = [sum(values) for values in map(list, (r.tolist() for r in expected.rewards))]
            assert [result["sum"] for result in found["results"]] == pytest.approx(sums, abs=1e-9)
            assert found["order"] == sorted(range(count), key=lambda index: -found["results"][index]["sum"])
        else:
            count = len(body["items"])
            prompts, completions = zip(*((i["prompt"], i["completion"]) for i in body["items"]), strict=True)
            expected = reward.score(prompts, completions)
            for result, values, offsets in zip(found["results"], expected.rewards, expected.offsets, strict=True):
                assert result["rewards"] == pytest.approx(values.tolist(), abs=1e-9)
                assert result["offsets"] == [list(place) for place in offsets]
        scored += count
    assert items == scored
    assert batches < scored / 2  # they were scored together


# -- clients that are not good --------------------------------------------------------------------------------------

NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET\r\n\r\n",
    b"GET / SPDY/3\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",  # no Host
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    bytes(range(256)) * 20,
    b"\r\n" * 5000 + b"\x00",
]


@pytest.mark.parametrize("sent", NOT_HTTP, ids=lambda sent: repr(sent[:30]))
def test_what_is_not_http_is_a_400_in_the_same_shape(url, sent):
    with connected(url) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        received = answer(client)
    if received:  # a reset may come before the answer is read
        first, _, body = received.partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == 400
    assert still_well(url)


def test_a_huge_body_is_refused_before_it_is_sent(url):
    with connected(url) as client:
        client.sendall(head(10**12) + b"x" * 1000)
        assert answer(client).startswith(b"HTTP/1.1 413 ")
    assert still_well(url)


def test_a_huge_body_without_a_length_is_cut_off(url):
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connected(url) as client:
        client.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(40):  # 2.5 MiB; one is allowed
                client.sendall(chunk)
        assert answer(client).startswith(b"HTTP/1.1 413 ")
    assert still_well(url)


def test_an_upgrade_is_not_followed(url):
    with connected(url) as client:
        client.sendall(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert answer(client).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_turn(url):
    with connected(url) as client:
        client.sendall((head() + GOOD) * 3)
        assert answer(client).count(b"HTTP/1.1 200 ") == 3


def test_slow_clients_are_cut_off(reward):
    limits = Limits(read_timeout=0.3)
    with served(reward, limits) as url, contextlib.ExitStack() as stack:
        silent, trickling, no_body, long_after = (stack.enter_context(connected(url)) for _ in range(4))
        started = time.perf_counter()
        trickling.sendall(head()[:20])
        no_body.sendall(head() + GOOD[:5])
        long_after.sendall(head(10**12))
        assert answer(long_after).startswith(b"HTTP/1.1 413 ")
        assert silent.recv(1) == b""
        with contextlib.suppress(ConnectionError):
            for byte in head()[20:60]:
                trickling.sendall(bytes([byte]))
                time.sleep(0.02)
                long_after.sendall(b"x")
        assert answer(trickling) == b""
        assert answer(no_body).startswith(b"HTTP/1.1 408 ")
        assert time.perf_counter() - started < 8
        assert still_well(url)


def test_a_slow_request_on_a_kept_connection_is_cut_off(reward):
    with served(reward, Limits(read_timeout=0.3)) as url, connected(url) as client:
        client.sendall(head() + GOOD)
        assert b" 200 " in client.recv(65536)
        client.sendall(head()[:20])
        started = time.perf_counter()
        with contextlib.suppress(ConnectionError):
            while client.recv(65536):
                pass
        assert time.perf_counter() - started < 3


def test_a_client_that_does_not_read_its_answer_is_cut_off(reward):
    large = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"  # 1.5 MB each
    with served(reward, Limits(read_timeout=0.3)) as url, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address(url))
        client.sendall(large * 8)
        deadline = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                client.send(b"\r\n")  # answered by a reset once the server has cut us off
                time.sleep(0.05)
        assert time.monotonic() < deadline
        assert still_well(url)


def test_one_connection_too_many_is_a_503(reward):
    with served(reward, Limits(max_connections=3)) as url, contextlib.ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(connected(url))
            client.sendall(head())
        extra = stack.enter_context(connected(url))
        extra.sendall(head() + GOOD)
        received = answer(extra)
        assert received.startswith(b"HTTP/1.1 503 ")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["type"] == "unavailable"
        client.sendall(GOOD)
        assert answer(client).startswith(b"HTTP/1.1 200 ")


def test_the_work_of_clients_that_are_gone_is_dropped(reward, monkeypatch):
    slow = tiny_reward()
    score_ids = slow.score_ids
    scored = []

    def slowly(prompts, completions, **settings):
        scored.append(len(completions))
        time.sleep(0.3)
        return score_ids(prompts, completions, **settings)

    monkeypatch.setattr(slow, "score_ids", slowly)
    with served(slow) as url:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                client = stack.enter_context(connected(url))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
                client.sendall(head() + GOOD)
                while not scored:  # the first is being scored before the others come
                    time.sleep(0.01)
        assert still_well(url)
        assert metric(url, "densepath_queue_requests") == 0
        assert metric(url, "densepath_queue_tokens") == 0
        assert 'status="499"' in httpx2.get(f"{url}/metrics").text
    assert sum(scored) < 20


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_only_sends_no_more_gets_its_answer(monkeypatch, reads):
    slow = tiny_reward()
    score_ids = slow.score_ids
    scored = []

    def slowly(prompts, completions, **settings):
        scored.append(len(completions))
        time.sleep(0.5)
        return score_ids(prompts, completions, **settings)

    monkeypatch.setattr(slow, "score_ids", slowly)
    with served(slow) as url:
        for _ in range(1 if reads else 8):
            with connected(url) as client:
                client.sendall(head() + GOOD)
                if reads:
                    client.shutdown(socket.SHUT_WR)
                    received = b"".join(iter(lambda client=client: client.recv(65536), b""))
                    assert b"HTTP/1.1 200 OK" in received
                    assert "error" not in json.loads(received.rpartition(b"\r\n\r\n")[2])
                elif not scored:
                    time.sleep(0.1)
        assert still_well(url)
    assert reads or sum(scored) < 8  # of those that closed, without a reset, what was not begun is dropped


def test_a_full_queue_answers_429_and_recovers(monkeypatch):
    slow = tiny_reward()
    score_ids = slow.score_ids

    def slowly(*given, **settings):
        time.sleep(0.2)
        return score_ids(*given, **settings)

    monkeypatch.setattr(slow, "score_ids", slowly)

    async def flood(url: str) -> list[httpx2.Response]:
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            headers = {"content-type": "application/json"}
            return await asyncio.gather(*(client.post("/v1/score", content=GOOD, headers=headers) for _ in range(30)))

    with served(slow, Limits(max_queue_size=5)) as url:
        responses = asyncio.run(flood(url))
        assert still_well(url)
    by_status = {status: [r for r in responses if r.status_code == status] for status in (200, 429)}
    assert len(by_status[200]) + len(by_status[429]) == 30
    assert len(by_status[200]) >= 5
    assert by_status[429]
    for response in by_status[429]:
        assert response.json()["error"]["type"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1


def test_an_answer_that_takes_too_long_is_a_504(monkeypatch):
    slow = tiny_reward()
    monkeypatch.setattr(slow, "score_ids", lambda *_, **__: time.sleep(0.5))
    with served(slow, Limits(request_timeout=0.1)) as url:
        response = httpx2.post(f"{url}/v1/score", content=GOOD, headers={"content-type": "application/json"})
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "timeout"
