"""The flat configuration of `densepath view`. No torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from densepath.errors import UsageError
from densepath.pipeline.options import REWARDS, TokenizerArguments, check_at_least, check_choice, option

SORTS = ("row", "reward", "reward_per_token", "tokens", "lowest")
"""The orders of `densepath.report.scored`, which is not imported for `--help`."""
_FOR_HTML = ("sort", "descending", "max_samples", "compare", "prompt", "completion", "other_completion")


@dataclass
class ViewArguments(TokenizerArguments):
    """Arguments of `densepath view`."""

    scores_file: str | None = option(
        None, "What densepath score wrote, JSONL or Parquet, of any size; may be given as the first word."
    )
    model_name_or_path: list[str] = option([], "SFT models to choose from, to score texts that are typed in.")
    ref_model_name_or_path: list[str] = option([], "References to choose from; they share the SFT models' tokenizer.")
    dense_reward: str = option("baseline_relative", "The reading that is chosen at first; the page offers all.")
    dtype: str = option("float32", "Type the weights are loaded in. Frozen models are best scored in float32.")
    device: str = option("auto", "cpu, cuda, cuda:1 and so on; auto takes CUDA where there is one.")
    token_budget: int = option(2048, "Tokens scored together; bounds memory.")

    html: str | None = option(
        None, "Write a page that needs no server, with a JSON twin beside it, instead of serving one."
    )
    sort: str = option("row", "Order of the rows in that page: row, reward, reward_per_token, tokens or lowest.")
    descending: bool = option(False, "The highest first.")
    max_samples: int = option(50, "Rows in that page; the first ones in its order.")
    compare: list[str] = option([], "Two rows to align in that page, by number or id.")
    prompt: str | None = option(None, "A prompt to score in that page.")
    completion: str | None = option(None, "Its answer.")
    other_completion: str | None = option(None, "Another answer, to align with the first.")
    chat: bool = option(True, "Read prompts as a user's turn, where the tokenizer has a chat template.")

    host: str = option("127.0.0.1", "Address to listen on. The default is reached from this machine alone.")
    port: int = option(8001, "Port to listen on; 0 takes a free one.")
    allowed_hosts: list[str] = option(
        [], "Names by which browsers address the server, beside localhost and IP addresses; * for any."
    )
    api_key_file: str | None = option(
        None, "File with the key that the page asks for; the variable DENSEPATH_API_KEY is read if None."
    )
    max_characters: int = option(20_000, "Longest prompt or answer that the page takes.")

    def __post_init__(self) -> None:
        check_choice("dense_reward", self.dense_reward, REWARDS)
        check_choice("sort", self.sort, SORTS)
        for name in ("token_budget", "max_samples", "max_characters"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("port", self.port, 0)
        if not self.scores_file and not self.model_name_or_path:
            raise UsageError(
                "nothing to view: give a file that densepath score wrote, or model_name_or_path and "
                "ref_model_name_or_path to score texts with"
            )
        if self.ref_model_name_or_path and not self.model_name_or_path:
            raise UsageError(
                "ref_model_name_or_path needs model_name_or_path: the SFT model that it is a reference of"
            )
        if self.model_name_or_path and not self.ref_model_name_or_path and self.dense_reward == "baseline_relative":
            raise UsageError(
                "dense_reward=baseline_relative needs ref_model_name_or_path: an earlier checkpoint of the SFT run, "
                "or the model before SFT; or choose dense_reward=logprob"
            )
        self._check_html()

    def _check_html(self) -> None:
        if self.compare and len(self.compare) != 2:
            raise UsageError(f"compare takes two rows, by number or id, not {len(self.compare)}")
        if (self.prompt is None) != (self.completion is None):
            raise UsageError("prompt and completion are given together")
        if self.other_completion is not None and self.completion is None:
            raise UsageError("other_completion is aligned with completion, and that is missing")
        if self.html is None:
            for field in fields(self):
                default = [] if field.default is MISSING else field.default
                if field.name in _FOR_HTML and getattr(self, field.name) != default:
                    raise UsageError(f"{field.name} is for the page that html writes; add --html FILE")
            return
        if self.html.endswith(".json"):
            raise UsageError(f"html={self.html}: the page's JSON twin takes that name; end it in .html")
        if self.scores_file and self.model_name_or_path:
            raise UsageError("html takes a scored file or models with a prompt and its answers, not both")
        if self.scores_file and self.prompt is not None:
            raise UsageError("prompt and completion need model_name_or_path to be scored with, not a scored file")
        if not self.scores_file and self.prompt is None:
            raise UsageError("html needs a scored file, or prompt and completion")
        if not self.scores_file and self.compare:
            raise UsageError("compare takes two rows of a scored file, and none is given")
        for name in ("model_name_or_path", "ref_model_name_or_path"):
            if len(getattr(self, name)) > 1:
                raise UsageError(f"html scores with one pair of models; {name} names {len(getattr(self, name))}")
