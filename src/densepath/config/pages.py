"""Arguments of the commands that answer over HTTP: serve, in vLLM's names, and view. No torch: `--help` reads this."""

from __future__ import annotations

from dataclasses import dataclass, fields

from densepath.config.mixins import (
    REWARDS,
    DenseRewardArguments,
    FrozenArguments,
    HostArguments,
    RewardArguments,
)
from densepath.config.options import Arguments, check_no_effect, check_reference, option
from densepath.errors import UsageError

SORTS = ("row", "reward", "reward_per_token", "tokens", "lowest")
"""The orders of `densepath.report.scored`, which is not imported for `--help`."""


@dataclass
class LimitsArguments(Arguments):
    """How much a client may ask."""

    max_request_bytes: int = option(1_048_576, "Longest request body.")
    max_items: int = option(128, "Most items, or completions to rank, of one request.")
    max_length: int | None = option(None, "Most tokens of one prompt with its completion; the context if None.")
    max_request_tokens: int = option(32_768, "Most tokens of one request, prompts counted with each completion.")
    max_queue_size: int = option(512, "Requests waiting or in work at once.")
    max_connections: int = option(1024, "Open connections.")
    request_timeout: float = option(60.0, "Seconds from accepting a request to its answer.")
    read_timeout: float = option(10.0, "Seconds that a client may take to send a request.")


@dataclass
class ServeArguments(LimitsArguments, HostArguments, RewardArguments):
    """Arguments of `densepath serve`."""

    ref_model_name_or_path: list[str] = option(
        [], "Reference of the reward, or several. Not needed by logprob, inverse_bellman, or a saved DenseReward."
    )
    token_budget: int = option(2048, "Tokens scored together, of all requests; bounds memory.", least=1)
    num_threads: int | None = option(None, "CPU threads of scoring; torch's default if None.", least=1)
    root_path: str = option("", "Path that a proxy in front takes off, as in /reward.")
    access_log: bool = option(False, "Log a line for each request.")


@dataclass
class PageArguments(Arguments):
    """What is shown on a page that is written instead of served; all but `html_file` is for it alone."""

    html_file: str | None = option(
        None, "Write a page that needs no server, with a JSON twin beside it, instead of serving one."
    )
    sort: str = option(
        "row",
        "Order of the rows in that page: row, reward, reward_per_token, tokens or lowest.",
        choices=SORTS,
        needs="html_file",
    )
    descending: bool = option(False, "The highest first.", needs="html_file")
    max_samples: int = option(50, "Rows in that page; the first ones in its order.", least=1, needs="html_file")
    compare: list[str] = option([], "Two rows to align in that page, by number or id.", needs="html_file")
    prompt: str | None = option(None, "A prompt to score in that page.", needs="html_file")
    completion: str | None = option(None, "Its answer.", needs="html_file")
    other_completion: str | None = option(None, "Another answer, to align with the first.", needs="html_file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compare and len(self.compare) != 2:
            raise UsageError(f"compare takes two rows, by number or id, not {len(self.compare)}")
        if (self.prompt is None) != (self.completion is None):
            raise UsageError("prompt and completion are given together")
        if self.other_completion is not None and self.completion is None:
            raise UsageError("other_completion is aligned with completion, and that is missing")


@dataclass
class ViewArguments(HostArguments, PageArguments, DenseRewardArguments, FrozenArguments):
    """Arguments of `densepath view`."""

    scores_file: str | None = option(
        None, "What densepath score wrote, JSONL or Parquet, of any size; may be given as the first word."
    )
    model_name_or_path: list[str] = option([], "SFT models to choose from, to score texts that are typed in.")
    ref_model_name_or_path: list[str] = option([], "References to choose from; they share the SFT models' tokenizer.")
    dense_reward: str = option(
        "baseline_relative", "The reading that is chosen at first; the page offers all.", choices=REWARDS
    )
    chat: bool = option(True, "Read prompts as a user's turn, where the tokenizer has a chat template.")
    port: int = option(8001, "Port to listen on; 0 takes a free one.")
    api_key_file: str | None = option(
        None, "File with the key that the page asks for; the variable DENSEPATH_API_KEY is read if None."
    )
    max_characters: int = option(20_000, "Longest prompt or answer that the page takes.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scores_file and not self.model_name_or_path:
            raise UsageError(
                "nothing to view: give a file that densepath score wrote, or model_name_or_path and "
                "ref_model_name_or_path to score texts with"
            )
        if self.ref_model_name_or_path and not self.model_name_or_path:
            raise UsageError(
                "ref_model_name_or_path needs model_name_or_path: the SFT model that it is a reference of"
            )
        if self.model_name_or_path and not self.ref_model_name_or_path:  # references are choices, for any reading
            check_reference(self.dense_reward, None)
        if self.html_file is not None:
            self._check_page(self.html_file)

    def check_effect(self) -> None:
        """What is written is not served, and what scores texts needs models."""
        super().check_effect()
        if self.html_file is not None:
            served = [f.name for f in fields(HostArguments)]
            check_no_effect(self, served, "with html_file: the page is written, not served")
        if not self.model_name_or_path:
            check_no_effect(self, ["dense_reward", "chat"], "without model_name_or_path")

    def _check_page(self, html: str) -> None:
        if html.endswith(".json"):
            raise UsageError(f"html_file={html}: the page's JSON twin takes that name; end it in .html")
        if self.scores_file and self.model_name_or_path:
            raise UsageError("html_file takes a scored file or models with a prompt and its answers, not both")
        if self.scores_file and self.prompt is not None:
            raise UsageError("prompt and completion need model_name_or_path to be scored with, not a scored file")
        if not self.scores_file and self.prompt is None:
            raise UsageError("html_file needs a scored file, or prompt and completion")
        if not self.scores_file and self.compare:
            raise UsageError("compare takes two rows of a scored file, and none is given")
        for name in ("model_name_or_path", "ref_model_name_or_path"):
            if len(getattr(self, name)) > 1:
                raise UsageError(f"html_file scores with one pair of models; {name} names {len(getattr(self, name))}")
