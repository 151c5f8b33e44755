"""An endpoint as judge over a socket: what fails is asked again, nothing is paid twice, the key is seen nowhere."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
import warnings
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import KEY, MODEL, FakeEndpoint, completion

from densepath.errors import ConfigError, DataError, JudgeError, UsageError
from densepath.judging.budget import Prices
from densepath.judging.cache import ReplyCache
from densepath.judging.client import Access, Client, open_access
from densepath.judging.endpoint import EndpointJudge, EndpointSettings
from densepath.judging.protocol import JudgeRequest
from densepath.judging.templates import load_template
from densepath.records.judging import Usage
from densepath.report.judged import spending_text


def request(number: int, first: str = "short", second: str = "a longer answer", **fields: Any) -> JudgeRequest:
    asked = {"role": "user", "content": f"Question {number}?"}
    return JudgeRequest((asked,), ((first,), (second,)), **fields)


def judge_of(
    served: FakeEndpoint, folder: Path, template: str = "pair", key: str | None = KEY, **settings: Any
) -> EndpointJudge:
    access = Access(settings.pop("url", served.url), key, "TEST_KEY")
    fields = {"model": MODEL, "parameters": {}, "timeout": 30.0, "backoff": 0.01, **settings}
    return EndpointJudge(load_template(template), EndpointSettings(access=access, **fields), ReplyCache(folder))


def test_judgements_come_in_order_with_what_they_cost(tmp_path):
    with FakeEndpoint() as served:
        served.delay = 0.02
        judge = judge_of(served, tmp_path, concurrency=4, prices=Prices(2.0, 8.0))
        requests = [request(n, "x" * (1 + n % 3), "xx") for n in range(12)]
        found = list(judge.judge(requests))
    assert [each.preference for each in found] == [0.0, 0.5, 1.0] * 4
    assert [each.verdict for each in found] == ["<", "=", ">"] * 4
    assert found[0].usage == Usage(100, 10)
    assert found[0].reply == "Reason. [[B]]"
    assert (judge.spent.calls, judge.spent.prompt_tokens, judge.spent.completion_tokens) == (12, 1200, 120)
    assert judge.spent.cost == pytest.approx((1200 * 2 + 120 * 8) / 1e6)
    assert 2 <= served.most_under_way <= 4
    assert served.calls[0]["temperature"] == 0
    assert judge.name == "judge-1 (pair)"


FAULTS = ["busy", "broken", "silent", "cut_json", "cut_body", "drops", "reset", "error_in_200"]


def test_every_fault_is_survived_and_each_pair_judged_once(tmp_path):
    """A fault of every kind, at the first two tries of a request each; one has its reply in drops, but whole."""
    with FakeEndpoint() as served:
        served.by_text = {f"Question {n}?": [fault, fault] for n, fault in enumerate(FAULTS)}
        served.by_text["Question 8?"] = ["slow_drops"]
        judge = judge_of(served, tmp_path, timeout=1.5)
        found = list(judge.judge([request(n) for n in range(12)]))
        assert all(each.preference == 0.0 for each in found)
        assert judge.spent.calls == len(served.calls) == 12 + 2 * len(FAULTS)
        assert sorted(served.answered.values()) == [1] * 12
        again = judge_of(served, tmp_path)
        assert list(again.judge([request(n) for n in range(12)])) == found
        assert (again.spent.calls, again.spent.cached) == (0, 12)
    assert len(served.calls) == 12 + 2 * len(FAULTS)


def test_retry_after_is_kept_by_all(tmp_path):
    with FakeEndpoint() as served:
        served.faults = {0: "busy"}
        judge = judge_of(served, tmp_path, concurrency=1)
        assert len(list(judge.judge([request(0), request(1)]))) == 2
    assert served.times[1] - served.times[0] >= 0.29


@pytest.mark.parametrize("fault", ["busy_for_no_time", "busy_until_yesterday"])
def test_one_that_asks_for_no_wait_is_still_left_ever_longer_pauses(tmp_path, fault):
    with FakeEndpoint() as served:
        served.faults = dict.fromkeys(range(4), fault)
        (found,) = judge_of(served, tmp_path, backoff=0.1).judge([request(0)])
    assert found.invalid is None
    pauses = [later - earlier for earlier, later in itertools.pairwise(served.times)]
    assert all(pause >= 0.05 * 2**tried for tried, pause in enumerate(pauses))  # half of the longest is the least


def test_one_that_asks_to_wait_for_hours_is_left(tmp_path):
    with FakeEndpoint() as served:
        served.always = "busy_for_hours"
        with pytest.raises(JudgeError, match="asks to wait 7200 s"):
            list(judge_of(served, tmp_path).judge([request(0)]))


def test_what_keeps_failing_is_invalid_with_its_reason_and_asked_again_next_time(tmp_path):
    with FakeEndpoint() as served:
        served.by_text = {"Question 1?": ["broken"] * 3, "Question 2?": ["bad_request"]}
        found = list(judge_of(served, tmp_path, retries=2).judge([request(n) for n in range(4)]))
        assert [each.invalid is None for each in found] == [True, False, False, True]
        assert found[1].invalid.startswith("status 500: oh no")
        assert "maximum context length" in found[2].invalid
        calls = len(served.calls)
        again = list(judge_of(served, tmp_path).judge([request(n) for n in range(4)]))
        assert all(each.invalid is None for each in again)
        assert len(served.calls) == calls + 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("bad_detail", "status 422: [{'loc': ['body', 'top_logprobs'], 'msg': 'extra fields not permitted'}]"),
        ("bad_text", "status 400: no such parameter"),
    ],
)
def test_what_an_endpoint_says_of_a_request_is_passed_on(tmp_path, fault, says):
    with FakeEndpoint() as served:
        served.always = fault
        (found,) = judge_of(served, tmp_path).judge([request(0)])
    assert found.invalid == says


@pytest.mark.parametrize(("fault", "says"), [("moderated", "status 403: your input"), ("filtered", "content_filter")])
def test_what_is_held_back_of_one_request_ends_no_other(tmp_path, fault, says):
    """Nor does it where nothing else is left to ask, as in the next command."""
    with FakeEndpoint() as served:
        served.by_text = {"Question 1?": [fault, fault]}
        found = list(judge_of(served, tmp_path, concurrency=1).judge([request(n) for n in range(3)]))
        (again,) = judge_of(served, tmp_path).judge([request(1)])
    assert [each.invalid is None for each in found] == [True, False, True]
    assert says in found[1].invalid
    assert again.invalid == found[1].invalid


def test_neighbours_that_are_all_held_back_end_nothing_where_anything_was_ever_said(tmp_path):
    """A command that goes on asks these alone: what was said lies in the cache, and is not asked for."""
    with FakeEndpoint() as served:
        served.by_text = {f"Question {n}?": ["moderated"] * 2 for n in range(1, 13)}
        judge = judge_of(served, tmp_path, concurrency=1)
        found = list(judge.judge([request(n) for n in range(13)]))
        again = list(judge_of(served, tmp_path, concurrency=1).judge([request(n) for n in range(1, 13)]))
    assert [each.invalid is None for each in found] == [True] + [False] * 12
    assert all("status 403" in each.invalid for each in again)


def test_a_key_that_lets_nobody_in_is_given_up(tmp_path):
    with FakeEndpoint() as served:
        served.always = "moderated"
        with pytest.raises(
            JudgeError, match=r"8 requests in a row, at last: status 403: .* is TEST_KEY the right key"
        ):
            list(judge_of(served, tmp_path).judge([request(n) for n in range(50)]))


def test_thoughts_that_are_counted_in_the_total_alone_are_booked(tmp_path):
    reply = completion("[[A]]", prompt_tokens=100, completion_tokens=10, total_tokens=1110)
    with FakeEndpoint(lambda body: reply) as served:
        judge = judge_of(served, tmp_path, prices=Prices(0.0, 1e6))
        (found,) = judge.judge([request(0)])
    assert found.usage == Usage(100, 1010)
    assert judge.spent.cost == 1010


def test_one_that_only_fails_is_given_up(tmp_path):
    with FakeEndpoint() as served:
        served.always = "broken"
        with pytest.raises(JudgeError, match="no reply to 8 requests in a row, at last: status 500"):
            list(judge_of(served, tmp_path, retries=0).judge([request(n) for n in range(50)]))
    assert len(served.calls) < 20


def test_a_model_that_an_endpoint_fails_of_is_given_up_soon_and_named(tmp_path):
    """transformers' own server answers 500 to each request for a model that it lacks."""
    with FakeEndpoint() as served:
        served.always = "broken"
        judge = judge_of(served, tmp_path, concurrency=4)
        with pytest.raises(
            JudgeError, match=rf"\(3 times\); .* check that {served.url} runs, and has the model 'judge-1'"
        ):
            list(judge.judge([request(n) for n in range(50)]))
    assert len(served.calls) <= 3 * 12


def test_a_500_after_the_first_reply_is_waited_for(tmp_path):
    with FakeEndpoint() as served:
        served.faults = dict.fromkeys(range(1, 6), "broken")
        found = list(judge_of(served, tmp_path, concurrency=1).judge([request(n) for n in range(3)]))
    assert [each.invalid for each in found] == [None] * 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("wrong_letters", "[[D]] is not one of A, B, C"), ("empty", "empty reply")],
)
def test_a_reply_without_a_verdict_is_invalid_and_asked_again_by_the_next_command(tmp_path, fault, reason):
    with FakeEndpoint() as served:
        served.faults = {0: fault}
        judge = judge_of(served, tmp_path)
        (found,) = judge.judge([request(0)])
        assert reason in found.invalid
        assert found.usage == Usage(100, 10)
        assert list(judge.judge([request(0)])) == [found]
        assert len(served.calls) == 1
        with pytest.raises(JudgeError, match="max_calls=1: 1 calls were made"):
            list(judge_of(served, tmp_path, max_calls=1).judge([request(0)]))
        again = judge_of(served, tmp_path)
        assert again.estimate([request(0)]).calls == 1
        assert [each.verdict for each in again.judge([request(0)])] == ["<"]
        assert [each.verdict for each in judge_of(served, tmp_path).judge([request(0)])] == ["<"]
    assert len(served.calls) == 2


def test_half_a_surrogate_pair_is_invalid_and_the_others_are_judged(tmp_path):
    requests = [request(0), request(1, "half \ud83d"), request(2)]
    with FakeEndpoint() as served:
        judge = judge_of(served, tmp_path, max_cost=9.0, prices=Prices(1.0, 1.0))
        assert judge.estimate(requests).calls == 2
        found = list(judge.judge(requests))
    assert [each.verdict for each in found] == ["<", None, "<"]
    assert "half of a surrogate pair" in found[1].invalid
    assert len(served.calls) == 2


@pytest.mark.parametrize(
    ("settings", "fault", "says"),
    [
        ({"key": "sk-another-key-entirely"}, None, "the key in TEST_KEY is refused (401: Incorrect API key provided"),
        ({"key": None}, None, "a key is needed"),
        ({"model": "judge-9"}, None, "knows no model 'judge-9'"),
        ({}, "html", "does not speak OpenAI's protocol: it replies '<!DOCTYPE"),
        ({}, "other_json", "does not speak OpenAI's protocol"),
        ({}, "used_up", "the account is used up"),
    ],
)
def test_what_no_request_can_mend_stops_at_once_in_one_line(tmp_path, settings, fault, says):
    with FakeEndpoint() as served:
        served.always = fault
        with pytest.raises(UsageError) as caught:
            list(judge_of(served, tmp_path, concurrency=2, **settings).judge([request(n) for n in range(30)]))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(served.calls) <= 4


def test_a_wrong_path_and_a_port_where_nothing_listens_are_said(tmp_path):
    with FakeEndpoint() as served:
        with pytest.raises(UsageError, match="mostly ends in /v1"):
            list(judge_of(served, tmp_path, url=served.url.removesuffix("/v1")).judge([request(0)]))
        url = served.url
    (found,) = judge_of(served, tmp_path, url=url).judge([request(0)])
    assert "cannot be reached" in found.invalid


# -- budget --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 8])
def test_max_calls_stops_before_it_is_passed_and_a_higher_one_goes_on(tmp_path, concurrency):
    requests = [request(n) for n in range(10)]
    with FakeEndpoint() as served:
        served.faults = {2: "broken"}
        with pytest.raises(JudgeError, match="max_calls=6: 6 calls were made"):
            list(judge_of(served, tmp_path, max_calls=6, concurrency=concurrency).judge(requests))
        assert len(served.calls) == 6
        assert sum(served.answered.values()) == 5
        assert len(list(judge_of(served, tmp_path, max_calls=11).judge(requests))) == 10
    assert sorted(served.answered.values()) == [1] * 10


@pytest.mark.parametrize("concurrency", [1, 8])
def test_max_cost_is_never_passed(tmp_path, concurrency):
    """The longest reply and a token a byte are held back; what was not used is given back when the reply is there."""
    requests = [request(n) for n in range(40)]
    prices = Prices(1.0, 1000.0)
    with FakeEndpoint() as served:
        served.delay = 0.01
        judge = judge_of(served, tmp_path, max_cost=1.2, prices=prices, concurrency=concurrency)
        with pytest.raises(JudgeError, match=r"max_cost=1\.2:"):
            list(judge.judge(requests))
    assert judge.spent.cost == pytest.approx(len(served.calls) * prices.cost(Usage(100, 10)))
    assert judge.spent.cost <= 1.2
    assert len(served.calls) >= 15  # 1.2 less one held call of 1.03 leaves room for 17 calls of 0.0101


def test_of_two_limits_of_a_reply_the_larger_is_held_back(tmp_path):
    """The template has max_tokens 1024; endpoints differ in which of the two they keep to."""
    with FakeEndpoint() as served:
        settings = {"parameters": {"max_completion_tokens": 5000}, "max_cost": 4.0, "prices": Prices(0.0, 1000.0)}
        with pytest.raises(JudgeError, match="the next call may cost 5"):
            list(judge_of(served, tmp_path, **settings).judge([request(0)]))
    assert served.calls == []


def test_limits_hold_for_all_processes_and_commands_with_one_cache(tmp_path):
    """Two judges at once, as in the cells of an experiment, and another after one that died with calls under way."""
    with FakeEndpoint() as served:
        served.delay = 0.01
        judges = [judge_of(served, tmp_path, max_calls=9, concurrency=2) for _ in range(2)]

        def read(place: int) -> None:
            with contextlib.suppress(JudgeError):
                list(judges[place].judge([request(100 * place + n) for n in range(10)]))

        threads = [threading.Thread(target=read, args=(place,)) for place in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(served.calls) == sum(judge.spent.calls for judge in judges) == 9
        paid = json.loads((tmp_path / "spent.json").read_text())
        assert (paid["calls"], paid["prompt_tokens"], paid["held"]) == (9, 900, {})
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        (tmp_path / "spent.json").write_text(json.dumps({**paid, "held": {f"{dead.stdout.strip()}:1": 0.7}}))
        prices = Prices(0.0, 1000.0)
        with pytest.raises(JudgeError, match=r"max_cost=1\.5: 0\.7 was spent"):
            list(judge_of(served, tmp_path, max_cost=1.5, prices=prices).judge([request(50)]))
        (tmp_path / "spent.json").write_text("{")
        with pytest.raises(JudgeError, match=r"spent\.json: damaged"):
            list(judge_of(served, tmp_path).judge([request(50)]))
    assert len(served.calls) == 9


def test_a_call_of_unknown_fate_is_taken_to_have_cost_the_most(tmp_path):
    with FakeEndpoint() as served:
        served.faults = {0: "silent"}
        judge = judge_of(served, tmp_path, max_cost=1.5, prices=Prices(0.0, 1000.0), timeout=0.3)
        with pytest.raises(JudgeError, match=r"1\.024 was spent"):
            list(judge.judge([request(0)]))
    assert len(served.calls) == 1


def test_the_estimate_asks_nobody_and_leaves_out_what_the_cache_has(tmp_path):
    requests = [request(n) for n in range(5)]
    with FakeEndpoint() as served:
        judge = judge_of(served, tmp_path, prices=Prices(1.0, 1.0))
        before = judge.estimate(requests)
        assert (before.calls, before.cached, before.completion_tokens) == (5, 0, 5 * 1024)
        assert before.cost == pytest.approx((before.prompt_tokens + before.completion_tokens) / 1e6)
        assert served.calls == []
        list(judge.judge(requests[:2]))
        assert (judge.estimate(requests).calls, judge.estimate(requests).cached) == (3, 2)


def test_what_replies_without_a_limit_cost_is_not_known(tmp_path):
    with FakeEndpoint() as served:
        judge = judge_of(served, tmp_path, prices=Prices(1.0, 1.0), parameters={"max_tokens": None})
        found = judge.estimate([request(0), request(0), request(1)])
    assert (found.calls, found.cached, found.shared, found.cost) == (2, 0, 1, None)
    text = spending_text(found, expected=True)
    assert re.fullmatch(r"2 calls, \d+ tokens to read, replies of any length, 1 requests are the same as others", text)


def test_the_pace_is_kept(tmp_path):
    with FakeEndpoint() as served:
        start = time.monotonic()
        list(judge_of(served, tmp_path, per_minute=1200).judge([request(n) for n in range(5)]))
        assert time.monotonic() - start >= 4 * 0.05


# -- what is the same is asked once ---------------------------------------------------------------------------------


def test_two_requests_that_are_the_same_are_paid_once_and_repeats_are_not_the_same(tmp_path):
    with FakeEndpoint() as served:
        served.delay = 0.05
        judge = judge_of(served, tmp_path)
        found = list(judge.judge([request(0), request(0), request(0, repeat=1), request(1)]))
    assert len(found) == 4
    assert len(served.calls) == judge.spent.calls == 3
    assert judge.spent.cached == 1


def test_what_decides_the_reply_is_in_the_key(tmp_path):
    with FakeEndpoint() as served:
        list(judge_of(served, tmp_path).judge([request(0)]))
        list(judge_of(served, tmp_path, parameters={"temperature": 1}).judge([request(0)]))
        list(judge_of(served, tmp_path, parameters={"temperature": None}).judge([request(0)]))
        list(judge_of(served, tmp_path, url=served.url.replace("127.0.0.1", "localhost")).judge([request(0)]))
        list(judge_of(served, tmp_path, concurrency=2, timeout=2.0, retries=1).judge([request(0)]))
    assert [call.get("temperature") for call in served.calls] == [0, 1, None, 0]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sha256": "0", "reply": {"text": "[[A]]"}}', "null"])
def test_a_damaged_entry_is_a_line_and_asked_again(tmp_path, damage):
    with FakeEndpoint() as served:
        (found,) = judge_of(served, tmp_path).judge([request(0)])
        (entry,) = tmp_path.rglob("??/*.json")
        entry.write_text(damage)
        with pytest.warns(UserWarning, match=r"damaged entry of the judge's cache .*asked again") as caught:
            assert list(judge_of(served, tmp_path).judge([request(0)])) == [found]
        assert all("\n" not in str(each.message) for each in caught)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(judge_of(served, tmp_path).judge([request(0)])) == [found]
    assert len(served.calls) == 2


def test_reading_no_further_ends_it_and_what_was_under_way_is_kept(tmp_path):
    with FakeEndpoint() as served:
        served.delay = 0.05
        judge = judge_of(served, tmp_path, concurrency=2)
        reading = judge.judge([request(n) for n in range(50)])
        next(reading)
        reading.close()
        assert len(list(tmp_path.rglob("??/*.json"))) == len(served.calls) < 50
        assert len(list(judge.judge([request(0)]))) == 1


def test_a_judge_reads_one_thing_at_a_time(tmp_path):
    with FakeEndpoint() as served:
        judge = judge_of(served, tmp_path)
        reading = judge.judge([request(0), request(1)])
        next(reading)
        with pytest.raises(UsageError, match="judging already"):
            next(judge.judge([request(2)]))
        reading.close()


KILLED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.path[:0] = sys.argv[2:]
import test_endpoint as t
class Served: url = sys.argv[1]
judge = t.judge_of(Served, t.Path("cache"), concurrency=3, timeout=30.0)
for each in judge.judge([t.request(n) for n in range(12)]):
    print(each.verdict, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_killed_run_pays_nothing_twice(tmp_path, how):
    """Ended after some replies; the next run asks for those alone that were not answered."""
    here = str(Path(__file__).parent)
    with FakeEndpoint() as served:
        served.delay = 0.15
        command = [sys.executable, "-c", KILLED, served.url, here]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=tmp_path, text=True) as process:
            lines = [process.stdout.readline() for _ in range(4)]
            process.send_signal(how)
            said = process.communicate(timeout=60)[1]
        assert lines == ["<\n"] * 4
        assert said.count("Traceback") == (how is signal.SIGINT)
        assert "Task" not in said
        kept = len(list((tmp_path / "cache").rglob("??/*.json")))
        assert kept >= 4
        calls = len(served.calls)
        found = list(judge_of(served, tmp_path / "cache").judge([request(n) for n in range(12)]))
        assert [each.verdict for each in found] == ["<"] * 12
        assert len(served.calls) == calls + 12 - kept


# -- log-probabilities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "preference"),
    [
        ({"m": -0.1, "M": -2.4}, 0.9088770389851438),  # e^-.1 / (e^-.1 + e^-2.4)
        ({"M": -0.1, "the": -3.0}, 0.0),
        ({"m": -0.3}, 1.0),
        ({"m": -0.3, "M": -math.inf, "the": math.nan, "a": None}, 1.0),
        ({" M": -0.5, "M": -1.5, "m": -1.0}, 0.3071958857184984),  # both spellings of M
    ],
)
def test_first_tokens_rank_as_in_alpaca_eval(tmp_path, top, preference):
    with FakeEndpoint(lambda body: completion(next(iter(top)), top)) as served:
        (found,) = judge_of(served, tmp_path, "alpaca_eval").judge([request(0)])
        assert list(judge_of(served, tmp_path, "alpaca_eval").judge([request(0)])) == [found]
    assert found.preference == pytest.approx(preference, abs=1e-12)
    assert found.verdict is None
    asked = served.calls[0]
    assert (asked["max_tokens"], asked["temperature"], asked["logprobs"], asked["top_logprobs"]) == (1, 1, True, 5)
    assert '"model": "m",\n    "answer": """short"""' in asked["messages"][-1]["content"]


def test_wrong_letters_are_invalid_and_missing_logprobs_are_said(tmp_path):
    with FakeEndpoint(lambda body: completion("x", {"x": -0.1, "y": -3.0})) as served:
        (found,) = judge_of(served, tmp_path, "alpaca_eval").judge([request(0)])
        assert found.invalid == "none of the letters m, M among its first tokens ('x', 'y')"
        served.reply = lambda body: completion("m")
        with pytest.raises(UsageError, match="tells no log-probabilities"):
            list(judge_of(served, tmp_path / "new", "alpaca_eval").judge([request(n) for n in range(1, 40)]))
    assert len(served.calls) <= 20


def refusal(text: str = "I'm sorry, I can't help with that.") -> dict[str, Any]:
    """As OpenAI's protocol has it: nothing in the content, and no log-probabilities."""
    body = completion("")
    body["choices"][0]["message"] = {"role": "assistant", "content": None, "refusal": text}
    return body


@pytest.mark.parametrize("at", [0, 3])
def test_a_refusal_ends_no_other_judgement_that_reads_log_probabilities(tmp_path, at):
    """Wherever it comes, also as the first of all replies."""

    def reply(body):
        return refusal() if f"Question {at}?" in body["messages"][-1]["content"] else completion("m", {"m": -0.1})

    with FakeEndpoint(reply) as served:
        for _ in range(2):
            judge = judge_of(served, tmp_path, "alpaca_eval", concurrency=1)
            found = list(judge.judge([request(n) for n in range(5)]))
            assert [each.preference for each in found] == [None if n == at else 1.0 for n in range(5)]
            assert found[at].invalid == "no log-probabilities of its first token (it ended with 'refusal')"
            assert "can't help" in found[at].reply


def test_an_endpoint_that_ever_told_log_probabilities_is_not_given_up_for_one_reply_without(tmp_path):
    with FakeEndpoint(lambda body: completion("m", {"m": -0.1})) as served:
        list(judge_of(served, tmp_path, "alpaca_eval").judge([request(0)]))
        served.reply = lambda body: completion("m")
        (found,) = judge_of(served, tmp_path, "alpaca_eval").judge([request(1)])
        assert found.invalid == "no log-probabilities of its first token (it ended with 'stop')"
        for entry in tmp_path.rglob("??/*.json"):
            entry.write_text("{")  # what is not asked for is no concern of this job
        other = judge_of(served, tmp_path, "alpaca_eval", parameters={"seed": 1})  # nothing is known of these
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UsageError, match="tells no log-probabilities"):
                list(other.judge([request(0)]))


# -- the key --------------------------------------------------------------------------------------------------------


def test_the_key_is_in_no_file_no_log_and_no_traceback(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    texts = []
    with FakeEndpoint() as served:
        served.by_text = {"Question 0?": ["broken"] * 9, "Question 1?": ["echo_key"]}
        judge = judge_of(served, tmp_path, retries=1)
        texts += [repr(each) for each in judge.judge([request(0), request(1), request(2)])]
        texts += [repr(judge), repr(judge.settings), str(vars(judge))]
        served.key = "sk-another"
        with pytest.raises(UsageError) as caught:
            list(judge.judge([request(3)]))
        texts.append("".join(traceback.format_exception(caught.value)))
        served.key = KEY
        served.always = "reset"
        texts += [repr(each) for each in judge_of(served, tmp_path, retries=0).judge([request(5)])]
    assert served.keys == {f"Bearer {KEY}"}
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4  # two replies, what was paid, and its lock
    assert any("You sent Bearer <TEST_KEY>" in text for text in files)
    seen = "".join([*texts, *files, caplog.text, *capfd.readouterr()])
    assert "<TEST_KEY>" in seen
    assert KEY not in seen


@pytest.mark.parametrize("spelt", ["json", "slashes", "numbers", "twice", "url"])
def test_the_key_is_seen_nowhere_however_an_endpoint_spells_it(tmp_path, spelt):
    """In a reply, in a refusal, in what is no JSON: as JSON may escape it, and JSON in JSON."""
    key = 'sk/0123+"abc\\def/secret'
    written = json.dumps(key)[1:-1]
    written = {
        "json": written,
        "slashes": written.replace("/", "\\/"),
        "numbers": "".join(f"\\u{ord(letter):04X}" for letter in key),
        "twice": json.dumps(written.replace("/", "\\/"))[1:-1],
        "url": urllib.parse.quote(key, safe=""),
    }[spelt]
    access = Access("http://localhost", key, "TEST_KEY")
    message = f'{{"message": {{"content": "You sent {written}. [[A]]"}}}}'
    body = f'{{"choices": [{message}], "usage": {{"prompt_tokens": 1e999}}}}'
    reply = Client(access, 1.0)._read(body.encode())
    assert reply.text == "You sent <TEST_KEY>. [[A]]"
    assert reply.usage is None
    with pytest.raises(UsageError, match="it replies 'no <TEST_KEY> here'"):
        Client(access, 1.0)._read(f"no {written} here".encode())


def test_the_key_comes_from_the_environment_alone(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY is not set"):
        open_access(None, None)
    with pytest.raises(ConfigError, match="environment variable MY_KEY is not set"):
        open_access("http://localhost:8000/v1", "MY_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert open_access(None, None) == Access("https://api.openai.com/v1", KEY, "OPENAI_API_KEY")
    assert open_access("http://localhost:8000/v1/", None).key is None, "the key is for OpenAI alone unless it is named"
    assert open_access("http://localhost:8000/v1/", "OPENAI_API_KEY").key == KEY
    assert KEY not in repr(open_access(None, None))
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(ConfigError, match="holds no key") as caught:
        open_access(None, None)
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8000", "is no http or https address"),
        ("ftp://x/v1", "is no http or https address"),
        ("http://user:secret@host/v1", "holds a password"),
        ("http://host/v1?key=secret", "holds a password or a query"),
    ],
)
def test_a_base_url_that_is_none_or_holds_a_secret_is_refused(url, says):
    with pytest.raises(ConfigError, match=says) as caught:
        open_access(url, None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_cost": 1.0}, "max_cost needs prices"),
        ({"max_cost": 1.0, "prices": Prices(1, 1), "parameters": {"max_tokens": None}}, "max_cost needs max_tokens"),
        ({"parameters": {"stream": True, "n": 2}}, "hold n, stream"),
        ({"parameters": {"max_tokens": "many"}}, "give a number of tokens"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(tmp_path, settings, says):
    with pytest.raises(ConfigError, match=says):
        EndpointJudge(
            load_template("pair"),
            EndpointSettings(MODEL, Access("http://x/v1", None, "K"), **{"parameters": {}, **settings}),
            ReplyCache(tmp_path),
        )


def test_a_request_that_does_not_fit_the_template_is_refused_before_anything_is_sent(tmp_path):
    with FakeEndpoint() as served:
        single = JudgeRequest(({"role": "user", "content": "?"},), (("a",),))
        with pytest.raises(DataError, match="shows 2 answers, and 1 were given"):
            list(judge_of(served, tmp_path).judge([request(0), single]))
    assert served.calls == []


def test_without_the_package_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['openai'] = None; sys.path[:0] = sys.argv[1:]\n"
        "import test_endpoint as t\n"
        "class Served: url = 'http://x/v1'\n"
        "try: list(t.judge_of(Served, t.Path('cache')).judge([t.request(0)]))\n"
        "except t.ConfigError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout == "an endpoint as judge needs the package openai: pip install openai\n"


def test_the_cache_holds_what_was_asked_but_for_the_texts(tmp_path):
    with FakeEndpoint() as served:
        list(judge_of(served, tmp_path).judge([request(0)]))
        (entry,) = tmp_path.rglob("??/*.json")
        said = json.loads(entry.read_text())
    assert said["model"] == MODEL
    assert said["endpoint"] == served.url
    assert said["reply"]["text"] == "Reason. [[B]]"
    assert len(entry.stem) == 64
