"""`densepath serve` on loopback: many clients at once, their requests scored together or each alone; same numbers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2
import torch

from benchmarks.common import Floor, distinct, end_table
from benchmarks.words import Parser, count, run_command
from densepath.data.formats import load_dataset_rows
from densepath.data.tasks import generate_tasks
from densepath.errors import DataError
from densepath.rewards.dense import DenseReward
from densepath.serve.app import create_app
from densepath.serve.server import bind, make_server, url_of
from densepath.serve.settings import Limits

LIMITS = Limits(request_timeout=1800.0)


def arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--ref", default=None, help="A second model; without it the reward is logprob.")
    parser.add_argument("--data", default=None, help="Rows with prompt and completion; text tasks without it.")
    parser.add_argument("--requests", type=count, default=200)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    return found


@dataclass
class Run:
    """One pass over all requests."""

    wall: float
    cpu: float
    latencies: list[float]
    rewards: list[list[float]] = field(repr=False)


@contextlib.contextmanager
def served(reward: DenseReward, batch_tokens: int | None = None) -> Iterator[str]:
    """Address of a server in a thread; `batch_tokens=1` scores each item alone."""
    app = create_app(reward, limits=LIMITS)
    if batch_tokens is not None:
        app.state.engine.batch_tokens = batch_tokens
    ready = threading.Event()
    server = make_server(app, limits=LIMITS, on_ready=ready.set)
    bound = bind("127.0.0.1", 0)
    url = url_of(bound)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    ready.wait()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()


def ask(url: str, items: list[dict], clients: int) -> Run:
    """Send one request an item, from `clients` connections that each ask again once they are answered."""

    async def main() -> Run:
        latencies, rewards = [0.0] * len(items), [[]] * len(items)
        turn = asyncio.Semaphore(clients)
        limits = httpx2.Limits(max_connections=clients)
        async with httpx2.AsyncClient(base_url=url, timeout=None, limits=limits) as client:

            async def one(index: int) -> None:
                async with turn:
                    started = time.perf_counter()
                    response = await client.post("/v1/score", json={"items": [items[index]]})
                    latencies[index] = time.perf_counter() - started
                assert response.status_code == 200, response.text
                rewards[index] = response.json()["results"][0]["rewards"]

            started, started_cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(one(index) for index in range(len(items))))
            wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        return Run(wall, cpu, latencies, rewards)

    return asyncio.run(main())


def items_of(data: str | None, requests: int) -> list[dict]:
    """One item a request.

    Raises:
        DataError: a row has no prompt and completion of its own.
    """
    rows = generate_tasks(requests, seed=0) if data is None else load_dataset_rows(data, limit=requests)
    for number, row in enumerate(rows, 1):
        if row.get("prompt") is None or row.get("completion") is None:
            raise DataError(
                f"{data}, row {number} has no prompt and completion, which a request holds: give such rows"
            )
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]


def main() -> None:
    options = arguments()
    items = items_of(options.data, options.requests)
    kind = "logprob" if options.ref is None else "baseline_relative"
    reward = DenseReward.from_models(options.model, options.ref, kind=kind)
    pairs = [reward.encode(item["prompt"], item["completion"]) for item in items]
    scored = sum(len(pair.completion_ids) for pair in pairs)
    tokens = scored + sum(len(pair.prompt_ids) for pair in pairs)
    alone = [reward.score_ids([pair.prompt_ids], [pair.completion_ids]).rewards[0].tolist() for pair in pairs]

    arms = {
        f"{len(items)} clients, scored together": (None, len(items)),
        f"{len(items)} clients, each scored alone": (1, len(items)),
        "1 client, one after the other": (None, 1),
    }
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for _ in range(options.rounds):
        for name, (batch_tokens, clients) in arms.items():
            with served(reward, batch_tokens) as url:
                runs[name].append(ask(url, items, clients))
    print(
        f"{len(items)} requests, {tokens} tokens, {scored} of them scored, {reward.passes} model(s), {kind}; "
        f"{torch.get_num_threads()} thread(s); medians of {options.rounds} rounds in turn"
    )
    forward = Floor(reward.sft.model).forward(distinct([*p.prompt_ids, *p.completion_ids] for p in pairs), scored)
    floor = {"score": reward.passes * forward}
    columns = f"{'wall s':>8}{'CPU s':>8}{'x floor':>9}{'tokens/s':>10}{'per CPU s':>10}{'p50 s':>8}{'p95 s':>8}"
    print(f"{'arm':<34}{columns}{'worst diff':>12}")
    for name, found in runs.items():
        wall = statistics.median(run.wall for run in found)
        cpu = statistics.median(run.cpu for run in found)
        latencies = sorted(latency for run in found for latency in run.latencies)
        p50, p95 = (latencies[round(share * (len(latencies) - 1))] for share in (0.5, 0.95))
        worst = max(
            abs(a - b)
            for run in found
            for mine, theirs in zip(run.rewards, alone, strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )
        print(
            f"{name:<34}{wall:>8.1f}{cpu:>8.1f}{cpu / floor['score']:>9.2f}{tokens / wall:>10.0f}{tokens / cpu:>10.0f}"
            f"{p50:>8.2f}{p95:>8.2f}{worst:>12.1e}"
        )
    end_table(floor)


if __name__ == "__main__":
    run_command(main)
