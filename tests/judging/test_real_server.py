"""Judged over a socket by servers that are not ours, transformers' and vLLM's: they speak the protocol of OpenAI."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.launching import ENVIRONMENT, NEEDS_VLLM
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.io import read_json, read_jsonl

pytestmark = pytest.mark.slow
VERDICT = "[[A]]"
QUESTIONS = 12


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory) -> Path:
    """A model that says one verdict whatever it is asked: what comes next depends on the last token alone."""
    folder = tmp_path_factory.mktemp("judge") / "first"
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([VERDICT])
    turn = {"role": "user", "content": "which is better?"}
    prompt = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    last = tokenizer(prompt, add_special_tokens=False)["input_ids"][-1]
    verdict = tokenizer.convert_tokens_to_ids(VERDICT)
    shape = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "head_dim": 32,
    }  # vLLM takes no narrower heads
    model = tiny_llama(**shape, tie_word_embeddings=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedded = model.get_input_embeddings().weight
        head = model.get_output_embeddings().weight.zero_()
        head[verdict], head[tokenizer.eos_token_id] = 50 * embedded[last], 50 * embedded[verdict]
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def serving(kind: str, model: Path) -> list[str]:
    """The command that serves a model, but for host and port."""
    if kind == "vllm":  # the CPU build's own command asks for metadata that are the GPU build's
        module = ["-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"]
        return [sys.executable, *module, "--model", str(model), "--dtype", "float32", "--enforce-eager"]
    return [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--device", "cpu"]


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=NEEDS_VLLM)])
def server(request, judge_model, tmp_path_factory):
    """The server's address, and the file that it logs its requests to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    command = [*serving(request.param, judge_model), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1", log
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(1200):  # vLLM takes a minute, and several beside other work
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def asked(log: Path) -> Counter:
    """Status codes of the replies that the server logged."""
    lines = [line for line in log.read_text().splitlines() if "POST /v1/chat/completions" in line]
    return Counter(line.rsplit('"', 1)[-1].split()[0] for line in lines)


def test_a_killed_judgement_by_a_real_server_asks_for_each_game_once(server, judge_model, tmp_path):
    url, log = server
    for name, text in (("prompts", None), ("ours", "a word {}"), ("theirs", "{} is a longer answer")):
        rows = [
            {"prompt": f"Question {i}?", **({"completion": text.format(i)} if text else {})} for i in range(QUESTIONS)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-W", "ignore", "-m", "densepath.cli.main", "judge"]
    command += ["--benchmark", "prompts.jsonl", "--models", "ours.jsonl", "--baseline", "theirs.jsonl"]
    command += ["--judge", f"openai:{judge_model}", "--judge_base_url", url, "--output_dir", "out"]
    command += ["--judge_concurrency", "2", "--judge_parameters", '{"max_tokens": 16}']
    kept = tmp_path / "out/judge_cache"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as first:
        while len(list(kept.rglob("??/*.json"))) < 5 and first.poll() is None:
            time.sleep(0.02)
        first.kill()
        said, _ = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL, said
    paid, calls = len(list(kept.rglob("??/*.json"))), asked(log)["200"]
    assert 5 <= paid <= calls <= paid + 2  # as many as may be under way
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert asked(log) == {"200": calls + 2 * QUESTIONS - paid}
    games = read_jsonl(tmp_path / "out/games.jsonl")
    assert len(games) == 2 * QUESTIONS
    figures = read_json(tmp_path / "out/results.json")
    (rate,) = figures["win_rates"]
    assert rate["rate"]["mean"] == 0.5  # of two orders each prefers the first
    assert rate["position"]["first_place"]["mean"] == 1
