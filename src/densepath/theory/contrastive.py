"""Statement 8: token-by-token contrastive sampling is not the sequence-level optimum."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core.logprobs import contrastive_logits
from densepath.records.theory import StatementResult
from densepath.theory import exact, mdp
from densepath.theory.instances import Instance, instance_seed, make_instance, random_instances
from densepath.theory.tally import Tally

ALPHAS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SMALL = 1e-4


def contrastive(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 8: how far off, when not at all, and the exact log-ratio of the two."""
    tally = Tally()
    curves = []
    for number, instance in enumerate(random_instances(8, seed, instances)):
        curve = []
        for alpha in ALPHAS:
            local, best = _local(instance, alpha), _optimum(instance, alpha)
            tv = mdp.sequence_tv(instance.tree, local, best)
            curve.append(float(tv))
            if alpha == 0:
                tally.equal("α = 0: they coincide (π_SFT)", local, best)
            if alpha == 2:
                tally.differs("α = 2: TV", tv, floor=0.01)
            _ratio(tally, instance, alpha, local, best)
        curves.append({"vocab": instance.tree.mdp.num_actions, "horizon": instance.tree.mdp.horizon, "tv": curve})
        _first_order(tally, instance)
        _coincidences(tally, seed, number)
    return StatementResult(
        number=8,
        key="contrastive",
        title="token by token, softmax((1+α) z_SFT - α z_ref) is not π*, unless Σ_t log Z(s_t) is the same for all y",
        source="D",
        assumes="α = 1/β > 0, H > 1, KL(π_SFT || π_ref) differs between the states reached",
        method="TV of all sequences over α; exact log-ratio; cases of equality built",
        checks=tally.checks(),
        details={"alphas": list(ALPHAS), "curves": curves},
    )


def _local(instance: Instance, alpha: float) -> Tensor:
    return contrastive_logits(instance.sft_logits, instance.ref_logits, alpha).log_softmax(-1)


def _optimum(instance: Instance, alpha: float) -> Tensor:
    if alpha == 0:
        return instance.log_sft
    return exact.soft_optimum(instance.tree.mdp, instance.dense_rewards, instance.log_sft, 1 / alpha).log_policy


def _ratio(tally: Tally, instance: Instance, alpha: float, local: Tensor, best: Tensor) -> None:
    """`log pi*(y|x) - log pi_local(y|x) = sum_t log Z(s_t) - log W(x)`, Z the local normalisers, W the global one."""
    tree = instance.tree
    log_z = contrastive_logits(instance.sft_logits, instance.ref_logits, alpha).logsumexp(-1)
    passed = mdp.gather_tokens(tree, log_z.unsqueeze(1).expand(-1, tree.mdp.num_actions)).sum(dim=1)
    weights = mdp.sequence_logprobs(tree, local) + passed - tree.mdp.start.log()[tree.prompts]
    log_w = torch.stack([weights[tree.prompts == prompt].logsumexp(0) for prompt in range(tree.mdp.start.shape[0])])
    difference = mdp.sequence_logprobs(tree, best) - mdp.sequence_logprobs(tree, local)
    tally.equal("log π*(y) - log π_local(y) = Σ log Z(s_t) - log W(x)", difference, passed - log_w[tree.prompts])


def _first_order(tally: Tally, instance: Instance) -> None:
    """For small alpha TV/alpha tends to half the mean spread of `sum_t KL_t` along SFT's own sequences."""
    tree = instance.tree
    kl = exact.state_kl(instance.log_sft, instance.log_ref)
    passed = mdp.gather_tokens(tree, kl.unsqueeze(1).expand(-1, tree.mdp.num_actions)).sum(dim=1)
    probs = mdp.sequence_logprobs(tree, instance.log_sft).exp()
    of_prompt = torch.stack(
        [
            (probs * passed)[tree.prompts == prompt].sum() / tree.mdp.start[prompt]
            for prompt in range(tree.mdp.start.shape[0])
        ]
    )
    slope = (probs * (passed - of_prompt[tree.prompts]).abs()).sum() / 2
    tv = mdp.sequence_tv(tree, _local(instance, SMALL), _optimum(instance, SMALL))
    tally.bounded("α → 0: |TV / (α · ½ E|Σ KL(s_t) - mean|) - 1|, α = 1e-4", (tv / (SMALL * slope) - 1).abs(), 0.05)


def _coincidences(tally: Tally, seed: int, number: int) -> None:
    """One token to go; a difference in the first token alone; fixed length and states told apart by depth alone."""
    one = make_instance(4, 1, 2, instance_seed(seed, 8, 5000 + number))
    base = make_instance(3, 4, 1, instance_seed(seed, 8, 6000 + number))
    later_equal = base.ref_logits.clone()
    later_equal[1:] = base.sft_logits[1:]
    first_only = Instance(base.tree, base.sft_logits, later_equal, base.policy_logits, base.generator)
    fixed = make_instance(3, 4, 1, instance_seed(seed, 8, 7000 + number), eos=None)
    depth = fixed.tree.mdp.depths
    starts = torch.tensor(fixed.tree.mdp.layers[:-1])
    by_depth = Instance(
        fixed.tree,
        fixed.sft_logits[starts][depth],
        fixed.ref_logits[starts][depth],
        fixed.policy_logits,
        fixed.generator,
    )
    cases = {
        "H = 1: they coincide": one,
        "reference differs at the first token only: they coincide": first_only,
        "fixed length, logits by position only: they coincide": by_depth,
    }
    for name, instance in cases.items():
        for alpha in (0.5, 2.0):
            tally.equal(name, _local(instance, alpha), _optimum(instance, alpha))
    # the same policies by position, but EOS may end the sequence: equality is lost
    free = make_instance(3, 4, 1, instance_seed(seed, 8, 8000 + number))
    starts = torch.tensor(free.tree.mdp.layers[:-1])
    rows = starts[free.tree.mdp.depths]
    stopping = Instance(free.tree, free.sft_logits[rows], free.ref_logits[rows], free.policy_logits, free.generator)
    tv = mdp.sequence_tv(free.tree, _local(stopping, 2.0), _optimum(stopping, 2.0))
    tally.differs("logits by position only, but EOS may stop: TV", tv)
