"""Fuzzing of the OpenAPI description: what it allows is answered, what it forbids is refused, nothing breaks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.serve.conftest import KEY, served, tiny_reward

from densepath.serve.settings import Access

FAST = {"derandomize": True, "max_examples": 10}
THOROUGH = {"derandomize": False, "max_examples": int(os.environ.get("FUZZ_EXAMPLES", "1000"))}
CALM = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def patient_reward():
    """A tiny reward whose context holds whatever is generated."""
    reward = tiny_reward()
    for policy in (reward.sft, *reward.refs):
        policy.model.config.max_position_embeddings = 30_000
    return reward


@pytest.fixture(scope="module")
def description() -> Iterator[schemathesis.BaseSchema]:
    with served(patient_reward(), access=Access(api_key=KEY)) as url:
        found = schemathesis.openapi.from_url(f"{url}/openapi.json")
        found.config.update(base_url=url, headers={"Authorization": f"Bearer {KEY}"})
        found.config.generation.modes = list(GenerationMode)
        yield found


POSTS = [("POST", "/v1/score"), ("POST", "/v1/rank"), ("POST", "/get_reward"), ("POST", "/classify")]
UNREADABLE = ("/get_reward", "/classify")
"""Paths that refuse texts in which no answer is found, which no description can tell."""
GETS = [("GET", "/v1/model"), ("GET", "/health"), ("GET", "/metrics")]


def test_every_operation_is_fuzzed(description):
    assert {(found.ok().method.upper(), found.ok().path) for found in description.get_all_operations()} == {
        *POSTS,
        *GETS,
    }


def fuzz(description, method: str, path: str, mode: GenerationMode, **given_settings) -> None:
    """Send what the description allows (or forbids, by `mode`) and check each answer against it."""
    operation = description[path][method]
    left_out = [positive_data_acceptance] if path in UNREADABLE else []

    @settings(deadline=None, suppress_health_check=CALM, database=None, **given_settings)
    @given(operation.as_strategy(generation_mode=mode))
    def answers_conform(case):
        case.call_and_validate(excluded_checks=left_out)

    answers_conform()


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("method", "path"), POSTS)
def test_the_description_holds(description, method, path, mode):
    fuzz(description, method, path, mode, **FAST)


@pytest.mark.parametrize(("method", "path"), GETS)
def test_the_description_of_what_takes_nothing_holds(description, method, path):
    fuzz(description, method, path, GenerationMode.POSITIVE, **FAST)


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("method", "path"), POSTS)
def test_the_description_holds_at_length(description, method, path, mode):
    fuzz(description, method, path, mode, **THOROUGH)
