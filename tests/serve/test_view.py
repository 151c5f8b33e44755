"""The view's server: what its page gets, what it refuses, and that it says no more than it was started with."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.report.scored_files import ROWS, write_jsonl
from tests.report.test_report_page import HOSTILE, Page, poison
from tests.report.test_report_scored import many
from tests.serve.conftest import KEY
from tests.serve.test_app import error
from tests.serve.view_app import model_choices, scored_file

from densepath.config.pages import SORTS
from densepath.errors import ModelError, UsageError
from densepath.report import scored
from densepath.rewards.dense import DenseReward
from densepath.serve.settings import Access
from densepath.serve.view import RowRequest, create_view_app
from densepath.serve.view_models import RewardChoices


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    return model_choices(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return scored_file(tmp_path_factory.mktemp("scores"))


@pytest.fixture
def opened():
    """A client of an application, without a network."""
    clients = []

    def open_client(**arguments) -> TestClient:
        client = TestClient(create_view_app(**arguments), base_url="http://localhost", raise_server_exceptions=False)
        clients.append(client)
        return client.__enter__()

    yield open_client
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def view(opened, file, choices):
    return opened(file=file, choices=choices, max_characters=300)


def body(choices, **changes):
    values = {"prompt": "Say 3:", "completions": ["3, 4", "3, 5"], "sft": choices.sft[0], "ref": choices.ref[0]}
    return {**values, "dense_reward": "baseline_relative", "chat": False, **changes}


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_holds_no_data_and_may_ask_its_server_alone(view, choices):
    answer = view.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    for secret in ("scores.jsonl", "What does it cost?", *choices.sft, *choices.ref):
        assert secret not in answer.text


def test_what_there_is_to_see(view, choices):
    info = view.get("/v1/view").json()
    assert info["title"] == "scores.jsonl"
    assert info["file"]["rows"] == 45
    assert info["models"]["sft"] == choices.sft
    assert info["models"]["ref"] == choices.ref
    assert info["models"]["dense_rewards"] == ["baseline_relative", "logprob", "inverse_bellman"]


def test_without_a_file_or_models_the_page_offers_less(opened, file, choices):
    alone = opened(choices=choices)
    assert alone.get("/v1/view").json()["file"] is None
    assert "without a scored file" in error(alone.get("/v1/view/rows"), 404)["message"]
    alone = opened(file=file)
    assert alone.get("/v1/view").json()["models"] is None
    assert "without models" in error(alone.post("/v1/view/score", json=body(choices)), 404)["message"]


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_come_page_by_page(view):
    pages, start = [], 0
    while start is not None:
        answer = view.get("/v1/view/rows", params={"start": start}).json()
        pages.append(answer)
        start = answer["next"]
    assert [len(page["rows"]) for page in pages] == [20, 20, 5]
    assert [number for page in pages for number in page["rows"]] == list(range(1, 46))
    assert [page["note"] for page in pages] == ["Rows 1 to 20 of 45", "Rows 21 to 40 of 45", "Rows 41 to 45 of 45"]
    ids = [value for page in pages for _, name, value in Page(page["html"]).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_rows_in_order_within_bounds_and_with_words(view):
    def rows(**query):
        answer = view.get("/v1/view/rows", params=query).json()
        return answer["rows"], answer["note"]

    assert rows(sort="lowest")[0][:2] == [2, 3]
    assert rows(sort="reward", descending=True, low=5.625) == ([45, 44], "Rows 1 to 2 of 2")  # 42/8 + 0.5, 41/8 + 0.5
    assert rows(sort="reward", low=100) == ([], "No row is within these bounds.")
    assert rows(words="what DOES") == ([1, 2], "2 found in rows 1 to 45 of 45")


@pytest.mark.parametrize(
    "query", [{"sort": "size"}, {"start": -1}, {"low": "nan"}, {"words": "x" * 201}, {"other": 1}, {"start": "x"}]
)
def test_rows_that_cannot_be_asked_for(view, query):
    assert error(view.get("/v1/view/rows", params=query), 422)["param"] in query


def test_two_rows_are_compared(view):
    answer = view.get("/v1/view/compare", params={"a": 1, "b": 2}).json()
    assert [edit["tag"] for edit in answer["view"]["comparison"]["edits"]] == ["equal", "replace", "equal"]
    assert "dp-pair" in answer["html"]
    assert "no row '99'" in error(view.get("/v1/view/compare", params={"a": 1, "b": 99}), 422)["message"]
    error(view.get("/v1/view/compare", params={"a": "x", "b": 2}), 422)


def test_hostile_rows_are_escaped(opened, tmp_path):
    path = write_jsonl(tmp_path / "hostile.jsonl", [poison(value, HOSTILE) for value in ROWS])
    client = opened(file=scored.ScoredFile(path))
    for address in ("/v1/view/rows", "/v1/view/compare?a=1&b=2"):
        page = Page(client.get(address).json()["html"])
        assert page.faults == []
        assert not {"script", "img"} & set(page.tags)
        assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_a_file_that_changes_under_the_page_is_told(opened, tmp_path):
    path = write_jsonl(tmp_path / "scores.jsonl", many(5))
    client = opened(file=scored.ScoredFile(path))
    write_jsonl(path, many(4))
    assert "has changed since it was opened" in error(client.get("/v1/view/rows"), 422)["message"]


def test_the_orders_are_the_same_everywhere():
    assert SORTS == scored.SORTS
    assert RowRequest.model_json_schema()["properties"]["sort"]["enum"] == list(scored.SORTS)


# --- scoring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["baseline_relative", "logprob", "inverse_bellman"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_text_gets_the_rewards_of_the_pair_that_was_chosen(view, choices, kind, chat):
    asked = body(choices, sft=choices.sft[1], ref=choices.ref[1], dense_reward=kind, chat=chat)
    answer = view.post("/v1/view/score", json=asked).json()["view"]
    reward = DenseReward.from_models(choices.sft[1], choices.ref[1], kind=kind)
    prompt = [{"role": "user", "content": "Say 3:"}] if chat else "Say 3:"
    expected = reward.score([prompt] * 2, asked["completions"])
    for side, values, ids in zip("ab", expected.rewards, expected.completion_ids, strict=True):
        found = answer["comparison"][side]["turns"][0]
        assert found["token_ids"] == ids
        assert found["rewards"] == pytest.approx(values.tolist(), abs=1e-5)
    assert ("reference" in answer["facts"]) == (kind == "baseline_relative")


def test_a_page_to_keep_is_given_if_it_is_asked_for(view, choices):
    for answer in (
        view.post("/v1/view/score", json=body(choices, page=True)),
        view.get("/v1/view/compare", params={"a": 1, "b": 2, "page": True}),
    ):
        page = answer.json()["page"]
        assert Page(page).faults == []
        assert "connect-src" not in page
        assert "dp-pair" in page
    assert "page" not in view.post("/v1/view/score", json=body(choices)).json()


def test_one_answer_is_shown_alone(view, choices):
    answer = view.post("/v1/view/score", json=body(choices, completions=["żółw 🐢\n"])).json()
    assert answer["view"]["comparison"] is None
    assert answer["view"]["rows"][0]["turns"][0]["text"] == "żółw 🐢\n"
    assert choices.sft[0] in re.sub(r"<[^>]+>", "", answer["html"])


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"sft": "/etc/passwd"}, 422, "sft='/etc/passwd' is not among the choices of this server: "),
        ({"ref": "gpt2"}, 422, "ref='gpt2' is not among the choices"),
        ({"ref": None}, 422, "ref=None is not among the choices"),
        ({"dense_reward": "x"}, 422, "dense_reward='x' is not among the choices"),
        ({"completions": []}, 422, "completions: List should have at least 1 item"),
        ({"completions": ["a"] * 3}, 422, "completions: List should have at most 2 items"),
        ({"prompt": ""}, 422, "prompt: String should have at least 1 character"),
        ({"prompt": 3}, 422, "prompt: Input should be a valid string"),
        ({"prompt": "z" * 301}, 413, "prompt has 301 characters, at most 300 (max_characters) are read"),
        ({"completions": ["a", "z" * 301]}, 413, "completions[1] has 301 characters"),
        ({"completions": ["z" * 290]}, 422, "the models' context holds 256; shorten or leave it out"),
        ({"model": "x"}, 422, "model: Extra inputs are not permitted"),
        ({"completions": ["a", "b\ud83d"]}, 422, "completions[1]: no text: character 1 is half of a surrogate pair"),
    ],
)
def test_texts_that_are_refused(view, choices, changes, status, message):
    sent = json.dumps(body(choices, **changes))  # ASCII, so that half of a surrogate pair can be sent
    answer = view.post("/v1/view/score", content=sent, headers={"content-type": "application/json"})
    assert message in error(answer, status)["message"]


@given(st.text(min_size=1, max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=2), st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_answered(view, choices, prompt, completions, chat):
    answer = view.post("/v1/view/score", json=body(choices, prompt=prompt, completions=completions, chat=chat))
    assert answer.status_code == 200, answer.text
    assert Page(answer.json()["html"]).faults == []


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_other_sites_are_refused(view, choices):
    error(view.get("/", headers={"host": "evil.example"}), 400)
    error(view.get("/v1/view/rows", headers={"host": "evil.example"}), 400)
    asked = body(choices)
    error(view.post("/v1/view/score", json=asked, headers={"origin": "https://evil.example"}), 403)
    form = {"content-type": "application/x-www-form-urlencoded"}
    error(view.post("/v1/view/score", content=b"prompt=x", headers=form), 415)
    assert view.post("/v1/view/score", json=asked, headers={"origin": "http://localhost"}).status_code == 200


def test_with_a_key_only_the_empty_page_is_open(opened, file, choices):
    client = opened(file=file, choices=choices, access=Access(api_key=KEY))
    assert client.get("/").status_code == 200
    for address in ("/v1/view", "/v1/view/rows", "/v1/view/compare?a=1&b=2"):
        error(client.get(address), 401)
        assert client.get(address, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    error(client.post("/v1/view/score", json=body(choices)), 401)


# --- the choices ----------------------------------------------------------------------------------------------------


def test_models_that_do_not_fit_are_refused_at_the_start(choices, tmp_path):
    from tests.pipeline.runs import save_tiny_model
    from tests.support import tiny_tokenizer

    foreign = save_tiny_model(tmp_path / "foreign", tokenizer=tiny_tokenizer(byte_level=False))
    with pytest.raises(ModelError, match="differ"):
        RewardChoices([choices.sft[0]], [foreign], first="baseline_relative", token_budget=256)


def test_without_references_only_readings_that_need_none_are_offered(choices):
    alone = RewardChoices([choices.sft[0]], first="logprob", token_budget=256)
    assert alone.dense_rewards == ["logprob", "inverse_bellman"]
    with pytest.raises(UsageError, match="dense_reward='baseline_relative' is not among"):
        alone.reward(choices.sft[0], None, "baseline_relative")
