"""`create_app`: the dense reward as a web application."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.responses import PlainTextResponse

from densepath import __version__
from densepath.errors import UsageError
from densepath.models.compat import eos_token_ids
from densepath.rewards.dense import DenseReward
from densepath.serve.docs_page import DOCS_PATHS, add_docs_page
from densepath.serve.engine import ScoringEngine
from densepath.serve.errors import ApiError
from densepath.serve.guard import Guard
from densepath.serve.handlers import add_error_handlers, unless_gone
from densepath.serve.metrics import CountRequests, Metrics
from densepath.serve.reading import rank_response, read_rank_request, read_score_request, score_response
from densepath.serve.schemas import (
    ErrorResponse,
    Health,
    ModelInfo,
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
)
from densepath.serve.settings import Access, Limits
from densepath.serve.trainer_forms import add_trainer_forms

DESCRIPTION = (
    "Grades every token of a completion with the dense reward hidden in a fine-tuned model: "
    "log pi_SFT - log pi_ref, in nats."
)
_REASONS = {
    400: "Not a request that can be read.",
    401: "No bearer token, or another one.",
    403: "Sent by a page of another site.",
    408: "The request did not arrive in time.",
    413: "Too many bytes, items or tokens.",
    415: "Not JSON.",
    422: "Not what this path takes, or an item that the models cannot read.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "A fault of the server.",
    503: "The server starts, stops, or has too many connections.",
    504: "Accepted, but not answered in time.",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": reason} for status, reason in _REASONS.items()
}
_SECURED = [Depends(HTTPBearer(auto_error=False, description="The server's key, if it has one."))]


def create_app(
    reward: DenseReward,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    public_paths: Collection[str] = (),
) -> FastAPI:
    """The web application of one reward; `app.state.engine` is its `ScoringEngine`.

    It answers once its lifespan runs. A parent that it is mounted in has to run `app.router.lifespan_context(app)`
    within its own, since Starlette runs none of what is mounted.

    Args:
        reward: with its tokenizer.
        limits: what clients may ask.
        access: who may ask.
        public_paths: further paths that need no token, for pages mounted on it.
    """
    tokenizer = reward.tokenizer
    if tokenizer is None:
        raise UsageError("this DenseReward has no tokenizer to read requests with: give it tokenizer=")
    given = limits or Limits()
    limits = replace(given, max_length=min(given.max_length or reward.context, reward.context))
    access = access or Access()
    metrics = Metrics()
    engine = ScoringEngine(
        reward,
        eos_token_ids=eos_token_ids(reward.sft.model, tokenizer),
        max_queue_size=limits.max_queue_size,
        request_timeout=limits.request_timeout,
        observer=metrics,
    )
    metrics.watch(engine)
    app = FastAPI(
        title="densepath",
        description=DESCRIPTION,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=functools.partial(_lifespan, engine),
    )
    app.state.engine = engine
    add_docs_page(app)
    add_error_handlers(app)
    _add_scoring(app, reward, engine, limits)
    add_trainer_forms(
        app, reward, limits, {"responses": _ERRORS, "dependencies": _SECURED, "tags": ["other trainers"]}
    )
    _add_operation(app, engine, metrics, _info(reward, limits))
    app.add_middleware(
        Guard, access=access, limits=limits, public_paths={"/health", "/openapi.json", *DOCS_PATHS, *public_paths}
    )
    app.add_middleware(CountRequests, metrics=metrics)
    return app


@contextlib.asynccontextmanager
async def _lifespan(engine: ScoringEngine, _: FastAPI) -> AsyncIterator[None]:
    await engine.start()
    yield
    await engine.stop()


def _add_scoring(app: FastAPI, reward: DenseReward, engine: ScoringEngine, limits: Limits) -> None:
    """The paths that ask the models."""
    tokenizer = reward.tokenizer

    @app.post("/v1/score", responses=_ERRORS, dependencies=_SECURED, tags=["reward"])
    async def score(request: Request, body: ScoreRequest) -> ScoreResponse:
        """Rewards per token of completions."""

        async def work() -> ScoreResponse:
            pairs = await engine.read(read_score_request, body.items, reward.encode, limits)
            scores = await engine.score(pairs)
            return await engine.read(score_response, pairs, scores, body.logprobs, tokenizer)

        return await unless_gone(request, lambda: engine.accept(work))

    @app.post("/v1/rank", responses=_ERRORS, dependencies=_SECURED, tags=["reward"])
    async def rank(request: Request, body: Annotated[RankRequest, Body()]) -> RankResponse:
        """Completions of one prompt by their reward."""

        async def work() -> RankResponse:
            pairs = await engine.read(read_rank_request, body, reward.encode, limits)
            return rank_response(pairs, await engine.score(pairs), body.aggregation)

        return await unless_gone(request, lambda: engine.accept(work))


def _add_operation(app: FastAPI, engine: ScoringEngine, metrics: Metrics, info: ModelInfo) -> None:
    """The paths that say what the server is and how it fares."""

    @app.get("/v1/model", responses=_only(400, 401, 403), dependencies=_SECURED, tags=["reward"])
    async def model() -> ModelInfo:
        """What this server scores with, and its limits."""
        return info

    @app.get("/health", responses=_only(400, 403, 503), tags=["operation"])
    async def health() -> Health:
        """Whether requests are accepted; 503 from the moment that the server stops."""
        if engine.refusing is not None:
            raise ApiError(503, engine.refusing)
        return Health()

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=_only(400, 401, 403),
        dependencies=_SECURED,
        tags=["operation"],
    )
    async def prometheus() -> Response:
        """Counters in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _info(reward: DenseReward, limits: Limits) -> ModelInfo:
    sources = reward.sources or {"sft": "", "refs": []}
    return ModelInfo(
        model_name_or_path=sources["sft"],
        ref_model_name_or_path=sources["refs"],
        dense_reward=reward.kind.value,
        max_length=None if limits.max_length == sys.maxsize else limits.max_length,
        max_items=limits.max_items,
        max_request_bytes=limits.max_request_bytes,
        max_request_tokens=limits.max_request_tokens,
        request_timeout=limits.request_timeout,
    )


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}
