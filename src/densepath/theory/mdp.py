"""The enumerable MDP: a finite-horizon tabular engine, and the token MDP as its deterministic case.

States are numbered depth by depth, so that every recursion is a loop over depths of vectorised steps. Tables
are (states, actions) float64. After the states come the *ends*: in a token MDP, end 0 is "after EOS" and the
others are the sequences that the budget cut. See `exact` for what is computed on it, docs/theory.md for why.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FiniteMDP:
    """A finite-horizon MDP whose states carry their depth; it validates itself.

    Args:
        layers: first state of each depth, then the number of states; `layers[t] : layers[t + 1]` are those of
            depth t.
        next_states: (states, actions, outcomes) int64; an index >= states is an end.
        next_probs: (states, actions, outcomes) float64, probability of each outcome.
        start: (states of depth 0,) float64, probability of each prompt.
        num_ends: number of ends.
    """

    layers: tuple[int, ...]
    next_states: Tensor
    next_probs: Tensor
    start: Tensor
    num_ends: int

    def __post_init__(self) -> None:
        if self.layers[0] != 0 or any(a >= b for a, b in zip(self.layers, self.layers[1:], strict=False)):
            raise ValueError(f"layers must rise from 0, got {self.layers}")
        if self.next_states.dim() != 3 or self.next_states.shape[0] != self.num_states:
            raise ValueError(
                f"next_states must be ({self.num_states}, actions, outcomes), got {tuple(self.next_states.shape)}"
            )
        if self.next_probs.shape != self.next_states.shape:
            raise ValueError(
                f"next_probs {tuple(self.next_probs.shape)} and next_states {tuple(self.next_states.shape)} differ"
            )
        if self.start.shape != (self.layers[1],):
            raise ValueError(f"start must be ({self.layers[1]},), got {tuple(self.start.shape)}")
        for t in range(self.horizon):
            following = self.next_states[self.layer(t)]
            if bool((following < self.layers[t + 1]).any()) or bool(
                (following >= self.num_states + self.num_ends).any()
            ):
                raise ValueError(f"a next state of depth {t} is neither deeper nor an end")
        for name, total in (("next_probs", self.next_probs.sum(-1)), ("start", self.start.sum())):
            if not torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12):
                raise ValueError(f"{name} must sum to 1")

    @property
    def num_states(self) -> int:
        """States in which an action is taken."""
        return self.layers[-1]

    @property
    def num_actions(self) -> int:
        """Actions, EOS included."""
        return self.next_states.shape[1]

    @property
    def horizon(self) -> int:
        """Largest number of actions."""
        return len(self.layers) - 1

    @property
    def depths(self) -> Tensor:
        """(states,) int64: how many actions were taken before each state."""
        sizes = torch.tensor([b - a for a, b in zip(self.layers, self.layers[1:], strict=False)])
        return torch.repeat_interleave(torch.arange(self.horizon), sizes)

    def layer(self, depth: int) -> slice:
        """The states of that depth."""
        return slice(self.layers[depth], self.layers[depth + 1])


@dataclass(frozen=True)
class TokenTree:
    """A token MDP with all of its sequences written out.

    Args:
        mdp: the tree of prefixes, one root per prompt.
        eos: id of the token that ends a sequence; None if nothing does before the horizon.
        sequences: (sequences, horizon) int64, every completion of every prompt, prompt by prompt; 0 after its end.
        mask: (sequences, horizon) bool, True = counts, EOS included.
        states: (sequences, horizon) int64, the state in which each token is chosen; 0 where mask is False.
        prompts: (sequences,) int64, the prompt that each completes.
        truncated: (sequences,) bool, True where the budget ended it and not EOS.
        prefixes: (states, horizon) int64, the tokens before each state, 0 after them.
    """

    mdp: FiniteMDP
    eos: int | None
    sequences: Tensor
    mask: Tensor
    states: Tensor
    prompts: Tensor
    truncated: Tensor
    prefixes: Tensor


def token_tree(vocab: int, horizon: int, eos: int | None = 0, start: Tensor | None = None) -> TokenTree:
    """The token MDP `s_{t+1} = s_t + a_t` over every prefix, ended by EOS or after `horizon` tokens.

    Args:
        vocab: number of tokens, EOS among them.
        horizon: completion budget, tokens.
        eos: its id, or None for sequences that all have `horizon` tokens.
        start: (prompts,) float64, probability of each prompt; one prompt by default.

    >>> token_tree(vocab=3, horizon=2, eos=0).sequences.tolist()
    [[0, 0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]
    """
    if vocab < 1 or horizon < 1 or (eos is not None and not 0 <= eos < vocab):
        raise ValueError(f"need vocab >= 1, horizon >= 1 and eos in the vocabulary, got {vocab, horizon, eos}")
    start = torch.ones(1, dtype=torch.float64) if start is None else start.double()
    num_prompts = start.shape[0]
    going_on = [token for token in range(vocab) if token != eos]
    branch = len(going_on)
    sizes = [num_prompts * branch**t for t in range(horizon)]
    layers = [0]
    for size in sizes:
        layers.append(layers[-1] + size)
    if branch == 0:
        layers, sizes = [0, num_prompts], [num_prompts]
    num_states = layers[-1]

    tokens = torch.tensor(going_on, dtype=torch.long)
    next_states = torch.full((num_states, vocab, 1), num_states, dtype=torch.long)  # EOS -> end 0
    prefixes = []
    prefix = torch.zeros(num_prompts, 0, dtype=torch.long)
    path = torch.zeros(num_prompts, 0, dtype=torch.long)
    prompt = torch.arange(num_prompts)
    ended: list[tuple[Tensor, Tensor, Tensor, bool]] = []
    for t, size in enumerate(sizes):
        here = torch.arange(layers[t], layers[t + 1])
        first_child = layers[t + 1] if t + 1 < len(sizes) else num_states + 1
        children = first_child + torch.arange(size * branch).view(size, branch)
        next_states[layers[t] : layers[t + 1], tokens, 0] = children
        prefixes.append(_padded(prefix, horizon))
        path = torch.cat([path, here.unsqueeze(1)], dim=1)
        if eos is not None:
            ended.append((prompt, torch.cat([prefix, torch.full((size, 1), eos)], dim=1), path, False))
        prefix = torch.cat([prefix.repeat_interleave(branch, 0), tokens.repeat(size).unsqueeze(1)], dim=1)
        path, prompt = path.repeat_interleave(branch, 0), prompt.repeat_interleave(branch, 0)
    ended.append((prompt, prefix, path, True))

    lengths = torch.cat([torch.full((ids.shape[0],), ids.shape[1]) for _, ids, _, _ in ended])
    prompts = torch.cat([prompt for prompt, _, _, _ in ended])
    sequences = torch.cat([_padded(ids, horizon) for _, ids, _, _ in ended])
    states = torch.cat([_padded(path, horizon) for _, _, path, _ in ended])
    truncated = torch.cat([torch.full((ids.shape[0],), cut) for _, ids, _, cut in ended])
    order = _lexicographic(prompts, sequences, lengths)
    mdp = FiniteMDP(
        layers=tuple(layers),
        next_states=next_states,
        next_probs=torch.ones(next_states.shape, dtype=torch.float64),
        start=start,
        num_ends=1 + num_prompts * branch ** len(sizes) if branch else 1,
    )
    return TokenTree(
        mdp=mdp,
        eos=eos,
        sequences=sequences[order],
        mask=torch.arange(horizon) < lengths[order].unsqueeze(1),
        states=states[order],
        prompts=prompts[order],
        truncated=truncated[order],
        prefixes=torch.cat(prefixes),
    )


def _padded(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _lexicographic(prompts: Tensor, sequences: Tensor, lengths: Tensor) -> Tensor:
    """Order by prompt, then by tokens; a stable sort by each column from the last to the first."""
    order = torch.argsort(lengths, stable=True)
    for column in (*sequences.flip(1).unbind(1), prompts):
        order = order[torch.argsort(column[order], stable=True)]
    return order


def slippery(mdp: FiniteMDP, slip: float) -> FiniteMDP:
    """The same MDP with stochastic transitions: with probability `slip` the next action's outcome happens.

    Args:
        mdp: a deterministic MDP.
        slip: probability in [0, 1] that action a leads where action a + 1 (mod actions) leads.
    """
    if not 0.0 <= slip <= 1.0:
        raise ValueError(f"slip must lie in [0, 1], got {slip}")
    if mdp.next_states.shape[2] != 1:
        raise ValueError(f"the MDP is already stochastic: {mdp.next_states.shape[2]} outcomes")
    other = mdp.next_states.roll(-1, dims=1)
    probs = torch.tensor([1.0 - slip, slip], dtype=torch.float64).expand(*mdp.next_states.shape[:2], 2)
    return FiniteMDP(
        layers=mdp.layers,
        next_states=torch.cat([mdp.next_states, other], dim=2),
        next_probs=probs.clone(),
        start=mdp.start,
        num_ends=mdp.num_ends,
    )


def gather_tokens(tree: TokenTree, table: Tensor) -> Tensor:
    """A (states, actions) table read along every sequence; zero where the mask is False.

    Args:
        tree: a token MDP.
        table: (states, actions) float.

    Returns:
        (sequences, horizon) float.
    """
    return torch.where(tree.mask, table[tree.states, tree.sequences], table.new_zeros(()))


def sequence_logprobs(tree: TokenTree, log_policy: Tensor) -> Tensor:
    """Log-probability of every trajectory, its prompt included: `log p(x) + sum_t log pi(a_t|s_t)`.

    Args:
        tree: a token MDP.
        log_policy: (states, actions) float, nats.

    Returns:
        (sequences,) float, nats.
    """
    return gather_tokens(tree, log_policy).sum(dim=1) + tree.mdp.start.log()[tree.prompts]


def token_policy(tree: TokenTree, log_weights: Tensor) -> Tensor:
    """The policy whose sequences are distributed as given, within each prompt: `sequence_logprobs` undone.

    `pi(a|s)` is the weight of all sequences that pass through `(s, a)` over that of all which pass through `s`. So any
    distribution over whole sequences, a mixture of policies for instance, is a policy.

    Args:
        tree: a token MDP.
        log_weights: (sequences,) float, log-weights within each prompt up to a constant of the prompt, nats; -inf for
            an impossible sequence.

    Returns:
        (states, actions) float, nats; uniform in the states that no sequence reaches.
    """
    shape = (tree.mdp.num_states, tree.mdp.num_actions)
    top = torch.stack([log_weights[tree.prompts == prompt].max() for prompt in range(tree.mdp.start.shape[0])])
    weights = (log_weights - top[tree.prompts]).exp().unsqueeze(1) * tree.mask
    table = weights.new_zeros(shape).index_put((tree.states, tree.sequences), weights, accumulate=True)
    passing = table.sum(dim=1, keepdim=True)
    return torch.where(passing > 0, table / passing, 1.0 / shape[1]).log()


def rollouts(
    mdp: FiniteMDP, log_policy: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled trajectories, whether transitions are deterministic or not.

    Args:
        mdp: any finite MDP.
        log_policy: (states, actions) float, nats.
        count: number of trajectories.
        generator: source of randomness.

    Returns:
        States (count, horizon) int64, actions (count, horizon) int64, mask (count, horizon) bool; states and
        actions are 0 where the mask is False.
    """
    probs = log_policy.exp()
    state = torch.multinomial(mdp.start, count, replacement=True, generator=generator)
    columns = []
    for _ in range(mdp.horizon):
        alive = state < mdp.num_states
        here = torch.where(alive, state, torch.zeros_like(state))
        action = torch.multinomial(probs[here], 1, generator=generator).squeeze(1)
        outcome = torch.multinomial(mdp.next_probs[here, action], 1, generator=generator).squeeze(1)
        columns.append((here, torch.where(alive, action, torch.zeros_like(action)), alive))
        state = torch.where(alive, mdp.next_states[here, action, outcome], state)
    states, actions, mask = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    return states, actions, mask


def sequence_tv(tree: TokenTree, log_policy: Tensor, other: Tensor) -> Tensor:
    """Total variation between two policies' sequence distributions: `1/2 sum_y |p(y) - q(y)|`; scalar."""
    difference = sequence_logprobs(tree, log_policy).exp() - sequence_logprobs(tree, other).exp()
    return difference.abs().sum() / 2
