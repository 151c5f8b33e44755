"""Arguments of `densepath judge-eval`. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.judge import WHO_JUDGES, JudgeArguments
from densepath.config.mixins import FrozenArguments, RowsArguments
from densepath.config.options import check_html_name, option


@dataclass
class JudgeEvalArguments(JudgeArguments, RowsArguments, FrozenArguments):
    """Arguments of `densepath judge-eval`."""

    judge: str | None = option(None, WHO_JUDGES, required=True)
    dataset_name: str = option(
        "", "Preference pairs: rows with prompt, chosen, rejected, and perhaps category.", required=True
    )
    max_samples: int | None = option(None, "Pairs drawn; all if None.", least=1)
    seed: int = option(0, "Seed of the draw and of the bootstrap.", least=0)
    output_file: str = option("judge_eval.json", "All figures as JSON; an endpoint's replies are kept beside it.")
    html_file: str | None = option(None, "Also write a page.")
    dry_run: bool = option(False, "Tell calls, tokens and cost, and ask nobody.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_html_name(self.html_file, "its JSON twin is output_file")
