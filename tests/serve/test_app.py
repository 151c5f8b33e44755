"""The application over HTTP: values, limits, access, one shape of errors, metrics, and the page without a network."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import httpx2
import pytest
import torch
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.serve.conftest import KEY, tiny_reward

from densepath.config.pages import ServeArguments
from densepath.errors import NumericalError, UsageError
from densepath.rewards.dense import DenseReward
from densepath.serve.app import create_app
from densepath.serve.errors import TYPES
from densepath.serve.settings import Access, Limits

TURNS = [{"role": "user", "content": "3?"}]
JSON = {"content-type": "application/json"}


@pytest.fixture
def application(reward):
    """A client of an application with the limits and access given, without a network."""
    opened = []

    def make(limits: Limits | None = None, access: Access | None = None, root_path: str = "") -> TestClient:
        app = create_app(reward, limits=limits, access=access)
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False, root_path=root_path)
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def error(response: httpx2.Response, status: int) -> dict:
    """The error of a response, after a look at its status and shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    record = response.json()
    assert set(record) == {"error"}
    assert set(record["error"]) == {"message", "type", "param", "code"}
    assert record["error"]["code"] == status
    assert "\n" not in record["error"]["message"]
    return record["error"]


# -- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("completion", ["3, 4", "", "żółw 🐢", "the answer is one\n\n"])
def test_score_of_text(client, reward, completion):
    found = client.post("/v1/score", json={"items": [{"prompt": "Say 3:", "completion": completion}]}).json()
    expected = reward.score(["Say 3:"], [completion])
    (result,) = found["results"]
    assert result["text"] == completion
    assert result["token_ids"] == expected.completion_ids[0]
    assert result["rewards"] == pytest.approx(expected.rewards[0].tolist(), abs=1e-9)
    assert result["offsets"] == [list(place) for place in expected.offsets[0]]
    assert result["sum"] == pytest.approx(sum(result["rewards"]), abs=1e-9)
    assert result["mean"] == pytest.approx(result["sum"] / len(result["rewards"]), abs=1e-9)
    assert result["tokens"][-1] == "<|im_end|>"
    assert result["tokens"][:-1] == [completion[start:end] for start, end in result["offsets"][:-1]]
    assert result["sft_logprobs"] is None
    usage = {"prompt_tokens": len(reward.encode("Say 3:", completion).prompt_ids)}
    assert found["usage"] == {**usage, "completion_tokens": len(result["rewards"])}


def test_score_of_many_in_their_order_with_logprobs(client, reward):
    items = [{"prompt": f"Say {n}:", "completion": f"{n} {n}"} for n in range(20)]
    items[3] = {"prompt": TURNS, "completion": [{"role": "assistant", "content": "three"}]}
    items[4] = {"prompt": TURNS, "completion": "three"}
    found = client.post("/v1/score", json={"items": items, "logprobs": True}).json()["results"]
    expected = reward.score([item["prompt"] for item in items], [item["completion"] for item in items])
    for index, result in enumerate(found):
        assert result["rewards"] == pytest.approx(expected.rewards[index].tolist(), abs=1e-9)
        assert result["sft_logprobs"] == pytest.approx(expected.sft_logprobs[index].tolist(), abs=1e-9)
        differences = [a - b for a, b in zip(result["sft_logprobs"], result["ref_logprobs"], strict=True)]
        assert result["rewards"] == pytest.approx(differences, abs=1e-9)
    assert found[3]["token_ids"] == found[4]["token_ids"]
    assert found[3]["rewards"] == pytest.approx(found[4]["rewards"])


@pytest.mark.parametrize("kind", ["logprob", "inverse_bellman"])
def test_the_other_readings(kind):
    reward = tiny_reward(kind=kind)
    item = {"prompt": "Say 3:", "completion": "3, 4"}
    with TestClient(create_app(reward), base_url="http://localhost") as client:
        (result,) = client.post("/v1/score", json={"items": [item], "logprobs": True}).json()["results"]
    expected = reward.score([item["prompt"]], [item["completion"]])
    assert result["rewards"] == pytest.approx(expected.rewards[0].tolist(), abs=1e-9)
    assert result["ref_logprobs"] is None


@pytest.mark.parametrize("run", [True, False])
def test_an_application_that_is_mounted_answers_while_its_lifespan_runs(reward, run):
    app = create_app(reward, access=Access(KEY))
    parent = FastAPI(lifespan=app.router.lifespan_context if run else None)
    parent.mount("/reward", app)
    sent = {"items": [{"prompt": "Say 3:", "completion": "3, 4"}]}
    with TestClient(parent, base_url="http://localhost", headers={"Authorization": f"Bearer {KEY}"}) as client:
        health, scored = client.get("/reward/health"), client.post("/reward/v1/score", json=sent)
    if run:
        (result,) = scored.json()["results"]
        assert result["rewards"] == pytest.approx(reward.score(["Say 3:"], ["3, 4"]).rewards[0].tolist(), abs=1e-9)
    else:
        assert "mounted needs its lifespan run" in error(health, 503)["message"]
        assert "mounted needs its lifespan run" in error(scored, 503)["message"]


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
@pytest.mark.parametrize("prompt", ["Say 3:", TURNS])
def test_rank(client, reward, prompt, aggregation):
    completions = ["3", "dog dog dog", "4, 5", "3", "Sort these words"]
    sent = {"prompt": prompt, "completions": completions, "aggregation": aggregation}
    found = client.post("/v1/rank", json=sent).json()
    rewards = [values.tolist() for values in reward.score([prompt] * 5, completions).rewards]
    scores = [sum(values) if aggregation == "sum" else sum(values) / len(values) for values in rewards]
    assert [result["score"] for result in found["results"]] == pytest.approx(scores, abs=1e-9)
    assert [result["num_tokens"] for result in found["results"]] == [len(values) for values in rewards]
    assert [scores[index] for index in found["order"]] == pytest.approx(sorted(scores, reverse=True))
    assert found["order"].index(0) + 1 == found["order"].index(3)  # equal ones: the earlier first


def test_the_model_and_its_limits(client):
    found = client.get("/v1/model").json()
    assert (found["dense_reward"], found["max_length"], found["max_items"]) == ("baseline_relative", 256, 128)


CONVERSATION = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n"


def of_ids(reward: DenseReward, prompt: str, answer: str) -> float:
    """The reward of an answer whose ids are told apart by hand."""
    ids = [reward.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    return float(reward.score_ids([ids[0]], [ids[1]]).rewards[0].sum())


def test_the_form_of_openrlhf(client, reward):
    answers = ["3, 4<|im_end|>", "3, 4", "3, 4<|im_end|>\n"]
    prompts = [CONVERSATION, "Say 3:", CONVERSATION]
    queries = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    found = client.post("/get_reward", json={"query": queries, "prompts": prompts, "labels": ["3", None, 1]}).json()
    expected = [of_ids(reward, prompt, answer.rstrip()) for prompt, answer in zip(prompts, answers, strict=True)]
    assert found == {"rewards": pytest.approx(expected, abs=1e-9)}
    assert found["rewards"][0] == pytest.approx(float(reward.score([TURNS], ["3, 4"]).rewards[0].sum()), abs=1e-9)
    # a prompt that was cut, as OpenRLHF cuts it on the left, is found by the template
    cut = {"query": [queries[0]], "prompts": ["and before that " + CONVERSATION]}
    assert client.post("/get_reward", json=cut).json()["rewards"] == pytest.approx(expected[:1], abs=1e-9)
    assert client.post("/get_reward", json={"query": queries[:1]}).json()["rewards"] == pytest.approx(expected[:1])


def test_the_form_of_verl(client, reward):
    turns = [*TURNS, {"role": "assistant", "content": "3, 4"}]
    text = reward.tokenizer.apply_chat_template(turns, tokenize=False)
    found = client.post("/classify", json={"model": "m", "input": text, "use_activation": False}).json()
    expected = float(reward.score([TURNS], ["3, 4"]).rewards[0].sum())
    assert found["data"][-1]["probs"][-1] == pytest.approx(expected, abs=1e-9)
    longer = text + "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n5<|im_start|>assistant\n6<|im_end|>\n"
    found = client.post("/classify", json={"input": [text, longer], "activation": False}).json()["data"]
    prompt, _, answer = longer.partition("5<")
    assert [each["index"] for each in found] == [0, 1]
    # a generation prompt that the answer itself holds begins no answer
    assert found[1]["probs"] == pytest.approx([of_ids(reward, prompt, f"5<{answer.rstrip()}")], abs=1e-9)


def test_a_trainer_gets_v_back_where_an_answer_was_cut():
    """As docs/method.md has it: the sum is then that of log pi and V of the state after the prompt, for any answer."""
    reward = tiny_reward(kind="inverse_bellman")
    ids = [reward.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (CONVERSATION, "3, 4")]
    with torch.no_grad():
        logits = reward.sft.model(torch.tensor([ids[0] + ids[1]])).logits[0, len(ids[0]) - 1 : -1]
    logprobs = logits.log_softmax(-1)[torch.arange(len(ids[1])), torch.tensor(ids[1])]
    expected = float(logprobs.sum() + logits[0].logsumexp(-1))
    with TestClient(create_app(reward), base_url="http://localhost") as client:
        sent = {"query": [CONVERSATION + "3, 4"], "prompts": [CONVERSATION]}
        assert client.post("/get_reward", json=sent).json()["rewards"] == pytest.approx([expected], abs=1e-9)
        found = client.post("/classify", json={"input": CONVERSATION + "3, 4"}).json()["data"]
        assert found[-1]["probs"] == pytest.approx([expected], abs=1e-9)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/get_reward", {"query": ["a", "b"], "prompts": ["a"]}, "1 prompts, and query has 2 texts"),
        ("/get_reward", {"query": ["a"], "prompts": ["b"]}, r"query[0]: no answer: nothing stands behind"),
        ("/get_reward", {"query": ["Say 3:"], "prompts": ["Say 3:"]}, r"query[0]: the prompt has"),
        ("/classify", {"input": "no turns"}, r"input[0]: no answer"),
        ("/classify", {"input": CONVERSATION, "use_activation": True}, "use_activation"),
    ],
)
def test_what_other_trainers_may_get_wrong(client, path, body, message):
    assert message in error(client.post(path, json=body), 422)["message"]


def test_the_root_leads_to_the_page(application):
    answer = application(access=Access(KEY)).get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


def test_a_reward_without_a_tokenizer_cannot_be_served(reward):
    with pytest.raises(UsageError, match="has no tokenizer"):
        create_app(DenseReward(reward.sft, reward.refs))


# -- what is refused ---------------------------------------------------------------------------------------------

INVALID = {
    "": "Field required",
    "{": "not JSON: Expecting property name",
    "null": "valid",
    "[]": "valid dictionary",
    '{"items": []}': "items: List should have at least 1 item",
    '{"items": [{"prompt": "a"}]}': r"items\[0\].completion: Field required",
    '{"items": [{"prompt": "", "completion": "a"}]}': r"items\[0\].prompt: String should have at least 1",
    '{"items": [{"prompt": [], "completion": "a"}]}': r"items\[0\].prompt: List should have at least 1",
    '{"items": [{"prompt": 1, "completion": "a"}]}': r"items\[0\].prompt: Input should be a valid string",
    '{"items": [{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}]}': r"items\[0\].completion",
    '{"items": [{"prompt": "a", "completion": "b", "beta": 1}]}': r"items\[0\].beta: Extra inputs",
    '{"items": [{"prompt": [{"role": "robot", "content": "a"}], "completion": "b"}]}': r"items\[0\].prompt\[0\].role",
    '{"items": [{"prompt": "\\ud800", "completion": "b"}]}': r"items\[0\].prompt: .*unicode",
    '{"items": [{"prompt": "a", "completion": "b", "\\ud800": 1}]}': r"items\[0\]",
    '{"items": [{"prompt": "a", "completion": "b"}], "logprobs": 1}': "logprobs: Input should be a valid boolean",
    '{"items": NaN}': "items: Input should be a valid list",
}


@pytest.mark.parametrize("body", INVALID)
def test_invalid_requests_are_told_where(client, body):
    found = error(client.post("/v1/score", content=body, headers=JSON), 422)
    assert re.search(INVALID[body], found["message"])
    assert found["type"] == "invalid_request"


@pytest.mark.parametrize("body", ["[" * 100_000, '{"items":' * 50_000, '{"items": ' + "9" * 5000 + "}", b"\xff\xfe{"])
def test_hostile_json_is_refused(client, body):
    assert error(client.post("/v1/score", content=body, headers=JSON), 400)["type"] == "bad_request"


GREEN = {"prompt": "name", "completion": "green"}
HALF = "\ud83d"


@pytest.mark.parametrize(
    ("path", "sent", "place"),
    [
        ("score", {"items": [GREEN, {"prompt": "name", "completion": f"blue {HALF}"}]}, "items[1].completion"),
        ("score", {"items": [GREEN, {"prompt": HALF, "completion": "blue"}]}, "items[1].prompt"),
        (
            "score",
            {"items": [{"prompt": [{"role": "user", "content": HALF}], "completion": "a"}]},
            "items[0].prompt[0].content",
        ),
        ("score", {"items": [{"prompt": TURNS, "completion": HALF}]}, "items[0].completion"),
        (
            "score",
            {"items": [{"prompt": TURNS, "completion": [{"role": "assistant", "content": HALF}]}]},
            "items[0].completion",
        ),
        ("score", {"items": [GREEN], HALF: 1}, ""),
        ("rank", {"prompt": "x", "completions": ["a", HALF]}, "completions[1]"),
        ("rank", {"prompt": TURNS, "completions": ["a", HALF]}, "completions[1]"),
    ],
)
def test_half_of_a_surrogate_pair_is_no_text_and_its_place_is_told(client, path, sent, place):
    """JSON can say it (`json.dumps` does); UTF-8, and so a tokenizer, cannot."""
    found = error(client.post(f"/v1/{path}", content=json.dumps(sent), headers=JSON), 422)
    assert (found["param"] or "").startswith(place)


def test_a_whole_surrogate_pair_is_one_character(client):
    body = r'{"items": [{"prompt": "name", "completion": "\ud83d\udc22"}]}'
    (found,) = client.post("/v1/score", content=body.encode("ascii"), headers=JSON).json()["results"]
    assert found["text"] == "🐢"


def test_a_sequence_longer_than_the_context(client):
    items = [{"prompt": "a", "completion": "b"}, {"prompt": "x " * 300, "completion": "b"}]
    found = error(client.post("/v1/score", json={"items": items}), 422)
    assert re.match(r"items\[1\]: prompt and completion have \d+ tokens, at most 256", found["message"])
    assert found["param"] == "items[1]"


def test_the_longest_sequence_that_fits(client, reward):
    room = 256 - len(reward.encode("a", "").prompt_ids) - 1
    items = [{"prompt": "a", "completion": "%" * room}]
    assert client.post("/v1/score", json={"items": items}).status_code == 200
    items[0]["completion"] += "%"
    error(client.post("/v1/score", json={"items": items}), 422)


def test_a_template_that_refuses_the_turns(client, reward, monkeypatch):
    monkeypatch.setattr(reward.tokenizer, "chat_template", "{{ raise_exception('no such roles') }}")
    found = error(client.post("/v1/score", json={"items": [{"prompt": TURNS, "completion": "b"}]}), 422)
    assert found["message"].startswith("items[0]: the chat template refuses these turns (no such roles)")


@pytest.mark.parametrize(
    ("limits", "items", "message"),
    [
        ({"max_items": 2}, 3, r"3 items; at most 2"),
        ({"max_request_tokens": 20}, 9, r"more than 20 tokens in one request"),
        ({"max_request_bytes": 100}, 9, r"longer than 100 bytes"),
    ],
)
def test_too_much_is_a_413(application, limits, items, message):
    client = application(Limits(**limits))
    sent = [{"prompt": "Say 3:", "completion": "3"}]
    assert client.post("/v1/score", json={"items": sent}).status_code == 200
    found = error(client.post("/v1/score", json={"items": sent * items}), 413)
    assert re.search(message, found["message"])
    many = {"prompt": "Say 3:", "completions": ["3"] * 3 * items}
    error(client.post("/v1/rank", json=many), 413)


@pytest.mark.parametrize(
    ("length", "status"),
    [("101", 413), ("1" + "0" * 5000, 413), ("\u00b2" * 9, 413), ("100", 422), ("0099", 422), ("21", 422)],
)
def test_a_length_is_believed_before_the_body_comes(application, length, status):
    client = application(Limits(max_request_bytes=100))
    headers = {**JSON, "content-length": length.encode("latin-1")}
    error(client.post("/v1/score", content=b"{", headers=headers), status)


def test_a_body_of_unknown_length_is_counted(application):
    client = application(Limits(max_request_bytes=100))
    found = client.post("/v1/score", content=iter([b"x" * 60] * 3), headers=JSON)
    error(found, 413)


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": ""}, {**JSON, "content-encoding": "gzip"}]
)
def test_what_is_not_json_is_a_415(client, headers):
    error(client.post("/v1/score", content=b'{"items": []}', headers=headers), 415)


def test_unknown_paths_and_methods(client):
    error(client.get("/v1/nothing"), 404)
    error(client.post("/v1/score/", json={}), 404)
    error(client.get("/docs/secret"), 404)
    response = client.get("/v1/score")
    error(response, 405)
    assert response.headers["allow"] == "POST"


def test_a_model_that_gives_nan_is_a_500_with_its_place(application, reward, monkeypatch):
    client = application()

    def broken(*_, **__):
        raise NumericalError("sequence 0, completion token 1 (id 5): log-probability is nan")

    monkeypatch.setattr(reward, "score_ids", broken)
    sent = {"items": [{"prompt": "a", "completion": "b"}]}
    assert "log-probability is nan" in error(client.post("/v1/score", json=sent), 500)["message"]


def test_a_fault_is_a_500_without_details(application, reward, monkeypatch):
    client = application()
    monkeypatch.setattr(reward, "encode", lambda *_: 1 / 0)
    sent = {"items": [{"prompt": "a", "completion": "b"}]}
    found = error(client.post("/v1/score", json=sent), 500)
    assert "zero" not in found["message"]
    assert 'densepath_requests_total{path="/v1/score",status="500"} 1.0' in client.get("/metrics").text


# -- access ------------------------------------------------------------------------------------------------------

SENT = {"items": [{"prompt": "a", "completion": "b"}]}


@pytest.mark.parametrize(
    "given", [None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer ", "Bearer é"]
)
def test_a_key_is_asked_for(application, given):
    client = application(access=Access(api_key=KEY))
    headers = {} if given is None else {"authorization": given.encode()}
    response = client.post("/v1/score", json=SENT, headers=headers)
    error(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/metrics", "/v1/model", "/nothing"):
        error(client.get(path, headers=headers), 401)


def test_the_key_opens_and_public_pages_need_none(application):
    client = application(access=Access(api_key=KEY))
    for path in ("/health", "/openapi.json", "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"):
        assert client.get(path).status_code == 200
    headers = {"authorization": f"bearer {KEY}"}
    assert client.post("/v1/score", json=SENT, headers=headers).status_code == 200
    assert client.get("/metrics", headers=headers).status_code == 200


def test_a_proxy_prefix_opens_no_door(application):
    client = application(access=Access(api_key=KEY), root_path="/reward")
    assert client.get("/reward/health").status_code == 200
    error(client.get("/reward/v1/model"), 401)
    assert client.get("/reward/v1/model", headers={"authorization": f"Bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "192.0.2.7", "mine.example"]
)
def test_hosts_that_are_answered(application, host):
    client = application(access=Access(allowed_hosts=("mine.example",)))
    assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "[::1", "::1]", "127.0.0.1.evil.example", "a@localhost"]
)
def test_hosts_that_are_not(client, host):
    assert "Host" in error(client.get("/health", headers={"host": host}), 400)["message"]


def test_any_host_where_that_is_asked_for(application):
    client = application(access=Access(allowed_hosts=("*",)))
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 200


def test_other_sites_and_other_ports_are_not_answered(client, application):
    port = str(client.base_url.host) + ":3000"
    strangers = (
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://203.0.113.5",
        f"http://{port}",
    )
    for origin in strangers:
        response = client.post("/v1/score", json=SENT, headers={"origin": origin})
        error(response, 403)
        assert not [name for name in response.headers if name.startswith("access-control")]
    own = str(client.base_url).rstrip("/")
    response = client.options("/v1/score", headers={"origin": own, "access-control-request-method": "POST"})
    error(response, 405)
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert client.post("/v1/score", json=SENT, headers={"origin": own}).status_code == 200
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert client.post("/v1/score", json=SENT, headers={"sec-fetch-site": site}).status_code == status
    known = application(access=Access(allowed_hosts=("app.example",)))
    asked = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}
    assert known.post("/v1/score", json=SENT, headers=asked).status_code == 200


# -- operation ---------------------------------------------------------------------------------------------------


def test_metrics(application):
    client = application()
    client.post("/v1/score", json={"items": SENT["items"] * 3})
    client.post("/v1/score", content="{", headers=JSON)
    client.get("/whatever/a/client/sends")
    text = client.get("/metrics").text
    for line in (
        'densepath_requests_total{path="/v1/score",status="200"} 1.0',
        'densepath_requests_total{path="/v1/score",status="422"} 1.0',
        'densepath_requests_total{path="other",status="404"} 1.0',
        "densepath_batch_items_sum 3.0",
        "densepath_queue_requests 0.0",
        "densepath_queue_tokens 0.0",
    ):
        assert line in text.splitlines()
    assert "whatever" not in text


def test_health_is_a_503_once_the_server_stops(application):
    client = application()
    assert client.get("/health").json() == {"status": "ok"}
    client.app.state.engine.refuse()
    error(client.get("/health"), 503)
    response = client.post("/v1/score", json=SENT)
    error(response, 503)
    assert "retry-after" in response.headers


def test_the_page_needs_no_network(client):
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text
    for name in re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text):
        assert client.get(f"/{name}").status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_every_answer_has_the_safe_headers(client):
    for path in ("/health", "/nothing", "/docs", "/v1/score"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]


def test_the_document_names_every_error_limit_and_metric(client):
    text = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
    for status, name in TYPES.items():
        assert status == 499 or f"`{name}`" in text, name  # nobody reads a 499
    for name in re.findall(r"^# TYPE (densepath_\w+) ", client.get("/metrics").text, flags=re.MULTILINE):
        assert name.endswith("_created") or f"`{name}`" in text, name
    for field in dataclasses.fields(Limits):
        assert f"`{field.name}`" in text, field.name
        assert getattr(ServeArguments(), field.name) == field.default, field.name


def test_the_description_names_every_error(client):
    description = client.get("/openapi.json").json()
    for path in ("/v1/score", "/v1/rank"):
        responses = description["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "403", "408", "413", "415", "422", "429", "500", "503", "504"} == set(responses)
        for status, response in responses.items():
            name = response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert (name == "ErrorResponse") == (status != "200")
    assert "HTTPValidationError" not in json.dumps(description)
