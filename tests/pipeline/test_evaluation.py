"""A finished run's table against what plain forward passes of its models say, in float64."""

from __future__ import annotations

import io
import itertools
import json
import statistics
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from densepath.config.run import RunArguments
from densepath.io import read_json, read_jsonl
from densepath.methods import Policy, SFTRun
from densepath.pipeline.evaluation import Evaluation, _Models, ask
from densepath.pipeline.run_folder import RunFolder
from densepath.records.arm import Arm
from densepath.records.codec import from_json
from densepath.records.completion import ScoredCompletion
from densepath.rewards import frozen

ARMS = {"base": "before SFT", "sft": "SFT", "continued_sft": "continued SFT", "dpr": "DPR"}


@pytest.fixture(scope="module")
def run(finished):
    return finished[0]


@pytest.fixture(scope="module")
def logits_of(run, tiny_model):
    """(model, prompt, completion) -> float64 logits of the completion's tokens."""
    folders = {arm: run / f"{arm}/model" for arm in ARMS} | {"ref": run / "sft/references/0.5"}
    folders["base"] = tiny_model
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
    result = read_json(run / f"{arm}/eval/test-{temperature}.json")
    rewards, divergences, entropies, lengths, metrics = [], [], [], [], []
    for row, completion in enumerate(read_jsonl(run / f"{arm}/eval/test-{temperature}.jsonl")):
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
    (setting,) = read_json(run / "results.json")["settings"]
    decoding = "temperature 1" if temperature else "greedy"
    (table,) = [row for row in setting["rows"] if (row["method"], row["decoding"]) == (arm, decoding)]
    assert table["label"] == ARMS[arm]
    assert setting["prompts"]["test"] == len(prompts)
    assert result["values"] == metrics
    assert result["lengths"] == lengths
    assert table["value"]["mean"] == statistics.fmean(metrics)
    assert table["length"] == statistics.fmean(lengths)
    expected = {"reward": rewards}
    if temperature == 1:  # greedy text estimates neither the policy's entropy nor its divergence
        expected |= {"entropy": entropies, "kl": divergences}
    else:
        assert table["entropy"] is table["kl"] is result["kl"] is None
    for name, values in expected.items():
        assert result[name] == pytest.approx(values, abs=2e-4)
        assert table[name] == pytest.approx(statistics.fmean(values), abs=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_the_likelihood_of_held_out_demonstrations(run, logits_of, prompts, arm):
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    found = []
    for prompt, row in zip(prompts, read_jsonl(run / "data/test.jsonl"), strict=True):
        text = row["completion"][0]["content"]
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = ids[: 4 * 6]  # four times max_completion_length
        found.append(-float(chosen(logits_of(arm, prompt, ids), ids).mean()))
    (setting,) = read_json(run / "results.json")["settings"]
    for table in (row for row in setting["rows"] if row["method"] == arm):
        assert table["nll"] == pytest.approx(statistics.fmean(found), abs=1e-4)


def test_held_out_demonstrations_end_where_the_context_does(run):
    """What ends with a question is none, whatever was answered before it."""
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    user, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 30}
    rows = [{"messages": [user, said]}, {"messages": [user, said, user]}, {"prompt": "a" * 50, "completion": "b"}]
    models = SimpleNamespace(contrast=None, tokenizer=tokenizer)
    whole = _Models.demonstrations(models, rows, 100, 1000)
    assert len(whole) == 2
    room = len(whole[0].prompt_ids) + 7
    (cut,) = _Models.demonstrations(models, rows, 100, room)
    assert cut.completion_ids == whole[0].completion_ids[:7]


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
    (setting,) = read_json(run / "results.json")["settings"]
    means = {(row["method"], row["decoding"]): row["value"]["mean"] for row in setting["rows"]}
    at_one = [pair for pair in setting["comparisons"] if not pair["own_decoding"] and pair["role"] == "sft"]
    compared = {(pair["method"], pair["against"], pair["decoding"]) for pair in at_one}
    assert compared == {(arm, "sft", at) for arm in ARMS if arm != "sft" for at in ("greedy", "temperature 1")}
    assert {pair["method"] for pair in setting["comparisons"] if pair["primary"]} == {"dpr"}
    for pair in setting["comparisons"]:
        difference = means[pair["method"], pair["decoding"]] - means[pair["against"], pair["against_decoding"]]
        assert pair["difference"]["mean"] == pytest.approx(difference)


def test_the_samples_are_the_first_completions_token_by_token(run):
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    samples = read_jsonl(run / "samples.jsonl")
    rows = read_jsonl(run / "data/test.jsonl")
    assert len(samples) == 2
    for index, sample in enumerate(samples):
        assert sample["answer"] == rows[index]["answer"]
        assert rows[index]["prompt"][-1]["content"] in sample["prompt"]
        assert set(sample["completions"]) == {"sft", "dpr"}
        for arm, completion in sample["completions"].items():
            record = read_jsonl(run / f"{arm}/eval/test-0.jsonl")[index]
            assert completion["token_ids"] == record["completion_ids"]
            spans = from_json(ScoredCompletion, completion).spans
            assert "".join(span.text for span in spans) == tokenizer.decode(record["completion_ids"])
            assert completion["rewards"] == record["rewards"]
            assert completion["sum"] == pytest.approx(sum(record["rewards"]))


def test_the_control_had_the_compute_of_dpr(run):
    """Continued SFT takes as many steps as DPR's FLOPs pay for, at what a step of SFT took on average."""
    parameters = sum(tensor.numel() for tensor in AutoModelForCausalLM.from_pretrained(run / "sft/model").parameters())
    stages = (run / "stages/sft.json", run / "dpr/stages/train.json", run / "continued_sft/stages/train.json")
    sft, dpr, control = (RunFolder(path.parents[1], read_only=True).outcome(path.stem) for path in stages)
    tokens = [json.loads(line)["num_tokens"] for line in (run / "sft/metrics.jsonl").read_text().splitlines()[:-1]]
    assert sft.budget.tokens == tokens[-1]
    assert sft.budget.flops == 6 * parameters * tokens[-1]
    assert control.steps == max(1, round(dpr.budget.flops / (sft.budget.flops / 8)))
    # DPR: of each token 2 forward for sampling, 2 for each of two frozen models, 6 for the update; prompts once
    logged = [row for row in read_jsonl(run / "dpr/metrics.jsonl") if "flops" in row]
    assert dpr.budget.flops == sum(row["flops"] for row in logged)
    # 2 prompts with 2 completions each: TRL counts prompts twice, FLOPs once
    computed = [row["flops"] / (12 * parameters) for row in logged]
    counted = [b - a for a, b in itertools.pairwise([0.0, *(row["num_tokens"] for row in logged)])]
    completions = [4 * row["completions/mean_length"] for row in logged]
    for once, twice, sampled in zip(computed, counted, completions, strict=True):
        assert once == pytest.approx((twice - sampled) / 2 + sampled, rel=1e-6)


@pytest.mark.parametrize(("arm", "passes"), [("dpr", ["sft", "ref", "own"]), ("sft", ["sft", "ref"])])
def test_a_model_makes_one_pass_over_all_that_was_answered(run, tiny_model, tmp_path, monkeypatch, arm, passes):
    """Both temperatures and the demonstrations together; what the sampler knows is not computed again."""
    arguments = RunArguments(
        model_name_or_path=tiny_model, dataset_name="text_tasks", verifier="exact_match", reference="0.5",
        max_completion_length=6, eval_temperatures=[0.0, 1.0],
    )  # fmt: skip
    evaluation, made = Evaluation(SFTRun(run, arguments), arguments, "x"), []
    folders = {str(run / "sft/model"): "sft", str(run / "sft/references/0.5"): "ref", str(run / "dpr/model"): "own"}

    def counted(model, *args, **given):
        made.append(folders[model.name_or_path])
        return score(model, *args, **given)

    score = frozen.score_completions
    monkeypatch.setattr(frozen, "score_completions", counted)
    console = Console(file=io.StringIO())
    ask(
        Policy(str(run / f"{arm}/model")),
        Arm(arm, arm, arm == "sft"),
        evaluation,
        tmp_path,
        ("validation", "test"),
        console,
    )
    assert made == passes
    for name in ("test-0", "test-1", "validation-0", "validation-1"):
        again, before = (read_json(folder / f"eval/{name}.json") for folder in (tmp_path, run / arm))
        assert again["values"] == before["values"]
        assert again["nll"] == before["nll"]
