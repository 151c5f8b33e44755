"""`create_view_app`: the page of `densepath view`, and what its script asks for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from densepath.errors import DensepathError
from densepath.report.compare import compare
from densepath.report.html import page_html
from densepath.report.scored import RowPage, RowQuery, ScoredFile
from densepath.report.view import ScoreView, fragment_html, live_page_html, live_policy, view_page
from densepath.serve.errors import ApiError
from densepath.serve.guard import Guard
from densepath.serve.handlers import add_error_handlers, unless_gone
from densepath.serve.queue import RequestQueue
from densepath.serve.schemas import Unicode
from densepath.serve.settings import Access, Limits

if TYPE_CHECKING:
    from densepath.serve.view_models import RewardChoices

VIEW_LIMITS = Limits(request_timeout=600.0, max_queue_size=32, max_connections=64)
"""One person looks: few requests, of which one may take a while on a CPU."""


class ViewRequest(BaseModel):
    """A text to score, with which of the models, and whether to give a self-contained page of it too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(min_length=1)]  # pydantic then looks that it is Unicode
    completions: Annotated[list[Unicode], Field(min_length=1, max_length=2)]
    sft: Unicode
    ref: Unicode | None = None
    dense_reward: Unicode
    chat: bool = True
    page: bool = False


class RowRequest(BaseModel):
    """Which rows of the file, in which order; see `RowQuery`."""

    model_config = ConfigDict(extra="forbid")

    sort: Literal["row", "reward", "reward_per_token", "tokens", "lowest"] = "row"
    descending: bool = False
    words: Annotated[str, Field(max_length=200)] = ""
    low: Annotated[float | None, Field(allow_inf_nan=False)] = None
    high: Annotated[float | None, Field(allow_inf_nan=False)] = None
    start: Annotated[int, Field(ge=0)] = 0


def create_view_app(
    *,
    file: ScoredFile | None = None,
    choices: RewardChoices | None = None,
    chat: bool = True,
    max_characters: int = 20_000,
    limits: Limits = VIEW_LIMITS,
    access: Access | None = None,
) -> FastAPI:
    """The web application of a view; `app.state.engine` is its queue.

    Args:
        file: a scored file to page through.
        choices: models to score typed text with.
        chat: whether a prompt is read as a user's turn unless the page says otherwise.
        max_characters: longest prompt or answer.
        limits: on requests, as for `create_app`.
        access: who may ask.
    """
    queue = RequestQueue(max_queue_size=limits.max_queue_size, request_timeout=limits.request_timeout)
    page = live_page_html()
    headers = {"content-security-policy": f"{live_policy()}; frame-ancestors 'none'"}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await queue.start()
        yield
        await queue.stop()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.engine = queue
    add_error_handlers(app)

    async def answer(request: Request, work: Any, *arguments: Any) -> dict[str, Any]:
        """On the one thread that touches the file and the models."""

        async def done() -> dict[str, Any]:
            try:
                result: dict[str, Any] = await queue.read(work, *arguments)
                return result
            except ApiError:
                raise
            except DensepathError as error:
                raise ApiError(422, " ".join(str(error).split())) from error

        return await unless_gone(request, lambda: queue.accept(done))

    @app.get("/")
    async def shell() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    @app.get("/v1/view")
    async def info() -> dict[str, Any]:
        return _info(file, choices, chat, max_characters)

    @app.get("/v1/view/rows")
    async def rows(request: Request, query: Annotated[RowRequest, Query()]) -> dict[str, Any]:
        return await answer(request, _rows, _known(file), RowQuery(**query.model_dump()))

    @app.get("/v1/view/compare")
    async def compared(request: Request, a: int, b: int, page: bool = False) -> dict[str, Any]:
        return await answer(request, _compared, _known(file), a, b, page)

    @app.post("/v1/view/score")
    async def score(request: Request, body: ViewRequest) -> dict[str, Any]:
        if choices is None:
            raise ApiError(404, "this server was started without models (model_name_or_path)")
        texts = [("prompt", body.prompt), *((f"completions[{i}]", text) for i, text in enumerate(body.completions))]
        for place, text in texts:
            if len(text) > max_characters:
                message = f"{place} has {len(text)} characters, at most {max_characters} (max_characters) are read"
                raise ApiError(413, message, param=place)
        return await answer(request, _scored, choices, body)

    app.add_middleware(Guard, access=access or Access(), limits=limits, public_paths={"/"})
    return app


def _known(file: ScoredFile | None) -> ScoredFile:
    if file is None:
        raise ApiError(404, "this server was started without a scored file")
    return file


def _info(file: ScoredFile | None, choices: RewardChoices | None, chat: bool, max_characters: int) -> dict[str, Any]:
    models = None
    if choices is not None:
        models = {
            "sft": choices.sft,
            "ref": choices.ref,
            "dense_rewards": choices.dense_rewards,
            "has_chat_template": choices.has_chat_template,
            "chat": chat and choices.has_chat_template,
            "max_characters": max_characters,
        }
    return {
        "title": "Dense reward, token by token" if file is None else file.path.name,
        "file": None if file is None else {"path": str(file.path), "rows": len(file)},
        "models": models,
    }


def _rows(file: ScoredFile, query: RowQuery) -> dict[str, Any]:
    page = file.find(query)
    view = ScoreView(rows=tuple(page.rows), scale=file.scale, total=len(file))
    return {
        "html": str(fragment_html(view, f"p{query.start}-", picks=True)),
        "rows": [row.number for row in page.rows],
        "next": page.next,
        "note": _note(page, query),
    }


def _note(page: RowPage, query: RowQuery) -> str:
    """What a page of rows is out of how many."""
    if query.words.strip():
        found = f"{len(page.rows)} found in rows {query.start + 1} to {page.searched} of {page.candidates}"
        return found if page.next is None else f"{found}; Next goes on"
    if not page.rows:
        return "No row is within these bounds."
    return f"Rows {query.start + 1} to {query.start + len(page.rows)} of {page.candidates}"


def _compared(file: ScoredFile, a: int, b: int, page: bool) -> dict[str, Any]:
    rows = file.row(str(a)), file.row(str(b))
    facts = (("file", file.path.name),)
    return _shown(ScoreView(comparison=compare(*rows), title="A against B", facts=facts, scale=file.scale), page)


def _scored(choices: RewardChoices, body: ViewRequest) -> dict[str, Any]:
    return _shown(choices.view(**body.model_dump(exclude={"page"})), body.page)


def _shown(view: ScoreView, page: bool) -> dict[str, Any]:
    """A view as a fragment, as numbers, and, if it is asked for, as a page to keep."""
    shown = {"html": str(fragment_html(view, "t-")), "view": view.to_dict()}
    return {**shown, "page": page_html(view_page(view))} if page else shown
