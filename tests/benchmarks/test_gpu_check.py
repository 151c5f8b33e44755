"""The GPU check's own logic: time boxes, records of what was cut off, tolerances; and its parts on a CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks.gpu import check, extras, kit, smoke, speed, vllm_sample
from benchmarks.gpu import tests as gpu_tests
from benchmarks.gpu.boxes import SUMMARY, Box, Report, compared, failures, in_boxes
from benchmarks.gpu.check import BOXES, MINUTES, Settings, boxes_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.pipeline.runs import save_tiny_model
from tests.tiny_models import tiny_llama

from densepath.models import flat_attention, sampling
from densepath.models.load import load_model
from densepath.models.packing import Layout

ROOT = Path(__file__).parents[2]
PART = """
import sys, time
from pathlib import Path
from benchmarks.gpu.boxes import Report, compared
folder, name = Path(sys.argv[1]), sys.argv[2]
report = Report(folder / f"{name}.json")
with report.item("first") as values:
    values["scores"] = compared(1e-5, 1e-4)
if name == "slow":
    time.sleep(60)
if name == "broken":
    raise SystemExit(3)
with report.item("second") as values:
    raise ValueError("two\\nlines")
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A part that fails, one that hangs, one that ends but for an item, and one that has no time left."""
    folder = tmp_path_factory.mktemp("check")
    boxes = [Box(name, name, seconds) for name, seconds in (("broken", 200), ("item", 200), ("slow", 10), ("last", 9))]
    words = [sys.executable, "-c", PART, str(folder)]
    started = time.monotonic()
    found = in_boxes(boxes[:3], words, folder, 400)
    assert time.monotonic() - started < 400
    late = in_boxes(boxes[3:], words, folder, 1)
    return folder, found, late


def test_a_part_that_hangs_is_cut_off_and_keeps_what_it_found(records):
    folder, found, late = records
    assert {name: record["state"] for name, record in found.items()} == {
        "broken": "failed",
        "item": "done",
        "slow": "cut off",
    }
    for record in found.values():
        assert record["found"]["first"]["scores"] == {"difference": 1e-5, "tolerance": 1e-4, "ok": True}
    assert late["last"]["state"] == "not begun"
    assert json.loads((folder / SUMMARY).read_text())["parts"].keys() == {"last"}


def test_what_is_wrong_is_named(records):
    _, found, late = records
    assert failures({**found, **late}) == [
        "broken: failed",
        "slow: cut off",
        "last: not begun",
        "item, second: ValueError: two lines",
    ]


def test_time_may_end_a_part_that_is_open_ended(tmp_path):
    words = [sys.executable, "-c", PART, str(tmp_path)]
    records = in_boxes([Box("slow", "slow", 10, open_ended=True)], words, tmp_path, 400)
    assert records["slow"]["state"] == "cut off"
    assert failures(records) == []
    assert failures({"slow": {**records["slow"], "state": "failed"}}) == ["slow: failed"]


def test_the_time_is_for_the_parts_that_are_asked_for():
    for asked, minutes in (([box.name for box in BOXES], MINUTES), (["smoke", "speed"], 6.0), (["noise"], 2.0)):
        boxes = boxes_of(asked, minutes)
        assert [box.name for box in boxes] == asked
        assert sum(box.seconds for box in boxes) == pytest.approx(60 * minutes)
    smoke_box, speed_box = boxes_of(["smoke", "speed"], 6.0)
    assert speed_box.seconds / smoke_box.seconds == pytest.approx(210 / 150)
    assert sum(box.seconds for box in BOXES) <= 60 * MINUTES


def required(names):
    """Names of distributions and of all that they require here, their extras left out."""
    seen, todo = set(), list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in seen:
            seen.add(name)
            lines = map(Requirement, metadata.requires(name) or ())
            todo += [each.name for each in lines if each.marker is None or each.marker.evaluate({"extra": ""})]
    return seen


def test_the_machine_and_the_kit_have_all_that_is_required():
    travels = {*kit.TRAVEL, *kit.WHEELS, "densepath"}
    assert required(["densepath", "pytest"]) - travels <= required(kit.MACHINE)
    said = (ROOT / "docs/gpu.md").read_text(encoding="utf-8").split("The machine needs")[1].split("pip is not")[0]
    assert [name for name in kit.MACHINE if name not in said.lower()] == []


def test_a_wrong_part_is_named_before_a_gpu_is_missed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    for words, said in (
        (["--parts", "smoke,foo"], "no part 'foo'; there are smoke, speed"),
        (["--minutes", "0"], "0 is no number above 0"),
        ([], "torch finds no CUDA device"),
    ):
        monkeypatch.setattr(sys, "argv", ["check", "--output_dir", str(tmp_path / "out"), *words])
        with pytest.raises(SystemExit) as ended:
            check.main()
        told = capsys.readouterr().err
        assert (ended.value.code, told.count("\n")) == (2, 1)
        assert said in told
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_a_flat_rows_gradients_are_compared_in_bfloat16(model, monkeypatch):
    found = smoke.flat_against_padded(model, "cpu")
    assert found["layout"] == "FLAT"
    records = {"smoke": {"state": "done", "open_ended": False, "found": {"gradients": found}}}
    assert failures(records) == []
    right = flat_attention._attended
    # Right forward, which the trial of a model's layout would find too, and half as much again of a gradient backward.
    monkeypatch.setattr(
        flat_attention,
        "_attended",
        lambda query, key, value, mask, **given: right(query, key, 1.5 * value - 0.5 * value.detach(), mask, **given),
    )
    records["smoke"]["found"]["gradients"] = smoke.flat_against_padded(model, "cpu")
    assert [line.split(":")[0] for line in failures(records)] == ["smoke, gradients, gradients"]


def test_a_training_says_on_which_device_it_ran(tmp_path):
    report = Report(tmp_path / "smoke.json")
    figures = {"weights": torch.ones(2)}
    for name, device in (("as asked", "meta"), ("elsewhere", "cpu")):
        smoke._trained(report, name, lambda where, device=device: smoke.Trained(torch.device(device), figures), "meta")
    assert [report.found[name]["device"] for name in ("as asked", "elsewhere")] == ["meta", "cpu"]
    records = {"smoke": {"state": "done", "open_ended": False, "found": report.found}}
    assert failures(records) == ["smoke, elsewhere, another device: 1.0, more than 0"]


def test_extras_decode_few_tokens_and_start_processes_last(tmp_path, monkeypatch):
    """A decoding step of a small model takes the same 40 ms whatever is decoded: the dispatch of its kernels."""
    work, seconds = extras.LONG_PROMPTS, 0.04
    counted = speed.roofline(
        {"seconds by phase": {"sampling": 1.0}, "parameters": 1e9}, {"bytes": 1e12, "flops": 1e15}, work
    )
    assert 2 * speed.STEPS * counted["sampling batches"] * work.completion * seconds < 15
    tokens = [w.rows // w.group * w.prompt + w.rows * w.completion for w in (work, speed.FULL)]
    assert tokens[0] == pytest.approx(tokens[1], rel=0.15)
    for name in ("_four_bit", "_fsdp", "_vllm", "dpr_step"):
        monkeypatch.setattr(extras, name, lambda *given, **named: {})
    report = Report(tmp_path / "extras.json")
    extras.run(Settings("cpu", True, tmp_path), report)
    assert list(report.found) == [
        "4 bits",
        "gradient checkpointing on",
        "gradient checkpointing off",
        "FSDP2 on one device",
        "vLLM",
    ]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda weight: weight + 0.02, []),
        (lambda weight: weight, ["as if never quantised"]),
        (lambda weight: weight * torch.nan, ["scores that are not finite"]),
    ],
    ids=["quantised", "not", "broken"],
)
def test_scores_in_4_bits_are_finite_and_others(model, change, wrong, monkeypatch):
    def load(name, **options):
        loaded = load_model(name)
        if options:
            weight = loaded.model.layers[0].mlp.up_proj.weight
            weight.data = change(weight.data)
        return loaded

    def score(loaded, prompts, completions):  # `score_completions` itself refuses NaN
        ids = torch.tensor([[*prompts[0], *completions[0]]])
        return SimpleNamespace(logprobs=[loaded(input_ids=ids).logits.detach().log_softmax(-1)[0, 2:, 9]])

    monkeypatch.setattr(extras, "_package", lambda name: {"version": "made up"})
    monkeypatch.setattr(extras, "check_four_bit", lambda: None)
    monkeypatch.setattr("densepath.config.mixins.TrainableArguments.model_options", lambda self: {"in": 4})
    monkeypatch.setattr(extras, "load_model", load)
    monkeypatch.setattr(extras, "score_completions", score)
    found = extras._four_bit(model, "cpu")
    assert [name for name, value in found.items() if isinstance(value, dict) and not value["ok"]] == wrong


def test_vllm_answers_or_it_is_said_why_not(model, monkeypatch):
    own = load_model(model)

    class LLM:
        """An engine that takes a model's first tokens, and knows their log-probabilities."""

        def __init__(self, **given):
            assert given["model"] == model

        def generate(self, given, params, use_tqdm):
            answers = []
            for each in given:
                logprobs = own(input_ids=torch.tensor([each["prompt_token_ids"]])).logits[0, -1].log_softmax(-1)
                at = {7: SimpleNamespace(logprob=float(logprobs[7]))}
                one = SimpleNamespace(token_ids=[7], logprobs=[at], finish_reason="length")
                answers.append(SimpleNamespace(outputs=[one]))
            return answers

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace))
    told = vllm_sample.sampled(model)
    assert told["completions"] == [[7]] * 3
    assert told["largest difference"] < 1e-5
    monkeypatch.setitem(sys.modules, "vllm", None)
    absent = vllm_sample.sampled(model)
    assert absent["not used"].startswith("it does not import here: ")

    monkeypatch.setattr(extras, "_package", lambda name: {"version": "made up"})
    done = SimpleNamespace(returncode=0, stdout=f"loading\n{json.dumps(told)}\n", stderr="one\ntwo")
    monkeypatch.setattr(extras.subprocess, "run", lambda *given, **named: done)
    assert extras._vllm(model)["log-probabilities"]["ok"]
    done.stdout = json.dumps(absent)
    assert extras._vllm(model) == {"version": "made up", **absent}
    done.returncode = 1
    with pytest.raises(RuntimeError, match="vLLM ended with 1: one two"):
        extras._vllm(model)

    def late(*given, **named):
        raise subprocess.TimeoutExpired("vllm", named["timeout"])

    monkeypatch.setattr(extras.subprocess, "run", late)
    assert extras._vllm(model)["not used"] == "it has not answered within 35 s"


def test_each_item_of_speed_begins_with_nothing_in_memory(tmp_path, monkeypatch):
    """The measurement of bandwidth takes 8 GiB, and no item may report the peak of another."""
    events = []

    def model(name, device):
        events.append("model")
        raise RuntimeError("no model in this test")

    monkeypatch.setattr(speed, "empty", lambda: events.append("empty"))
    monkeypatch.setattr(speed, "device_rates", lambda *given: events.append("rates") or {"flops": 1.0, "bytes": 1.0})
    monkeypatch.setattr(speed, "random_model", model)
    speed.run(Settings("cpu", True, tmp_path), Report(tmp_path / "speed.json"))
    assert events == ["rates", *["empty", "model"] * 3]


def test_weights_are_read_once_a_token_of_each_batch_that_is_sampled(monkeypatch):
    rates, seconds = {"bytes": 1e12, "flops": 1e15}, {"seconds by phase": {"sampling": 4.0}, "parameters": 1e9}
    found = speed.roofline(seconds, rates, speed.FULL)
    # 64 x (256 + 256) tokens are 32,768, two budgets of 16,384: 2 x 256 tokens x 2e9 bytes take 1.024 s
    assert found == {"sampling batches": 2, "sampling share of the roofline": pytest.approx(0.256)}
    batches = []
    begin = sampling.RowBatch
    monkeypatch.setattr(sampling, "RowBatch", lambda *given, **named: batches.append(1) or begin(*given, **named))
    work = speed.Work(completions=12, group=4, prompt=100, completion=2)
    monkeypatch.setattr(speed, "DEFAULT_TOKEN_BUDGET", 512)
    model, prompts = tiny_llama(), [[first] * 100 for first in (3, 4, 5)]
    sampling.sample(
        model, prompts, num_generations=4, max_completion_length=2, eos_token_ids=(), token_budget=1
    )  # tries the decoder
    batches.clear()
    sampling.sample(model, prompts, num_generations=4, max_completion_length=2, eos_token_ids=(), token_budget=512)
    assert speed.roofline(seconds, rates, work)["sampling batches"] == len(batches) == 3


def test_a_kernel_that_is_there_and_not_used_is_wrong(monkeypatch):
    model = tiny_llama(dtype=torch.bfloat16)
    monkeypatch.setattr(speed, "in_one_call", lambda weights: True)
    for found, wrong in ((Layout.FLAT, 0), (Layout.PACKED, 1)):
        monkeypatch.setattr(speed, "layout_of", lambda model, found=found: found)
        values = speed.layout(model)
        assert values["layout"] == found.name
        records = {"speed": {"state": "done", "open_ended": False, "found": {"scoring": values}}}
        assert len(failures(records)) == wrong


def test_the_default_tests_see_no_gpu(tmp_path):
    """`make test` hides it; where an environment is there already, that is the one that is used."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text('#!/bin/sh\necho "devices:$CUDA_VISIBLE_DEVICES:"\n')
    python.chmod(0o755)
    for name in (".installed", ".installed-dev"):
        (tmp_path / name).touch()
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of a make around it
    for target in ("test", "test-slow"):
        done = subprocess.run(
            ["make", "--silent", target, f"VENV={tmp_path}"],
            cwd=ROOT,
            env={**outside, "CUDA_VISIBLE_DEVICES": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "devices::", done.stdout


def test_tests_of_the_check_run_in_one_process_and_name_what_failed(tmp_path, monkeypatch):
    asked = []

    def main(words, plugins):
        asked.append(words[-1])
        for place, outcome in (("a", "passed"), ("b", "failed")):
            report = SimpleNamespace(nodeid=place, when="call", passed=outcome == "passed", failed=outcome == "failed")
            plugins[0].pytest_runtest_logreport(report)
        return 1

    monkeypatch.setattr(gpu_tests.pytest, "main", main)
    report = Report(tmp_path / "tests.json")
    gpu_tests.run(Settings("cpu", False, tmp_path), report)
    assert asked == [f"tests/{file}" for file in gpu_tests.FILES]
    assert all((ROOT / file).exists() for file in asked)
    for values in report.found.values():
        assert (values["passed"], values["failed"], values["exit code"]["ok"]) == (1, ["b"], False)


def test_differences_are_compared_and_nan_is_none(tmp_path):
    report = Report(tmp_path / "part.json")
    with report.item("scores") as values:
        values["equal"] = compared(1e-4, 1e-4)
        values["more"] = compared(2e-4, 1e-4)
        values["nan"] = compared(math.nan, 1e-4)
    written = json.loads((tmp_path / "part.json").read_text())
    assert [written["scores"][key]["ok"] for key in ("equal", "more", "nan")] == [True, False, False]
    assert failures({"smoke": {"state": "done", "open_ended": False, "found": written}}) == [
        "smoke, scores, more: 0.0002, more than 0.0001",
        "smoke, scores, nan: nan, more than 0.0001",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["smoke", "speed", "noise", "extras", "tests"])
def test_every_part_runs_on_a_cpu(tmp_path, part):
    words = ["--device", "cpu", "--tiny", "--parts", part, "--minutes", "30", "--output_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.check", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + (tmp_path / f"{part}.log").read_text()[-3000:]
    record = json.loads((tmp_path / SUMMARY).read_text())
    assert record["failures"] == []
    assert record["parts"][part]["state"] == "done"
    assert record["environment"]["torch"]
