"""Purified SFT: what it leaves, what it costs, which behaviour it takes, and that a kill changes nothing."""

from __future__ import annotations

import collections
import io
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.live_memory import LiveBytes, WidestRows
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama
from tests.trainers.test_sft import StopAt

from densepath.config.run import PurifyArguments
from densepath.core.mixture import lifts, log_share_errors, settled_shares
from densepath.data.encode import encode_pairs
from densepath.errors import ConfigError, DamageWarning, DataError
from densepath.io import read_json, read_jsonl
from densepath.methods import (
    SFTRun,
    Stage,
    _behaviour_choice,
    _behaviours,
    _demonstrations,
    get_method,
    purified_sft,
)
from densepath.methods._demonstrations import _mean_states
from densepath.models.load import load_model
from densepath.models.scoring import score_completions
from densepath.pipeline.against_sft import check_of_run
from densepath.records.arm import Arm, ArmResult, Budget
from densepath.records.behaviours import Behaviour, Mixture, Purification
from densepath.records.codec import from_json
from densepath.records.judging import Preference

TOKENIZER = tiny_tokenizer()
PARAMETERS = sum(p.numel() for p in tiny_llama(vocab_size=len(TOKENIZER)).parameters())
KINDS = ("count", "name")
ROWS = [
    {"prompt": f"{kind} {i}:", "completion": f"{i + 1} {'x' * (i % 4)}", "kind": kind, "id": f"{kind}-{i}"}
    for kind, size in zip(KINDS, (16, 8), strict=True)
    for i in range(size)
]
HELD_OUT = [{"prompt": f"count {i}:", "completion": f"{i + 1}", "answer": f"{i + 1}"} for i in range(20, 26)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run folder with two models of random weights and what purification reads."""
    folder = tmp_path_factory.mktemp("source")
    for seed, name in enumerate(("base", "sft/model")):
        model = tiny_llama(vocab_size=len(TOKENIZER), seed=seed)
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = TOKENIZER.eos_token_id
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    write_rows(folder, "train", ROWS)
    write_rows(folder, "validation", HELD_OUT)
    return folder


def write_rows(folder, name, rows):
    (folder / "data").mkdir(exist_ok=True)
    (folder / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stage_of(source, folder, others=None, **changes) -> Stage:
    arguments = get_method("purified_sft").arguments(
        **{
            **{"model_name_or_path": str(source / "base"), "max_completion_length": 6, "save_steps": 1},
            **{"purify_behaviours": [2], "purify_rounds": 2, "purify_steps": 2, "purify_final_steps": 3},
            **{"purify_samples": 10, "purify_kind_column": "kind", "sft_per_device_train_batch_size": 4},
            **{"purify_learning_rate": 3e-3},
            **changes,
        }
    )
    sft, console = SFTRun(source, arguments), Console(file=io.StringIO())
    return Stage(sft, folder, arguments, others or {}, console, "test", check=check_of_run(sft, arguments))


def record_of(folder) -> Purification:
    return from_json(Purification, read_json(folder / "purification.json"))


def chosen_always(monkeypatch, number=2, of=2):
    for module in (_behaviour_choice, purified_sft):
        monkeypatch.setattr(module, "by_lift", lambda mixtures: ((number, of), "told to"))


# -- what it leaves and what it costs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def purified(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("purified")
    with pytest.MonkeyPatch.context() as patch:
        chosen_always(patch)
        outcome = purified_sft.train(stage_of(source, folder))
    return folder, outcome


def test_kept_and_dropped_rows_are_the_source_rows(purified):
    folder, _ = purified
    kept, dropped = read_jsonl(folder / "kept.jsonl"), read_jsonl(folder / "dropped.jsonl")
    reasons = {(row.pop("purify_reason"), type(row.pop("purify_evidence"))) for row in dropped}
    assert reasons == {("it is more surely of another behaviour than behaviour 2 of 2", float)}
    assert sorted([*kept, *dropped], key=ROWS.index) == ROWS
    assert [row for row in ROWS if row in kept] == kept  # in their order
    record = record_of(folder)
    assert (record.kept, record.dropped) == (len(kept), len(dropped)) == (12, 12)
    # The half of each kind: the mix stays.
    assert collections.Counter(row["kind"] for row in kept) == {"count": 8, "name": 4}
    assert record.kinds == (("count", 16 / 24, 8 / 12), ("name", 8 / 24, 4 / 12))


def test_a_row_beyond_the_share_is_not_said_to_be_of_another_behaviour(source, tmp_path, monkeypatch):
    chosen_always(monkeypatch)
    purified_sft.train(stage_of(source, tmp_path, purify_rounds=1, purify_keep=0.1))
    told = [(row["purify_evidence"], row["purify_reason"]) for row in read_jsonl(tmp_path / "dropped.jsonl")]
    for evidence, reason in told:
        kept = "of its kind of prompt those that are kept are more surely of behaviour 2 of 2"
        other = "it is more surely of another behaviour than behaviour 2 of 2"
        assert reason == (kept if evidence > 0 else other)
    beyond = sum(evidence > 0 for evidence, _ in told)
    assert 0 < beyond < len(told), "there are both"
    said = f"{beyond} of the rows set aside may be of behaviour 2 of 2 too"
    assert record_of(tmp_path).reason == f"told to. {said}"


def test_the_record_shows_rows_with_the_reward_of_each_token(purified, source):
    folder, _ = purified
    record = record_of(folder)
    (mixture,) = record.mixtures
    assert (record.behaviour, record.of, record.reason) == (2, 2, "told to")
    assert sum(each.share for each in mixture.behaviours) == pytest.approx(1)
    assert [each.number for each in mixture.behaviours] == [1, 2]
    dropped = read_jsonl(folder / "dropped.jsonl")
    worst = sorted(dropped, key=lambda row: row["purify_evidence"])[:5]
    assert [ROWS[number - 1]["id"] for number in record.worst] == [row["id"] for row in worst]
    told = {number for each in mixture.behaviours for number in each.examples} | set(record.worst)
    assert [row.number for row in record.rows] == sorted(told)
    models = [load_model(source / name) for name in ("sft/model", "base")]
    for shown in record.rows:
        row = ROWS[shown.number - 1]
        assert (shown.id, shown.prompt) == (row["id"], row["prompt"])
        (pair,) = encode_pairs(row, TOKENIZER)
        (turn,) = shown.turns
        assert list(turn.token_ids) == list(pair.completion_ids)
        sft, base = (score_completions(m, [pair.prompt_ids], [pair.completion_ids]).logprobs[0] for m in models)
        assert list(turn.rewards) == pytest.approx((sft - base).tolist(), abs=1e-5)


def test_it_costs_what_it_says(purified, source):
    folder, outcome = purified
    pairs = {
        name: [encode_pairs(row, TOKENIZER)[0] for row in rows] for name, rows in (("train", ROWS), ("v", HELD_OUT))
    }
    train, held_out = (sum(len(p.prompt_ids) + len(p.completion_ids) for p in part) for part in pairs.values())
    samples = sum(len(prompt) + len(answer) for prompt, answer in read_json(folder / "samples.json")["value"]["pairs"])
    trained = {
        path.parent: [row for row in read_jsonl(path) if row.get("num_tokens")][-1]["num_tokens"]
        for path in folder.rglob("metrics.jsonl")
    }
    assert len(trained) == 2 * 2 + 1  # K behaviours in each round, and the final training
    tokens = sum(trained.values())
    forward = 2 * train + samples + 2 * 2 * (train + held_out + samples)
    steps = 2 * 2 * 2 + 3
    assert outcome.steps == steps
    assert outcome.budget == Budget(10, steps * 4, tokens, PARAMETERS * (6 * tokens + 2 * forward))
    assert 0 < tokens <= steps * 4 * max(len(p.prompt_ids) + len(p.completion_ids) for p in pairs["train"])


def test_a_model_is_left_and_those_of_behaviours_are_not(purified, source):
    folder, _ = purified
    models = {path.parent.relative_to(folder).parts[0] for path in folder.rglob("model.safetensors")}
    assert {name for name in models if not name.startswith("checkpoint-")} == {"model"}
    assert not equal(folder, source / "sft")
    policy = purified_sft.METHOD.policy(stage_of(source, folder))
    assert policy.model == str(folder / "model")


def equal(a, b) -> bool:
    found, other = (load_file(folder / "model/model.safetensors") for folder in (a, b))
    return all(torch.equal(found[name], other[name]) for name in other)


def test_rows_that_cannot_be_scored_are_dropped_with_their_reason(source, tmp_path, monkeypatch):
    chosen_always(monkeypatch)
    place = tmp_path / "source"
    place.mkdir()
    (place / "sft").symlink_to(source / "sft")
    (place / "base").symlink_to(source / "base")
    long = {"prompt": "x " * 200, "completion": "y", "kind": "count", "id": "long"}
    write_rows(place, "train", [long, *ROWS])
    write_rows(place, "validation", HELD_OUT)
    purified_sft.train(stage_of(place, tmp_path / "cell", purify_rounds=1))
    dropped = read_jsonl(tmp_path / "cell/dropped.jsonl")
    assert dropped[0] == {**long, "purify_reason": "its prompt leaves no token to learn", "purify_evidence": None}
    record = record_of(tmp_path / "cell")
    assert (record.kept, record.dropped, len(dropped)) == (12, 13, 13)
    assert all(ROWS[shown.number - 2]["id"] == shown.id for shown in record.rows)


# -- a kill -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "step", "when"),
    [
        (1, 1, "in a behaviour's training"),
        pytest.param(2, 0, "between two behaviours", marks=pytest.mark.slow),
        pytest.param(4, 2, "in the final training", marks=pytest.mark.slow),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else None,
)
def test_a_killed_purification_ends_as_one_that_was_not(source, purified, tmp_path, monkeypatch, training, step, when):
    whole, outcome = purified
    chosen_always(monkeypatch)
    real, calls = _behaviours.sft_trainer, []

    def stopping(*given, **named):
        calls.append(1)
        if len(calls) == training + 1:
            if step == 0:
                raise KeyboardInterrupt
            return real(*given, **named, callbacks=[StopAt(step, KeyboardInterrupt)])
        return real(*given, **named)

    monkeypatch.setattr(_behaviours, "sft_trainer", stopping)
    with pytest.raises(KeyboardInterrupt):
        purified_sft.train(stage_of(source, tmp_path))
    done = len(calls) - 1
    assert purified_sft.train(stage_of(source, tmp_path)) == outcome
    assert len(calls) == done + 1 + 5 - done  # what was done is not trained again
    assert equal(tmp_path, whole)
    for name in ("purification.json", "kept.jsonl", "dropped.jsonl", "scores.json", "samples.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_damaged_log_of_a_behaviour_is_said(source, purified, tmp_path, monkeypatch):
    """Of a purification that goes on: no marker holds its files yet."""
    whole, outcome = purified
    chosen_always(monkeypatch)
    shutil.copytree(whole, tmp_path / "p")
    (tmp_path / "p/behaviours-2/round-1/1/metrics.jsonl").write_text("\n")
    with pytest.warns(DamageWarning, match=r"round-1/1/metrics.jsonl is damaged; nothing is computed from it"):
        assert purified_sft.train(stage_of(source, tmp_path / "p")) == outcome


# -- which behaviour ----------------------------------------------------------------------------------------------


def mixture_of(*behaviours, held_out=None, error=0.01) -> Mixture:
    """Of (share, lift) for each behaviour, and the standard error of each lift."""
    found = (
        Behaviour(number, share, None if lift is None else share / 2, lift, 0.0, lift_error=error)
        for number, (share, lift) in enumerate(behaviours, 1)
    )
    return Mixture(tuple(found), held_out)


@pytest.mark.parametrize(
    ("mixtures", "chosen", "words"),
    [
        ([mixture_of((0.4, -0.5), (0.6, 0.7))], (2, 2), "behaviour 2 of 2 is the largest that SFT raised, by 0.70"),
        ([mixture_of((0.2, 0.1), (0.3, 1.9), (0.5, 3.0))], (2, 3), "30% of the demonstrations"),
        ([mixture_of((0.4, 2.0), (0.6, None))], None, "every behaviour has a lift of 2 or more"),
        ([mixture_of((0.4, -0.1), (0.6, 2.5))], None, "no behaviour was raised by SFT and known before it"),
        ([mixture_of((0.4, -0.1), (0.6, 0.0))], None, "no behaviour was raised"),
        ([mixture_of((0.4, -0.1), (0.6, 0.1), error=0.1)], None, "the highest, of behaviour 2 of 2, is 0.10 nats"),
        ([mixture_of((0.005, 1.0), (0.995, 0.1))], None, "are one behaviour: 99.5% of them are behaviour 2 of 2"),
        ([mixture_of((0.4, 1), (0.6, 1), held_out=-9.0), mixture_of((1, 1), (0, 0), held_out=-9.1)], (2, 2), "60%"),
        (
            [mixture_of((0.4, 1), (0.6, 1), held_out=-9.0), mixture_of((0.5, 1), (0.3, 0), (0.2, 0), held_out=-8.0)],
            (1, 3),
            "behaviour 1 of 3",
        ),
    ],
    ids=["raised", "new-is-passed-over", "all-new", "lowered", "unchanged", "noise", "one", "best-explained", "three"],
)  # fmt: skip
def test_the_rule_without_labels(mixtures, chosen, words):
    found, reason = _behaviour_choice.by_lift(mixtures)
    assert found == chosen
    assert words in reason
    assert ("The SFT model is kept" in reason) == (chosen is None)


@pytest.mark.parametrize(
    ("rho", "before", "least", "most"),
    [
        ((0.5, 0.5), (0.5, 0.5), 0, 18),
        ((0.4, 0.4, 0.2), (0.4, 0.4, 0.2), 0, 18),
        ((0.541, 0.459), (0.7, 0.3), 200, 200),
    ],
    ids=["none-of-two", "none-of-three", "the-habit"],
)
def test_a_lift_is_followed_that_is_more_than_the_noise_of_its_samples(rho, before, least, most):
    """200 draws of answers that tell their behaviour surely: up to 18 of 200 is 5 % with three standard errors."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(200):
        drawn = [
            torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)
            for shares, count in ((rho, 4000), (before, 1000))
        ]
        said = [900 * (torch.nn.functional.one_hot(each, len(rho)) - 1.0).double() for each in drawn]
        shares, errors = zip(
            *((one := settled_shares(each), log_share_errors(each, one)) for each in said), strict=True
        )
        figures = zip(shares[0].tolist(), lifts(*shares).tolist(), torch.hypot(*errors).tolist(), strict=True)
        behaviours = (Behaviour(k, s, s, lift, 0.0, lift_error=e) for k, (s, lift, e) in enumerate(figures, 1))
        found.append(_behaviour_choice.by_lift([Mixture(tuple(behaviours))])[0])
    assert least <= 200 - found.count(None) <= most
    assert most < 200 or set(found) == {(2, 2)}


def planted_verdicts(name: str, right: dict[str, int], prompts: int = 12, cut: float = 0.0) -> ArmResult:
    """The first answers of each are right, as many as it says; of all a share is cut off."""
    values = (1.0,) * right.get(name, 0) + (0.0,) * (prompts - right.get(name, 0))
    return ArmResult(
        arm=Arm(name, name, name == "sft"),
        setting="purification",
        seed=0,
        decoding="greedy",
        split="validation",
        values=values,
        lengths=(3,) * prompts,
        truncated=cut,
    )


def planted(monkeypatch, right: dict[str, int], prompts: int = 12, cut: float = 0.0):
    monkeypatch.setattr(
        _behaviour_choice, "_verdicts", lambda stage, name, path: planted_verdicts(name, right, prompts, cut)
    )


def test_a_verifier_decides(source, tmp_path, monkeypatch):
    """It finds most answers of one behaviour's model right, and all of the one that is trained there."""
    planted(monkeypatch, {"sft": 1, "behaviour 1 of 2": 3, "purified SFT": 12})
    purified_sft.train(stage_of(source, tmp_path, verifier="exact_match", purify_rounds=1))
    record = record_of(tmp_path)
    assert (record.behaviour, record.of, record.trained) == (1, 2, True)
    assert "behaviour 1 of 2: its model has 0.250 on 12 validation prompts, the next 0.000" in record.reason
    assert "purified SFT (greedy) is right on 1.000 of 12 validation prompts" in record.reason
    assert [each.validation.mean for each in record.mixtures[0].behaviours] == [0.25, 0.0]


def test_dft_on_all_demonstrations_is_taken_where_the_verifier_finds_it_better(source, tmp_path, monkeypatch):
    """It is judged as it would be trained: the model that is left is the one that was judged."""
    found = {}

    def verdicts(stage, name, path):
        found[name] = load_file(path / "model.safetensors")
        return planted_verdicts(name, {"DFT on all demonstrations": 12, "behaviour 2 of 2": 1})

    monkeypatch.setattr(_behaviour_choice, "_verdicts", verdicts)
    stage = stage_of(source, tmp_path, verifier="exact_match", purify_rounds=1, purify_dft=True)
    outcome = purified_sft.train(stage)
    record = record_of(tmp_path)
    assert (record.behaviour, record.trained, record.kept, record.dropped) == (None, True, len(ROWS), 0)
    assert "DFT on all demonstrations (greedy) is right on 1.000" in record.reason
    left = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(left[name], values) for name, values in found["DFT on all demonstrations"].items())
    assert not all(torch.equal(left[name], values) for name, values in found["purified SFT"].items())
    assert outcome.steps == 2 * 2 + 3 + 3  # two behaviours, and two trainings that are judged
    assert not (tmp_path / "dft").exists()


@pytest.mark.slow
def test_the_adapter_of_dft_names_its_base_from_where_it_is_left(source, tmp_path, monkeypatch):
    """It is trained a folder deeper; what a tree that is moved with its base goes by is the relative path."""
    planted(monkeypatch, {"DFT on all demonstrations": 12, "behaviour 2 of 2": 1})
    adapters = {"use_peft": True, "lora_r": 2}
    purified_sft.train(
        stage_of(source, tmp_path, verifier="exact_match", purify_rounds=1, purify_dft=True, **adapters)
    )
    record = read_json(tmp_path / "model/densepath_base.json")
    assert (tmp_path / "model" / record["relative"]).resolve() == (source / "sft/model").resolve()


def test_a_verifier_that_tells_nothing_apart_leaves_it_to_the_rule(source, tmp_path, monkeypatch):
    chosen_always(monkeypatch)
    monkeypatch.setattr(_behaviour_choice, "NEARLY_ALL", 1.0)  # models of random weights do not end
    purified_sft.train(stage_of(source, tmp_path, verifier="exact_match", purify_rounds=1))
    record = record_of(tmp_path)
    assert "the models of all behaviours have 0.000 on 6 validation prompts: by the reward, told to" in record.reason
    assert "found every answer wrong" in record.reason
    assert (record.behaviour, record.trained) == (2, True)
    found = read_json(tmp_path / "validation/sft.json")["value"]
    assert found["values"] == [0.0] * len(HELD_OUT)


@pytest.mark.parametrize(
    ("right", "words"),
    [({}, "have 0.000 on 12 validation prompts, as nearly all"), ({"behaviour 2 of 2": 1}, "is kept, as nearly all")],
    ids=["of-behaviours", "of-what-is-trained"],
)
def test_verdicts_on_answers_that_are_cut_off_leave_nothing_to_the_lift(source, tmp_path, monkeypatch, right, words):
    chosen_always(monkeypatch)
    planted(monkeypatch, right, cut=0.95)
    purified_sft.train(stage_of(source, tmp_path, verifier="exact_match", purify_rounds=1))
    assert words in kept_sft(tmp_path)
    said = "95% of the answers to validation prompts and "
    assert said in record_of(tmp_path).warnings[-1]
    assert "did not end within 6 tokens; raise max_completion_length" in record_of(tmp_path).warnings[-1]


def test_how_many_answers_were_cut_off_is_counted(source, tmp_path):
    """Against the ids that were sampled: what was cut off is as long as may be, and ends in no EOS."""
    corpus, _ = purified_sft._corpus(stage_of(source, tmp_path))
    answers = [answer for _, answer in read_json(tmp_path / "samples.json")["value"]["pairs"]]
    cut = [len(answer) == 6 and answer[-1] != TOKENIZER.eos_token_id for answer in answers]
    assert corpus.cut == sum(cut) / len(cut) > 0


@pytest.mark.parametrize(
    ("right", "prompts", "behaviour", "words"),
    [
        ({"behaviour 2 of 2": 1, "purified SFT": 1}, 1, None, "give about 7 of them"),
        ({"sft": 2, "behaviour 2 of 2": 1, "purified SFT": 8}, 16, 2, "Before the correction it is shown"),
    ],
    ids=["one-prompt", "six-of-six"],
)
@pytest.mark.slow
def test_a_lead_is_followed_that_is_shown_before_the_correction(
    source, tmp_path, monkeypatch, right, prompts, behaviour, words
):
    """Beside DFT, so that there are two candidates: six differences of one sign have p = 2/64, and 4/64 for two."""
    planted(monkeypatch, right, prompts)
    for module in (_behaviour_choice, purified_sft):
        monkeypatch.setattr(module, "by_lift", lambda mixtures: ((1, 2), "told to"))
    purified_sft.train(stage_of(source, tmp_path, verifier="exact_match", purify_rounds=1, purify_dft=True))
    record = record_of(tmp_path)
    assert record.behaviour == behaviour
    assert words in record.reason


@pytest.mark.parametrize("said", [float("nan"), None, "KeyError"])
def test_a_verifier_that_fails_is_named_with_its_prompt(source, tmp_path, said):
    def verifier(completion, row):
        if row["prompt"] != HELD_OUT[1]["prompt"]:
            return 1.0
        return row["nothere"] if said == "KeyError" else said

    stage = stage_of(source, tmp_path, verifier="exact_match", purify_rounds=1)
    said_of = "failed: KeyError" if said == "KeyError" else f"says {said} of an answer"
    with pytest.raises(DataError, match=rf"^prompt 2 \('count 21:'\): the verifier {said_of}"):
        purified_sft.train(replace(stage, check=lambda held: verifier))


@pytest.mark.parametrize(
    ("right", "by_reward", "behaviour", "words"),
    [
        ({"sft": 2, "behaviour 2 of 2": 1, "purified SFT": 7}, (1, 2), None, "The SFT model is kept"),
        ({"sft": 2, "behaviour 2 of 2": 3, "purified SFT": 3}, (1, 2), None, "The SFT model is kept"),
        ({"sft": 2, "behaviour 2 of 2": 3, "purified SFT": 3}, (2, 2), 2, "By the lift it is taken"),
        ({"sft": 2, "behaviour 2 of 2": 3, "purified SFT": 3}, None, None, "The SFT model is kept"),
        ({"sft": 2, "behaviour 2 of 2": 3, "purified SFT": 1}, (2, 2), None, "No candidate is shown to beat SFT"),
        ({"sft": 16, "behaviour 2 of 2": 16, "purified SFT": 16}, (1, 2), None, "The SFT model is kept"),
        ({"sft": 3, "behaviour 1 of 2": 2, "behaviour 2 of 2": 2, "purified SFT": 9}, (1, 2), 1, ", shown."),
    ],
    ids=["five-of-five", "lift-against", "lift-for", "no-lift", "no-lead", "all-right", "as-good-as-the-other"],
)
def test_what_is_trained_is_taken_where_verdicts_speak_for_it(
    source, tmp_path, monkeypatch, right, by_reward, behaviour, words
):
    """Verdicts on 16 prompts. Where a model of a behaviour leads it is the aim, whatever the lift says."""
    planted(monkeypatch, right, prompts=16)
    monkeypatch.setattr(purified_sft, "by_lift", lambda mixtures: (by_reward, "by the lift"))
    monkeypatch.setattr(_behaviour_choice, "by_lift", lambda mixtures: (by_reward, "by the lift"))
    purified_sft.train(stage_of(source, tmp_path, verifier="exact_match", purify_rounds=1))
    record = record_of(tmp_path)
    assert record.behaviour == behaviour
    assert record.trained == (tmp_path / "model").exists() == (behaviour is not None)
    assert (record.dropped == 0) == (behaviour is None)
    assert words in record.reason


class PlantedJudge:
    """Finds all answers alike, and can say nothing of the first prompt."""

    __name__ = "planted"

    def judged(self, answers, rows):
        return [Preference(None), *(Preference(0.75) for _ in answers[1:])]


def test_a_judge_takes_the_place_of_a_verifier(source, tmp_path, monkeypatch):
    """What it could say nothing of is left out for every candidate."""
    stage = stage_of(source, tmp_path, judge="verifier:exact_match", purify_rounds=1)
    purified_sft.train(replace(stage, check=lambda held: PlantedJudge()))
    record = record_of(tmp_path)
    assert f"have 0.750 on {len(HELD_OUT) - 1} validation prompts" in record.reason
    assert [each.validation.mean for each in record.mixtures[0].behaviours] == [0.75, 0.75]
    assert {each.validation.n for each in record.mixtures[0].behaviours} == {len(HELD_OUT) - 1}


# -- the form without behaviours, and adapters --------------------------------------------------------------------


def test_without_rounds_demonstrations_are_drawn_by_their_own_reward(source, tmp_path):
    outcome = purified_sft.train(stage_of(source, tmp_path, purify_rounds=0))
    scores = read_json(tmp_path / "scores.json")["value"]
    ratios = torch.tensor(scores["sft"]) - torch.tensor(scores["base"])
    kept = read_jsonl(tmp_path / "kept.jsonl")
    expected = [row for row, ratio in zip(ROWS, ratios, strict=True) if ratio > ratios.median()]
    assert kept == expected
    assert outcome.steps == 3
    assert record_of(tmp_path).mixtures == ()
    assert not list(tmp_path.glob("behaviours-*"))


def test_without_rounds_no_lift_speaks_for_what_a_verifier_leaves_open(source, tmp_path, monkeypatch):
    planted(monkeypatch, {"sft": 2, "purified SFT": 3}, prompts=16)
    purified_sft.train(stage_of(source, tmp_path, purify_rounds=0, verifier="exact_match"))
    assert "would be worth having" in kept_sft(tmp_path)


def test_the_rows_that_the_last_steps_draw_are_counted(source, tmp_path, monkeypatch, purified):
    """One step of four from twelve of equal weight: four of them. Three steps draw all, which is not warned of."""
    chosen_always(monkeypatch)
    purified_sft.train(stage_of(source, tmp_path, purify_rounds=1, purify_final_steps=1))
    record = record_of(tmp_path)
    assert (record.kept, record.drawn) == (12, 4)
    assert record.warnings[0] == "the last steps drew 4 of the 12 rows that are kept; raise purify_final_steps"
    whole = record_of(purified[0])
    assert (whole.kept, whole.drawn) == (12, 12)
    assert not any("purify_final_steps" in each for each in whole.warnings)


@pytest.mark.parametrize(
    ("changes", "clustered"),
    [
        ({"purify_kind_column": None}, True),
        ({"purify_kind_column": None, "purify_kinds": 1}, False),
        ({"purify_kind_column": None, "purify_rounds": 0}, False),
        ({}, False),
    ],
    ids=["clusters", "one-kind", "no-rounds", "column"],
)
def test_the_pass_over_prompts_that_are_clustered_is_counted(source, tmp_path, monkeypatch, changes, clustered):
    passes, real = [], _demonstrations._mean_states
    monkeypatch.setattr(_demonstrations, "_mean_states", lambda *given: passes.append(1) or real(*given))
    stage = stage_of(source, tmp_path, **changes)
    corpus, flops = purified_sft._corpus(stage)
    purified_sft._scores(stage, corpus)
    pairs = [encode_pairs(row, TOKENIZER)[0] for row in ROWS]
    read = 2 * sum(len(pair.prompt_ids) + len(pair.completion_ids) for pair in pairs)
    read += sum(len(pair.prompt_ids) + len(pair.completion_ids) for _, pair in corpus.samples.pairs)
    assert flops == 2 * PARAMETERS * (read + clustered * sum(len(pair.prompt_ids) for pair in pairs))
    assert bool(passes) == clustered


def test_lora_is_trained_where_it_is_asked_for(source, tmp_path, monkeypatch):
    chosen_always(monkeypatch)
    purified_sft.train(stage_of(source, tmp_path, purify_rounds=1, use_peft=True, lora_r=2))
    assert (tmp_path / "model/adapter_model.safetensors").exists()


# -- wrong input --------------------------------------------------------------------------------------------------


def kept_sft(folder) -> str:
    """Why the SFT model was kept, with every row."""
    assert not (folder / "model").exists()
    assert read_jsonl(folder / "dropped.jsonl") == []
    record = record_of(folder)
    assert (record.behaviour, record.of) == (None, None)
    assert "\n" not in record.reason
    return record.reason


def linked(source, place, base="base", rows=ROWS):
    place.mkdir()
    (place / "sft").symlink_to(source / "sft")
    (place / "base").symlink_to(source / base)
    write_rows(place, "train", rows)
    write_rows(place, "validation", HELD_OUT)
    return place


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_reference_that_is_the_sft_model_keeps_it(source, tmp_path, rounds):
    place = linked(source, tmp_path / "source", base="sft/model")
    outcome = purified_sft.train(stage_of(place, tmp_path / "cell", purify_rounds=rounds))
    assert kept_sft(tmp_path / "cell").startswith("the reward is zero: the model before SFT and the SFT model are one")
    assert outcome.steps == 0
    assert purified_sft.METHOD.policy(stage_of(place, tmp_path / "cell")).model == str(place / "sft/model")


def test_demonstrations_that_are_alike_keep_sft(source, tmp_path):
    place = linked(source, tmp_path / "source", rows=[ROWS[0]] * 20)
    purified_sft.train(stage_of(place, tmp_path / "cell"))
    assert kept_sft(tmp_path / "cell").startswith("the demonstrations are one behaviour")


def test_nothing_above_the_median_keeps_sft(source, tmp_path, monkeypatch):
    monkeypatch.setattr(purified_sft, "excess_weights", lambda ratios, cap: torch.zeros_like(ratios))
    purified_sft.train(stage_of(source, tmp_path, purify_rounds=0))
    assert kept_sft(tmp_path).startswith("no demonstration has a reward above the median")


@pytest.mark.slow
def test_prompts_that_leave_no_room_for_an_answer_are_not_asked(source, tmp_path, monkeypatch):
    asked = []

    def keeping(model, tokenizer, rows, *given, **named):
        asked.extend(rows)
        return generate(model, tokenizer, rows, *given, **named)

    generate = purified_sft.generate
    monkeypatch.setattr(purified_sft, "generate", keeping)
    shutil.copytree(source, tmp_path / "source")
    long = {**ROWS[0], "prompt": "x" * 120, "completion": "1"}
    write_rows(tmp_path / "source", "train", [*ROWS, long])
    purified_sft.train(stage_of(tmp_path / "source", tmp_path / "p", purify_samples=100, max_prompt_length=40))
    assert long["prompt"] not in {row["prompt"] for row in asked}
    assert len(asked) == len(ROWS)


def test_demonstrations_that_are_all_too_long_are_counted(source, tmp_path):
    place = linked(source, tmp_path / "source", rows=[{**row, "prompt": "x " * 200} for row in ROWS])
    with pytest.raises(DataError, match=r"no row is left of 24 \(24 with too long a prompt\); raise max_length"):
        purified_sft.train(stage_of(place, tmp_path / "cell"))


def test_plain_text_has_no_prompt_to_ask(source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    write_rows(tmp_path / "source", "train", [{"text": f"one {i}", "kind": "a"} for i in range(20)])
    with pytest.raises(ConfigError, match=r"plain text has no prompt .* give prompt and completion, or purify_rounds"):
        purified_sft.train(stage_of(tmp_path / "source", tmp_path / "p"))


def test_a_behaviour_that_owns_no_row_keeps_those_that_are_nearest(source, tmp_path):
    log_likelihoods = torch.stack([-torch.arange(20.0), -torch.arange(20.0) - 1], dim=1).double()
    fitted = _behaviours.Fitted(log_likelihoods, torch.tensor([0.9, 0.1]).double(), None, None, None, (), 0.0, 0.0)
    stage = stage_of(source, tmp_path, purify_keep=None)
    keep, weights, told = purified_sft._better_part(stage, torch.arange(20.0), fitted, 1, torch.arange(20) % 2)
    assert keep.nonzero().squeeze(1).tolist() == [18, 19]
    assert weights.sum() == 2
    assert told == ()


def test_what_is_set_aside_is_never_drawn(source, tmp_path):
    """Of three behaviours that overlap, rows are kept whose most likely behaviour is the chosen one."""
    log_likelihoods = 0.6 * torch.randn(100, 3, generator=torch.Generator().manual_seed(0)).double()
    fitted = _behaviours.Fitted(log_likelihoods, torch.full((3,), 1 / 3).double(), None, None, None, (), 0.0, 0.0)
    stage = stage_of(source, tmp_path, purify_keep=None)
    keep, weights, _ = purified_sft._better_part(stage, torch.zeros(100), fitted, 0, torch.zeros(100))
    likeliest = [max(range(3), key=row.__getitem__) == 0 for row in log_likelihoods.tolist()]
    assert keep.tolist() == likeliest
    assert (weights > 0).tolist() == likeliest


@pytest.mark.parametrize(
    ("kinds", "kept", "pooled"),
    [(list(range(12)), range(6), 12), ([0] * 8 + [1, 2, 3, 4], [0, 1, 2, 3, 8, 9], 4)],
    ids=["all-alone", "some-alone"],
)
def test_kinds_of_one_row_are_halved_together(source, tmp_path, kinds, kept, pooled):
    stage = stage_of(source, tmp_path, purify_keep=0.5)
    keep, _, told = purified_sft._better_part(stage, -torch.arange(12.0), None, 0, torch.tensor(kinds))
    assert keep.nonzero().squeeze(1).tolist() == list(kept)
    assert told == (f"kinds of prompt with too few rows to keep 0.5 of each: {pooled}; with others the mix may shift",)


def test_prompts_are_clustered_without_logits_and_by_a_budget_of_tokens():
    model = tiny_llama(vocab_size=1009)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1009, (length,), generator=generator).tolist() for length in (3, 200, 1, 77, 200, 60)]
    with WidestRows(1009) as wide:
        states = _mean_states(model, prompts * 2)
    assert wide.rows == 0
    for prompt, state in zip(prompts * 2, torch.from_numpy(states), strict=True):
        naive = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[1].double().mean(dim=1)[0]
        assert torch.allclose(state, naive, atol=1e-6)
    peaks = []
    for count in (10, 80):
        with LiveBytes() as live:
            _mean_states(model, [prompts[1]] * count)
        peaks.append(live.peak)
    assert peaks[1] < 1.5 * peaks[0]


def test_lifts_begin_with_no_share_of_the_demonstrations(source, tmp_path, monkeypatch):
    """Nine in ten answers of the model before SFT are behaviour 1, and no demonstration is."""
    far = torch.tensor([[0.0, -30.0]] * 9 + [[-30.0, 0.0]]).double()
    demonstrations = torch.tensor([[-900.0, 0.0]] * 20).double()
    said = [_behaviours._Said(demonstrations[:, k], torch.empty(0), far[:, k], 0.0, 0.0) for k in (0, 1)]
    monkeypatch.setattr(_behaviours, "_trained_and_asked", lambda *given: said.pop(0))
    corpus = SimpleNamespace(samples=range(10), validation=())
    fitted = _behaviours.fit(stage_of(source, tmp_path, purify_rounds=1), corpus, torch.tensor([0, 1] * 10), 2)
    assert fitted.shares.tolist() == pytest.approx([0, 1], abs=1e-6)
    assert fitted.reference_shares.tolist() == pytest.approx([0.9, 0.1], abs=1e-4)


def test_fewer_demonstrations_than_bands_need_are_a_mistake(source, tmp_path):
    place = linked(source, tmp_path / "source", rows=ROWS[:2])
    with pytest.raises(ConfigError, match=r"^2 demonstrations are too few for 3 behaviours .*lower purify_behaviours"):
        purified_sft.train(stage_of(place, tmp_path / "cell", purify_behaviours=[3]))


def test_a_row_without_the_kind_is_a_mistake(source, tmp_path):
    long = {**ROWS[0], "prompt": "x " * 200}  # left out, and counted
    place = linked(source, tmp_path / "source", rows=[long, *ROWS, {"prompt": "a", "completion": "b"}])
    with pytest.raises(ConfigError, match="purify_kind_column=kind: training row 26 has no such column"):
        purified_sft.train(stage_of(place, tmp_path / "cell"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"purify_behaviours": [1]}, "give numbers of 2 or more; with one, nothing is sorted"),
        ({"purify_behaviours": []}, "give numbers of 2 or more"),
        ({"purify_behaviours": [2, 2]}, "give each number once"),
        ({"purify_keep": 1.0}, "purify_keep=1.0 must lie between 0 and 1"),
        ({"purify_learning_rate": 0.0}, "must be a number above 0"),
        ({"purify_final_loss": "mse"}, "does not exist; choose one of: dft, nll"),
    ],
    ids=["one", "none", "twice", "everything", "no-rate", "loss"],
)
def test_arguments_that_sort_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        PurifyArguments(**changes)
