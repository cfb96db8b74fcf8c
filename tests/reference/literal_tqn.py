"""TQN's decoder and loss, literally: a loop over samples, layers, queries and heads.

Source: Zhang, Gupta & Zisserman 2021, arXiv 2104.09496, section 3.1 and the decoder layer of its
code (norm before each part). Parameters by the names of torch's `TransformerDecoder`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend(queries: Tensor, seen: Tensor, state: State, name: str, num_heads: int) -> Tensor:
    """What each of `queries [Q, D]` gathers from `seen [T, D]`."""
    width = queries.shape[1]
    weights = state[f"{name}.in_proj_weight"]
    biases = state[f"{name}.in_proj_bias"]
    asked = queries @ weights[:width].T + biases[:width]
    keys = seen @ weights[width : 2 * width].T + biases[width : 2 * width]
    values = seen @ weights[2 * width :].T + biases[2 * width :]
    size = width // num_heads
    gathered = torch.zeros_like(queries)
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for number in range(len(queries)):
            scores = torch.stack([asked[number, part] @ key[part] for key in keys])
            shares = torch.exp(scores / math.sqrt(size))
            gathered[number, part] = (shares / shares.sum()) @ values[:, part]
    return gathered @ state[f"{name}.out_proj.weight"].T + state[f"{name}.out_proj.bias"]


def responses(x: Tensor, state: State, *, num_layers: int, num_heads: int) -> Tensor:
    """`[B, Q, D]` of a map `[B, C, T, H, W]`."""
    answers = []
    for sample in x:
        steps = torch.stack([sample[:, t].flatten(1).mean(1) for t in range(sample.shape[1])])
        if "project.weight" in state:
            steps = steps @ state["project.weight"].T
        hidden = state["queries"]
        for number in range(num_layers):
            name = f"decoder.layers.{number}"
            normed = layer_norm(hidden, state, f"{name}.norm1")
            hidden = hidden + attend(normed, normed, state, f"{name}.self_attn", num_heads)
            normed = layer_norm(hidden, state, f"{name}.norm2")
            hidden = hidden + attend(normed, steps, state, f"{name}.multihead_attn", num_heads)
            normed = layer_norm(hidden, state, f"{name}.norm3")
            inner = normed @ state[f"{name}.linear1.weight"].T + state[f"{name}.linear1.bias"]
            inner = inner.clamp(min=0)
            hidden = hidden + inner @ state[f"{name}.linear2.weight"].T
            hidden = hidden + state[f"{name}.linear2.bias"]
        answers.append(layer_norm(hidden, state, "decoder.norm"))
    return torch.stack(answers)


def tqn_loss(
    answers: Tensor, state: State, sizes: list[int], targets: list[list[int]]
) -> tuple[Tensor, list[Tensor]]:
    """The sum over queries of their cross-entropies, mean over samples, and each query's softmax.

    Args:
        answers: `[B, Q, D]`.
        sizes: How many values each query tells apart.
        targets: Per sample the true value of each query.
    """
    total = torch.zeros((), dtype=answers.dtype)
    found = []
    start = 0
    for query, size in enumerate(sizes):
        rows = slice(start, start + size)
        scores = answers[:, query] @ state["classifier.weight"][rows].T
        scores = torch.exp(scores + state["classifier.bias"][rows])
        shares = scores / scores.sum(dim=1, keepdim=True)
        for sample, target in enumerate(targets):
            total = total - torch.log(shares[sample, target[query]]) / len(targets)
        found.append(shares)
        start += size
    return total, found
