"""The model before SFT: where the user came from. It costs nothing."""

from __future__ import annotations

from densepath.methods import Method, Policy

METHOD = Method("before SFT", control=True, policy=lambda stage: Policy(stage.sft.base))
