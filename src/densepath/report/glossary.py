"""Each quantity on the page: its name, unit, meaning, and which way is alarming."""

from __future__ import annotations

from densepath.report.records import Term

GLOSSARY: tuple[Term, ...] = (
    Term(
        "dense reward",
        "nats, per token or summed over a completion",
        "log π_SFT(token) − log π_ref(token): how much more likely the fine-tuned model finds a token than the "
        "reference, an earlier checkpoint of the same fine-tuning. DPR trains on it.",
        "A rise is not evidence of quality: it rose in every failed run seen so far. Read the metric.",
    ),
    Term(
        "metric",
        "as described under Results",
        "What a completion is judged by, on held-out prompts; training never sees it.",
        "The wrong way, beyond its interval.",
    ),
    Term(
        "interval",
        "as the quantity",
        "The range of values that the data leave plausible. Two arms on the same prompts are compared by the "
        "interval of their paired difference, which is sharper than two overlapping intervals.",
        "A paired interval that holds zero: no difference is shown, which does not mean that there is none.",
    ),
    Term(
        "KL to SFT",
        "nats per completion",
        "How far the policy has moved from the SFT model, on the policy's own samples.",
        "Above about 1.5 most collapses happened, though one happened at 0.4.",
    ),
    Term(
        "held-out NLL",
        "nats per token",
        "Negative log-likelihood of demonstrations that were never trained on: a health check, which favours "
        "continued SFT.",
        "Rising: the model moves away from the demonstrations.",
    ),
    Term(
        "entropy",
        "nats per token",
        "How undecided the model is about its next token, averaged over its own samples.",
        "Both ways mislead; a fall to near zero means that sampling no longer varies.",
    ),
    Term(
        "length",
        "tokens per completion, EOS included",
        "Mean length of the completions.",
        "A steady rise: the reward is mildly positive on average, so longer earns more.",
    ),
    Term(
        "share truncated",
        "share of completions",
        "Completions cut off at the length limit, before their EOS.",
        "More than a few percent: those completions are judged unfinished and have no EOS reward.",
    ),
    Term(
        "loss",
        "nats per token (SFT, continued SFT); no unit (DPR)",
        "SFT: negative log-likelihood of the demonstrations. DPR: the policy-gradient surrogate.",
        "SFT: rising. DPR: its value means nothing, only its gradient does.",
    ),
    Term(
        "gradient norm",
        "loss per unit of parameter",
        "Size of the update before clipping.",
        "Spikes, or not finite.",
    ),
    Term(
        "reference",
        "share of the SFT run",
        "Which checkpoint the reward is relative to: 0 is the model before SFT, 0.5 is half-way.",
        "DPR amplifies whatever changed from the reference to the SFT model, good or bad.",
    ),
    Term(
        "beta (β), alpha (α)",
        "no unit; α = 1/β",
        "Strength of the pull back to SFT. The optimum is π_SFT^(1+α) · π_ref^(−α).",
        "Small β: the reward is gamed. Large β: nothing changes.",
    ),
    Term(
        "continued SFT",
        "",
        "The control: plain fine-tuning that goes on for the FLOPs that purified SFT took, or without it DPR (or for "
        "DPR's samples).",
        "A gain over SFT that continued SFT has too is not a gain of the method.",
    ),
)

_SHARED = ("dense reward", "KL to SFT", "length", "share truncated")

EXPERIMENT_GLOSSARY: tuple[Term, ...] = (
    Term(
        "control",
        "",
        "What a method under test has to beat: SFT, and what anyone could do instead with the same compute or none.",
        "A gain over SFT that a control has too is not a gain of the method.",
    ),
    Term(
        "best control",
        "",
        "The control with the highest mean on the validation prompts. The test prompts choose nothing.",
        "A tie with it.",
    ),
    Term(
        "better, worse, tie",
        "",
        "Whether a difference was shown, after correction for all comparisons of the setting.",
        "An interval that leaves zero out and is still a tie: among so many comparisons one such comes by chance.",
    ),
    Term(
        "samples, demonstrations, tokens, FLOPs, time",
        "of the training beyond SFT",
        "Completions sampled, demonstrations seen with repetition, tokens trained on, arithmetic, and wall time.",
        "Far more than a control of the same quality spent.",
    ),
    *(term for term in GLOSSARY if term.name in _SHARED),
)
"""The terms of an experiment's page."""
