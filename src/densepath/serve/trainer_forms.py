"""The reward in the request forms of other trainers: OpenRLHF's `remote_rm_url`, and verl's reward model.

OpenRLHF posts `query` (prompt and answer in one text), `prompts` and `labels`, and reads `rewards`
(`openrlhf/utils/agent.py`). verl posts `model` and `input`, a conversation that its chat template rendered, to the
server that it takes for vLLM's, and reads `data[-1].probs[-1]` (`verl/experimental/reward_loop/reward_loop.py`).
Either takes one number an answer: the sum of the rewards of its tokens, with V paid back to
`inverse_bellman` at a cut, as to all that is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request

from densepath.rewards.dense import DenseReward
from densepath.serve.engine import ScoringEngine
from densepath.serve.handlers import unless_gone
from densepath.serve.reading import read_rendered
from densepath.serve.schemas import (
    Classified,
    ClassifyRequest,
    ClassifyResponse,
    GetRewardRequest,
    GetRewardResponse,
)
from densepath.serve.settings import Limits


def add_trainer_forms(app: FastAPI, reward: DenseReward, limits: Limits, route: dict[str, Any]) -> None:
    """Serve `/get_reward` and `/classify`.

    Args:
        app: with its engine in `app.state.engine`.
        reward: with its tokenizer.
        limits: what clients may ask.
        route: arguments of each route, such as its errors.
    """
    engine: ScoringEngine = app.state.engine

    async def sums(request: Request, texts: Sequence[str], prompts: Sequence[str] | None, name: str) -> list[float]:
        async def work() -> list[float]:
            pairs = await engine.read(read_rendered, texts, prompts, name, reward.tokenizer, limits)
            return [float(found.rewards.sum()) for found in await engine.score(pairs, trained_on=True)]

        return await unless_gone(request, lambda: engine.accept(work))

    @app.post("/get_reward", **route)
    async def get_reward(request: Request, body: GetRewardRequest) -> GetRewardResponse:
        """OpenRLHF's form: give this address as its remote_rm_url."""
        return GetRewardResponse(rewards=await sums(request, body.query, body.prompts, "query"))

    @app.post("/classify", **route)
    async def classify(request: Request, body: ClassifyRequest) -> ClassifyResponse:
        """verl's form, which is that of vLLM's reward models."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        found = await sums(request, texts, None, "input")
        sources = reward.sources or {"sft": ""}
        return ClassifyResponse(
            model=sources["sft"], data=[Classified(index=index, probs=[value]) for index, value in enumerate(found)]
        )
