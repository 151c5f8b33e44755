"""A server on a socket that speaks OpenAI's protocol, counts what it is asked, and fails as it is told."""

from __future__ import annotations

import email.utils
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789abcdef-secret"
MODEL = "judge-1"

Reply = Callable[[Mapping[str, Any]], str]


def longer_wins(body: Mapping[str, Any]) -> str:
    """The verdict of a judge that prefers the longer answer of template `pair`."""
    text = body["messages"][-1]["content"]
    a, b = (re.search(rf"<answer_{x}>\n(.*?)\n</answer_{x}>", text, re.S)[1] for x in "ab")
    return "Reason. [[" + ("A" if len(a) > len(b) else "B" if len(b) > len(a) else "C") + "]]"


def completion(text: str, top: Mapping[str, float] | None = None, **usage: int) -> dict[str, Any]:
    """The body of a chat completion."""
    logprobs = None
    if top is not None:
        told = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
        logprobs = {"content": [{**told[0], "top_logprobs": told}]}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": logprobs,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10} | usage,
    }


class FakeEndpoint:
    """Serves until the block ends.

    Attributes:
        reply: what a body is answered with: a text, or a whole completion.
        faults: number of a call, from 0 -> what happens instead; each is one of the methods of `_Handler`, by name.
        by_text: a part of the last message -> a list of faults for the calls that hold it, used up one by one.
        key: that a call needs; None for any.
        calls: bodies of all calls, in their order.
        answered: last message of each call that was answered whole.
    """

    def __init__(self, reply: Reply | Callable[[Mapping[str, Any]], Any] = longer_wins, key: str | None = KEY) -> None:
        self.reply, self.key = reply, key
        self.faults: dict[int, str] = {}
        self.by_text: dict[str, list[str]] = {}
        self.always: str | None = None
        self.calls: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.answered: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        self.delay = 0.0

    def __enter__(self) -> FakeEndpoint:
        endpoint = self

        class Bound(_Handler):
            served = endpoint

        self.server = _Server(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of the server's business."""


class _Handler(BaseHTTPRequestHandler):
    served: FakeEndpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        served = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with served.lock:
            number = len(served.calls)
            served.calls.append(body)
            served.times.append(time.monotonic())
            served.under_way += 1
            served.most_under_way = max(served.most_under_way, served.under_way)
            fault = served.faults.get(number) or served.always
            for part, faults in served.by_text.items():
                if part in text and faults:
                    fault = faults.pop(0)
        try:
            time.sleep(served.delay)
            self._answer(body, text, fault)
        finally:
            with served.lock:
                served.under_way -= 1

    def _answer(self, body: dict[str, Any], text: str, fault: str | None) -> None:
        served = self.served
        said = self.headers.get("Authorization")
        served.keys.add(said)
        if self.path != "/v1/chat/completions":
            return self.send(404, {"error": {"message": f"no such path {self.path}"}})
        if served.key is not None and said != f"Bearer {served.key}":
            return self.send(
                401, {"error": {"message": f"Incorrect API key provided: {said}.", "code": "invalid_api_key"}}
            )
        if body["model"] != MODEL:
            message = f"The model `{body['model']}` does not exist"
            return self.send(404, {"error": {"message": message, "code": "model_not_found"}})
        reply = served.reply(body)
        whole = json.dumps(reply if isinstance(reply, dict) else completion(reply)).encode()
        if fault is not None:
            return getattr(self, fault)(whole)
        with served.lock:
            served.answered[text] += 1
        return self.send(200, whole)

    def send(
        self, status: int, body: Any, headers: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    # -- faults ------------------------------------------------------------------------------------------------

    def busy(self, whole: bytes) -> None:
        self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"})

    def busy_for_hours(self, whole: bytes) -> None:
        self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": "7200"})

    def busy_for_no_time(self, whole: bytes) -> None:
        self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})

    def busy_until_yesterday(self, whole: bytes) -> None:
        yesterday = email.utils.formatdate(time.time() - 86400, usegmt=True)
        self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": yesterday})

    def moderated(self, whole: bytes) -> None:
        self.send(403, {"error": {"message": "your input was flagged", "code": 403}})

    def filtered(self, whole: bytes) -> None:
        self.send(200, {"choices": [{"index": 0, "finish_reason": "content_filter", "message": None}]})

    def used_up(self, whole: bytes) -> None:
        self.send(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})

    def broken(self, whole: bytes) -> None:
        self.send(500, {"error": {"message": f"oh no, {self.headers.get('Authorization')}"}})

    def bad_request(self, whole: bytes) -> None:
        self.send(400, {"error": {"message": "This model's maximum context length is 10 tokens."}})

    def bad_detail(self, whole: bytes) -> None:
        self.send(422, {"detail": [{"loc": ["body", "top_logprobs"], "msg": "extra fields not permitted"}]})

    def bad_text(self, whole: bytes) -> None:
        self.send(400, b"no such parameter", kind="text/plain")

    def silent(self, whole: bytes) -> None:
        time.sleep(4)

    def cut_json(self, whole: bytes) -> None:
        self.send(200, whole[: len(whole) // 2])

    def cut_body(self, whole: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[: len(whole) // 2])
        self.close_connection = True

    def drops(self, whole: bytes) -> None:
        """A byte now and then: each read succeeds, and the reply never ends."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        for byte in whole[:80]:
            try:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            except OSError:
                return
            time.sleep(0.05)

    def slow_drops(self, whole: bytes) -> None:
        """In pieces, and in time."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        for start in range(0, len(whole), 50):
            self.wfile.write(whole[start : start + 50])
            self.wfile.flush()
            time.sleep(0.005)
        with self.served.lock:
            self.served.answered["in drops"] += 1

    def reset(self, whole: bytes) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def html(self, whole: bytes) -> None:
        self.send(200, b"<!DOCTYPE html><html><body>Welcome to nginx!</body></html>", kind="text/html")

    def other_json(self, whole: bytes) -> None:
        self.send(200, {"models": ["llama"]})

    def error_in_200(self, whole: bytes) -> None:
        self.send(200, {"error": {"message": "upstream is overloaded"}})

    def empty(self, whole: bytes) -> None:
        self.send(200, completion(""))

    def wrong_letters(self, whole: bytes) -> None:
        self.send(200, completion("I choose [[D]]"))

    def echo_key(self, whole: bytes) -> None:
        self.send(200, completion(f"You sent {self.headers.get('Authorization')} [[A]]"))
