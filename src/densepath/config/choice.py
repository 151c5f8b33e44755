"""Arguments of the commands that decide about an SFT run: select and diagnose. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.config.mixins import FrozenArguments, RowsArguments, SamplingArguments
from densepath.config.options import check_given, check_html_name, option
from densepath.errors import ConfigError


@dataclass
class RunDirArguments(SamplingArguments, FrozenArguments):
    """Which SFT run is looked at."""

    run_dir: str = option("", "Folder of an SFT run: output_dir of densepath sft or run, with its references.")
    preference_dataset_name: str | None = option(
        None, "Rows with prompt, chosen, rejected, to compare the reward with."
    )

    def __post_init__(self) -> None:
        check_given("run_dir", self.run_dir, "an SFT run's folder")
        super().__post_init__()


@dataclass
class SelectArguments(RunDirArguments, RowsArguments):
    """Arguments of `densepath select`."""

    dataset_name: str = option("", "Held-out demonstrations: JSONL, CSV, Parquet, a folder or a hub id.")
    verifier: str | None = option(
        None,
        "Program that checks the SFT policy's own completions: exact_match, final_number or package.module:function.",
    )
    criterion: str = option(
        "auto",
        "What the choice is made by: preference, verifier, altered, samples; auto is the first that there is.",
        choices=("auto", "preference", "verifier", "altered", "samples"),
    )
    include_base: bool = option(True, "The model before SFT is a candidate too, as 0.")
    ensemble: bool = option(True, "The mean probability of all references is a candidate too, as all.")
    max_samples: int = option(64, "Demonstrations, and preference rows, drawn.", least=1)
    num_generations: int = option(1, "Completions sampled for each prompt at temperature 1; 0 for none.", least=0)
    max_completion_length: int = option(128, "Longest sampled completion in tokens.", least=1)
    seed: int = option(0, "Seed of the draw, of sampling, of altered digits and of the bootstrap.")
    output_file: str | None = option(None, "Write all figures here as JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_given("dataset_name", self.dataset_name, "held-out demonstrations")


@dataclass
class DiagnoseArguments(RunDirArguments):
    """Arguments of `densepath diagnose`."""

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
    references: list[str] = option(
        [], "Candidates by name, such as 0 0.5. Empty: all that SFT kept, and the model before SFT (0)."
    )
    betas: list[float] = option([1.0, 0.5], "Candidates; each is previewed with the strength alpha = 1/beta.")
    max_samples: int = option(48, "Validation prompts, and preference rows, drawn.", least=2)
    num_generations: int = option(1, "Completions of each prompt, except for greedy decoding.", least=1)
    max_completion_length: int | None = option(  # type: ignore[assignment]
        None, "Longest completion in tokens. None: that of the run's recipe, or 128.", least=1
    )
    output_file: str = option("diagnosis.json", "All figures and the recommendation, as JSON.")
    html_file: str | None = option(None, "Also write a page with plots.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.betas or min(self.betas) <= 0 or len(set(self.betas)) < len(self.betas):
            raise ConfigError(f"betas={self.betas} must be different positive numbers")
        check_html_name(self.html_file, "its JSON twin is output_file")
