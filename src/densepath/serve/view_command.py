"""`densepath view`: a scored file or texts typed in, as a local web page or as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn

from densepath.config.pages import ViewArguments
from densepath.data.outputs import check_outputs, models_read, rows_read, with_twin
from densepath.report.compare import compare
from densepath.report.scored import RowQuery, ScoredFile
from densepath.report.view import ScoreView
from densepath.serve import require_extra
from densepath.terminal import Console, progress_bar, say

if TYPE_CHECKING:
    from densepath.serve.view_models import RewardChoices

_INTERRUPTED = 130


def run_view_command(arguments: ViewArguments, console: Console) -> int:
    """Write the page, or serve it until a signal comes; returns the exit code.

    Raises:
        DensepathError: a file that was not scored, models that cannot be loaded, a port that cannot be had.
    """
    if arguments.html_file is not None:
        models = (*arguments.model_name_or_path, *arguments.ref_model_name_or_path)
        read = {"scores_file": rows_read(arguments.scores_file), "model_name_or_path": models_read(*models)}
        check_outputs(with_twin(arguments.html_file), read)
        view = _file_view(arguments, console) if arguments.scores_file else _text_view(arguments, console)
        for path in view.save(arguments.html_file):
            say(console, str(path.resolve()))
        return 0
    require_extra("view")
    return _serve(arguments, console)


def _serve(arguments: ViewArguments, console: Console) -> int:
    from densepath.serve.access import read_api_key, warn_if_open
    from densepath.serve.server import bind, make_server, url_of
    from densepath.serve.settings import Access
    from densepath.serve.view import VIEW_LIMITS, create_view_app

    access = Access(read_api_key(arguments.api_key_file), allowed_hosts=(arguments.host, *arguments.allowed_hosts))
    with bind(arguments.host, arguments.port) as bound:
        warn_if_open(arguments.host, access, console)
        file = _open(arguments.scores_file, console) if arguments.scores_file else None
        app = create_view_app(
            file=file,
            choices=_load(arguments, console) if arguments.model_name_or_path else None,
            chat=arguments.chat,
            max_characters=arguments.max_characters,
            access=access,
        )
        url = url_of(bound)

        def ready() -> None:
            say(console, f"densepath view: {url}; Ctrl+C stops")

        server = make_server(app, limits=VIEW_LIMITS, on_ready=ready)
        server.run(sockets=[bound])
    return _INTERRUPTED if server.force_exit else 0


def _open(path: str, console: Console) -> ScoredFile:
    with progress_bar(console, "{task.description}", BarColumn(), disable=not console.is_terminal) as bar:
        task = bar.add_task(f"reading {Path(path).name}", total=1.0)
        return ScoredFile(Path(path), on_progress=lambda share: bar.update(task, completed=share))


def _file_view(arguments: ViewArguments, console: Console) -> ScoreView:
    file = _open(str(arguments.scores_file), console)
    query = RowQuery(
        sort=arguments.sort, descending=arguments.descending, limit=arguments.max_samples, max_tokens=10**9
    )
    pair = [file.row(name) for name in arguments.compare]
    return ScoreView(
        rows=tuple(file.find(query).rows),
        comparison=compare(*pair) if pair else None,
        title=file.path.name,
        facts=(("file", str(file.path)),),
        total=len(file),
        scale=file.scale,
        sort=arguments.sort,
        descending=arguments.descending,
    )


def _text_view(arguments: ViewArguments, console: Console) -> ScoreView:
    answers = [answer for answer in (arguments.completion, arguments.other_completion) if answer is not None]
    return _load(arguments, console).view(
        str(arguments.prompt),
        answers,
        sft=arguments.model_name_or_path[0],
        ref=next(iter(arguments.ref_model_name_or_path), None),
        dense_reward=arguments.dense_reward,
        chat=arguments.chat,
    )


def _load(arguments: ViewArguments, console: Console) -> RewardChoices:
    from densepath.models.hub import tell_hub
    from densepath.models.quiet import quiet_libraries
    from densepath.serve.view_models import RewardChoices

    quiet_libraries()
    tell_hub(arguments, console)
    return RewardChoices(
        arguments.model_name_or_path,
        arguments.ref_model_name_or_path,
        first=arguments.dense_reward,
        token_budget=arguments.token_budget,
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        tokenizer=arguments.tokenizer_options(),
    )
