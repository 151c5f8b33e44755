"""Commands that parse their arguments and call one function with them: a row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from densepath.cli.arguments import parse
from densepath.config import listed
from densepath.config.listed import Listed

RECIPE_KEYS = {"sft_": "TRL's SFTConfig", "dpr_": "DPRConfig"}
"""Keys of a recipe that go to TRL's configs."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        arguments: dataclass of its arguments, `module:name` below `densepath.config`.
        function: what it calls, `module:name` below `densepath`; imported after the arguments were read.
        description: first paragraph of its help.
        passthrough: prefix -> name of the TRL config that takes keys with this prefix; the function is given them.
        listed: what `--help` lists.
    """

    arguments: str
    function: str
    description: str
    passthrough: Mapping[str, str] = field(default_factory=dict)
    listed: Listed = field(default_factory=Listed)

    def run(self, name: str, argv: Sequence[str]) -> int:
        """Parse, then call; 0.

        Args:
            name: of the command.
            argv: words after it.
        """
        kind: type[Any] = _named(f"config.{self.arguments}")
        told = {"prog": f"densepath {name}", "description": self.description}
        arguments, others = parse(kind, argv, **told, passthrough=self.passthrough, listed=self.listed)
        from densepath.models.hub import tell_hub
        from densepath.models.quiet import quiet_libraries
        from densepath.terminal import terminal

        quiet_libraries()
        console = terminal()
        tell_hub(arguments, console)
        given = (arguments, others) if self.passthrough else (arguments,)
        _named(self.function)(*given, console)
        return 0


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"densepath.{module}"), name)


ROWS = {
    "run": Command(
        "run:RunCommandArguments",
        "pipeline.dry_run:run_run_command",
        "SFT -> reference checkpoints -> choice of the reference -> DPR -> held-out evaluation -> report. "
        "Called again on the same output_dir it goes on where it stopped; --dry_run only looks.",
        RECIPE_KEYS,
        listed.RUN,
    ),
    "sft": Command(
        "training:SFTArguments",
        "pipeline.standalone:run_sft_command",
        "Supervised fine-tuning that keeps reference checkpoints at chosen shares of the samples.",
        {"": "TRL's SFTConfig"},
        listed.SFT,
    ),
    "dpr": Command(
        "training:DPRArguments",
        "pipeline.standalone:run_dpr_command",
        "Dense-Path REINFORCE: improve an SFT model with the dense reward between it and a reference.",
        {"": "DPRConfig (TRL's GRPOConfig with beta, gamma, baseline, dense_reward)"},
        listed.DPR,
    ),
    "purify": Command(
        "training:PurifyCommandArguments",
        "pipeline.purify:run_purify_command",
        "Finds the behaviours that demonstrations are made of with the dense reward of an SFT model against the model "
        "before it, and trains the SFT model again on the one that SFT should have learned. Writes model, kept.jsonl, "
        "dropped.jsonl and purification.json; keeps the SFT model where nothing says that another would be better.",
        {"": "TRL's SFTConfig"},
        listed.PURIFY,
    ),
    "score": Command(
        "reward:ScoreArguments",
        "scoring.job:run_score_command",
        "Grade every token of given completions: log pi_SFT - log pi_ref, in nats.",
    ),
    "rank": Command(
        "reward:RankArguments",
        "pipeline.ranking:run_rank_command",
        "Best of n: order the completions of each prompt by their dense reward. Rows hold a prompt and completions, "
        "or one completion each, and are grouped by their prompt.",
    ),
    "audit": Command(
        "reward:AuditArguments",
        "pipeline.audit:run_audit_command",
        "Audit demonstrations: the rows and spans that the trained model finds least like expert behaviour come "
        "first; duplicates, over-long rows and cut-off ends are flagged.",
    ),
    "diagnose": Command(
        "choice:DiagnoseArguments",
        "pipeline.diagnose:run_diagnose_command",
        "Will DPR help? The reward of the SFT model's own samples and, against every reference, contrastive decoding "
        "as a preview of what DPR would converge to. Nothing is trained. Ends in a recommendation: a reference and "
        "beta, do not, or cannot be told.",
    ),
    "reward-eval": Command(
        "reward:RewardEvalArguments",
        "pipeline.reward_eval:run_reward_eval_command",
        "Is the reward any good? Preference pairs, first-error data or altered numbers: the dense reward beside "
        "guessing, length, log pi_SFT and log pi_base, with intervals and paired differences.",
    ),
    "judge-eval": Command(
        "judge_eval:JudgeEvalArguments",
        "pipeline.judge_eval:run_judge_eval_command",
        "Is the judge any good? Preference pairs with labels: how often it agrees, beside the rules that prefer the "
        "longer or the shorter answer, and whether it goes by place or length. A judge that is not shown to be better "
        "than chance gets no headline.",
    ),
    "generate": Command(
        "answers:GenerateArguments",
        "pipeline.generate:run_generate_command",
        "A model's answers to any prompts or to a benchmark, as rows that score, rank, judge and view read, or in the "
        "layout of the benchmark's own tool. Nothing is checked. Called again it goes on where it stopped.",
    ),
    "judge": Command(
        "judging:JudgeCommandArguments",
        "pipeline.judge:run_judge_command",
        "Whose answers are better? Asks models the questions of a benchmark or a file, has a judge compare each "
        "answer with the baseline's in both orders, and writes the figures and a page. Called again it goes on where "
        "it stopped; --dry_run says what it would cost.",
    ),
    "eval": Command(
        "answers:EvalArguments",
        "pipeline.eval_command:run_eval_command",
        "Sample completions of held-out prompts and check them with a program.",
    ),
}
