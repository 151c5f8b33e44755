"""Whether SFT is finished: read off the held-out NLL of the references that it kept, in sentences. Pure.

The threshold is a default of our own, set on the digit regimes and the text tasks (docs/diagnose.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from densepath.models.references import fraction_of
from densepath.records.choice import Likelihood

STILL_FALLING = 0.02
"""Share of the whole drop of the held-out NLL by which a whole run would lower it at the pace of the last stretch."""


def train_on(likelihoods: Sequence[Likelihood]) -> str | None:
    """Why SFT is to go on first, or None where it is finished or nothing says that it is not.

    The pace is that from the last kept reference to the SFT model, for a whole run; the whole drop is that from the
    first reference, the model before SFT where it is there. SFT is not finished where the pace is above
    `STILL_FALLING` of the whole drop, and its interval, paired over demonstrations, above 0.

    Args:
        likelihoods: of held-out demonstrations, nats per token.
    """
    last, first = last_checkpoint(likelihoods), _checkpoints(likelihoods)[:1]
    own = next((one for one in likelihoods if one.reference is None), None)
    if last is None or last.change is None or own is None or first[0][1] is last or first[0][1].change is None:
        return None
    fraction = float(last.reference or 0)
    whole = first[0][1].change.mean
    pace = last.change.mean / (1 - fraction)
    if last.change.low <= 0 or whole <= 0 or pace <= STILL_FALLING * whole:
        return None
    return (
        f"SFT is not finished, train on first: the held-out NLL was still falling when it ended, "
        f"{figures(last, own)}. At that pace a run as long again would lower it by {pace:.3f}, "
        f"{pace / whole:.0%} of the {whole:.3f} that SFT has lowered it by. Where SFT is under-trained, more of it "
        "beats DPR."
    )


def overfitted(likelihoods: Sequence[Likelihood]) -> str | None:
    """That SFT has begun to overfit: the held-out NLL rose at its end, the whole interval."""
    last = last_checkpoint(likelihoods)
    own = next((one for one in likelihoods if one.reference is None), None)
    if last is None or last.change is None or own is None or last.change.high >= 0:
        return None
    return f"SFT has begun to overfit: the held-out NLL rose at its end, {figures(last, own)}. Stop it earlier."


def figures(last: Likelihood, own: Likelihood) -> str:
    """`0.641 at reference 0.75 and 0.618 at its end (nats per token)`."""
    return f"{last.nll.mean:.3f} at reference {last.reference} and {own.nll.mean:.3f} at its end (nats per token)"


def last_checkpoint(likelihoods: Sequence[Likelihood]) -> Likelihood | None:
    """The latest checkpoint of SFT, a reference named by its fraction; None if none is of its second half."""
    found = [one for fraction, one in _checkpoints(likelihoods) if fraction >= 0.5]
    return found[-1] if found else None


def _checkpoints(likelihoods: Sequence[Likelihood]) -> list[tuple[float, Likelihood]]:
    """Fraction and likelihood of each reference that is named by one, by rising fraction; no previews."""
    found = []
    for one in likelihoods:
        fraction = None if one.reference is None else fraction_of(one.reference)
        if one.alpha is None and fraction is not None:
            found.append((fraction, one))
    return sorted(found, key=lambda pair: pair[0])
