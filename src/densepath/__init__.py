"""densepath: the dense reward hidden in supervised fine-tuning, and Dense-Path REINFORCE on it.

Names are imported on first use, so that `import densepath` and `densepath --help` answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "DPRConfig",
    "DPRTrainer",
    "DenseReward",
    "DenseScores",
    "DensepathError",
    "Evidence",
    "FrozenPolicy",
    "MeasurePlan",
    "RewardKind",
    "RunArguments",
    "SFTModels",
    "ScoreView",
    "Signal",
    "SignalCallback",
    "__version__",
    "audit_demonstrations",
    "decide",
    "encode_pairs",
    "encode_prompt",
    "evaluate_reward",
    "generate_tasks",
    "load_dataset_rows",
    "load_model",
    "load_tokenizer",
    "measure",
    "rank_completions",
    "run_pipeline",
    "sample",
    "score_completions",
    "split_by_content",
    "view_scores",
    "write_report",
]

_EXPORTS = {
    "DPRConfig": "densepath.trainers.dpr_config",
    "DPRTrainer": "densepath.trainers.dpr",
    "DenseReward": "densepath.rewards.dense",
    "DenseScores": "densepath.rewards.scores",
    "DensepathError": "densepath.errors",
    "FrozenPolicy": "densepath.rewards.frozen",
    "RewardKind": "densepath.rewards.dense",
    "RunArguments": "densepath.config.run",
    "ScoreView": "densepath.report.view",
    "audit_demonstrations": "densepath.evals.audit",
    "Signal": "densepath.trainers.early_stopping",
    "SignalCallback": "densepath.trainers.early_stopping",
    "Evidence": "densepath.choice.inputs",
    "MeasurePlan": "densepath.choice.inputs",
    "SFTModels": "densepath.choice.inputs",
    "decide": "densepath.choice.decide",
    "encode_pairs": "densepath.data.encode",
    "encode_prompt": "densepath.data.encode",
    "evaluate_reward": "densepath.evals.reward_eval",
    "generate_tasks": "densepath.data.tasks",
    "load_dataset_rows": "densepath.data.formats",
    "load_model": "densepath.models.load",
    "load_tokenizer": "densepath.models.load",
    "rank_completions": "densepath.evals.ranking",
    "run_pipeline": "densepath.pipeline.run",
    "sample": "densepath.models.sampling",
    "score_completions": "densepath.models.scoring",
    "measure": "densepath.choice.measure",
    "split_by_content": "densepath.data.splits",
    "view_scores": "densepath.report.view",
    "write_report": "densepath.report",
}

if TYPE_CHECKING:
    # Relative, since the front door names every room and stands outside of their layers.
    from .choice.decide import decide
    from .choice.inputs import Evidence, MeasurePlan, SFTModels
    from .choice.measure import measure
    from .config.run import RunArguments
    from .data.encode import encode_pairs, encode_prompt
    from .data.formats import load_dataset_rows
    from .data.splits import split_by_content
    from .data.tasks import generate_tasks
    from .errors import DensepathError
    from .evals.audit import audit_demonstrations
    from .evals.ranking import rank_completions
    from .evals.reward_eval import evaluate_reward
    from .models.load import load_model, load_tokenizer
    from .models.sampling import sample
    from .models.scoring import score_completions
    from .pipeline.run import run_pipeline
    from .report import write_report
    from .report.view import ScoreView, view_scores
    from .rewards.dense import DenseReward, RewardKind
    from .rewards.frozen import FrozenPolicy
    from .rewards.scores import DenseScores
    from .trainers.dpr import DPRTrainer
    from .trainers.dpr_config import DPRConfig
    from .trainers.early_stopping import Signal, SignalCallback
else:
    # Hidden from the type checker, for which any name at all would exist.
    def __getattr__(name: str) -> object:
        if name in _EXPORTS:
            from importlib import import_module

            return getattr(import_module(_EXPORTS[name]), name)
        raise AttributeError(f"module 'densepath' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
