"""A finished run's table against what plain forward passes of its models say, in float64."""

from __future__ import annotations

import itertools
import json
import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from densepath.io import read_json, read_jsonl
from densepath.records.codec import from_json
from densepath.records.completion import ScoredCompletion

ARMS = {"sft": "SFT", "continued_sft": "continued SFT", "dpr": "DPR"}


@pytest.fixture(scope="module")
def run(finished):
    return finished[0]


@pytest.fixture(scope="module")
def logits_of(run):
    """(model, prompt, completion) -> float64 logits of the completion's tokens."""
    folders = {arm: run / f"{arm}/model" for arm in ARMS} | {"ref": run / "sft/references/0.5"}
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        for name, folder in folders.items()
    }

    def logits(name: str, prompt: list[int], completion: list[int]) -> torch.Tensor:
        with torch.no_grad():
            found = models[name](input_ids=torch.tensor([prompt + completion])).logits[0]
        return found[len(prompt) - 1 : -1]

    return logits


@pytest.fixture(scope="module")
def prompts(run) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    return [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        for row in read_jsonl(run / "data/test.jsonl")
    ]


def chosen(logits: torch.Tensor, completion: list[int]) -> torch.Tensor:
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]


@pytest.mark.parametrize(("arm", "temperature"), list(itertools.product(ARMS, (0, 1))))
def test_every_figure_of_the_table_is_recomputed(run, logits_of, prompts, arm, temperature):
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    answers = [row["answer"] for row in read_jsonl(run / "data/test.jsonl")]
    part = read_json(run / f"eval/parts/{arm}-{temperature}.json")
    rewards, divergences, entropies, lengths, metrics = [], [], [], [], []
    for row, completion in enumerate(part["completions"]):
        ids = completion["completion_ids"]
        own, sft, ref = (logits_of(name, prompts[row], ids) for name in (arm, "sft", "ref"))
        if temperature == 0:
            assert own.argmax(-1).tolist() == ids
        reward = chosen(sft, ids) - chosen(ref, ids)
        assert completion["rewards"] == pytest.approx(reward.tolist(), abs=3e-5)
        assert completion["sft_logprobs"] == pytest.approx(chosen(sft, ids).tolist(), abs=3e-5)
        assert completion["text"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert completion["truncated"] == (tokenizer.eos_token_id not in ids)
        rewards.append(float(reward.sum()))
        divergences.append(float((chosen(own, ids) - chosen(sft, ids)).sum()))
        entropies.append(float(torch.distributions.Categorical(logits=own).entropy().mean()))
        lengths.append(len(ids))
        metrics.append(float(" ".join(completion["text"].split()).removesuffix(".") == answers[row]))
    results = read_json(run / "eval/results.json")
    decoding = "temperature 1" if temperature else "greedy"
    (table,) = [row for row in results["rows"] if (row["arm"], row["decoding"]) == (arm, decoding)]
    assert table["label"] == ARMS[arm]
    assert table["n"] == len(prompts)
    assert table["metric"]["mean"] == statistics.fmean(metrics)
    expected = {"dense_reward": rewards, "length": lengths}
    if temperature == 1:  # greedy text estimates neither the policy's entropy nor its divergence
        expected |= {"entropy": entropies, "kl": divergences}
    else:
        assert table["entropy"] is table["kl"] is None
    for name, values in expected.items():
        assert table[name]["mean"] == pytest.approx(statistics.fmean(values), abs=1e-4)
        assert table[name]["low"] <= table[name]["mean"] <= table[name]["high"]


@pytest.mark.parametrize("arm", ARMS)
def test_the_likelihood_of_held_out_demonstrations(run, logits_of, prompts, arm):
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    found = []
    for prompt, row in zip(prompts, read_jsonl(run / "data/test.jsonl"), strict=True):
        text = row["completion"][0]["content"]
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = ids[: 4 * 6]  # four times max_completion_length
        found.append(-float(chosen(logits_of(arm, prompt, ids), ids).mean()))
    results = read_json(run / "eval/results.json")
    table = next(row for row in results["rows"] if row["arm"] == arm)
    assert table["nll"]["mean"] == pytest.approx(statistics.fmean(found), abs=1e-4)


def test_dpr_measures_the_likelihood_of_validation_demonstrations_while_it_trains(run, logits_of):
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    nll: dict[str, list[float]] = {"sft": [], "dpr": []}
    for row in read_jsonl(run / "data/validation.jsonl"):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        text = row["completion"][0]["content"]
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for arm, values in nll.items():
            values += (-chosen(logits_of(arm, prompt, ids), ids)).tolist()
    (logged,) = [row for row in read_jsonl(run / "dpr/metrics.jsonl") if "eval_nll" in row]
    assert logged["eval_nll"] == pytest.approx(statistics.fmean(nll["dpr"]), abs=1e-4)
    assert logged["eval_nll_increase"] == pytest.approx(logged["eval_nll"] - statistics.fmean(nll["sft"]), abs=1e-4)


def test_pairs_are_of_the_same_prompts(run):
    results = read_json(run / "eval/results.json")
    means = {(row["arm"], row["decoding"]): row["metric"]["mean"] for row in results["rows"]}
    compared = {(pair["arm"], pair["against"], pair["decoding"]) for pair in results["paired"]}
    names = (("dpr", "sft"), ("dpr", "continued_sft"), ("continued_sft", "sft"))
    assert compared == {(*pair, decoding) for pair in names for decoding in ("greedy", "temperature 1")}
    for pair in results["paired"]:
        difference = means[pair["arm"], pair["decoding"]] - means[pair["against"], pair["decoding"]]
        assert pair["difference"]["mean"] == pytest.approx(difference)


def test_the_samples_are_the_first_completions_token_by_token(run):
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    samples = read_jsonl(run / "eval/samples.jsonl")
    rows = read_jsonl(run / "data/test.jsonl")
    assert len(samples) == 2
    for index, sample in enumerate(samples):
        assert sample["answer"] == rows[index]["answer"]
        assert rows[index]["prompt"][-1]["content"] in sample["prompt"]
        assert set(sample["completions"]) == {"sft", "dpr"}
        for arm, completion in sample["completions"].items():
            record = read_json(run / f"eval/parts/{arm}-0.json")["completions"][index]
            assert completion["token_ids"] == record["completion_ids"]
            spans = from_json(ScoredCompletion, completion).spans
            assert "".join(span.text for span in spans) == tokenizer.decode(record["completion_ids"])
            assert completion["rewards"] == record["rewards"]
            assert completion["sum"] == pytest.approx(sum(record["rewards"]))


def test_the_control_had_the_compute_of_dpr(run):
    """Continued SFT takes as many steps as DPR's FLOPs pay for, at what a step of SFT took on average."""
    parameters = sum(tensor.numel() for tensor in AutoModelForCausalLM.from_pretrained(run / "sft/model").parameters())
    sft, dpr, control = (read_json(run / f"stages/{stage}.json") for stage in ("sft", "dpr", "continued_sft"))
    tokens = [json.loads(line)["num_tokens"] for line in (run / "sft/metrics.jsonl").read_text().splitlines()[:-1]]
    assert sft["tokens"] == tokens[-1]
    assert sft["flops"] == 6 * parameters * tokens[-1]
    assert control["steps"] == max(1, round(dpr["flops"] / (sft["flops"] / 8)))
    # DPR: of each token 2 forward for sampling, 2 for each of two frozen models, 6 for the update; prompts once
    logged = [row for row in read_jsonl(run / "dpr/metrics.jsonl") if "flops" in row]
    assert dpr["flops"] == sum(row["flops"] for row in logged)
    # 2 prompts with 2 completions each: TRL counts prompts twice, FLOPs once
    computed = [row["flops"] / (12 * parameters) for row in logged]
    counted = [b - a for a, b in itertools.pairwise([0.0, *(row["num_tokens"] for row in logged)])]
    completions = [4 * row["completions/mean_length"] for row in logged]
    for once, twice, sampled in zip(computed, counted, completions, strict=True):
        assert once == pytest.approx((twice - sampled) / 2 + sampled, rel=1e-6)
