"""Signals of a run that goes wrong: each warns once, in one line, and some stop the training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from densepath.errors import ConfigError

_logger = logging.getLogger(__name__)


class Measure(str, Enum):
    """What of a metric is compared with a signal's threshold; its start is the mean of its first values."""

    VALUE = "value"
    DIFFERENCE = "difference"  # value - start
    RATIO = "ratio"  # value / start


@dataclass(frozen=True)
class Signal:
    """A logged metric that is alarming beyond a threshold.

    Attributes:
        metric: its name in the logs, `eval_` included where it comes from an evaluation; of several evaluation data
            sets `eval_nll` watches each `eval_<data set>_nll`.
        threshold: in the unit of `measure`.
        advice: what to change, for the warning.
        measure: compare the value itself, or its change from the start of the run.
        below: alarming below the threshold; else above it.
        stops: whether it may end the training.
        patience: values in a row beyond the threshold before it warns or stops.
    """

    metric: str
    threshold: float
    advice: str
    measure: Measure | str = Measure.VALUE
    below: bool = False
    stops: bool = False
    patience: int = 1

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"signal {self.metric}: patience={self.patience} must be at least 1")
        try:
            object.__setattr__(self, "measure", Measure(self.measure).value)
        except ValueError:
            allowed = ", ".join(measure.value for measure in Measure)
            raise ConfigError(f"signal {self.metric}: measure={self.measure!r}; choose one of: {allowed}") from None

    def is_of(self, name: str) -> bool:
        """Whether a logged metric of that name is watched.

        >>> signal = Signal("eval_nll", 3.0, "stop")
        >>> signal.is_of("eval_nll"), signal.is_of("eval_chat_nll"), signal.is_of("eval_nll_increase")
        (True, True, False)
        """
        prefix, _, rest = self.metric.partition("_")
        of_a_data_set = prefix == "eval" and name.startswith("eval_") and name.endswith(f"_{rest}")
        return name == self.metric or of_a_data_set


def default_signals(args: Any) -> tuple[Signal, ...]:
    """What a `DPRConfig` asks to watch; docs/is-it-working.md shows where the thresholds come from."""
    patience = args.early_stopping_patience
    gamed = "lower learning_rate, raise beta, or take a later reference"
    found = []
    if args.kl_sequence_threshold is not None:
        found.append(Signal("kl_sequence", args.kl_sequence_threshold, gamed, stops=True, patience=patience))
    if args.nll_increase_threshold is not None:
        found.append(Signal("eval_nll_increase", args.nll_increase_threshold, gamed, stops=True))
    return tuple(found)


class SignalCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Watches the logs: one warning for each signal, and with `early_stopping` a stop at those that may.

    A metric's start is the mean of its first `patience` values. The state is kept in every checkpoint, so a resumed
    run warns and stops where it would have. While no stopping signal is alarming, `state.best_model_checkpoint`
    follows the newest checkpoint, which keeps `save_total_limit` from deleting the last good one; with
    `metric_for_best_model` the choice of the best is left to transformers.

    Args:
        signals: what to watch, as `Signal` or as its fields.
        early_stopping: stop; else only warn.
    """

    def __init__(self, signals: Sequence[Signal | Mapping[str, Any]], early_stopping: bool = False) -> None:
        self.signals = tuple(signal if isinstance(signal, Signal) else Signal(**signal) for signal in signals)
        self.early_stopping = early_stopping
        names = [signal.metric for signal in self.signals]
        if len(set(names)) < len(names):
            raise ConfigError(f"signals watch a metric twice: {', '.join(names)}; one threshold for each is enough")
        self._forget()

    def watch_too(self, signals: Sequence[Signal], early_stopping: bool) -> None:
        """Watch those whose metric is not watched yet as well, and stop where either is told to."""
        known = {signal.metric for signal in self.signals}
        self.signals += tuple(signal for signal in signals if signal.metric not in known)
        self.early_stopping = self.early_stopping or early_stopping

    def _forget(self) -> None:
        self.starts: dict[str, list[float]] = {}
        self.beyond: dict[str, int] = {}
        self.warned: list[str] = []
        self.stopped_by: str | None = None

    def state(self) -> dict[str, Any]:
        """Arguments and memory, for `trainer_state.json`."""
        attributes = {name: getattr(self, name) for name in ("starts", "beyond", "warned", "stopped_by")}
        return {
            "args": {"signals": [asdict(signal) for signal in self.signals], "early_stopping": self.early_stopping},
            "attributes": attributes,
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the memory from the checkpoint; a new run begins without any."""
        self._forget()
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step > 0 and isinstance(saved, dict):
            for name, value in saved["attributes"].items():
                setattr(self, name, value)
            self.stopped_by = None  # whoever resumes a stopped run wants it to go on
            self._keep_checkpoint(args, state)  # it was saved before its state could name it

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Compare each signal's metric with its threshold."""
        watched = (
            (replace(signal, metric=name), value)
            for signal in self.signals
            for name, value in (logs or {}).items()
            if signal.is_of(name) and isinstance(value, (int, float))
        )
        for signal, value in watched:
            measured = self._measured(signal, float(value))
            if measured is None:
                continue
            alarming = measured < signal.threshold if signal.below else measured > signal.threshold
            self.beyond[signal.metric] = self.beyond.get(signal.metric, 0) + 1 if alarming else 0
            if self.beyond[signal.metric] < signal.patience:
                continue
            stops = self.early_stopping and signal.stops
            if stops and self.stopped_by is None:
                self.stopped_by = signal.metric
                control.should_training_stop = True
            if signal.metric not in self.warned:
                self.warned.append(signal.metric)
                if state.is_world_process_zero:
                    _logger.warning(_warning(signal, measured, float(value), state, stops))

    def _measured(self, signal: Signal, value: float) -> float | None:
        """What the threshold is compared with; None while the start is being measured."""
        if signal.measure == Measure.VALUE:
            return value
        start = self.starts.setdefault(signal.metric, [])
        if len(start) < signal.patience:
            start.append(value)
            return None
        mean = sum(start) / len(start)
        if signal.measure == Measure.DIFFERENCE:
            return value - mean
        return value / mean if mean else None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the newest checkpoint that no stopping signal speaks against."""
        self._keep_checkpoint(args, state)

    def _keep_checkpoint(self, args: Any, state: Any) -> None:
        stopping = [signal for signal in self.signals if signal.stops]
        alarming = any(count for name, count in self.beyond.items() if any(signal.is_of(name) for signal in stopping))
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.early_stopping and args.metric_for_best_model is None and not alarming and folder.is_dir():
            state.best_model_checkpoint = str(folder)


def _warning(signal: Signal, measured: float, value: float, state: Any, stops: bool) -> str:
    side = "below" if signal.below else "above"
    changes = {
        Measure.VALUE: "",
        Measure.DIFFERENCE: f", {measured:+.3g} against its start",
        Measure.RATIO: f", {measured:.3g} times its start",
    }
    text = f"step {state.global_step}: {signal.metric} is {value:.3g}{changes[Measure(signal.measure)]}, "
    text += f"{side} the threshold of {signal.threshold:g}"
    text += f" for {signal.patience} logs" if signal.patience > 1 else ""
    if stops:
        kept = state.best_model_checkpoint
        text += (
            f"; training stops, the last good checkpoint is {kept or 'none: keep the SFT model, and save more often'}"
        )
    return f"{text}; {signal.advice}"
