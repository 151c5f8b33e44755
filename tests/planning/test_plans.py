"""Whole plans: terms that scale as they must, sharding, sharing under LoRA, and refusals that name their term."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig

from densepath.config.run import PlanArguments, RunArguments
from densepath.errors import ConfigError, DensepathError, MissingFileError, UsageError
from densepath.pipeline.environment import resident_bytes
from densepath.pipeline.plan import machine_memory, machine_of, plan_recipe, require_fit
from densepath.planning.architecture import architecture_of
from densepath.planning.plan import CPU_LOSS_COPIES, GIB, LOSS_COPIES, TERMS, peak
from densepath.planning.table import check_fits, headline

LLAMA = "meta-llama/Llama-3.1-8B"
PARAMETERS = 8_030_261_248
ACCELERATE = "recipes/accelerate"


def plan(model: str = LLAMA, others: dict | None = None, **arguments):
    values = {"model_name_or_path": model, "gpu_memory": 79, "max_length": 512, "reference": "0", "beta": "1"}
    values["max_completion_length"] = 64
    return plan_recipe(PlanArguments(**{"max_prompt_length": 512, **values, **arguments}), others or {})


def terms(found, stage: str, moment: str) -> dict[str, float]:
    return found.stages[stage][moment]


def test_full_fine_tuning_is_16_bytes_a_parameter_and_dpr_holds_two_frozen_models_more():
    found = plan()
    ends = terms(found, "SFT", "backward ends")
    assert ends["policy"] == ends["gradients"] == 4 * PARAMETERS
    assert ends["optimizer"] == 8 * PARAMETERS
    assert terms(found, "DPR", "backward ends")["frozen models"] == 2 * 4 * PARAMETERS


def test_with_lora_one_base_serves_policy_sft_model_and_reference():
    found = plan(use_peft=True, lora_r=16)
    # r (inputs + outputs) of 7 maps: q, o 4096+4096; k, v 4096+1024; gate, up, down 4096+14336
    adapter = 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert found.trained == adapter
    ends = terms(found, "DPR", "backward ends")
    assert ends["policy"] == 4 * (PARAMETERS + adapter)
    assert ends["optimizer"] == 8 * adapter
    assert ends["frozen models"] == 2 * 4 * adapter
    foreign = plan(use_peft=True, reference="some/other-model")
    assert terms(foreign, "DPR", "backward ends")["frozen models"] == 4 * (adapter + PARAMETERS)


def test_a_target_is_every_module_whose_name_ends_so():
    """As PEFT finds them; a plan for all weights is not one for an adapter on nothing."""
    q, v, head = 4096 + 4096, 4096 + 1024, 4096 + 128_256
    for targets, each in (
        ("q_proj,v_proj", 32 * (q + v)),
        ("self_attn.q_proj, self_attn.v_proj", 32 * (q + v)),
        ("q_proj lm_head", 32 * q + head),
    ):
        assert plan(use_peft=True, lora_r=16, lora_target_modules=targets).trained == 16 * each
    for targets in ("query", "q_proj query"):
        with pytest.raises(ConfigError, match=r"no module of .* is called query; name some of q_proj, .*all-linear"):
            plan(use_peft=True, lora_target_modules=targets)


def test_every_reference_counts_and_the_average_is_an_adapter():
    kept = {"use_peft": True, "reference_ema_decay": 0.9}

    def frozen(reference: str, **changes):
        return terms(plan(reference=reference, **changes), "DPR", "backward ends")["frozen models"]

    adapter = 4 * plan(use_peft=True).trained
    assert frozen("ema", **kept) == frozen("0.5", **kept) == 2 * adapter
    assert frozen("0.25,0.5,0.75", **kept) == 4 * adapter
    assert frozen("0.25,0.5,0.75") == 4 * 4 * PARAMETERS
    choosing = terms(plan(reference="auto", **kept), "selection", "sampling")["frozen models"]
    assert choosing == 4 * PARAMETERS + 5 * adapter  # SFT, 0.25, 0.5, 0.75, and the average
    assert frozen("some/model,with-a-comma", use_peft=True) == 4 * PARAMETERS + adapter  # a path


def test_processes_on_cpus_share_the_memory_of_their_machine(tmp_path):
    path = tmp_path / "cpus.yaml"
    for said, processes, machines in (
        ("distributed_type: MULTI_CPU\nnum_processes: 4\n", 4, 1),
        ("distributed_type: MULTI_CPU\nnum_processes: 4\nnum_machines: 2\n", 4, 2),
        ("distributed_type: 'NO'\nuse_cpu: true\n", 1, 1),
    ):
        path.write_text(said)
        found = machine_of(RunArguments(accelerate_config=str(path)), 0.0)
        assert (found.cuda, found.processes) == (False, processes)
        assert found.memory == machine_memory() * machines / processes
        with pytest.raises(ConfigError, match="trains on CPUs"):
            machine_of(RunArguments(accelerate_config=str(path), gpu_memory=24))


def test_on_cpus_no_gpus_are_named_or_advised(tmp_path, monkeypatch):
    monkeypatch.setattr("densepath.pipeline.plan.machine_memory", lambda: 16 * GIB)
    (tmp_path / "cpus.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 4\n")
    values = {"gpu_memory": None, "accelerate_config": str(tmp_path / "cpus.yaml"), "use_peft": True}
    found = plan(**values, dtype="bfloat16", load_in_4bit=True)
    assert headline(found).endswith("4 processes on CPUs, ddp of 4.0 GiB")
    for changes in ({"dtype": "bfloat16", "load_in_4bit": True}, {"dtype": "bfloat16"}, {}):
        reason = check_fits(plan(**values, **changes, sft_per_device_train_batch_size=1))
        assert "GPU" not in reason
        assert not reason.endswith("; ")


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("multi_gpu", {"policy": 1, "optimizer": 1, "gradients": 0.5}),
        ("zero2", {"policy": 2, "optimizer": 8 / 12 * 4, "gradients": 8}),
        ("zero3", {"policy": 8, "optimizer": 8 / 12 * 4, "gradients": 8}),
        ("fsdp2", {"policy": 4, "optimizer": 4, "gradients": 4}),
    ],
)
def test_each_way_of_splitting_divides_what_it_divides(file, split):
    """Of 4 processes. ZeRO stores half-precision weights and gradients (2 bytes) and 12 bytes of optimizer."""
    one = terms(plan(), "SFT", "backward ends")
    four = terms(plan(accelerate_config=f"{ACCELERATE}/{file}.yaml", num_processes=4), "SFT", "backward ends")
    for term, factor in split.items():
        assert one[term] / four[term] == pytest.approx(factor), term
    frozen = terms(plan(accelerate_config=f"{ACCELERATE}/{file}.yaml", num_processes=4), "DPR", "sampling")
    # Spread where the policy is; ZeRO-3 in half precision.
    each = {"zero3": 2 * PARAMETERS / 4, "fsdp2": 4 * PARAMETERS / 4}.get(file, 4 * PARAMETERS)
    assert frozen["frozen models"] == 2 * each


def test_vllm_takes_its_share_and_gives_it_back_when_it_sleeps():
    colocated = {"dpr_use_vllm": True, "dpr_vllm_mode": "colocate", "dpr_vllm_gpu_memory_utilization": 0.3}
    found = plan(use_peft=True, others=colocated)
    assert terms(found, "DPR", "backward begins")["vLLM"] == pytest.approx(0.3 * 79 * GIB)
    assert "KV cache" not in terms(found, "DPR", "sampling")
    asleep = plan(use_peft=True, others={**colocated, "dpr_vllm_enable_sleep_mode": True})
    assert terms(asleep, "DPR", "backward begins")["vLLM"] == 0
    samples = terms(asleep, "DPR", "sampling")  # awake beside what training keeps
    assert samples["vLLM"] == pytest.approx(0.3 * 79 * GIB)
    assert samples["optimizer"] == 8 * asleep.trained
    server = plan(use_peft=True, others={**colocated, "dpr_vllm_mode": "server"})
    assert terms(server, "DPR", "backward begins")["vLLM"] == 0


def test_a_share_that_does_not_hold_vllms_own_weights_is_refused():
    small = {"dpr_use_vllm": True, "dpr_vllm_mode": "colocate", "dpr_vllm_gpu_memory_utilization": 0.15}
    kept = {"use_peft": True, "sft_per_device_train_batch_size": 4, "dpr_per_device_train_batch_size": 8}
    with pytest.raises(
        ConfigError, match=r"vLLM's share is 11.8 GiB, .* take 15.0: raise dpr_vllm_gpu_memory_util.* to 0.20"
    ):
        require_fit(plan(others=small, **kept))
    require_fit(plan(others={**small, "dpr_vllm_gpu_memory_utilization": 0.2}, **kept))


def test_zero3_puts_the_policy_together_to_sample_and_pads_its_rows():
    spread = {"accelerate_config": f"{ACCELERATE}/zero3.yaml", "num_processes": 4}
    found = plan(use_peft=True, **spread)
    held, sampling = (terms(found, "DPR", moment)["policy"] for moment in ("backward ends", "sampling"))
    assert sampling == 4 * held
    piecewise = plan(others={"dpr_ds3_gather_for_generation": False}, use_peft=True, **spread)
    assert terms(piecewise, "DPR", "sampling")["policy"] == held
    # 8 completions of 32 tokens: two prompts of 128 tokens, each read once for its group of four; or eight of them.
    small = {"max_prompt_length": 128, "max_completion_length": 32, "dpr_per_device_train_batch_size": 8}
    packed, padded = (
        terms(plan(use_peft=True, **small, **file), "DPR", "backward begins")["activations"] for file in ({}, spread)
    )
    assert padded > 1.5 * packed


def test_a_kl_of_its_own_takes_chunks_of_whole_distributions_more(monkeypatch):
    def logits(**others):
        found = plan(use_peft=True, others={f"dpr_{name}": value for name, value in others.items()})
        assert terms(found, "DPR", "backward begins")["hidden states"] > 0  # kept where distributions are compared
        return terms(found, "DPR", "backward begins")["logits"]

    chunk = 66 * 128_256 * 4  # just above 32 MiB
    for losses in ({"estimator": "all_action"}, {"kl_in_return": False, "estimator": "sampled"}):
        assert logits(**losses) == LOSS_COPIES * chunk
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    on_cpu = plan(use_peft=True, gpu_memory=None, others={"dpr_estimator": "all_action"})
    assert terms(on_cpu, "DPR", "backward begins")["logits"] == CPU_LOSS_COPIES * chunk


def test_gradients_of_earlier_micro_batches_stand_beside_those_of_this_one():
    embedding = 128_256 * 4096 * 4
    one, two = (plan(others={"sft_gradient_accumulation_steps": steps}) for steps in (1, 2))
    assert terms(one, "SFT", "backward begins")["gradients"] == embedding
    assert terms(two, "SFT", "backward begins")["gradients"] == 4 * PARAMETERS + embedding
    assert terms(two, "SFT", "backward ends")["gradients"] == 4 * PARAMETERS


@pytest.mark.parametrize(
    ("changes", "others", "term"),
    [
        ({"dpr_per_device_train_batch_size": 64}, {}, "activations"),
        ({"sft_per_device_train_batch_size": 64}, {}, "activations"),
        ({"max_completion_length": 400}, {}, "KV cache"),
        ({}, {"dpr_per_device_train_batch_size": 4, "dpr_gradient_accumulation_steps": 8}, "KV cache"),
    ],
)
def test_more_work_takes_more_memory_in_the_term_that_it_belongs_to(changes, others, term):
    def of(found):
        return max(moment.get(term, 0.0) for stage in ("SFT", "DPR") for moment in found.stages[stage].values())

    small = {"sft_per_device_train_batch_size": 8, "dpr_per_device_train_batch_size": 8}
    kept = {name: value for name, value in {**small, **changes}.items() if name not in others}
    assert of(plan(use_peft=True, others=others, **kept)) > of(plan(use_peft=True, **small))


def test_gradient_checkpointing_keeps_less():
    with_it = terms(plan(use_peft=True), "SFT", "backward begins")["activations"]
    without = terms(plan(use_peft=True, others={"sft_gradient_checkpointing": False}), "SFT", "backward begins")
    assert without["activations"] > 5 * with_it


@pytest.mark.parametrize("key", ["bf16", "gradient_checkpointing"])
@pytest.mark.parametrize(("word", "said"), [("no", False), ("off", False), ("false", False), ("on", True)])
def test_a_word_of_a_recipe_is_the_truth_value_that_training_reads_in_it(key, word, said):
    given = {f"{stage}_{key}": word for stage in ("sft", "dpr")}
    meant = {f"{stage}_{key}": said for stage in ("sft", "dpr")}
    assert plan(others=given).stages == plan(others=meant).stages


def test_what_is_not_trained_is_not_counted():
    found = {"dpr_per_device_train_batch_size": 4096}
    assert list(plan(arms=["base", "sft", "continued_sft"], **found).stages) == ["SFT", "evaluation"]
    assert list(plan(arms=["dpr_capped"]).stages) == ["SFT", "DPR", "evaluation"]
    given = {"sft_model_name_or_path": LLAMA}
    assert list(plan(arms=["base", "dpr"], **given).stages) == ["DPR", "evaluation"]
    assert list(plan(arms=["sft", "dft"], **given).stages) == ["SFT", "evaluation"]  # with SFT's batch
    assert list(plan(arms=["sft", "contrastive", "extrapolation"], **given).stages) == ["evaluation"]
    colocated = {"dpr_use_vllm": True, "dpr_vllm_mode": "colocate", "dpr_vllm_gpu_memory_utilization": 0.1}
    assert plan(others=colocated).vllm_needs > plan(others=colocated, arms=["sft"]).vllm_needs == 0


@pytest.mark.parametrize("arm", ["spin", "gsil"])
def test_self_play_trains_on_two_completions_for_each_prompt_of_a_batch_and_holds_nothing_frozen(arm):
    lengths = {"max_prompt_length": 300, "max_completion_length": 50}
    given = {"sft_model_name_or_path": LLAMA, "arms": ["sft", arm], **lengths}
    found = plan(dpr_per_device_train_batch_size=8, **given)
    assert list(found.stages) == ["self-play", "evaluation"]
    # 8 prompts that both completions share, beside 16 completions; SFT's rows are as long as what is packed into them
    tokens = 8 * 300 + 16 * 50
    same = plan(sft_per_device_train_batch_size=1, max_length=tokens, **{**given, "arms": ["dft"]})
    begins = terms(found, "self-play", "backward begins")
    assert begins["activations"] == pytest.approx(terms(same, "SFT", "backward begins")["activations"], rel=0.01)
    assert "frozen models" not in begins
    assert begins["policy"] == 4 * PARAMETERS


def test_half_precision_weights_take_half():
    assert terms(plan(dtype="bfloat16"), "SFT", "backward ends")["policy"] == 2 * PARAMETERS


def test_the_type_that_weights_were_saved_in_is_read_and_an_unknown_one_refused(tmp_path):
    assert terms(plan(dtype="auto"), "SFT", "backward ends")["policy"] == 2 * PARAMETERS  # its publisher's bfloat16
    configuration = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    for dtype, width in (("float16", 2), ("float64", 8), (None, 4)):
        configuration.dtype = None if dtype is None else getattr(torch, dtype)
        configuration.save_pretrained(tmp_path)
        found = plan(str(tmp_path), dtype="auto")
        assert terms(found, "evaluation", "sampling")["frozen models"] == 3 * width * found.model.parameters
    for dtype in ("bf16", "fp32", "torch.bfloat16"):
        with pytest.raises(UsageError, match=f"dtype '{dtype}' is not one of float32, bfloat16"):
            plan(dtype=dtype)


def test_qlora_holds_the_base_in_4_bits_in_every_stage():
    found = plan(use_peft=True, load_in_4bit=True, dtype="bfloat16", reference="auto")
    linears = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    base = linears * 4.127 / 8 + 2 * (PARAMETERS - linears)
    assert terms(found, "SFT", "backward ends")["policy"] == pytest.approx(base + 4 * found.trained)
    # The SFT model, and its references at 0.25, 0.5 and 0.75; that at 0 is the base.
    assert terms(found, "selection", "sampling")["frozen models"] == pytest.approx(base + 4 * 4 * found.trained)
    # SFT model and reference, and the adapters that are asked.
    assert terms(found, "evaluation", "sampling")["frozen models"] == pytest.approx(base + 4 * 4 * found.trained)


def test_a_choice_holds_two_models_where_all_weights_are_trained():
    frozen = terms(plan(reference="auto"), "selection", "sampling")["frozen models"]
    assert frozen == 2 * 4 * PARAMETERS


def test_lengths_that_are_unknown_are_counted_with_1024_and_512_tokens_or_what_the_context_holds(monkeypatch):
    def cache(**lengths):
        return terms(plan("smollm2-135m-instruct", **lengths), "DPR", "sampling")["KV cache"]

    assert cache(max_prompt_length=None) == cache(max_prompt_length=1024) > cache(max_prompt_length=512)
    short = architecture_of("smollm2-135m-instruct", trust_remote_code=False)
    monkeypatch.setattr(
        "densepath.pipeline.plan.architecture_of", lambda *_, **__: dataclasses.replace(short, context=256)
    )
    unknown = {"max_prompt_length": None, "max_length": None}
    for prompt in (None, 200):  # beside an answer of half the context, 128 are left
        found = cache(max_completion_length=None, **{**unknown, "max_prompt_length": prompt})
        assert found == cache(max_completion_length=128, **unknown)
    monkeypatch.undo()
    long = {"max_completion_length": 8000}  # of a context of 8,192
    assert cache(max_prompt_length=None, **long) == cache(max_prompt_length=192, **long)


def test_prompts_are_answered_at_all_temperatures_in_one_cache_and_with_two_models_in_one_each():
    """Rows of Qwen3-0.6B, 96 tokens long: 2 x 8 heads x 128 numbers x 28 layers x 4 bytes a token of each model."""
    token, vocabulary, short = (
        2 * 8 * 128 * 28 * 4,
        151_936 * 4,
        {"max_prompt_length": 64, "max_completion_length": 32},
    )
    given = {"model": "Qwen/Qwen3-0.6B", "use_peft": True, "max_length": 96, **short}

    def cache(stage: str, moment: str, **changes):
        return terms(plan(**{**given, **changes}), stage, moment)["KV cache"] / (96 * token)

    few = {"num_test_samples": 20, "num_validation_samples": 10}
    assert cache("evaluation", "sampling", **few) == 2 * 20
    assert cache("evaluation", "sampling", **few, eval_temperatures=[0.0, 0.7, 1.0]) == 3 * 20
    assert cache("evaluation", "sampling", num_test_samples=20, num_validation_samples=30) == 2 * 30
    for arm in ("contrastive", "subtractive"):
        found = terms(plan(**given, **few, arms=["sft", arm]), "evaluation", "sampling")
        assert found["KV cache"] == 2 * 2 * 20 * 96 * token
        assert found["logits"] == 2 * 20 * 7 * vocabulary  # two rows of each model, a probability, a float64 sum
    assert cache("evaluation", "sampling", num_test_samples=400) == 16_384 // 96  # what the sampler takes at once
    # The choice: SFT at three temperatures; previews at two, of two models; neither where nothing judges them.
    choice = {"reference": "auto", **few}
    assert cache("selection", "sampling", **choice, verifier="exact_match") == 3 * 10
    assert cache("selection", "previews", **choice, verifier="exact_match") == 2 * 2 * 10
    assert cache("selection", "sampling", **choice) == 10
    assert list(plan(**given, **choice).stages["selection"]) == ["sampling"]


def test_a_recipe_that_fixes_reference_and_beta_holds_no_models_to_choose_with():
    assert "selection" not in plan().stages
    assert "selection" in plan(reference="auto").stages


def test_every_term_is_explained_and_none_is_negative():
    found = plan(reference="auto", use_peft=True, accelerate_config=f"{ACCELERATE}/fsdp2.yaml")
    for stage, moments in found.stages.items():
        for moment in moments.values():
            assert set(moment) <= set(TERMS)
            assert all(value >= 0 for value in moment.values())
            assert sum(moment.values()) <= sum(peak(moments)[1].values()) == found.need(stage)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "optimizer takes 59.8 GiB; set use_peft: true"),
        (
            {"use_peft": True, "gpu_memory": 24},
            "policy takes 30.1 GiB; set dtype: bfloat16, or set load_in_4bit: true, or shard it over more GPUs",
        ),
        (
            {"use_peft": True, "gpu_memory": 50, "sft_per_device_train_batch_size": 128},
            "SFT needs .* activations take .* lower sft_per_device_train_batch_size",
        ),
        ({"model": "Qwen/Qwen3-0.6B", "gpu_memory": 12, "dpr_per_device_train_batch_size": 8}, "DPR needs"),
    ],
)
def test_a_plan_that_cannot_fit_is_refused_with_the_term_that_is_too_large(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        require_fit(plan(**changes))
    assert "\n" not in str(error.value)


def test_a_plan_that_fits_is_not_refused_and_one_byte_less_is():
    found = plan(use_peft=True, sft_per_device_train_batch_size=4)
    require_fit(found)
    exact = dataclasses.replace(found.machine, memory=found.need(found.largest))
    require_fit(dataclasses.replace(found, machine=exact))
    less = dataclasses.replace(found, machine=dataclasses.replace(exact, memory=exact.memory - 1))
    with pytest.raises(ConfigError):
        require_fit(less)


def test_on_a_cpu_the_process_counts_and_nothing_is_halved(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = RunArguments(model_name_or_path="smollm2-135m-instruct", max_prompt_length=32)
    found = plan_recipe(arguments, {}, process=123.0)
    ends = terms(found, "SFT", "backward ends")
    assert ends["process"] == 123.0
    assert ends["policy"] == 4 * 134_515_008
    assert not found.machine.cuda
    assert "set sft_gradient_checkpointing: true" not in found.done
    measured = plan_recipe(arguments, {}).machine.process
    assert 0.1 * GIB < measured < 20 * GIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the kernel counts for the process alone")
def test_what_the_parent_holds_is_not_counted():
    ballast = b"x" * 2**29
    code = "from densepath.pipeline.environment import resident_bytes; print(resident_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**20 < float(done.stdout) < len(ballast) < resident_bytes()


# -- what can be wrong -------------------------------------------------------------------------------------------


def test_an_accelerate_file_is_read(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("distributed_type: 'NO'\nuse_cpu:\nnum_processes:\nnum_machines:\n")
    arguments = RunArguments(accelerate_config=f"{ACCELERATE}/zero3.yaml")
    for given, launch in (
        (arguments, ("zero3", 8)),
        (RunArguments(num_processes=2), ("ddp", 2)),
        (RunArguments(), ("none", 1)),
        (RunArguments(accelerate_config=str(empty)), ("none", 1)),
    ):
        found = machine_of(given)
        assert (found.sharding, found.processes) == launch


def accelerate_file(folder, kind: str, **values) -> dict[str, str]:
    """An accelerate file of two processes and values of DeepSpeed or FSDP."""
    path = folder / "accelerate.yaml"
    lines = "".join(f"  {key}: {value}\n" for key, value in values.items())
    path.write_text(f"distributed_type: {kind.upper()}\nnum_processes: 2\n{kind}_config:\n{lines}")
    return {"accelerate_config": str(path)}


def test_what_an_accelerate_file_keeps_off_the_gpu_takes_nothing_there(tmp_path):
    def held(stage: str, moment: str, kind: str, **values):
        found = terms(plan(**accelerate_file(tmp_path, kind, **values)), stage, moment)
        return {name for name in ("policy", "optimizer", "gradients", "frozen models") if found.get(name, 0.0) > 0}

    ends = "SFT", "backward ends"
    optimizer, both = {"offload_optimizer_device": "cpu"}, {"offload_optimizer_device": "nvme"}
    both["offload_param_device"] = "cpu"
    # ZeRO-1 divides no gradients, and sends none away.
    assert held(*ends, "deepspeed", zero_stage=1, **optimizer) == {"policy", "gradients"}
    assert held(*ends, "deepspeed", zero_stage=2, **both) == {"policy"}
    assert held(*ends, "deepspeed", zero_stage=3, **optimizer) == {"policy"}
    assert held(*ends, "deepspeed", zero_stage=3, **both) == set()
    assert held(*ends, "deepspeed", zero_stage=3, offload_optimizer_device="none") == {
        "policy",
        "optimizer",
        "gradients",
    }
    assert held("DPR", "backward ends", "deepspeed", zero_stage=3, **both) == set()  # the frozen ones go with it
    assert held("DPR", "backward ends", "deepspeed", zero_stage=2, **both) == {"policy", "frozen models"}
    assert held(*ends, "fsdp", fsdp_version=2, fsdp_offload_params="true") == set()
    assert held(*ends, "fsdp", fsdp_version=2) == {"policy", "optimizer", "gradients"}
    # What samples is put together on the GPU, wherever its parts lie.
    gathered = terms(plan(**accelerate_file(tmp_path, "deepspeed", zero_stage=3, **both)), "DPR", "sampling")
    assert gathered["policy"] == 2 * PARAMETERS


def test_the_stage_of_zero_stands_in_deepspeeds_own_file_or_is_accelerates_default(tmp_path):
    own = tmp_path / "zero.json"
    named = {"deepspeed_config_file": str(own), "zero3_init_flag": "true"}

    def machine(**values):
        found = machine_of(RunArguments(**accelerate_file(tmp_path, "deepspeed", **values), gpu_memory=24))
        return found.sharding, found.offloaded

    with pytest.raises(MissingFileError, match=r"zero.json: no such file"):
        machine(**named)
    own.write_text('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}')
    assert machine(**named) == ("zero3", ("optimizer", "gradients"))
    own.write_text('{"train_batch_size": "auto"}')
    assert machine(**named) == ("ddp", ())
    assert machine(zero_stage=0) == ("ddp", ())
    assert machine(zero3_init_flag="false")[0] == "zero2"
    own.write_text("not JSON")
    with pytest.raises(DensepathError, match=r"zero.json is damaged"):
        machine(**named)
    with pytest.raises(ConfigError, match="the stage of ZeRO is 4, and there are 0 to 3"):
        machine(zero_stage=4)


@pytest.mark.parametrize(
    "values",
    [
        {"fsdp_sharding_strategy": "NO_SHARD"},
        {"fsdp_version": 1, "fsdp_sharding_strategy": "SHARD_GRAD_OP"},
        {"fsdp_reshard_after_forward": "FULL_SHARD"},
        {"fsdp_version": 2, "fsdp_reshard_after_forward": "false"},
    ],
)
def test_a_strategy_of_fsdp_without_formulas_is_refused(values, tmp_path):
    with pytest.raises(ConfigError, match="set fsdp_version: 2 and fsdp_reshard_after_forward: true"):
        plan(**accelerate_file(tmp_path, "fsdp", **values))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"accelerate_config": "nowhere.yaml"}, MissingFileError, "accelerate_config=nowhere.yaml: no such file"),
        ({"accelerate_config": "recipes/quickstart.yaml"}, ConfigError, "no accelerate configuration"),
        (
            {"accelerate_config": f"{ACCELERATE}/single_gpu.yaml", "num_processes": 4},
            ConfigError,
            "num_processes=4, and .*single_gpu.yaml is for one process",
        ),
        ({"max_length": 200_000}, ConfigError, "max_length is 200000, and .* has a context of 131072"),
        ({"max_prompt_length": 131_072}, ConfigError, "has a context of 131072"),
        ({"load_in_4bit": True}, ConfigError, "load_in_4bit trains an adapter on a quantised base: set use_peft"),
    ],
)
def test_contradictions_are_one_line(changes, error, message):
    with pytest.raises(error, match=message):
        plan(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu_memory": 0}, "gpu_memory=0 must be a number of GiB above 0"),
        ({"num_processes": 0}, "num_processes=0 must be at least 1"),
        ({"max_prompt_length": 0}, "max_prompt_length=0 must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        RunArguments(**changes)
