"""The libraries below say nothing that densepath does not say itself."""

from __future__ import annotations

import warnings

import datasets
import transformers
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
from huggingface_hub.utils import logging as hub_logging


def quiet_libraries() -> None:
    """Leave the terminal to densepath: errors of the libraries only, no bars of their own."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    disable_progress_bars()
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # What the libraries tell one another about their own future says nothing to a user.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
