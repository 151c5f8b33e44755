"""TRL's reward functions inside of DPR: what they return is checked, and lands on the tokens it is about."""

from __future__ import annotations

import asyncio
import functools
import re

import numpy as np
import pytest
import torch

from densepath.errors import ConfigError, DataError, NumericalError
from densepath.rewards.scores import DenseScores
from densepath.trainers.reward_functions import CALL, Call, RewardFunctions, dense_reward_sum
from densepath.trainers.rollout import FunctionRewards, Sampled, Scored

IDS = [[5, 6, 2], [7, 2]]
PROMPTS = ["Say red:", [{"role": "user", "content": "Say\nblue:"}]]
MASK = torch.tensor([[True, True, True], [True, True, False]])


def call_of(tool_mask=None) -> tuple[Call, dict]:
    """A call, and what TRL hands to a reward function in it."""
    rewards = [torch.ones(len(ids)) for ids in IDS]
    sampled = Sampled([[1]] * 2, IDS, tool_mask=tool_mask)
    call = Call(Scored(sampled, DenseScores(rewards, rewards, [], rewards, IDS)))
    return call, {"prompts": PROMPTS, "completions": ["a b", "c"], "completion_ids": IDS, CALL: [call] * 2}


def returned(call: Call, columns: list[list[float]]) -> FunctionRewards:
    """What TRL gathers: the dense reward's sums first."""
    return FunctionRewards(torch.tensor([call.scored.sums(), *columns]).T, 0, 2, call.per_token)


def constant(output):
    def verifier(prompts, completions, completion_ids, **kwargs):
        assert CALL not in kwargs
        return output

    return verifier


@pytest.mark.parametrize(
    "output", [[1.0, -0.5], (1, -0.5), torch.tensor([1.0, -0.5]), np.array([1.0, -0.5]), [True, np.float32(-0.5)]]
)
def test_one_number_a_completion(output):
    functions = RewardFunctions(constant(output))
    (verifier,) = functions.wrapped
    assert verifier.__name__ == "verifier"
    call, given = call_of()
    assert verifier(**given) == [1.0, -0.5]
    placed = functions.external(returned(call, [[1.0, -0.5]]), ["verifier"], MASK)
    assert placed.tolist() == [[0, 0, 1.0], [0, -0.5, 0]]


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_one_number_a_token_stays_where_it_is(kind):
    functions = RewardFunctions(constant([kind([1.0, 2.0, 3.0]), kind([-1.0, 0.5])]))
    call, given = call_of()
    assert functions.wrapped[0](**given) == [6.0, -0.5]
    placed = functions.external(returned(call, [[6.0, -0.5]]), ["verifier"], MASK)
    assert placed.tolist() == [[1.0, 2.0, 3.0], [-1.0, 0.5, 0]]


def test_weights_add_functions_and_reach_what_they_return_per_token():
    functions = RewardFunctions([constant([1.0, 2.0]), renamed("dense", [[1.0, 0, 0], [0, 1.0]])], [10.0, 0.5])
    call, given = call_of()
    for function in functions.wrapped:
        function(**given)
    placed = functions.external(returned(call, [[1.0, 2.0], [1.0, 1.0]]), ["verifier", "dense"], MASK)
    assert placed.tolist() == [[0.5, 0, 10.0], [0, 20.5, 0]]


def renamed(name, output):
    function = constant(output)
    function.__name__ = name
    return function


def test_tokens_that_a_tool_wrote_earn_nothing():
    functions = RewardFunctions(constant([[1.0, 2.0, 3.0], [4.0, 5.0]]))
    call, given = call_of(tool_mask=[[1, 0, 1], [1, 1]])
    assert functions.wrapped[0](**given) == [4.0, 9.0]
    assert dense_reward_sum(**given) == [2.0, 2.0]
    mask = torch.tensor([[True, False, True], [True, True, False]])
    placed = functions.external(returned(call, [[4.0, 9.0]]), ["verifier"], mask)
    assert placed.tolist() == [[1.0, 0, 3.0], [4.0, 5.0, 0]]


def test_what_one_call_returned_per_token_is_not_in_the_next():
    functions = RewardFunctions(constant([[1.0, 2.0, 3.0], [4.0, 5.0]]))
    functions.wrapped[0](**call_of()[1])
    placed = functions.external(returned(call_of()[0], [[6.0, 9.0]]), ["verifier"], MASK)
    assert placed.tolist() == [[0, 0, 6.0], [0, 9.0, 0]]


def test_async_functions_and_partials_keep_their_kind_and_name():
    async def judge(prompts, completions, completion_ids, scale=1.0, **kwargs):
        return [scale * len(ids) for ids in completion_ids]

    functions = RewardFunctions(functools.partial(judge, scale=0.5))
    (wrapped,) = functions.wrapped
    assert asyncio.iscoroutinefunction(wrapped)
    assert wrapped.__name__ == "judge"
    assert asyncio.run(wrapped(**call_of()[1])) == [1.5, 1.0]


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ([1.0], DataError, "'verifier' returned 1 rewards for 2 completions"),
        ([1.0, 2.0, 3.0], DataError, "returned 3 rewards for 2 completions"),
        (None, DataError, "'verifier' returned NoneType: a list of numbers is needed"),
        (1.0, DataError, "'verifier' returned float"),
        ([1.0, None], DataError, r"'verifier', completion 1 (prompt 'Say blue:'): None; return 0.0"),
        ([1.0, float("nan")], NumericalError, "completion 1 (prompt 'Say blue:'): nan"),
        ([float("inf"), 1.0], NumericalError, "completion 0 (prompt 'Say red:'): inf"),
        (["good", 1.0], DataError, "completion 0 (prompt 'Say red:'): 'good' is no number"),
        ([[1.0, 2.0], [1.0, 2.0]], DataError, "completion 0 (prompt 'Say red:'): 2 rewards for 3 tokens"),
        ([[1.0, 2.0, float("nan")], [1.0, 2.0]], NumericalError, "completion 0 (prompt 'Say red:'), token 2: nan"),
        ([[1.0, 2.0, 3.0], 1.0], DataError, "completion 1 (prompt 'Say blue:'): a number here and a list elsewhere"),
    ],
)
def test_what_cannot_be_used_is_named_with_function_and_row(output, error, message):
    with pytest.raises(error, match=re.escape(message)):
        RewardFunctions(constant(output)).wrapped[0](**call_of()[1])


def test_a_reward_model_that_gives_nan_is_named():
    functions = RewardFunctions("some/reward-model")  # TRL loads and calls it
    assert functions.wrapped == ["some/reward-model"]
    with pytest.raises(NumericalError, match="'reward-model', completion 1: nan"):
        functions.external(returned(call_of()[0], [[0.0, float("nan")]]), ["reward-model"], MASK)


def test_names_and_weights_must_fit():
    with pytest.raises(ConfigError, match="two reward functions are called 'verifier'"):
        RewardFunctions([constant([1.0]), constant([2.0])])
    with pytest.raises(ConfigError, match="two reward functions are called 'verifier'"):
        RewardFunctions(constant([1.0]), taken="verifier")
    with pytest.raises(ConfigError, match="reward_weights has 2 numbers for 1 reward functions"):
        RewardFunctions(constant([1.0]), [0.5, 0.5])
    assert len(RewardFunctions(None)) == 0
