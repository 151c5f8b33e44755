"""Exact ground for tests: a small causal language model as a policy of the enumerable token MDP.

`policy_table` turns a model in float64 into exact log-probabilities of every state, with gradient; from there
`exact_gradient` is the gradient of the DPR objective by enumeration and autograd, and `expected_gradient` the
expectation of any sampled loss over all completions. Compare the two to test an estimator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from densepath.theory import exact
from densepath.theory.mdp import TokenTree, sequence_logprobs, token_tree

__all__ = [
    "TokenTree",
    "batch_distribution",
    "exact_gradient",
    "exact_objective",
    "expected_gradient",
    "policy_table",
    "reward_table",
    "sequence_probs",
    "tiny_llama",
    "token_tree",
]


def tiny_llama(vocab: int = 4, seed: int = 0, scale: float = 0.6) -> nn.Module:
    """A one-layer Llama of width 16 in float64, with no float32 detour left inside, in eval mode.

    Weights are drawn with standard deviation `scale`, far from uniform policies. RMSNorm is exchanged for
    torch's, because transformers computes its own in float32.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=None, bos_token_id=None,
        eos_token_id=0, attn_implementation="sdpa", tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=scale, generator=generator)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                with torch.no_grad():
                    norm.weight.copy_(child.weight)
                setattr(module, name, norm)
    return model


def policy_table(
    model: nn.Module, prompt_ids: Sequence[Sequence[int]] | Tensor, vocab: int, horizon: int, eos: int
) -> Tensor:
    """Exact log-probabilities of a causal LM in every state of `token_tree(vocab, horizon, eos, start)`.

    Args:
        model: HF causal LM; float64 for exactness. Its vocabulary is exactly `vocab`: every token is an action.
        prompt_ids: one row of ids per prompt (lengths may differ); a flat row counts as one prompt.
        vocab: vocabulary size.
        horizon: completion budget.
        eos: id of EOS.

    Returns:
        (states, vocab) float64 with gradient to the model's parameters, nats. States are numbered as in the tree
        of as many prompts, in the order given.
    """
    rows = prompt_ids.tolist() if isinstance(prompt_ids, Tensor) else list(prompt_ids)
    prompts = [rows] if isinstance(rows[0], int) else [list(row) for row in rows]
    going_on = [token for token in range(vocab) if token != eos]
    device = next(model.parameters()).device
    # every prefix is a prefix of one of these; the model is causal, so one pass serves all depths
    tails = list(itertools.product(going_on, repeat=horizon - 1))
    layers: list[list[Tensor]] = [[] for _ in range(horizon)]
    for prompt in prompts:
        ids = torch.tensor([[*prompt, *tail] for tail in tails], device=device)
        logits = model(input_ids=ids).logits[:, len(prompt) - 1 :]
        if logits.shape[-1] != vocab:
            raise ValueError(f"the model has {logits.shape[-1]} tokens, the MDP {vocab}")
        for t in range(horizon):
            stride = len(going_on) ** (horizon - 1 - t)  # rows that share the first t tokens are neighbours
            layers[t].append(logits[::stride, t].double().log_softmax(-1))
    return torch.cat([table for layer in layers for table in layer])


def reward_table(sft_table: Tensor, ref_table: Tensor) -> Tensor:
    """The method's reward of every state and action: `log pi_SFT - log pi_ref`, constants."""
    return (sft_table - ref_table).detach()


def sequence_probs(tree: TokenTree, table: Tensor) -> Tensor:
    """(sequences,) probability of every completion (times that of its prompt) under a policy table."""
    return sequence_logprobs(tree, table).exp()


def exact_objective(tree: TokenTree, table: Tensor, rewards: Tensor, sft_table: Tensor, beta: float) -> Tensor:
    """`E[sum_t r] - beta KL(pi_theta || pi_SFT)` by enumeration; scalar with gradient."""
    return exact.regularised_return(tree.mdp, table, rewards, sft_table.detach(), beta)


def exact_gradient(
    model: nn.Module, tree: TokenTree, table: Tensor, rewards: Tensor, sft_table: Tensor, beta: float
) -> Tensor:
    """Gradient of `exact_objective` for all parameters of the model that want one, flattened."""
    objective = exact_objective(tree, table, rewards, sft_table, beta)
    return _flat_gradient(objective, model)


def expected_gradient(model: nn.Module, probs: Tensor, losses: Tensor | Callable[[], Tensor]) -> Tensor:
    """Expectation of a sampled loss' gradient: `sum_b p(b) grad loss(b)`, flattened like `exact_gradient`.

    Args:
        model: the policy.
        probs: (batches,) probability of each batch; taken as constants, as sampling does.
        losses: (batches,) loss of each batch with gradient, or a function that returns it.
    """
    values = losses() if callable(losses) else losses
    return _flat_gradient((probs.detach() * values).sum(), model)


def batch_distribution(
    tree: TokenTree, probs: Tensor, num_generations: int, prompts: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Every batch of `num_generations` independent completions of each prompt, and its probability.

    Args:
        tree: the token MDP.
        probs: (sequences,) as `sequence_probs` gives them.
        num_generations: completions per prompt.
        prompts: the prompts of the batch, in order; all of them by default.

    Returns:
        Rows (batches, prompts x num_generations) int64 into `tree.sequences`, completions of one prompt being
        neighbours; and (batches,) probabilities, given those prompts.
    """
    chosen = range(tree.mdp.start.shape[0]) if prompts is None else prompts
    columns, weights = [], []
    for prompt in chosen:
        rows = (tree.prompts == prompt).nonzero().squeeze(1)
        for _ in range(num_generations):
            columns.append(rows)
            weights.append((probs[rows] / tree.mdp.start[prompt]).detach())
    grid = torch.cartesian_prod(*columns).view(-1, len(columns))
    weight = torch.cartesian_prod(*weights).view(-1, len(columns)).prod(dim=1)
    return grid, weight


def _flat_gradient(scalar: Tensor, model: nn.Module) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
