"""`densepath serve`: models and settings from its arguments, a server from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from densepath.config.options import check_reference
from densepath.config.pages import ServeArguments
from densepath.errors import ConfigError
from densepath.models.hub import tell_hub
from densepath.rewards.dense import REWARD_FILE, DenseReward
from densepath.serve.access import read_api_key, warn_if_open
from densepath.serve.app import create_app
from densepath.serve.server import bind, make_server, url_of
from densepath.serve.settings import Access, Limits
from densepath.terminal import Console, say

_INTERRUPTED = 130


def run_serve_command(arguments: ServeArguments, console: Console) -> int:
    """Serve until a signal comes; returns the exit code.

    Raises:
        DensepathError: models that cannot be loaded, a port that cannot be had, a setting that makes no sense.
    """
    limits = Limits(
        max_request_bytes=arguments.max_request_bytes,
        max_items=arguments.max_items,
        max_length=arguments.max_length,
        max_request_tokens=arguments.max_request_tokens,
        max_queue_size=arguments.max_queue_size,
        max_connections=arguments.max_connections,
        request_timeout=arguments.request_timeout,
        read_timeout=arguments.read_timeout,
    )
    access = Access(read_api_key(arguments.api_key_file), allowed_hosts=(arguments.host, *arguments.allowed_hosts))
    with bind(arguments.host, arguments.port) as bound:
        warn_if_open(arguments.host, access, console)
        if arguments.num_threads is not None:
            torch.set_num_threads(arguments.num_threads)
        app = create_app(load_reward(arguments, console), limits=limits, access=access)
        url = url_of(bound)

        def ready() -> None:
            say(console, f"densepath serve: {url}, API page {url}/docs; Ctrl+C stops")

        server = make_server(
            app, limits=limits, root_path=arguments.root_path, access_log=arguments.access_log, on_ready=ready
        )
        server.run(sockets=[bound])
    return _INTERRUPTED if server.force_exit else 0


def load_reward(arguments: ServeArguments, console: Console | None = None) -> DenseReward:
    """The reward that the arguments name: a saved one, or one made of models.

    Args:
        arguments: of the command.
        console: where it is said of a model that the hub is asked for it; None for nowhere.

    Raises:
        ConfigError: a saved one, and beside it a reference or reading; or no reference where one is needed.
    """
    places: dict[str, Any] = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        **arguments.tokenizer_options(),
    }
    if (Path(arguments.model_name_or_path).expanduser() / REWARD_FILE).is_file():
        if arguments.ref_model_name_or_path or arguments.dense_reward != ServeArguments.dense_reward:
            raise ConfigError(
                f"{arguments.model_name_or_path} holds a whole reward ({REWARD_FILE}): "
                "leave out ref_model_name_or_path and dense_reward"
            )
        return DenseReward.from_pretrained(arguments.model_name_or_path, token_budget=arguments.token_budget, **places)
    check_reference(arguments.dense_reward, arguments.ref_model_name_or_path)
    if console is not None:
        tell_hub(arguments, console)
    return DenseReward.from_models(
        arguments.model_name_or_path,
        arguments.ref_model_name_or_path,
        kind=arguments.dense_reward,
        token_budget=arguments.token_budget,
        **places,
    )
