"""A Temporal Query Network on cached maps: a row of the paper's Table 2.

Enters: `x [B, C, T, H, W]`, and what each class is made of, such as a dive's takeoff, somersault,
twist and position. Leaves: class logits `[B, K]`. Between: a query per attribute attends to the
map's steps in time, and what it gathers is classified into the attribute's values.

Source: Zhang, Gupta & Zisserman 2021, "Temporal Query Networks for Fine-grained Video
Understanding", arXiv 2104.09496, section 3; its numbers are those of its code,
https://github.com/Chuhanxx/Temporal_Query_Networks (`models/TQN.py`, `scripts/train_2nd_stage.py`).
Its stochastically updated feature bank keeps the backbone's features of all clips of a video and
computes a few of them anew in each step; here the store is the bank, and none is computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.head.readout import ReadoutHead, ReadoutNoise


class TQNHead(ReadoutHead):
    """Queries for the attributes of a class, decoded over the steps of a map.

    `r = decoder(queries, mean of X over space)`, by layers of self-attention among queries,
    attention to the steps and an MLP, each pre-normalised and residual; attribute i has
    `p_i = softmax(Psi_i r_i)`. A class's logit is the log-probability of all that it is made of,
    `s_k = sum_i log p_i(value i of class k)`, and the loss is minus the true class's: the sum of
    the queries' cross-entropies, as the paper has it.

    Deviation: no dropout inside the decoder (0.1 in its code), since what is random in a training
    is drawn beforehand. Choice: the attribute "none" of the paper is left out, since every class
    has a value of each.

    Args:
        in_channels: C of the feature map.
        num_classes: K.
        attributes: The values of each class, K rows of A.
        num_layers: Of the decoder, at least 1.
        readout_heads: Of its attention; the width is a multiple.
        width: Channels of queries and steps, which are projected to it; None (TQN): C.
        class_query: One more query for the class itself, as in its code. Choice: `s_k` sums over
            it, too; its code scores the attributes' answer and this query's apart.
        readout_dropout: Share of a response's channels that a training pass drops.

    Raises:
        ValueError: There are no attributes or layers, the attributes do not tell two classes apart,
            or the width is no multiple of the heads.

    Examples:
        >>> dives = [["Back", "Pike"], ["Back", "Tuck"], ["Front", "Pike"]]
        >>> TQNHead(8, 3, attributes=dives, num_layers=1)(torch.zeros(4, 8, 2, 3, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        attributes: Sequence[Sequence[str]],
        num_layers: int = 4,
        readout_heads: int = 4,
        width: int | None = None,
        class_query: bool = True,
        readout_dropout: float = 0.8,
    ) -> None:
        super().__init__()
        rows = [list(row) for row in attributes]
        _check_attributes(rows, num_classes, class_query)
        if num_layers < 1:
            raise ValueError(
                f"TQN has {num_layers} layers, in which its queries see the map; expected at least "
                "1 (head.num_layers)"
            )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "attributes": rows,
            "num_layers": num_layers,
            "readout_heads": readout_heads,
            "width": width,
            "class_query": class_query,
            "readout_dropout": readout_dropout,
        }
        channels = in_channels if width is None else width
        if channels % readout_heads:
            raise ValueError(
                f"{channels} channels are no multiple of {readout_heads} attention heads; choose a "
                "number of heads that divides them (head.readout_heads)"
            )
        # What each query tells apart, and which of it is said of each class, [queries, K].
        answers = [list(column) for column in zip(*rows, strict=True)]
        if class_query:
            answers.append([str(number) for number in range(num_classes)])
        values = [list(dict.fromkeys(column)) for column in answers]
        self.sizes = [len(known) for known in values]
        told = [
            [known.index(value) for value in column]
            for known, column in zip(values, answers, strict=True)
        ]
        self.value_of_class: Tensor
        self.register_buffer("value_of_class", torch.tensor(told), persistent=False)
        self._add_readout(channels, sum(self.sizes), readout_dropout=readout_dropout)
        self.project = None if width is None else nn.Linear(in_channels, width, bias=False)
        self.queries = nn.Parameter(torch.empty(len(values), channels))
        layer = nn.TransformerDecoderLayer(
            channels, readout_heads, channels, dropout=0.0, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers, nn.LayerNorm(channels))
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and "norm" not in name or name == "queries":
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor, noise: Sequence[Any] | None = None) -> Tensor:
        """Class logits `[B, K]` of `x [B, C, T, H, W]`; `noise` as `draw_noise` gives it."""
        steps = x.mean(dim=(3, 4)).transpose(1, 2)
        if self.project is not None:
            steps = self.project(steps)
        responses = self.decoder(self.queries.expand(steps.shape[0], -1, -1), steps)
        if self.training and self.readout_dropout:
            noise = self.draw_noise(len(x)) if noise is None else noise
            responses = responses * noise[-1].factors.to(responses.dtype)
        of_queries = []
        start = 0
        for query, size in enumerate(self.sizes):
            weight = self.classifier.weight[start : start + size]
            bias = self.classifier.bias[start : start + size]
            scores = nn.functional.linear(responses[:, query], weight, bias).log_softmax(dim=1)
            of_queries.append(scores[:, self.value_of_class[query]])
            start += size
        return torch.stack(of_queries).sum(dim=0)

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The sum of the queries' cross-entropies, mean over samples: minus the label's logit."""
        of_labels = logits.gather(1, labels[:, None]).mean()
        return -(1.0 - label_smoothing) * of_labels - label_smoothing * logits.mean()

    def draw_readout_noise(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[ReadoutNoise, ...]:
        """Dropout of the responses, factors `[B, queries, width]`; none where the head has none."""
        if not self.readout_dropout:
            return ()
        factors = self.queries.new_empty(num_samples, *self.queries.shape)
        kept = 1.0 - self.readout_dropout
        return (ReadoutNoise(factors.bernoulli_(kept, generator=generator) / kept),)


def _check_attributes(rows: list[list[str]], num_classes: int, class_query: bool) -> None:
    if not rows or not rows[0]:
        raise ValueError(
            "TQN asks for the attributes of a class, and this data set tells none; use a data set "
            "with a vocabulary of attributes (Diving48's), or another head.kind, or leave the "
            "variant out (ablate.leave_out)"
        )
    if len(rows) != num_classes or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(
            f"attributes are told of {len(rows)} classes; expected {num_classes} rows of equal "
            "length, a value of each attribute"
        )
    alike = [number for number, row in enumerate(rows) if row in rows[:number]]
    if alike and not class_query:
        raise ValueError(
            f"classes {rows.index(rows[alike[0]])} and {alike[0]} have the same attributes, "
            "which cannot tell them apart; set head.class_query to true"
        )
