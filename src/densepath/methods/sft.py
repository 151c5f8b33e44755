"""The SFT model as it is: what every other arm is compared with. It costs nothing."""

from __future__ import annotations

from densepath.methods import Method, Policy

METHOD = Method("SFT", control=True, policy=lambda stage: Policy(str(stage.sft.model)))
