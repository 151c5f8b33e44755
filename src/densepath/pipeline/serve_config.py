"""The flat configuration of `densepath serve`, in the names of transformers, TRL and vLLM. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.errors import ConfigError
from densepath.pipeline.options import REWARDS, TokenizerArguments, check_at_least, check_choice, option


@dataclass
class ServeArguments(TokenizerArguments):
    """Arguments of `densepath serve`."""

    model_name_or_path: str = option(
        "smollm2-135m-instruct",
        "The SFT model: hub id, model folder, adapter folder or catalogue name; or the folder of a saved DenseReward.",
    )
    ref_model_name_or_path: str | None = option(
        None, "Reference of the reward; not needed by logprob, inverse_bellman, or where a DenseReward is given."
    )
    dense_reward: str = option("baseline_relative", "baseline_relative, logprob or inverse_bellman.")
    dtype: str = option("float32", "Type the weights are loaded in. Frozen models are best scored in float32.")
    device: str = option("auto", "cpu, cuda, cuda:1 and so on; auto takes CUDA where there is one.")
    token_budget: int = option(2048, "Tokens scored together, of all requests; bounds memory.")
    num_threads: int | None = option(None, "CPU threads of scoring; torch's default if None.")

    host: str = option("127.0.0.1", "Address to listen on. The default is reached from this machine alone.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.")
    root_path: str = option("", "Path that a proxy in front takes off, as in /reward.")
    allowed_hosts: list[str] = option(
        [], "Names by which clients address the server, beside localhost and IP addresses; * for any."
    )
    api_key_file: str | None = option(
        None, "File that holds the bearer token; the variable DENSEPATH_API_KEY is read if None. Neither: no token."
    )
    access_log: bool = option(False, "Log a line for each request.")

    max_request_bytes: int = option(1_048_576, "Longest request body.")
    max_items: int = option(128, "Most items, or completions to rank, of one request.")
    max_length: int | None = option(None, "Most tokens of one prompt with its completion; the context if None.")
    max_request_tokens: int = option(32_768, "Most tokens of one request, prompts counted with each completion.")
    max_queue_size: int = option(512, "Requests waiting or in work at once.")
    max_connections: int = option(1024, "Open connections.")
    request_timeout: float = option(60.0, "Seconds from accepting a request to its answer.")
    read_timeout: float = option(10.0, "Seconds that a client may take to send a request.")

    def __post_init__(self) -> None:
        check_choice("dense_reward", self.dense_reward, REWARDS)
        check_at_least("token_budget", self.token_budget, 1)
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must lie in [0, 65535]; 0 takes a free one")
        if self.num_threads is not None:
            check_at_least("num_threads", self.num_threads, 1)
