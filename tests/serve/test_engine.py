"""The engine alone: batches change no result, the order is fair, limits hold, one request does not spoil another."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.data.encode import Encoded
from densepath.errors import NumericalError
from densepath.rewards.scores import DenseScores
from densepath.serve.engine import ScoringEngine, units
from densepath.serve.errors import ApiError

POISON = 13


class FakeReward:
    """Each token's reward is its id; batches are noted, and wait for `go` where it is cleared."""

    token_budget = 10

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.ends: list[tuple[int, ...] | None] = []
        self.go = threading.Event()
        self.go.set()

    def score_ids(self, prompt_ids, completion_ids, *, eos_token_ids):
        self.batches.append([tuple(ids) for ids in completion_ids])
        self.ends.append(eos_token_ids)
        assert self.go.wait(10)
        if any(POISON in ids for ids in completion_ids):
            raise NumericalError("sequence 0, completion token 0: log-probability is nan")
        rewards = [torch.tensor(ids, dtype=torch.float64) for ids in completion_ids]
        return DenseScores(rewards, rewards, [], rewards)


def pair(*completion: int, prompt: tuple[int, ...] = (1, 2)) -> Encoded:
    return Encoded(prompt, completion)


def run(scenario, reward=None, **arguments):
    """Run `scenario(engine)` on an event loop of its own, with a started engine that is stopped after it."""

    async def main():
        engine = ScoringEngine(reward or FakeReward(), **arguments)
        await engine.start()
        try:
            return await asyncio.wait_for(scenario(engine), 20)
        finally:
            engine.reward.go.set() if isinstance(engine.reward, FakeReward) else None
            await engine.stop()

    return asyncio.run(main())


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


# -- units -------------------------------------------------------------------------------------------------------


def test_units_are_runs_of_one_prompt():
    a, b = (1, 2), (3, 4, 5)
    pairs = [pair(7, prompt=a), pair(8, 8, prompt=a), pair(9, prompt=b), pair(7, prompt=a)]
    # 2 + 1 + 2 tokens, 3 + 1, 2 + 1
    assert list(units(pairs, 100)) == [((0, 1), 5), ((2,), 4), ((3,), 3)]


def test_a_unit_ends_before_it_is_too_long():
    # 2 + 3 = 5, and 3 more would be 8 > 7
    assert list(units([pair(7, 7, 7), pair(7, 7, 7), pair(7)], 7)) == [((0,), 5), ((1, 2), 6)]


@given(st.lists(st.tuples(st.sampled_from([(1,), (1, 2, 3)]), st.integers(1, 9)), max_size=12), st.integers(1, 30))
def test_units_cut_a_request_without_loss(items, most):
    pairs = [Encoded(prompt, (5,) * length) for prompt, length in items]
    found = units(pairs, most)
    assert [index for unit in found for index in unit.items] == list(range(len(pairs)))
    for unit in found:
        prompts = {pairs[index].prompt_ids for index in unit.items}
        assert len(prompts) == 1
        assert unit.tokens == len(prompts.pop()) + sum(len(pairs[index].completion_ids) for index in unit.items)
        assert unit.tokens <= most or len(unit.items) == 1


# -- results -----------------------------------------------------------------------------------------------------

ids = st.lists(st.integers(3, 60), min_size=1, max_size=8).map(tuple)
requests = st.lists(st.lists(st.builds(Encoded, ids, ids), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(requests, st.integers(1, 60))
def test_batching_changes_no_result(reward, requests, batch_tokens):
    async def scenario(engine):
        return await asyncio.gather(*(engine.score(pairs) for pairs in requests))

    found = run(scenario, reward, batch_tokens=batch_tokens)
    for pairs, scores in zip(requests, found, strict=True):
        assert len(scores) == len(pairs)
        for one, score in zip(pairs, scores, strict=True):
            alone = reward.score_ids([one.prompt_ids], [one.completion_ids])
            torch.testing.assert_close(score.rewards, alone.rewards[0], atol=1e-10, rtol=0)
            torch.testing.assert_close(score.sft_logprobs, alone.sft_logprobs[0], atol=1e-10, rtol=0)
            torch.testing.assert_close(score.ref_logprobs, alone.ref_logprobs[0], atol=1e-10, rtol=0)


def test_what_is_trained_on_is_taken_as_ended_and_nothing_else_is():
    async def scenario(engine):
        engine.reward.go.clear()
        asked = [engine.score([pair(number)], trained_on=number > 4) for number in (3, 4, 5, 6, 1)]
        waiting = [asyncio.ensure_future(each) for each in asked]
        await until(lambda: engine.reward.batches and len(engine._waiting) == 3)
        engine.reward.go.set()
        found = await asyncio.gather(*waiting)
        return [float(score.rewards) for (score,) in found], engine.reward

    values, reward = run(scenario, batch_tokens=6, eos_token_ids=[2])
    assert values == [3, 4, 5, 6, 1]
    assert reward.batches == [[(3,), (4,)], [(5,), (6,)], [(1,)]]
    assert reward.ends == [(2,), None, (2,)]


def test_no_items_no_scores():
    async def scenario(engine):
        return await engine.score([])

    assert run(scenario) == []


def test_concurrent_requests_share_a_batch_up_to_its_tokens():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        first = asyncio.create_task(engine.score([pair(50)]))
        await until(lambda: reward.batches)
        others = [asyncio.create_task(engine.score([pair(n)])) for n in range(51, 56)]
        await asyncio.sleep(0)
        assert engine.queued_tokens == 6 * 3
        reward.go.set()
        await asyncio.gather(first, *others)

    run(scenario, reward)
    # Each costs 3 tokens, and a batch holds 10.
    assert reward.batches == [[(50,)], [(51,), (52,), (53,)], [(54,), (55,)]]


# -- order -------------------------------------------------------------------------------------------------------


def test_a_large_request_does_not_hold_up_a_small_one():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        large = [pair(n, n, n, n, n, n, prompt=(n,)) for n in range(50, 56)]  # six units of 7 tokens
        task = asyncio.create_task(engine.score(large))
        await until(lambda: reward.batches)
        small = asyncio.create_task(engine.score([pair(60)]))
        await asyncio.sleep(0)
        reward.go.set()
        await small
        done_when_small_was = len(reward.batches)
        scores = await task
        assert [int(score.rewards[0]) for score in scores] == [50, 51, 52, 53, 54, 55]
        return done_when_small_was

    assert run(scenario, reward) <= 3
    assert reward.batches[1] == [(51,) * 6, (60,)]  # 7 and 3 tokens: the next unit in turn, then the small one


def test_requests_take_turns():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        head = asyncio.create_task(engine.score([pair(40)]))
        await until(lambda: reward.batches)
        a = asyncio.create_task(engine.score([pair(n, n, n, prompt=(n,)) for n in (50, 51, 52)]))  # 4 tokens each
        b = asyncio.create_task(engine.score([pair(n, n, n, prompt=(n,)) for n in (60, 61, 62)]))
        await asyncio.sleep(0)
        reward.go.set()
        await asyncio.gather(head, a, b)

    run(scenario, reward)
    assert [[ids[0] for ids in batch] for batch in reward.batches] == [[40], [50, 60], [51, 61], [52, 62]]


# -- going away, time and limits ---------------------------------------------------------------------------------


def test_the_work_of_a_cancelled_request_leaves_the_queue():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        first = asyncio.create_task(engine.score([pair(50)]))
        await until(lambda: reward.batches)
        gone = asyncio.create_task(engine.accept(lambda: engine.score([pair(51), pair(52, prompt=(9,))])))
        stays = asyncio.create_task(engine.score([pair(53)]))
        await asyncio.sleep(0.01)
        assert engine.accepted == 1
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert (engine.accepted, engine.queued_tokens) == (0, 6)
        reward.go.set()
        await asyncio.gather(first, stays)
        assert engine.queued_tokens == 0

    run(scenario, reward)
    assert reward.batches == [[(50,)], [(53,)]]


def test_a_request_cancelled_while_it_is_scored_harms_nobody():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        gone = asyncio.create_task(engine.score([pair(50)]))
        await until(lambda: reward.batches)
        gone.cancel()
        after = asyncio.create_task(engine.score([pair(51)]))
        await asyncio.sleep(0)
        reward.go.set()
        (score,) = await after
        return float(score.rewards[0]), engine.queued_tokens

    assert run(scenario, reward) == (51.0, 0)


def test_what_takes_too_long_is_a_504_and_leaves_the_queue():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        blocking = asyncio.create_task(engine.score([pair(50)]))
        await until(lambda: reward.batches)
        with pytest.raises(ApiError, match=r"not answered within 0\.05 s") as caught:
            await engine.accept(lambda: engine.score([pair(51)]))
        assert (caught.value.status, engine.accepted) == (504, 0)
        reward.go.set()
        await blocking

    run(scenario, reward, request_timeout=0.05)
    assert reward.batches == [[(50,)]]


def test_a_full_queue_is_a_429_that_says_when_to_come_back():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        tasks = [asyncio.create_task(engine.accept(lambda: engine.score([pair(50)]))) for _ in range(2)]
        await until(lambda: engine.accepted == 2)
        with pytest.raises(ApiError, match="2 requests are waiting") as caught:
            await engine.accept(lambda: engine.score([pair(51)]))
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) >= 1
        reward.go.set()
        await asyncio.gather(*tasks)
        return await engine.accept(lambda: engine.score([pair(52)]))

    assert len(run(scenario, reward, max_queue_size=2)) == 1


def test_one_that_fails_does_not_spoil_its_batch():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        first = asyncio.create_task(engine.score([pair(50)]))
        await until(lambda: reward.batches)
        tasks = [asyncio.create_task(engine.score([pair(n)])) for n in (51, POISON, 52)]
        await asyncio.sleep(0)
        reward.go.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, bad, other = run(scenario, reward)
    assert [float(score.rewards[0]) for (score,) in (good, other)] == [51.0, 52.0]
    assert isinstance(bad, ApiError)
    assert bad.status == 500
    assert "log-probability is nan" in str(bad)


def test_the_rest_of_a_failed_request_is_not_scored():
    reward = FakeReward()

    async def scenario(engine):
        with pytest.raises(ApiError):
            await engine.score([pair(n, *[n] * 6, prompt=(n,)) for n in (POISON, 50, 51, 52)])
        await engine.score([pair(60)])
        assert engine.queued_tokens == 0

    run(scenario, reward)
    assert not any((52,) * 7 in batch for batch in reward.batches)


# -- starting and stopping ---------------------------------------------------------------------------------------


def test_nothing_is_accepted_before_the_start():
    async def scenario():
        with pytest.raises(ApiError, match="starting") as caught:
            await ScoringEngine(FakeReward()).accept(lambda: asyncio.sleep(0))
        return caught.value.status

    assert asyncio.run(scenario()) == 503


def test_stopping_answers_what_was_accepted_and_refuses_the_rest():
    reward = FakeReward()

    async def scenario(engine):
        reward.go.clear()
        tasks = [asyncio.create_task(engine.accept(lambda n=n: engine.score([pair(n)]))) for n in range(50, 60)]
        await until(lambda: reward.batches)
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="shutting down") as caught:
            await engine.accept(lambda: engine.score([pair(99)]))
        assert caught.value.status == 503
        assert not stopping.done()
        reward.go.set()
        results = await asyncio.gather(*tasks)
        await stopping
        return [float(score.rewards[0]) for (score,) in results]

    assert run(scenario, reward) == [float(n) for n in range(50, 60)]
