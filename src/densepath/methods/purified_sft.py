"""Purified SFT: the recovered reward sorts the demonstrations, and the better part of them is trained on again.

1. `s_i = sum_t [log pi_SFT(y_it) - log pi_0(y_it)] / sqrt(T_i)`, EOS included.
2. K bands of the demonstrations around rank quantiles of s, within each kind of prompt, begin the behaviours. To show
   what the reward does, `purify_score` makes them of `log pi_SFT` in its place, or at random.
3. EM (`methods._behaviours`): `pi_k` learns what is its own, and `gamma_ik = softmax_k(log rho_k + log pi_k(y_i))`.
4. `lift_k = log rho_k - log` share of k among answers of pi_0.
5. A behaviour is chosen: with a verifier or judge the one whose model answers validation prompts best; else, or where
   all answer alike, the largest with `0 < lift < 2` whose lift is no noise. A lift of 2 or more is new: absent from
   pi_0's answers, where the reward cannot judge. None: the SFT model is kept.
6. pi_SFT is trained on the demonstrations of that behaviour, with the loss of DFT or plain NLL. With a verifier or
   judge the result is taken by the one rule of `choice` on the same prompts, perhaps with DFT on all demonstrations
   beside it (`purify_dft`); else the SFT model is kept.

Without rounds of EM (`purify_rounds: 0`) demonstrations are drawn by `max(0, 1 - exp(median R - R))`, in two forward
passes. Cost: `K x purify_steps` SFT steps for each K and round, the final steps, K + 2 forward passes over the
demonstrations, and one over their prompts where these are clustered. Source: derived in docs/purify.md.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densepath.config.run import RunArguments
from densepath.core.mixture import excess_weights, lifts, rank_bands, systematic_draws
from densepath.data.encode import Encoded, encode_demonstrations
from densepath.data.kept_rows import write_kept_rows
from densepath.data.rows import DataFormat, Row, detect_format, is_answered
from densepath.data.training_rows import fitting_rows, longest_prompt
from densepath.errors import ConfigError
from densepath.evals.generation import Decoding, generate
from densepath.io import atomic_folder, recalled, remember, remembered, remove, write_json_atomic
from densepath.methods import Method, Outcome, Stage
from densepath.methods._behaviour_choice import DFT, PURIFIED, aim, behaviour_name, by_lift, taken
from densepath.methods._behaviours import Corpus, Fitted, Training, fit, scored_tokens, train_on
from densepath.methods._demonstrations import Demonstrations, check_kinds, encoded, kinds_by_column, kinds_by_prompt
from densepath.methods._shown import shown_rows
from densepath.methods._stage import FORWARD_FLOPS, trained_or_sft
from densepath.models.identity import record_base
from densepath.models.load import load_frozen
from densepath.models.quantized import parameter_count
from densepath.progress import StageProgress
from densepath.records.arm import TRUNCATED_WATCH, Budget
from densepath.records.behaviours import Behaviour, Mixture, Purification
from densepath.records.codec import to_json
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers.processes import from_first

NO_SIGNAL = 1e-4
"""Scores, or a standard deviation of them, nats, below which there is none up to rounding."""
BAND_SHARE = {2: 0.3}
OTHER_BAND_SHARE = 0.2
"""Share of the demonstrations in one band, by the number of bands."""
LEAST_IN_BAND = 4
"""Demonstrations in a band: a model that is trained on fewer learns their words by heart, and no behaviour."""
LEAST_SHARE = 0.1
"""What is kept of each kind for a behaviour that owns no demonstration, where rows are drawn by responsibility."""
EXAMPLES, WORST = 3, 5


def train(stage: Stage) -> Outcome:
    """Sort, choose, and train again; leaves `purification.json`, and `model` unless the SFT model is kept."""
    corpus, scored = _corpus(stage)
    scores = _scores(stage, corpus)
    found = _sorted(stage, corpus, scores)
    if found.weights is not None:
        found = _trained(stage, corpus, found, found.weights)
    from_first(lambda: _told(stage, corpus, scores, found))
    budget = Budget(
        len(corpus.samples), found.steps * stage.demonstrations_per_step, found.tokens, found.flops + scored
    )
    return Outcome(budget, found.steps)


def _told(stage: Stage, corpus: Corpus, scores: _Scores, found: _Sorted) -> None:
    """Write what was found, with the rows, and remove the models that are not left."""
    kept = [number for number, keeps in enumerate(found.keep.tolist()) if keeps]
    write_json_atomic(stage.folder / "purification.json", to_json(_record(stage, corpus, scores, found, kept)))
    _write_rows(stage, corpus, found, kept)
    for place in (*stage.folder.glob("behaviours-*/*/*/model"), stage.folder / "dft"):
        remove(place)


def _trained(stage: Stage, corpus: Corpus, found: _Sorted, weights: Tensor) -> _Sorted:
    """The final steps, and what becomes of them: `model` is what was judged, and is not there where SFT is kept."""
    everything = torch.ones(len(corpus.train))
    plans = {PURIFIED: (stage.folder, weights, found.loss)}
    if stage.arguments.purify_dft and stage.check is not None:
        plans[DFT] = stage.folder / "dft", everything, "dft"
    drawn = {}
    for name, (folder, drawn_by, loss) in plans.items():
        tokens, flops, drawn[name] = _train_again(stage, corpus, drawn_by, folder, loss)
        steps = found.steps + stage.arguments.purify_final_steps
        found = replace(found, tokens=found.tokens + tokens, flops=found.flops + flops, steps=steps)
    if stage.check is None:
        return replace(found, drawn=drawn[PURIFIED])
    models = {name: folder / "model" for name, (folder, _, _) in plans.items()}
    left, why, cut = taken(stage, models, by_reward=found.by_reward)
    found = replace(found, reason=f"{found.reason}. {why}", cut=max(found.cut, cut))
    found = replace(found, drawn=None if left is None else drawn[left])
    if left == PURIFIED:
        return found
    from_first(lambda: _left(models, left))
    return replace(found, chosen=None, keep=everything.bool(), weights=None if left is None else weights)


def _left(models: Mapping[str, Path], name: str | None) -> None:
    """Without the purified model; with a copy of DFT's in its place where that is taken."""
    remove(models[PURIFIED])
    if name == DFT:
        with atomic_folder(models[PURIFIED]) as folder:
            shutil.copytree(models[DFT], folder, dirs_exist_ok=True)
            record_base(folder)  # an adapter's base lies elsewhere as seen from here


def _train_again(stage: Stage, corpus: Corpus, weights: Tensor, folder: Path, loss: str) -> tuple[float, float, int]:
    """The last steps on demonstrations drawn by (rows,) weights; leaves `model` there.

    Returns:
        Tokens, FLOPs, and how many demonstrations were drawn at least once.
    """
    place = folder / "spent.json"
    seed, steps = stage.arguments.seed + 1, stage.arguments.purify_final_steps
    generator = torch.Generator().manual_seed(seed)
    draws = systematic_draws(weights, steps * stage.demonstrations_per_step, generator).tolist()
    spent = from_first(lambda: recalled(place))
    if spent is None:
        found = train_on(stage, corpus, draws, Training(folder, steps, seed, loss))
        spent = from_first(lambda: remember(place, found))
    return spent[0], spent[1], len(set(draws))


def check_rows(arguments: RunArguments, rows: Sequence[Row]) -> None:
    """Refuse training rows that cannot be sorted.

    Raises:
        ConfigError: plain text where behaviours are looked for, too few rows for as many behaviours, or a row without
            its kind.
    """
    if arguments.purify_rounds and detect_format(rows[0]) is DataFormat.TEXT:
        raise ConfigError(
            "plain text has no prompt that the model before SFT could answer, which the lift of a behaviour needs; "
            "give prompt and completion, or purify_rounds: 0, or leave purified_sft out (in an experiment: settings)"
        )
    check_kinds(rows, arguments.purify_kind_column)
    for number in arguments.purify_behaviours if arguments.purify_rounds else ():
        _check_band(len(rows), number, math.floor(_band_share(number) * len(rows)))


METHOD = Method("purified SFT", control=False, train=train, policy=trained_or_sft, check_rows=check_rows, stage="SFT")


# --- the demonstrations and their scores -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """(rows,) float64: R in nats, s in nats per square root of a token, what bands are made of, kinds with names."""

    log_ratios: Tensor
    scores: Tensor
    banded: Tensor
    kinds: Tensor
    names: list[str]


def _corpus(stage: Stage) -> tuple[Corpus, float]:
    """The demonstrations and answers of the model before SFT; the FLOPs of reading all for scores and kinds."""
    sft, arguments = stage.sft, stage.arguments
    tokenizer = sft.tokenizer()
    limit = min(sft.arguments.max_length or sft.context, sft.context)
    rows = sft.rows("train")
    check_rows(arguments, rows)
    train = encoded(rows, tokenizer, limit)
    held_out = list(filter(is_answered, sft.rows("validation")))
    dataset = encode_demonstrations(
        train.rows or rows,  # where none is left, all say why
        tokenizer,
        limit,
        drop_overlong=True,
        source=str(sft.path / "data/train.jsonl"),
    )[0]
    if len(dataset) != len(train):
        raise ConfigError(
            f"{len(train)} demonstrations can be scored, and {len(dataset)} trained on; raise max_length"
        )
    samples, cut = Demonstrations([], [], []), 0.0
    if arguments.purify_rounds:
        file = stage.folder / "samples.json"
        ids = from_first(lambda: remembered(file, lambda: _samples_of_base(stage, train, tokenizer)))
        pairs = [(row, Encoded(prompt, answer)) for row, (prompt, answer) in enumerate(ids["pairs"])]
        samples, cut = Demonstrations([{} for _ in pairs], range(len(pairs)), pairs), ids.get("cut", 0.0)
    corpus = Corpus(train, dataset, encoded(held_out, tokenizer, limit), samples, tokenizer, cut)
    size = from_first(lambda: remembered(stage.folder / "size.json", lambda: {"parameters": _parameters(stage)}))
    clustered = sum(map(len, train.first_prompts)) if _most_clusters(arguments) > 1 else 0
    read = 2 * scored_tokens(train) + scored_tokens(samples) + clustered
    return corpus, FORWARD_FLOPS * size["parameters"] * read


def _parameters(stage: Stage) -> int:
    return parameter_count(load_frozen(stage.arguments, stage.sft.model))


def _samples_of_base(stage: Stage, train: Demonstrations, tokenizer: Any) -> dict[str, Any]:
    """Answers of the model before SFT to prompts of the demonstrations, at temperature 1."""
    arguments = stage.arguments
    generator = torch.Generator().manual_seed(arguments.seed)
    longest = longest_prompt(stage.sft.context, arguments.max_completion_length, arguments.max_prompt_length)
    fitting = fitting_rows(train.rows, tokenizer, longest)
    if not fitting:
        raise ConfigError(
            f"no prompt of the demonstrations leaves {arguments.max_completion_length} tokens of the context for an "
            "answer; lower max_completion_length"
        )
    chosen = torch.randperm(len(fitting), generator=generator)[: arguments.purify_samples].tolist()
    model = load_frozen(arguments, stage.sft.base)
    decoding = Decoding(1.0, arguments.max_completion_length, seed=arguments.seed)
    rows = [fitting[index] for index in chosen]
    with StageProgress(stage.console, f"{stage.title}, before SFT", len(rows), "sample") as progress:
        found = generate(model, tokenizer, rows, decoding, on_progress=lambda done, _: progress.update(done))
    cut = sum(each.truncated for each in found) / len(found)
    return {"pairs": [(each.prompt_ids, each.completion_ids) for each in found], "cut": cut}


def _scores(stage: Stage, corpus: Corpus) -> _Scores:
    def compute() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, path in (("sft", str(stage.sft.model)), ("base", stage.sft.base)):
            policy = FrozenPolicy(load_frozen(stage.arguments, path))
            found[name] = corpus.train.log_likelihoods(policy, stage.console, f"{stage.title}, {name}").tolist()
            if name == "sft":
                kinds, names = _kinds(stage, corpus.train, policy.model)
                found |= {"kinds": kinds.tolist(), "names": names}
            del policy
            gc.collect()
        return found

    record = from_first(lambda: remembered(stage.folder / "scores.json", compute))
    sft, base = (torch.tensor(record[name], dtype=torch.float64) for name in ("sft", "base"))
    ratios, root = sft - base, corpus.train.tokens.sqrt()
    generator = torch.Generator().manual_seed(stage.arguments.seed)
    banded = {
        "reward": ratios / root,
        "sft_logprob": sft / root,
        "random": torch.rand(len(sft), generator=generator, dtype=torch.float64),
    }[stage.arguments.purify_score]
    return _Scores(ratios, ratios / root, banded, torch.tensor(record["kinds"]), record["names"])


def _kinds(stage: Stage, train: Demonstrations, model: Any) -> tuple[Tensor, list[str]]:
    arguments = stage.arguments
    if arguments.purify_kind_column is not None:
        return kinds_by_column(train.rows, arguments.purify_kind_column)
    return kinds_by_prompt(train, model, _most_clusters(arguments), arguments.seed)


def _most_clusters(arguments: RunArguments) -> int:
    """Of the prompts; one where a column says the kinds, or nobody asks for them."""
    return arguments.purify_kinds if arguments.purify_rounds and arguments.purify_kind_column is None else 1


# --- sorting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sorted:
    """How the demonstrations were sorted.

    Attributes:
        mixtures: what was found, one for each K.
        chosen: number of the behaviour, and K; None where the SFT model is kept or there are no behaviours.
        reason: why.
        keep: (rows,) bool, what the final training draws from.
        weights: (rows,) float64 of the draw; None where the SFT model is kept.
        evidence: (rows,) float64, how surely a row belongs to what is kept, nats.
        reasons: of rows that are set aside: where the evidence is at most 0, and where it is above.
        loss: of the final steps.
        by_reward: whether the rule without labels says so too.
        tokens, flops, steps: that it cost.
        warnings: what else a reader has to know.
        cut: largest share of a model's answers to validation prompts that did not end within the budget of tokens.
        drawn: demonstrations that the final training drew; None where the SFT model is kept.
    """

    mixtures: tuple[Mixture, ...]
    chosen: tuple[int, int] | None
    reason: str
    keep: Tensor
    weights: Tensor | None
    evidence: Tensor
    reasons: tuple[str, str]
    loss: str
    by_reward: bool = False
    tokens: float = 0.0
    flops: float = 0.0
    steps: int = 0
    warnings: tuple[str, ...] = ()
    cut: float = 0.0
    drawn: int | None = None


def _sorted(stage: Stage, corpus: Corpus, scores: _Scores) -> _Sorted:
    arguments, everything = stage.arguments, torch.ones(len(corpus.train), dtype=torch.bool)
    kept = _Sorted((), None, "", everything, None, scores.log_ratios, ("", ""), arguments.purify_final_loss)
    if (why := _nothing_to_sort(scores.scores)) is not None:
        return replace(kept, reason=why)
    if not arguments.purify_rounds:
        weights = excess_weights(scores.log_ratios, float(scores.log_ratios.median()))
        if not bool((weights > 0).any()):
            return replace(kept, reason="no demonstration has a reward above the median. The SFT model is kept")
        reason = "drawn by max(0, 1 - exp(median R - R)); no behaviours were looked for"
        aside = "its reward is at most the median"
        return replace(kept, reason=reason, keep=weights > 0, weights=weights, reasons=(aside, aside))
    bands = {number: _bands(scores, number) for number in arguments.purify_behaviours}  # before any is trained on
    fits = {number: fit(stage, corpus, bands[number], number) for number in bands}
    tokens, flops = (sum(getattr(each, name) for each in fits.values()) for name in ("tokens", "flops"))
    steps = sum(fits) * arguments.purify_rounds * arguments.purify_steps
    models = {
        behaviour_name(number, of): path for of, fitted in fits.items() for number, path in enumerate(fitted.models, 1)
    }
    aimed = aim(stage, tuple(_mixture(fitted, scores) for fitted in fits.values()), models)
    kept = replace(kept, mixtures=aimed.mixtures, reason=aimed.reason, cut=aimed.cut)
    kept = replace(kept, tokens=tokens, flops=flops, steps=steps)
    if aimed.behaviour is None:
        return kept
    number, of = aimed.behaviour
    evidence = _log_odds(fits[of], number - 1)
    keep, weights, told = _better_part(stage, evidence, fits[of], number - 1, scores.kinds)
    name = behaviour_name(number, of)
    beyond = "of its kind of prompt those that are kept are more surely"
    if arguments.purify_keep is None:
        beyond = "another behaviour is more likely, by the shares, than that it is"
    asides = f"it is more surely of another behaviour than {name}", f"{beyond} of {name}"
    kept = replace(kept, chosen=aimed.behaviour, by_reward=by_lift(aimed.mixtures)[0] == aimed.behaviour)
    return replace(kept, keep=keep, weights=weights, evidence=evidence, reasons=asides, warnings=told)


def _band_share(number: int) -> float:
    """Share of the demonstrations in one of so many bands."""
    return min(BAND_SHARE.get(number, OTHER_BAND_SHARE), 1 / number)


def _bands(scores: _Scores, number: int) -> Tensor:
    """(rows,) int64, the bands of the scores that EM with so many behaviours begins with; -1 outside of all."""
    share, rows = _band_share(number), len(scores.banded)
    try:
        bands = rank_bands(scores.banded, _large_kinds(scores.kinds, number, share), number, share)
    except ValueError as error:
        raise ConfigError(
            f"{rows} demonstrations are too few for {number} behaviours ({error}); give more, or lower "
            "purify_behaviours or purify_kinds"
        ) from None
    _check_band(rows, number, int(bands[bands >= 0].bincount(minlength=number).min()))
    return bands


def _check_band(rows: int, number: int, smallest: int) -> None:
    if smallest < LEAST_IN_BAND:
        raise ConfigError(
            f"{rows} demonstrations are too few for {number} behaviours (a band of them would hold {smallest}, and "
            f"{LEAST_IN_BAND} are the fewest); give {math.ceil(LEAST_IN_BAND / _band_share(number))} or more, "
            "lower purify_behaviours or purify_kinds, or leave purified_sft out of a run's arms"
        )


def _nothing_to_sort(scores: Tensor) -> str | None:
    """Why the scores tell no demonstration from another; None where they do."""
    if float(scores.abs().max()) < NO_SIGNAL:
        return "the reward is zero: the model before SFT and the SFT model are one. The SFT model is kept"
    if float(scores.max() - scores.min()) < NO_SIGNAL:
        return "the demonstrations are one behaviour: the reward of all is the same. The SFT model is kept"
    return None


def _large_kinds(kinds: Tensor, bands: int, share: float) -> Tensor:
    """Kinds with too few rows for a band of each are taken together as one."""
    found = kinds.clone()
    for kind in torch.unique(kinds):
        members = kinds == kind
        if int(members.sum()) < max(bands, int(1 / share)):
            found[members] = -1
    small = found == -1
    if 0 < int(small.sum()) < bands and bool((~small).any()):
        found[small] = found[~small].mode().values
    return found


def _log_odds(fitted: Fitted, behaviour: int) -> Tensor:
    """(rows,) log of the behaviour's likelihood less that of all others together, nats: what no share decides."""
    others = [index for index in range(len(fitted.shares)) if index != behaviour]
    shares = fitted.shares[others].clamp(min=1e-12)
    rest = fitted.log_likelihoods[:, others] + (shares / shares.sum()).log()
    return fitted.log_likelihoods[:, behaviour] - rest.logsumexp(dim=1)


def _better_part(
    stage: Stage, evidence: Tensor, fitted: Fitted, behaviour: int, kinds: Tensor
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(rows,) which demonstrations are kept, (rows,) weights of the draw, 0 for all others, and what is warned of."""
    share = stage.arguments.purify_keep
    if share is None:
        gamma = fitted.responsibilities
        keep = gamma.argmax(dim=1) == behaviour
        if bool(keep.any()):
            return keep, gamma[:, behaviour] * keep, ()
        share = LEAST_SHARE
    keep = torch.zeros(len(evidence), dtype=torch.bool)
    pooled = _large_kinds(kinds, 2, share)  # of a kind of one row no share can be set aside
    for kind in torch.unique(pooled):
        members = (pooled == kind).nonzero().squeeze(1)
        best = evidence[members].argsort(descending=True, stable=True)[: max(1, round(share * len(members)))]
        keep[members[best]] = True
    together = len(torch.unique(kinds[pooled != kinds]))
    told = f"kinds of prompt with too few rows to keep {share:g} of each: {together}; with others the mix may shift"
    return keep, keep.double(), (told,) if together else ()


def _mixture(fitted: Fitted, scores: _Scores) -> Mixture:
    gamma = fitted.responsibilities
    reference = fitted.reference_shares
    lift = None if reference is None else lifts(fitted.shares, reference)
    behaviours = []
    for index in range(len(fitted.shares)):
        weights = gamma[:, index]
        raised = None if lift is None or not bool(torch.isfinite(lift[index])) else float(lift[index])
        behaviours.append(
            Behaviour(
                number=index + 1,
                share=float(fitted.shares[index]),
                reference_share=None if reference is None else float(reference[index]),
                lift=raised,
                reward=float((weights * scores.scores).sum() / weights.sum().clamp(min=1e-12)),
                examples=tuple(_log_odds(fitted, index).argsort(descending=True)[:EXAMPLES].tolist()),
                lift_error=None if raised is None or fitted.lift_errors is None else float(fitted.lift_errors[index]),
            )
        )
    return Mixture(tuple(behaviours), fitted.held_out)


# --- what is told of it ----------------------------------------------------------------------------------------------


def _record(stage: Stage, corpus: Corpus, scores: _Scores, found: _Sorted, kept: Sequence[int]) -> Purification:
    numbers = [number + 1 for number in corpus.train.numbers]
    mixtures = tuple(
        replace(
            mixture,
            behaviours=tuple(
                replace(each, examples=tuple(numbers[index] for index in each.examples)) for each in mixture.behaviours
            ),
        )
        for mixture in found.mixtures
    )
    chosen = torch.zeros(len(corpus.train), dtype=torch.bool)
    chosen[list(kept)] = True
    kinds = tuple(
        (name, float((scores.kinds == index).double().mean()), float((scores.kinds[chosen] == index).double().mean()))
        for index, name in enumerate(scores.names)
    )
    dropped = [index for index in found.evidence.argsort().tolist() if not bool(chosen[index])]
    reason, beyond = found.reason, int((found.evidence[dropped] > 0).sum())
    if found.chosen is not None and beyond:
        name = behaviour_name(*found.chosen)
        reason += f". {beyond} of the rows set aside may be of {name} too"
    told = {index for mixture in found.mixtures for each in mixture.behaviours for index in each.examples}
    return Purification(
        mixtures=mixtures,
        behaviour=None if found.chosen is None else found.chosen[0],
        of=None if found.chosen is None else found.chosen[1],
        reason=reason,
        kept=len(kept),
        dropped=len(stage.sft.rows("train")) - len(kept),
        worst=tuple(numbers[index] for index in dropped[:WORST]),
        kinds=kinds,
        warnings=(*found.warnings, *_draw_warnings(found, len(kept)), *_cut_warnings(stage, corpus, found)),
        trained=found.weights is not None,
        rows=shown_rows(stage, corpus, sorted(told | set(dropped[:WORST]))),
        drawn=found.drawn,
    )


def _draw_warnings(found: _Sorted, kept: int) -> tuple[str, ...]:
    """That the final training was too short to see all that is kept."""
    if found.drawn is None or found.drawn == kept:
        return ()
    return (f"the last steps drew {found.drawn:,} of the {kept:,} rows that are kept; raise purify_final_steps",)


def _cut_warnings(stage: Stage, corpus: Corpus, found: _Sorted) -> tuple[str, ...]:
    """That answers were cut off, where it is more than a few: what they would have come to nobody knows."""
    shares = {"to validation prompts": found.cut, "of the model before SFT": corpus.cut}
    told = [f"{share:.0%} of the answers {whose}" for whose, share in shares.items() if share > TRUNCATED_WATCH]
    tokens = stage.arguments.max_completion_length
    said = f"{' and '.join(told)} did not end within {tokens} tokens; raise max_completion_length"
    return (said,) if told else ()


def _write_rows(stage: Stage, corpus: Corpus, found: _Sorted, kept: Sequence[int]) -> None:
    """`kept.jsonl` and `dropped.jsonl`: the source's rows as they are, with the reason beside those set aside."""
    keeps = {corpus.train.numbers[index] for index in kept}
    scored = {number: float(found.evidence[index]) for index, number in enumerate(corpus.train.numbers)}
    rows = stage.sft.rows("train")
    dropped: dict[int, dict[str, Any]] = {}
    for number in set(range(len(rows))) - keeps:
        if number in scored:
            reason = found.reasons[scored[number] > 0]
            dropped[number] = {"purify_reason": reason, "purify_evidence": round(scored[number], 4)}
        else:
            dropped[number] = {"purify_reason": "its prompt leaves no token to learn", "purify_evidence": None}
    write_kept_rows(rows, dropped, stage.folder / "kept.jsonl", stage.folder / "dropped.jsonl")
