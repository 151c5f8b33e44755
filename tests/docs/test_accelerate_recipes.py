"""The accelerate configurations that ship: accelerate reads them, and they say what their name promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
PROMISES = {
    "single_gpu": ("NO", {}, {}),
    "multi_gpu": ("MULTI_GPU", {}, {}),
    "fsdp2": ("FSDP", {"fsdp_version": 2}, {}),
    "zero2": ("DEEPSPEED", {}, {"zero_stage": 2}),
    "zero3": ("DEEPSPEED", {}, {"zero_stage": 3, "zero3_save_16bit_model": True}),
}


def test_no_configuration_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # refuses unknown keys
    kind, fsdp, deepspeed = PROMISES[name]
    assert config.distributed_type == kind
    assert fsdp.items() <= config.fsdp_config.items()
    assert deepspeed.items() <= config.deepspeed_config.items()
    assert config.mixed_precision == "bf16"
    assert (config.num_processes == 1) == (name == "single_gpu")
