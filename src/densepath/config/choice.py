"""Arguments of the command that decides about an SFT run: diagnose. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.judge import JudgeArguments
from densepath.config.mixins import FrozenArguments, SamplingArguments
from densepath.config.options import check_html_name, check_no_effect, option
from densepath.errors import ConfigError


@dataclass
class DiagnoseArguments(SamplingArguments, JudgeArguments, FrozenArguments):
    """Arguments of `densepath diagnose`."""

    run_dir: str = option(
        "", "Folder of an SFT run: output_dir of densepath sft or run, with its references.", required=True
    )
    dataset_name: str | None = option(
        None,
        "Validation rows: JSONL, CSV, Parquet, a folder or a hub id. None: data/validation.jsonl of a densepath run.",
    )
    dataset_train_split: str = option("train", "Split of a hub data set or datasets folder.")
    verifier: str | None = option(
        None,
        "Program that checks completions: exact_match, final_number or package.module:function. None: that of the "
        "run's recipe, if it has one.",
    )
    preference_dataset_name: str | None = option(
        None, "Rows with prompt, chosen, rejected, to compare the reward with."
    )
    references: list[str] = option(
        [], "Candidates by name, such as 0 0.5. Empty: all that SFT kept, and the model before SFT (0)."
    )
    betas: list[float] = option([1.0, 0.5], "Candidates; each is previewed with the strength alpha = 1/beta.")
    criterion: str = option(
        "auto",
        "What decides: answers (of previews, with a verifier or judge), or how the reward of each reference agrees "
        "with preference, verifier, altered (numbers) or samples; auto is the first of these that there is.",
        choices=("auto", "answers", "preference", "verifier", "altered", "samples"),
    )
    ensemble: bool = option(True, "The reward of the mean probability of all references is judged too, as all.")
    max_samples: int = option(48, "Validation prompts, and preference rows, drawn.", least=2)
    num_generations: int = option(
        1, "Completions of each prompt, except for greedy decoding; 0: nothing is sampled, the reward alone.", least=0
    )
    max_completion_length: int | None = option(  # type: ignore[assignment]
        None, "Longest completion in tokens. None: that of the run's recipe, or 128.", least=1
    )
    output_file: str = option("diagnosis.json", "All figures and the recommendation, as JSON.")
    html_file: str | None = option(None, "Also write a page with plots.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is not None and self.verifier is not None:
            raise ConfigError("judge and verifier both say what is better; give one of them")
        fit = all(beta > 0 for beta in self.betas)
        if not self.betas or not fit or len({f"{beta:g}" for beta in self.betas}) < len(self.betas):
            raise ConfigError(f"betas={self.betas} must be different positive numbers")
        check_html_name(self.html_file, "its JSON twin is output_file")

    def check_effect(self) -> None:
        """Without samples there are no previews."""
        super().check_effect()
        if self.num_generations == 0:
            check_no_effect(self, ["betas"], "with num_generations=0: nothing is previewed")
