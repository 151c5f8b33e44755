"""One share of a scoring job: which rows, with which reward, in which windows."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch

from densepath.config.reward import ScoreArguments
from densepath.data.sources import stream_rows
from densepath.data.streaming import SourceRow
from densepath.errors import ConfigError, DataError
from densepath.models.compat import check_vocabulary
from densepath.rewards.dense import REWARD_FILE, DenseReward
from densepath.rewards.loading import load_policies
from densepath.rewards.rows import SCORE_COLUMNS, RowScorer
from densepath.rewards.vllm_policy import load_vllm_policies
from densepath.scoring.parts import PartFolder
from densepath.terminal import Console, warn

Report: TypeAlias = Callable[[float, int], None]
"""Takes the rows (fractions too) and tokens that were finished since the last call."""

GIVE_UP_AFTER = 100
"""Rows that are set aside, and none of the job scored, before the whole data set is taken for unusable."""
_REWARD_ARGUMENTS = (
    "ref_model_name_or_path",
    "dense_reward",
    "reference_mean",
    "reward_scale",
    "reward_clip",
    "reward_floor",
)


@dataclass(frozen=True)
class Job:
    """What all processes of a job know: its arguments, and the number of rows."""

    arguments: ScoreArguments
    rows: int

    @property
    def folder(self) -> PartFolder:
        """Its state on disk."""
        return PartFolder(Path(self.arguments.output_file))

    @property
    def windows(self) -> int:
        """Number of windows."""
        return -(-self.rows // self.arguments.window_size)

    def rows_in(self, window: int) -> int:
        """Number of rows of a window."""
        return min(self.arguments.window_size, self.rows - window * self.arguments.window_size)

    def todo(self, shard: int, shards: int) -> list[int]:
        """Windows of a shard that are not done."""
        folder = self.folder
        return [window for window in range(shard, self.windows, shards) if not folder.has(window)]


def is_saved_reward(name: str) -> bool:
    """Whether a model's name is the folder of a saved `DenseReward`."""
    return (Path(name).expanduser() / REWARD_FILE).is_file()


def score_shard(job: Job, shard: int, shards: int, report: Report, console: Console | None) -> None:
    """Score the windows of a shard that are not done.

    Args:
        job: the job.
        shard: windows shard, shard + shards, ... are this one's.
        shards: number of shards.
        report: takes what has been finished.
        console: for warnings; None keeps quiet.

    Raises:
        DensepathError: models that cannot be loaded, rows none of which can be scored (said here where no other
            share may have some), a full disk; under `strict`, one bad row.
    """
    arguments, folder = job.arguments, job.folder
    wanted = set(job.todo(shard, shards))
    if not wanted:
        return
    scorer = _scorer(arguments, shard, console)
    stream = stream_rows(arguments.dataset_name, arguments.dataset_train_split, arguments.max_samples)
    scored, set_aside = arguments.num_shards > 1, 0  # another share may have what this one lacks, elsewhere
    for window, rows in stream.windows(arguments.window_size, wanted.__contains__):
        kept, rejected = _score_window(job, scorer, rows, report)
        folder.write(window, kept, rejected, logprobs=arguments.output_logprobs, schema=stream.schema)
        scored, set_aside = scored or bool(kept), set_aside + len(rejected)
        # Other processes write there too.
        if not scored and set_aside >= GIVE_UP_AFTER and not (scored := folder.holds_rows):
            first = rejected[0]
            raise DataError(
                f"{first['file']}, row {first['row']}: {first['error']} (nor can any other of the {set_aside} rows "
                "that were read be scored; the same command goes on with the next)"
            )
        wanted.discard(window)
        if not wanted:
            break


def _scorer(arguments: ScoreArguments, shard: int, console: Console | None) -> RowScorer:
    """The reward that the arguments name, on this process's device."""
    device = arguments.device
    if device == "auto" and torch.cuda.is_available() and not arguments.use_vllm:
        # Shards that are begun by hand on one machine take a device each too.
        process = (shard - arguments.shard_index) // arguments.num_shards
        place = int(os.environ.get("LOCAL_RANK", arguments.shard_index * arguments.num_processes + process))
        device = f"cuda:{place % torch.cuda.device_count()}"
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    places: dict[str, Any] = {
        "dtype": arguments.dtype,
        "device": device,
        **arguments.tokenizer_options(),
        "token_budget": arguments.token_budget,
        "load": _loader(arguments),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if is_saved_reward(arguments.model_name_or_path):
            reward = DenseReward.from_pretrained(arguments.model_name_or_path, **places)
        else:
            reward = DenseReward.from_models(
                arguments.model_name_or_path,
                arguments.ref_model_name_or_path,
                kind=arguments.dense_reward,
                reference_mean=arguments.reference_mean,
                scale=arguments.reward_scale,
                clip=arguments.reward_clip,
                floor=arguments.reward_floor,
                **places,
            )
    for warning in caught:
        if console is not None and "same weights" in str(warning.message):
            warn(console, warning.message)
    model = reward.sft.model
    check_vocabulary(reward.tokenizer, model)
    return RowScorer(reward, reward.tokenizer, logprobs=arguments.output_logprobs)


def _loader(arguments: ScoreArguments) -> Callable[..., Any]:
    """What makes policies of models' names, in the engine that was asked for."""
    if not arguments.use_vllm:
        return load_policies
    return functools.partial(
        load_vllm_policies,
        gpu_memory_utilization=arguments.vllm_gpu_memory_utilization,
        token_budget=arguments.token_budget,
    )


def refuse_settings_beside_a_saved_reward(arguments: ScoreArguments) -> None:
    """Refuse what a saved reward says itself, with a `ConfigError`."""
    for field in fields(ScoreArguments):
        default = [] if field.default is MISSING else field.default
        if field.name in _REWARD_ARGUMENTS and getattr(arguments, field.name) != default:
            raise ConfigError(
                f"{arguments.model_name_or_path} holds a whole reward ({REWARD_FILE}): leave out {field.name}"
            )


def _score_window(
    job: Job, scorer: RowScorer, rows: list[SourceRow], report: Report
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows with their rewards, and rows set aside with the reason; both in order."""
    arguments = job.arguments
    removed = set(arguments.remove_columns)
    readable = [row for row in rows if row.row is not None]
    inputs = [_without(row.row, removed.intersection(SCORE_COLUMNS)) for row in readable]
    told = 0.0

    def on_progress(share: float, tokens: int) -> None:
        nonlocal told
        told += share * len(rows)
        report(share * len(rows), tokens)

    found = iter(scorer.score(inputs, on_progress))
    kept, rejected = [], []
    for row in rows:
        result = DataError(row.error) if row.row is None else next(found)
        if isinstance(result, dict):
            kept.append({**_without(row.row, removed), **result})
        elif arguments.strict:
            raise DataError(f"{row.place}: {result}")
        else:
            what = {"line": row.line} if row.row is None else {"data": row.row}
            rejected.append({"file": row.file, "row": row.number, "error": str(result), **what})
    report(len(rows) - told, 0)
    return kept, rejected


def _without(row: Mapping[str, Any] | None, names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in (row or {}).items() if key not in names}
