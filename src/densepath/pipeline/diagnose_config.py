"""The flat configuration of `densepath diagnose`. No torch: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.errors import ConfigError
from densepath.pipeline.options import check_at_least, option


@dataclass
class DiagnoseArguments:
    """Arguments of `densepath diagnose`."""

    run_dir: str = option("", "Folder of an SFT run: output_dir of densepath sft or run, with its references.")
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
    max_samples: int = option(48, "Validation prompts, and preference rows, drawn.")
    num_generations: int = option(1, "Completions of each prompt, except for greedy decoding.")
    max_completion_length: int | None = option(
        None, "Longest completion in tokens. None: that of the run's recipe, or 128."
    )
    dtype: str = option("float32", "Type the weights are loaded in. Frozen models are best scored in float32.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")
    token_budget: int = option(2048, "Tokens in one scoring pass; bounds memory.")
    seed: int = option(0, "Seed of the draw, of sampling and of the bootstrap.")
    output_file: str = option("diagnosis.json", "All figures and the recommendation, as JSON.")
    html_file: str | None = option(None, "Also write a page with plots.")

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ConfigError("run_dir is missing: an SFT run's folder")
        if not self.betas or min(self.betas) <= 0 or len(set(self.betas)) < len(self.betas):
            raise ConfigError(f"betas={self.betas} must be different positive numbers")
        if self.html_file is not None and not self.html_file.endswith((".html", ".htm")):
            raise ConfigError(f"html_file={self.html_file} must end in .html; its JSON twin is output_file")
        for name, least in (("max_samples", 2), ("num_generations", 1), ("token_budget", 1)):
            check_at_least(name, getattr(self, name), least)
        if self.max_completion_length is not None:
            check_at_least("max_completion_length", self.max_completion_length, 1)
