"""How a map becomes the vector that a classifier reads: averaged, or attended to.

Enters: a map's positions as tokens `[B, P, C]`. Leaves: a vector `[B, C]`, then logits `[B, K]`.

The attentive pooler is that of the field's frozen evaluation: blocks of self-attention over all
positions, then a learned query that attends to them; every part pre-normalised and residual.
Sources: Bardes et al. 2024, "Revisiting Feature Prediction for Learning Visual Representations from
Video" (V-JEPA), whose pooler is the query alone (depth 1), and Assran et al. 2025, "V-JEPA 2:
Self-Supervised Video Models Enable Understanding, Prediction and Planning", with three blocks
before it (depth 4, 16 heads).

Attention does not know where a token stands. V-JEPA's tokens say it themselves, those of a
convolutional backbone hardly do, so a pooler may be told (`readout_positions`; not in V-JEPA).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from dsts_pipeline.base.settings import Readout

Grid = tuple[int, int, int]
"""T, H, W of a map."""

# ---- the attentive pooler ------------------------------------------------------------------------


class Positions(nn.Module):
    """A vector `[D]` for every position of a map of any size, learned: `W phi(t, h, w)`.

    phi has NUM_COSINES cosines of each axis, `cos(pi k (i + 1/2) / size)`, k = 1 and up: all
    functions of an axis of so many positions but the constant, the smooth ones of a longer one.

    Args:
        channels: D.
        std: Of a first vector's entries, about.
    """

    NUM_COSINES = 8

    def __init__(self, channels: int, std: float = 0.3) -> None:
        super().__init__()
        num_cosines = 3 * self.NUM_COSINES
        self.weight = nn.Parameter(torch.randn(channels, num_cosines))
        with torch.no_grad():
            self.weight.mul_(std / math.sqrt(num_cosines / 2))

    def forward(self, grid: Grid) -> Tensor:
        """`[P, D]` for the positions of a map on `grid`, T outermost."""
        like = self.weight
        dtype = torch.promote_types(like.dtype, torch.float32)
        waves = math.pi * torch.arange(1, self.NUM_COSINES + 1, dtype=dtype, device=like.device)
        parts = []
        for axis, size in enumerate(grid):
            places = (torch.arange(size, dtype=dtype, device=like.device) + 0.5) / size
            shape = [1, 1, 1, self.NUM_COSINES]
            shape[axis] = size
            parts.append((places[:, None] * waves).cos().view(shape).expand(*grid, -1))
        return torch.cat(parts, dim=3).flatten(0, 2).to(like.dtype) @ like.t()


class AttentivePooler(nn.Module):
    """`depth - 1` blocks of self-attention, then one query that attends to all positions.

    Args:
        channels: C.
        depth: Blocks, the query's among them; >= 1.
        num_heads: Attention heads, of which the width is a multiple.
        width: D at most, channels inside, to which tokens of more channels are projected first;
            None for C without a projection (V-JEPA).
        output_projection: A linear map after the query's heads; V-JEPA has none.
        layer_norm_eps: Of all norms.
        positions: Tokens are normalised and told where they stand (`Positions`), before all else.
            Deviation: not in V-JEPA.

    Raises:
        ValueError: The width is no multiple of `num_heads`.

    Examples:
        >>> AttentivePooler(8, depth=2, num_heads=2)(torch.zeros(4, 18, 8)).shape
        torch.Size([4, 8])
    """

    MLP_RATIO = 4

    def __init__(
        self,
        channels: int,
        *,
        depth: int = 1,
        num_heads: int = 8,
        width: int | None = None,
        output_projection: bool = False,
        layer_norm_eps: float = 1e-6,
        positions: bool = False,
    ) -> None:
        super().__init__()
        self.entry_norm = nn.LayerNorm(channels, layer_norm_eps) if positions else None
        self.project = None
        if width is not None and width < channels:
            self.project = nn.Linear(channels, width, bias=False)
            channels = width
        self.out_channels = channels
        if num_heads < 1 or channels % num_heads:
            raise ValueError(
                f"{channels} channels are no multiple of {num_heads} attention heads; choose a "
                "number of heads that divides them (head.readout_heads)"
            )
        self.num_heads = num_heads
        self.positions = Positions(channels) if positions else None
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(channels, num_heads, layer_norm_eps) for _ in range(depth - 1)
        )
        self.query = nn.Parameter(torch.empty(channels))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.input_norm = nn.LayerNorm(channels, layer_norm_eps)
        self.to_query = nn.Linear(channels, channels)
        self.to_key_value = nn.Linear(channels, 2 * channels)
        self.mix = nn.Linear(channels, channels) if output_projection else None
        self.mlp_norm = nn.LayerNorm(channels, layer_norm_eps)
        self.mlp = _mlp(channels)

    def forward(
        self, tokens: Tensor, grid: Grid | None = None, *, first_order: bool = True
    ) -> Tensor:
        """The attended vector `[B, D]` of `tokens [B, P, C]`.

        Args:
            grid: T, H and W of the map whose positions they are; None will do where tokens are not
                told where they stand.
            first_order: A promise that gradients are not differentiated again, for which torch's
                fused attention has no derivative.
        """
        tokens = self._prepare(tokens, grid, first_order=first_order)
        attended = self._attend(tokens, self._weigh(tokens))
        if self.mix is not None:
            attended = self.mix(attended)
        pooled = self.query + attended
        return pooled + self.mlp(self.mlp_norm(pooled))

    @torch.no_grad()
    def attention(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """The share that the query takes of each of `tokens [B, P, C]`: `[B, P]`, sums to 1.

        The mean of the query's heads. With blocks before it, what stands at a position is no longer
        of that position alone.
        """
        return self._weigh(self._prepare(tokens, grid)).mean(dim=2)

    def _prepare(self, tokens: Tensor, grid: Grid | None, *, first_order: bool = True) -> Tensor:
        """What the query sees of `tokens [B, P, C]`: `[B, P, D]`."""
        if self.entry_norm is not None:
            tokens = self.entry_norm(tokens)
        if self.project is not None:
            tokens = self.project(tokens)
        if self.positions is not None:
            assert grid is not None
            tokens = tokens + self.positions(grid)
        for block in self.blocks:
            tokens = block(tokens, first_order=first_order)
        normed: Tensor = self.input_norm(tokens)
        return normed

    def _weigh(self, tokens: Tensor) -> Tensor:
        """What the query's heads take of each of `tokens [B, P, D]`: `[B, P, heads]`.

        One query needs no key and no value of a position: with `q_h` of a head, `q_h . (K_h x)` is
        `(K_h' q_h) . x`, and the weighted mean of `V_h x` is V_h of the weighted mean of x.
        `2 heads C` products a position for `2 C C`.
        """
        heads = self.num_heads, -1
        of_key, _ = self.to_key_value.weight.chunk(2)
        key_bias, _ = self.to_key_value.bias.chunk(2)
        query = self.to_query(self.query).view(heads)  # [heads, C / heads]
        query = query / math.sqrt(query.shape[1])
        channels = tokens.shape[2]
        scorers = (query[:, :, None] * of_key.view(*heads, channels)).sum(dim=1)  # [heads, C]
        offsets = (query * key_bias.view(heads)).sum(dim=1)
        return (tokens @ scorers.t() + offsets).softmax(dim=1)

    def _attend(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """What the query's heads take together, `[B, D]`, of `tokens [B, P, D]`."""
        heads = self.num_heads, -1
        channels = tokens.shape[2]
        _, of_value = self.to_key_value.weight.chunk(2)
        _, value_bias = self.to_key_value.bias.chunk(2)
        means = weights.transpose(1, 2) @ tokens  # [B, heads, C]
        values = means.transpose(0, 1) @ of_value.view(*heads, channels).transpose(1, 2)
        return values.transpose(0, 1).flatten(1) + value_bias


class SelfAttentionBlock(nn.Module):
    """Attention of all positions to all, then an MLP; both pre-normalised and residual."""

    def __init__(self, channels: int, num_heads: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels, layer_norm_eps)
        self.to_query_key_value = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels, layer_norm_eps)
        self.mlp = _mlp(channels)

    def forward(self, tokens: Tensor, *, first_order: bool = True) -> Tensor:
        """`[B, P, C]` of `tokens [B, P, C]`."""
        joined = self.to_query_key_value(self.norm(tokens))
        query, key, value = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in joined.chunk(3, dim=2)
        )
        if first_order:
            attended = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
            attended = scores.softmax(dim=3) @ value
        tokens = tokens + self.mix(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.mlp_norm(tokens))


def _mlp(channels: int) -> nn.Sequential:
    hidden = AttentivePooler.MLP_RATIO * channels
    return nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))


def tokens_of(x: Tensor) -> Tensor:
    """Positions `[B, P, C]` of a map `x [B, C, T, H, W]`."""
    return x.flatten(2).transpose(1, 2)


def grid_of(x: Tensor) -> Grid:
    """T, H, W of a map `x [B, C, T, H, W]`."""
    return x.shape[2], x.shape[3], x.shape[4]


@torch.no_grad()
def attention_map(head: nn.Module, x: Tensor) -> Tensor | None:
    """The share that the readout of `head` takes of each position of `x [B, C, T, H, W]`.

    Returns:
        `[B, T, H, W]`, of which each sample sums to 1; None where the head averages positions.
    """
    pooler = getattr(head, "pooler", None)
    if not isinstance(pooler, AttentivePooler):
        return None
    seen: list[tuple] = []
    hook = pooler.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    try:
        head(x)
    finally:
        hook.remove()
    return pooler.attention(*seen[0]).unflatten(1, x.shape[2:])


# ---- what every head ends with -------------------------------------------------------------------


class ReadoutNoise(NamedTuple):
    """Dropout of one pass: factors `[B, C]` on what the classifier reads, 0 or 1 / (1 - p)."""

    factors: Tensor

    def scaled(self, factor: float) -> Self:
        """Itself: dropout is no noise that fades."""
        return self

    def of_samples(self, start: int, stop: int) -> ReadoutNoise:
        """The part of a process that has these samples of a batch."""
        return ReadoutNoise(self.factors[start:stop])


class ReadoutHead(nn.Module):
    """A head: something that gives a vector of a map, dropout, and `classifier`, a linear layer.

    Its options: `readout`, "average" of all positions or "attentive"; `readout_depth`,
    `readout_heads`, `readout_width` and `readout_positions` of the attentive pooler, and all others
    of `AttentivePooler` (`of_pooler`); `readout_dropout`, the share of the vector's channels that a
    training pass drops.

    Attributes:
        pooler: The attentive pooler; None where positions are averaged.
    """

    pooler: AttentivePooler | None

    def _add_readout(
        self,
        in_channels: int,
        num_classes: int,
        readout: Readout = "average",
        readout_dropout: float = 0.0,
        readout_depth: int = 1,
        readout_heads: int = 8,
        readout_width: int | None = None,
        readout_positions: bool = False,
        **of_pooler: Any,
    ) -> dict[str, Any]:
        """Make pooler and classifier; returns the arguments, as plain values."""
        given = {name: value for name, value in locals().items() if name.startswith("readout")}
        self.pooler = None
        num_features = in_channels
        if readout == "attentive":
            self.pooler = AttentivePooler(
                in_channels,
                depth=readout_depth,
                num_heads=readout_heads,
                width=readout_width,
                positions=readout_positions,
                **of_pooler,
            )
            num_features = self.pooler.out_channels
        self.readout_dropout = readout_dropout
        self.classifier = nn.Linear(num_features, num_classes)
        return given | of_pooler

    def draw_readout_noise(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[ReadoutNoise, ...]:
        """The dropout of a training pass; none where the head has none."""
        if not self.readout_dropout:
            return ()
        like = self.classifier.weight
        kept = 1.0 - self.readout_dropout
        factors = like.new_empty(num_samples, like.shape[1])
        return (ReadoutNoise(factors.bernoulli_(kept, generator=generator) / kept),)

    def draw_noise(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Any, ...]:
        """All that is random in a training pass over `num_samples` samples."""
        return self.draw_readout_noise(num_samples, generator)

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """What training makes small: cross-entropy of logits `[B, K]`, mean over samples."""
        return nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def classify(self, vector: Tensor, noise: Sequence[Any] | None = None) -> Tensor:
        """Logits `[B, K]` of a readout's vector `[B, C or its width]`.

        Args:
            noise: Of the pass, its dropout last; None in training draws from torch's generator.
        """
        if self.training and self.readout_dropout:
            if noise is None:
                noise = self.draw_readout_noise(len(vector))
            vector = vector * noise[-1].factors.to(vector.dtype)
        return self.classifier(vector)
