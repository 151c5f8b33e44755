"""`densepath serve`: what a user can get wrong, what it starts, and how it stops."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from rich.console import Console
from tests.pipeline.runs import save_tiny_model
from tests.serve.conftest import KEY

from densepath.cli.main import main
from densepath.config.pages import ServeArguments
from densepath.rewards.dense import DenseReward
from densepath.serve import access, command
from densepath.serve.server import bind, url_of

SENT = {"items": [{"prompt": "Say 3:", "completion": "3, 4"}]}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    found = {name: save_tiny_model(folder / name, seed=seed) for seed, name in enumerate(("sft", "ref"))}
    DenseReward.from_models(found["sft"], found["ref"], scale=2.0).save_pretrained(folder / "reward")
    return {**found, "reward": str(folder / "reward")}


@pytest.fixture
def refused(capsys):
    """Run `densepath serve` with wrong arguments; the one line that it prints."""

    def run(**arguments) -> str:
        given = {"model_name_or_path": "no-model", **arguments}
        argv = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        assert main(["serve", *argv]) == 2
        err = capsys.readouterr().err
        assert err.startswith("densepath: error: ")
        assert err.count("\n") == 1
        return err

    return run


# -- wrong input ---------------------------------------------------------------------------------------------------


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom densepath.cli.main import main\n"
        "try:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(bool({'torch', 'fastapi', 'uvicorn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--api_key_file" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 70000}, "port=70000 must lie in [0, 65535]"),
        ({"port": -1}, "port=-1 must lie in"),
        ({"host": "no such host"}, "cannot listen on no such host"),
        ({"host": "192.0.2.1", "port": 0}, "choose another host or port"),
        ({"max_items": 0}, "max_items=0 must be a number above 0"),
        ({"request_timeout": "nan"}, "request_timeout='nan' must be a number"),
        ({"dense_reward": "process"}, "choose one of: baseline_relative, logprob, inverse_bellman"),
        ({"max_item": 3}, "did you mean max_items?"),
        ({"api_key": "x" * 20}, "unknown key 'api_key'; did you mean api_key_file?"),
        ({"api_key_file": "nowhere"}, "api_key_file=nowhere: cannot be read"),
        ({"port": 0}, "needs ref_model_name_or_path"),
        ({"port": 0, "ref_model_name_or_path": "x", "dense_reward": "logprob"}, "reads the SFT model alone"),
        ({"port": 0, "model_name_or_path": "./nowhere", "dense_reward": "logprob"}, "./nowhere"),
        ({"port": 0, "device": "tpu9", "dense_reward": "logprob"}, "tpu9"),
    ],
)
def test_wrong_arguments_are_one_line(refused, models, arguments, message):
    assert message in refused(**{"model_name_or_path": models["sft"], **arguments})


def test_a_port_that_is_taken_is_told_before_models_are_loaded(refused):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1, port {port}" in refused(port=port, model_name_or_path="nowhere")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("short", "has 5 characters, at least 16 are needed"),
        ("a b" * 9, "without spaces"),
        ("é" * 20, "printable"),
        ("", "has 0 characters"),
    ],
)
def test_a_key_that_is_none(refused, tmp_path, monkeypatch, key, message):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    assert message in refused(api_key_file=tmp_path / "key")
    monkeypatch.setenv(access.API_KEY_VARIABLE, key)
    assert f"{access.API_KEY_VARIABLE}: the key" in refused()


def test_a_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert access.read_api_key(None) is None
    monkeypatch.setenv(access.API_KEY_VARIABLE, "from-the-environment")
    assert access.read_api_key(None) == "from-the-environment"
    (tmp_path / "key").write_text(f"{KEY}\n", encoding="utf-8")
    assert access.read_api_key(str(tmp_path / "key")) == KEY


def test_a_missing_extra_is_named(refused, monkeypatch):
    monkeypatch.setattr("densepath.serve.find_spec", lambda name: None if name == "uvicorn" else True)
    assert "densepath serve needs packages that are missing: pip install uvicorn" in refused()


def test_a_saved_reward_is_whole(refused, models):
    message = refused(model_name_or_path=models["reward"], ref_model_name_or_path=models["ref"], port=0)
    assert "holds a whole reward (dense_reward.json): leave out ref_model_name_or_path and dense_reward" in message


def test_addresses_as_browsers_take_them():
    with bind("127.0.0.1", 0) as bound:
        assert url_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
    with contextlib.suppress(OSError), bind("::1", 0) as bound:
        assert url_of(bound).startswith("http://[::1]:")


# -- what it starts ------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """Run the command in a thread of this process; its output, and the address that it prints."""
    made = []
    make_server = command.make_server

    def noted(*given, **settings):
        made.append(make_server(*given, **settings))
        return made[-1]

    monkeypatch.setattr(command, "make_server", noted)

    @contextlib.contextmanager
    def run(**arguments):
        lines = []
        printed = threading.Event()

        class Noted(Console):
            def print(self, *words, **_):
                lines.append(" ".join(map(str, words)))
                if "Ctrl+C" in lines[-1]:
                    printed.set()

        codes = []
        settings = ServeArguments(port=0, device="cpu", **arguments)
        thread = threading.Thread(target=lambda: codes.append(command.run_serve_command(settings, Noted())))
        thread.start()
        assert printed.wait(60), lines
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+", lines[-1]).group(), lines
        finally:
            made[-1].handle_exit(signal.SIGTERM, None)
            thread.join(30)
        assert codes == [0]

    return run


def test_it_serves_a_pair_of_models(started, models, tmp_path):
    (tmp_path / "key").write_text(KEY, encoding="utf-8")
    key_file = str(tmp_path / "key")
    pair = {"model_name_or_path": models["sft"], "ref_model_name_or_path": models["ref"]}
    with started(**pair, api_key_file=key_file, root_path="/reward/") as (url, lines):
        assert len(lines) == 1
        assert f"API page {url}/docs" in lines[0]
        assert httpx2.post(f"{url}/v1/score", json=SENT).status_code == 401
        headers = {"authorization": f"Bearer {KEY}"}
        (result,) = httpx2.post(f"{url}/v1/score", json=SENT, headers=headers).json()["results"]
        assert httpx2.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/reward"}]
        assert httpx2.get(f"{url}/v1/model", headers=headers).json()["model_name_or_path"] == models["sft"]
    expected = DenseReward.from_models(models["sft"], models["ref"]).score(["Say 3:"], ["3, 4"])
    assert result["rewards"] == pytest.approx(expected.rewards[0].tolist(), abs=1e-5)


def test_it_serves_a_saved_reward(started, models):
    with started(model_name_or_path=models["reward"]) as (url, _):
        (result,) = httpx2.post(f"{url}/v1/score", json=SENT).json()["results"]
    expected = DenseReward.from_models(models["sft"], models["ref"]).score(["Say 3:"], ["3, 4"])
    assert result["sum"] == pytest.approx(2.0 * float(expected.sums[0]), abs=1e-4)


def test_other_hosts_are_warned_of(started, models, monkeypatch):
    monkeypatch.setattr(command, "bind", lambda host, port: bind("127.0.0.1", port))
    pair = {"model_name_or_path": models["sft"], "dense_reward": "logprob", "host": "0.0.0.0"}
    with started(**pair) as (_, lines):
        assert lines[0].startswith("warning: 0.0.0.0 is reached from other machines, by anyone, since there is no key")


# -- how it stops --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process_of(*argv: str):
    """The command in a process of its own, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "densepath.cli.main", "serve", "--port", "0", *argv],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process, re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline()).group()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_answers_what_was_accepted(models, stop):
    """100 requests are in the queue when the signal comes: all are answered; those that come later are refused."""
    pair = ["--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    bodies = [{"items": [{"prompt": f"Say {n}:", "completion": "dog " * 60}] * 16} for n in range(100)]

    def counted(url: str, name: str) -> int:
        lines = httpx2.get(f"{url}/metrics", timeout=60).text.splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(name)))

    with process_of(*pair, "--max_items", "16") as (process, url), concurrent.futures.ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(httpx2.post, f"{url}/v1/score", json=body, timeout=120) for body in bodies]
        waiting = answered = 0
        while waiting + answered < 100:
            answered = counted(url, 'densepath_requests_total{path="/v1/score"')
            waiting = counted(url, "densepath_queue_requests ")
        assert waiting > 20  # there is something to finish
        with socket.create_connection(("127.0.0.1", httpx2.URL(url).port)) as idle:
            process.send_signal(stop)
            late = pool.submit(httpx2.post, f"{url}/v1/score", json=bodies[0], timeout=120)
            responses = [future.result() for future in asked]
            assert idle.recv(1) == b""
        assert [response.status_code for response in responses] == [200] * 100
        assert {len(response.json()["results"]) for response in responses} == {16}
        with contextlib.suppress(httpx2.TransportError):  # no longer listening
            assert late.result().status_code == 503
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


@pytest.mark.slow
def test_a_second_interrupt_does_not_wait(models):
    with process_of("--model_name_or_path", models["sft"], "--dense_reward", "logprob") as (process, address):
        url = httpx2.URL(address)
        with socket.create_connection((url.host, url.port)) as client:
            client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            time.sleep(1)
            assert process.poll() is None  # it waits for the request
            process.send_signal(signal.SIGINT)
            assert process.wait(8) == 130
