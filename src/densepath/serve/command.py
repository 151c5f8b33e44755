"""`densepath serve`: models and settings from its arguments, a server from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from densepath.errors import ConfigError, MissingFileError, ModelError
from densepath.pipeline.serve_config import ServeArguments
from densepath.rewards.dense import REWARD_FILE, DenseReward
from densepath.serve.app import create_app
from densepath.serve.server import bind, make_server, url_of
from densepath.serve.settings import Access, Limits, is_loopback

API_KEY_VARIABLE = "DENSEPATH_API_KEY"
_SHORTEST_KEY = 16
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
        if not is_loopback(arguments.host):
            guard = "who has the key" if access.api_key else "anyone, since there is no key (api_key_file)"
            console.print(
                f"warning: {arguments.host} is reached from other machines, by {guard}, and not encrypted; "
                "put a proxy with TLS in front",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
        if arguments.num_threads is not None:
            torch.set_num_threads(arguments.num_threads)
        app = create_app(load_reward(arguments), limits=limits, access=access)
        url = url_of(bound)

        def ready() -> None:
            console.print(
                f"densepath serve: {url}, API page {url}/docs; Ctrl+C stops", highlight=False, soft_wrap=True
            )

        server = make_server(
            app, limits=limits, root_path=arguments.root_path, access_log=arguments.access_log, on_ready=ready
        )
        server.run(sockets=[bound])
    return _INTERRUPTED if server.force_exit else 0


def load_reward(arguments: ServeArguments) -> DenseReward:
    """The reward that the arguments name: a saved one, or one made of models.

    Raises:
        ConfigError: a saved one, and beside it a reference or reading. ModelError: no reference where one is needed.
    """
    places: dict[str, Any] = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "trust_remote_code": arguments.trust_remote_code,
    }
    if (Path(arguments.model_name_or_path).expanduser() / REWARD_FILE).is_file():
        if arguments.ref_model_name_or_path is not None or arguments.dense_reward != ServeArguments.dense_reward:
            raise ConfigError(
                f"{arguments.model_name_or_path} holds a whole reward ({REWARD_FILE}): "
                "leave out ref_model_name_or_path and dense_reward"
            )
        return DenseReward.from_pretrained(arguments.model_name_or_path, token_budget=arguments.token_budget, **places)
    if arguments.dense_reward == "baseline_relative" and arguments.ref_model_name_or_path is None:
        raise ModelError(
            "dense_reward=baseline_relative needs ref_model_name_or_path: an earlier checkpoint of the SFT run, "
            "or the model before SFT; or choose dense_reward=logprob"
        )
    return DenseReward.from_models(
        arguments.model_name_or_path,
        arguments.ref_model_name_or_path,
        kind=arguments.dense_reward,
        token_budget=arguments.token_budget,
        **places,
    )


def read_api_key(path: str | None) -> str | None:
    """The bearer token: from a file, else from the environment, so that no list of processes shows it.

    Raises:
        MissingFileError: no such file. ConfigError: too short, or not printable ASCII without spaces.
    """
    if path is None:
        key, place = os.environ.get(API_KEY_VARIABLE), API_KEY_VARIABLE
        if key is None:
            return None
    else:
        place = f"api_key_file={path}"
        try:
            key = Path(path).expanduser().read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{place}: the key must be printable ASCII without spaces") from None
        except OSError as error:
            raise MissingFileError(f"{place}: cannot be read ({error.strerror})") from None
    key = key.strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{place}: the key must be printable ASCII without spaces")
    if len(key) < _SHORTEST_KEY:
        raise ConfigError(
            f"{place}: the key has {len(key)} characters, at least {_SHORTEST_KEY} are needed; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return key
