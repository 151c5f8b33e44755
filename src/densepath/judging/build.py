"""The judge that a command's arguments describe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densepath.config.judge import EndpointArguments, JudgeArguments, parse_judge
from densepath.config.mixins import FrozenArguments, LoadArguments
from densepath.errors import ConfigError
from densepath.evals.verifiers import get_verifier
from densepath.judging.against import AgainstAnswers
from densepath.judging.budget import Prices
from densepath.judging.cache import ReplyCache
from densepath.judging.client import open_access, package
from densepath.judging.endpoint import EndpointJudge, EndpointSettings
from densepath.judging.identity import judge_identity, template_digest
from densepath.judging.program import ProgramJudge
from densepath.judging.protocol import Judge
from densepath.judging.templates import Template, letters_of, load_template
from densepath.judging.verdicts import Letters

if TYPE_CHECKING:
    from densepath.rewards.frozen import FrozenPolicy

CACHE = "judge_cache"
"""Folder of an endpoint's replies, in the folder of what is judged."""
_OURS = {("openai", 2): "pair", ("openai", 1): "mt_bench", ("local", 2): "letters", ("local", 1): "grade"}
"""What is asked where neither the user nor the benchmark says it, by kind of judge and number of answers."""


def template_of(arguments: JudgeArguments, kind: str, num_answers: int, benchmark: str | None = None) -> Template:
    """The user's template, else the benchmark's, else ours; a local model is asked for letters.

    Args:
        arguments: of the command.
        kind: of the judge.
        num_answers: that are shown at once.
        benchmark: name of the benchmark's template.

    Raises:
        ConfigError: it shows another number of answers, or is no template.
    """
    if arguments.judge_template is None and benchmark is not None:
        template = load_template(benchmark)
        if kind == "openai" or isinstance(template.reading, Letters):
            return template
    template = load_template(arguments.judge_template or _OURS[kind, num_answers])
    if template.num_answers != num_answers:
        raise ConfigError(
            f"judge_template={arguments.judge_template} shows {template.num_answers} answers at once, and here it is "
            f"{num_answers}; choose another"
        )
    return template


def shows_reference(arguments: JudgeArguments) -> bool:
    """Whether the judge of pairs is shown a row's right answer: only by a template that has a place for it.

    Raises:
        ConfigError: as `template_of`.
    """
    if arguments.judge is None:
        return False
    kind, _ = parse_judge(arguments.judge)
    return kind in ("openai", "local") and template_of(arguments, kind, 2).shows_reference


def make_judge(
    arguments: JudgeArguments,
    loading: LoadArguments,
    *,
    cache: Path,
    judge: str | None = None,
    num_answers: int = 2,
    benchmark: str | None = None,
) -> Judge:
    """The judge, its model loaded and on the GPU where there is one.

    Args:
        arguments: who judges, and how an endpoint is asked.
        loading: how models are loaded; what it says of text is the policy's, and a judge reads text in its own way.
        cache: folder of an endpoint's replies, where the arguments name none.
        judge: who judges instead of `arguments.judge`.
        num_answers: that are shown at once.
        benchmark: name of the benchmark's template.

    Raises:
        ConfigError: no judge, no key, no such template, or limits that cannot be kept.
        MissingFileError, ModelError: a model that cannot be loaded.
    """
    said = judge or arguments.judge
    if said is None:
        raise ConfigError("judge is missing: who judges, such as openai:gpt-4.1 or local:FOLDER")
    kind, name = parse_judge(said)
    if kind == "verifier":
        return ProgramJudge(get_verifier(name), said)
    if kind == "openai":
        template = template_of(arguments, kind, num_answers, benchmark)
        folder = cache if arguments.judge_cache is None else Path(arguments.judge_cache).expanduser()
        return EndpointJudge(template, endpoint_settings(arguments, name), ReplyCache(folder))
    if kind == "local":
        return _local(name, template_of(arguments, kind, num_answers, benchmark), _frozen(loading))
    return _reward_model(name, _frozen(loading)) if kind == "reward" else _dense(name, _frozen(loading))


def endpoint_settings(arguments: EndpointArguments, model: str) -> EndpointSettings:
    """How the arguments ask an endpoint.

    Raises:
        ConfigError: no key, or a base URL that is none.
    """
    prices = None
    if arguments.judge_prompt_price is not None and arguments.judge_completion_price is not None:
        prices = Prices(arguments.judge_prompt_price, arguments.judge_completion_price)
    return EndpointSettings(
        model=model,
        access=open_access(arguments.judge_base_url, arguments.judge_api_key_env),
        parameters=arguments.judge_parameters,
        concurrency=arguments.judge_concurrency,
        timeout=arguments.judge_timeout,
        retries=arguments.judge_retries,
        per_minute=arguments.judge_calls_per_minute,
        max_calls=arguments.max_calls,
        max_cost=arguments.max_cost,
        prices=prices,
    )


def make_judge_against(
    arguments: JudgeArguments,
    loading: LoadArguments,
    fixed: Mapping[str, str],
    cache: Path,
    held: FrozenPolicy | None = None,
) -> AgainstAnswers:
    """The judge where a verifier stands: against fixed answers, by their `prompt_key`.

    Args:
        arguments: who judges, and how an endpoint is asked.
        loading: how models are loaded.
        fixed: the answers that are compared with.
        cache: folder of an endpoint's replies, where the arguments name none.
        held: what is in memory already; a local judge that is its base, or an adapter of that, is not loaded again.

    Raises:
        ConfigError, MissingFileError, ModelError: as `make_judge`.
    """
    judge = _held(arguments, loading, held) or make_judge(arguments, loading, cache=cache)
    return AgainstAnswers(
        judge,
        fixed,
        arguments.judge_both_orders,
        arguments.judge_repeats,
        arguments.max_invalid,
        shows_reference(arguments),
    )


def check_judge(
    arguments: JudgeArguments, judge: str | None = None, num_answers: int = 2, benchmark: str | None = None
) -> None:
    """Refuse before the first stage what `make_judge` would refuse after an hour of training; loads no weights.

    Args:
        arguments: who judges, if anyone, and how an endpoint is asked.
        judge: who judges instead of `arguments.judge`.
        num_answers: that are shown at once.
        benchmark: name of the benchmark's template.

    Raises:
        ConfigError: no key, no such template or verifier, or limits that cannot be kept.
        MissingFileError, ModelError: a model or reward that is not there, that cannot be one, or a tokenizer that
            has no chat template or cannot tell the letters apart.
    """
    said = judge or arguments.judge
    if said is None:
        return
    kind, name = parse_judge(said)
    is_here = bool(judge_identity(said))  # a hub id that is not in the cache is not fetched yet
    trust = bool(getattr(arguments, "trust_remote_code", False))
    if kind == "reward" and is_here:
        _check_reward_model(name, trust)
    if kind in ("openai", "local"):
        template = template_of(arguments, kind, num_answers, benchmark)
        if kind == "openai":
            EndpointJudge(template, endpoint_settings(arguments, name), ReplyCache(Path()))
            package()
        else:
            letters = letters_of(template)
            if is_here:
                _check_letters(name, letters, trust)


def _check_reward_model(name: str, trust_remote_code: bool) -> None:
    from densepath.judging.scorers import check_reward_model

    check_reward_model(name, trust_remote_code=trust_remote_code)


def _check_letters(name: str, letters: Letters, trust_remote_code: bool) -> None:
    from densepath.judging.local import letter_pairs
    from densepath.models.load import load_tokenizer

    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    letter_pairs([{"role": "user", "content": "Which?"}], letters.letters, tokenizer, f"local:{name}")


def judge_inputs(arguments: JudgeArguments) -> dict[str, str]:
    """`judge weights` and the like -> digest of what decides what the judge of a run says; none without a judge.

    Raises:
        ConfigError, MissingFileError, ModelError: as `check_judge`.
    """
    if arguments.judge is None:
        return {}
    kind, _ = parse_judge(arguments.judge)
    found = {f"judge {part}": digest for part, digest in judge_identity(arguments.judge).items()}
    if kind in ("openai", "local"):
        found["judge template"] = template_digest(template_of(arguments, kind, 2))
    return found


def _local(name: str, template: Template, loading: FrozenArguments, model: Any = None) -> Judge:
    from densepath.judging.local import LocalJudge
    from densepath.models.load import load_frozen, load_tokenizer

    tokenizer = load_tokenizer(name, trust_remote_code=loading.trust_remote_code)
    model = load_frozen(loading, name, loading.device) if model is None else model
    return LocalJudge(model, tokenizer, template, f"local:{name}", loading.token_budget)


def _held(arguments: JudgeArguments, loading: LoadArguments, held: FrozenPolicy | None) -> Judge | None:
    """A local judge on the base that is in memory; None where it is no part of that."""
    from densepath.rewards.loading import view_on_base

    kind, name = parse_judge(arguments.judge or "")
    model = view_on_base(held.model, name, "judge") if held is not None and kind == "local" else None
    return None if model is None else _local(name, template_of(arguments, kind, 2), _frozen(loading), model)


def _reward_model(name: str, loading: FrozenArguments) -> Judge:
    from densepath.judging.scorers import RewardModelJudge, load_reward_model

    places = {"dtype": loading.dtype, "device": loading.device}
    model, tokenizer = load_reward_model(name, **places, trust_remote_code=loading.trust_remote_code)
    return RewardModelJudge(model, tokenizer, f"reward:{name}", loading.token_budget)


def _dense(name: str, loading: FrozenArguments) -> Judge:
    from densepath.judging.scorers import DenseRewardJudge
    from densepath.rewards.dense import DenseReward

    reward = DenseReward.from_pretrained(
        name,
        device=loading.device,
        dtype=loading.dtype,
        trust_remote_code=loading.trust_remote_code,
        token_budget=loading.token_budget,
    )
    return DenseRewardJudge(reward, f"dense:{name}")


def _frozen(loading: LoadArguments) -> FrozenArguments:
    """How the judge is run: as the arguments say, or the default where they are of models that are trained."""
    if isinstance(loading, FrozenArguments):
        return loading
    return FrozenArguments(trust_remote_code=loading.trust_remote_code, dtype=loading.dtype)
