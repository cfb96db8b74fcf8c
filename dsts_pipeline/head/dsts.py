"""The DSTS head: feature map of a backbone in, class logits out (paper 3.1, 3.2).

Enters: `x [B, C, T, H, W]`. Leaves: logits `[B, K]`. Between: an optional projection to `width`
channels, L layers of N specialized neurons, the skip connection, a readout, linear classifier.
Averaging is linear, so what is linear after the last layer is applied to the averaged vector: the
same logits, without a map of C channels for the projection back. An attentive readout needs that
map.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.settings import (
    HeadSettings,
    ImpulseGradient,
    ImpulseKind,
    NormStatistics,
    Readout,
    RoutingGradient,
    Specialization,
)
from dsts_pipeline.head.layer import DSTSLayer, LayerRecord, Pass
from dsts_pipeline.head.neurons import takes_fixed_form
from dsts_pipeline.head.probes import OwnHead
from dsts_pipeline.head.readout import ReadoutHead, ReadoutNoise, grid_of, tokens_of
from dsts_pipeline.head.routing import LayerNoise, draw_layer_noise

READOUT_NAMES = (
    "readout",
    "readout_depth",
    "readout_heads",
    "readout_width",
    "readout_positions",
    "readout_dropout",
)
NOT_OF_DSTS = {"kind", "class_query", "take_over_classifier"}
UPSTREAM_NAMES = ("scoring_kernel", "gate_logits", "shared_gate_logits")
# Where the paper's text says otherwise than the defaults; configs/head/paper.yaml has the same.
PAPER: dict[str, Any] = {
    "width": None,
    "impulse": "sum",
    "impulse_spread": 1.0,
    "routing_gradient": "dense",
    "layer_residual": False,
    "zero_start": False,
}


HeadNoise = Sequence[LayerNoise | ReadoutNoise]
"""What is random in a pass: a draw per layer, then the readout's dropout if there is any."""


class DSTSHead(ReadoutHead):
    """Dynamic spatio-temporal specialization on the feature map of a backbone.

    `logits = classifier(pool(X + module(X)))`, each layer of the module giving
    `Z'_a = fusion_a(relu(bn(S_a((1 - b_a) X))) + relu(bn(T_a(b_a X))))` of the activated neuron a.

    Args:
        in_channels: C of the feature map, >= 1.
        num_classes: K >= 1.
        num_neurons: N >= 1 neurons per layer.
        num_layers: L >= 0; with 0 the head is a linear classifier on the pooled map.
        width: Channels inside the module at most, projected from C and back, where C is not below
            it; None (paper) for all C. Deviation: the paper's model size needs it (or a
            bottleneck), its text names neither.
        bottleneck: M channels between each neuron's own operators `[M, C]` and its fusion `[C, M]`,
            with gates over all C channels; the paper's N_out is M then. It excludes `width`, which
            has all neurons read and write the same few directions. None for M = C.
        synapse: False runs all neurons and averages their outputs (Table 4).
        specialization: "gated" (paper), "fixed" halves of the channels, or one "conv3d" per
            neuron (Table 3); or "ungated", both operators over all channels.
        temporal_taps: Time steps that a temporal operator spans, odd; 3 in the paper.
        impulse: "sum" (paper), "mean" or "standardized"; `impulse_spread` scales the last.
        routing_gradient: "dense" straight-through over all neurons (paper) or "selected" only.
        norm_statistics: Of a neuron's "routed" samples, of the "layer" (all samples, each from its
            own neuron), or of the whole "batch" at every neuron (dense only).
        impulse_gradient: Whether the routing's gradient passes through the impulses into the "map"
            and what made it (paper), or stops at the scoring "kernel".
        shared_neuron: A neuron's kernels and gate logits are those of one neuron common to its
            layer plus `own_scale` times its own, kernels from zero. Deviation: off in the paper.
        common_neuron: Each layer has one more neuron that always runs; the chosen one's output is
            added to its, fusion from zero. Deviation: off in the paper.
        layer_residual: Adds a layer's input to its output. Deviation: off in the paper.
        skip: The connection around the module.
        zero_start: The module's last projection (or, without width, a gain per channel) starts at
            zero, so that the first logits are those of the classifier on X. Deviation: off in the
            paper.
        temperature: tau of the Gumbel-softmax; `gumbel_scale` and `gate_noise_scale` scale the
            noise of training (paper: 1); `gate_init_std` spreads the first gate logits.
        readout: "average" over positions (paper), or "attentive": `AttentivePooler`, of
            `readout_depth` blocks and `readout_heads` heads, on `readout_width` channels, with
            `readout_positions` told where each token stands. Deviation: averages in the paper.
        readout_dropout: Share of the classifier's inputs that a training pass drops.

    Defaults are those of `HeadSettings`; `DSTSHead.paper` has the paper's.

    Raises:
        ValueError: An argument is out of range or two exclude each other.

    Examples:
        >>> head = DSTSHead(8, 3, num_neurons=2, num_layers=1, width=4).eval()
        >>> head(torch.zeros(4, 8, 2, 3, 3)).shape
        torch.Size([4, 3])
        >>> head.routing(torch.zeros(4, 8, 2, 3, 3)).shape  # [B, L]
        torch.Size([4, 1])
        >>> sorted(head.upstream_parameters())
        ['layers.0.gate_logits', 'layers.0.scoring_kernel']
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_neurons: int = 10,
        num_layers: int = 3,
        width: int | None = 32,
        bottleneck: int | None = None,
        synapse: bool = True,
        specialization: Specialization = "gated",
        temporal_taps: int = 3,
        impulse: ImpulseKind = "standardized",
        impulse_spread: float = 20.0,
        routing_gradient: RoutingGradient = "selected",
        norm_statistics: NormStatistics = "routed",
        impulse_gradient: ImpulseGradient = "map",
        shared_neuron: bool = False,
        own_scale: float = 1.0,
        common_neuron: bool = False,
        layer_residual: bool = True,
        skip: bool = True,
        zero_start: bool = True,
        temperature: float = 1.0,
        gumbel_scale: float = 1.0,
        gate_noise_scale: float = 1.0,
        gate_init_std: float = 0.01,
        readout: Readout = "average",
        readout_depth: int = 1,
        readout_heads: int = 8,
        readout_width: int | None = None,
        readout_positions: bool = False,
        readout_dropout: float = 0.0,
    ) -> None:
        given = {
            name: value for name, value in locals().items() if name in HeadSettings.model_fields
        }
        super().__init__()
        try:
            options = HeadSettings(**given)
        except ValueError as error:
            fault = error.errors()[0]  # type: ignore[attr-defined]  # pydantic's, or its stand-in's
            expected = fault["msg"].removeprefix("Input should be ")
            raise ValueError(f"{fault['loc'][0]}={fault['input']!r}; expected {expected}") from None
        self._assemble(in_channels, num_classes, options)

    @classmethod
    def paper(cls, in_channels: int, num_classes: int, **options: Any) -> Self:
        """The head as the paper's text has it; `options` as for the class.

        Examples:
            >>> DSTSHead.paper(8, 3, num_neurons=2).config["impulse"]
            'sum'
        """
        return cls(in_channels, num_classes, **PAPER | options)

    @classmethod
    def from_settings(cls, in_channels: int, num_classes: int, options: HeadSettings) -> Self:
        """The head of a section of settings.

        Raises:
            ValueError: Two options exclude each other, or do not fit `in_channels`.
        """
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head._assemble(in_channels, num_classes, options)
        return head

    def _assemble(self, in_channels: int, num_classes: int, options: HeadSettings) -> None:
        _check_options(in_channels, num_classes, options)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.options = options
        self.layer_residual = options.layer_residual
        self.skip = options.skip
        channels = in_channels if options.width is None else min(options.width, in_channels)
        self.layers = nn.ModuleList(DSTSLayer(channels, options) for _ in range(options.num_layers))
        fits = options.width is not None and options.width <= in_channels
        projects = fits and options.num_layers > 0
        self.project_in = nn.Linear(in_channels, channels, bias=False) if projects else None
        self.project_out = nn.Linear(channels, in_channels, bias=False) if projects else None
        self.register_parameter("output_gain", None)
        if options.zero_start and self.project_out is not None:
            nn.init.zeros_(self.project_out.weight)
        elif options.zero_start and options.num_layers > 0:
            self.output_gain = nn.Parameter(torch.zeros(in_channels))
        self._add_readout(in_channels, num_classes, **readout_options(options))

    @property
    def routes(self) -> bool:
        """Whether a sample's neurons are chosen: there are layers, of which not all neurons run."""
        return self.options.num_layers > 0 and self.options.synapse

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this head again, as plain values."""
        options = self.options.model_dump(exclude=NOT_OF_DSTS)
        return {"in_channels": self.in_channels, "num_classes": self.num_classes} | options

    def forward(
        self,
        x: Tensor,
        noise: HeadNoise | None = None,
        *,
        update_statistics: bool = True,
        first_order: bool = False,
        by_upstream: bool = False,
        with_records: bool = False,
    ) -> Any:
        """Class logits.

        Args:
            x: `[B, C, T, H, W]`.
            noise: Of `draw_noise`, used in training mode; None draws from torch's global
                generator. Ignored in evaluation mode.
            update_statistics: Whether running statistics move in training mode.
            first_order: A promise that gradients are not differentiated again; it makes
                the dense estimator several times cheaper.
            by_upstream: A promise that a gradient whose graph is kept is differentiated by upstream
                parameters alone, as UDL does.
            with_records: Also return what each layer decided.

        Returns:
            Logits `[B, K]`, or `(logits, records)` with a `LayerRecord` per layer.

        Raises:
            ValueError: x has another rank or channel count, or , in evaluation mode, holds NaN.
        """
        self.check_input(x)
        draws = self._noise_for(x, noise)
        hidden = start = self.enter(x)
        end = None
        how = Pass(
            update_statistics, first_order=first_order, by_upstream=by_upstream, is_first=True
        )
        records: list[LayerRecord] = []
        last = len(self.layers) - 1
        for number, layer in enumerate(self.dsts_layers()):
            pools = number == last and self.pooler is None
            output, record = layer(hidden, draws[number], how._replace(pool=pools))
            records.append(record)
            how = how._replace(is_first=False)
            if self.layer_residual:
                output = output + (_average(hidden) if pools else hidden)
            hidden = end = output
        vector = self.read(x, start, end, first_order=first_order or not self.training)
        logits = self.classify(vector, draws)
        return (logits, tuple(records)) if with_records else logits

    def has_fixed_launches(self, x: Tensor) -> bool:
        """Whether a pass over maps `x [B, C, T, H, W]` launches the same whatever the routing."""
        num_positions = x.shape[2] * x.shape[3] * x.shape[4]
        return all(
            takes_fixed_form(x.device, layer.channels, layer.inner_channels, num_positions)
            for layer in self.dsts_layers()
        )

    def layer_input(self, x: Tensor, position: int) -> Tensor:
        """What layer `position` sees of maps `x [B, C, T, H, W]`: `[B, T, H, W, width or C]`."""
        hidden = self.enter(x)
        draws = self._noise_for(x, None)[:position]
        for layer, draw in zip(list(self.dsts_layers())[:position], draws, strict=True):
            output, _ = layer(hidden, draw, Pass())
            hidden = hidden + output if self.layer_residual else output
        return hidden

    def enter(self, x: Tensor) -> Tensor:
        """`[B, C, T, H, W]` as channels-last `[B, T, H, W, width or C]`."""
        if self.project_in is None:
            return x.movedim(1, -1).contiguous()
        tokens = torch.matmul(self.project_in.weight, x.flatten(2))
        if x.device.type == "cpu":  # positions outermost, as convolutions in groups take them
            tokens = tokens.permute(2, 0, 1).contiguous()
            return tokens.view(*x.shape[2:], x.shape[0], -1).permute(3, 0, 1, 2, 4)
        return tokens.transpose(1, 2).reshape(x.shape[0], *x.shape[2:], -1)

    def read(
        self, x: Tensor, start: Tensor, end: Tensor | None, *, first_order: bool = True
    ) -> Tensor:
        """What the classifier reads `[B, C]`: skip connection and module, averaged or attended to.

        Args:
            x: `[B, C, T, H, W]`.
            start: What the first layer saw, `[B, T, H, W, width or C]`.
            end: What the last one left; averaged, `[B, width or C]`, unless the readout attends.
                None without layers.
        """
        if self.pooler is None:
            start = _average(start) if self._counts_from_start else start
            return self.leave(x.mean(dim=(2, 3, 4)), start, end)
        start = start.flatten(1, 3)
        tokens = tokens_of(x) if self.project_in is not None else start
        if end is not None:
            tokens = self.leave(tokens, start, end.flatten(1, 3))
        return self.pooler(tokens, grid_of(x), first_order=first_order)

    @property
    def _counts_from_start(self) -> bool:
        """Choice: with residual layers and no width, the module's output is what its layers added,
        since the skip connection already carries X."""
        return self.layer_residual and self.project_out is None

    def leave(self, x: Tensor, start: Tensor, end: Tensor | None) -> Tensor:
        """The skip connection plus what the module made: `[..., C]`.

        Args:
            x: `[..., C]`, positions or their average.
            start, end: Before and after the layers, `[..., width or C]`; end None without layers.
        """
        if end is None:
            return x
        if x is start and self._counts_from_start and self.output_gain is None and self.skip:
            return end
        made = end - start if self._counts_from_start else end
        if self.project_out is not None:
            made = self.project_out(made)
        elif self.output_gain is not None:
            made = made * self.output_gain
        return x + made if self.skip else made

    def _noise_for(self, x: Tensor, noise: HeadNoise | None) -> Sequence[Any]:
        if not self.training:
            return [None] * len(self.layers)
        return self.draw_noise(x.shape[0]) if noise is None else noise

    def draw_noise(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[LayerNoise | ReadoutNoise, ...]:
        """Draw what is random in one training pass over `num_samples` samples."""
        reference = self.classifier.weight
        device = reference.device
        dtype = reference.dtype
        of_layers = tuple(
            draw_layer_noise(
                num_samples,
                layer.num_neurons,
                layer.channels,
                has_common=layer.common is not None,
                generator=generator,
                device=device,
                dtype=dtype,
            )
            for layer in self.dsts_layers()
        )
        return of_layers + self.draw_readout_noise(num_samples, generator)

    @torch.no_grad()
    def routing(self, x: Tensor) -> Tensor:
        """Chosen neuron per layer `[B, L]`: sampled in training mode, argmax in evaluation mode.

        Raises:
            ValueError: The head has no synapse, so all neurons run and none is chosen.
        """
        if any(not layer.options.synapse for layer in self.dsts_layers()):
            raise ValueError("synapse=False: every neuron runs on every sample; nothing is routed")
        if not self.layers:
            return torch.empty(x.shape[0], 0, dtype=torch.int64, device=x.device)
        _, records = self(x, update_statistics=False, with_records=True)
        return torch.stack([record.choice for record in records], dim=1)

    def upstream_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that decide: scoring kernels and gate logits, by name (paper 3.3).

        The scoring kernel of a lone neuron decides nothing and is none of them: where there are no
        gates either, UDL has nothing to learn and its steps are ordinary ones.
        """
        return {name: p for name, p in self.named_parameters() if self._is_upstream(name)}

    def downstream_parameters(self) -> dict[str, nn.Parameter]:
        """All other parameters, by name."""
        return {name: p for name, p in self.named_parameters() if not self._is_upstream(name)}

    def _is_upstream(self, name: str) -> bool:
        last = name.rsplit(".", 1)[-1]
        decides = last != "scoring_kernel" or self.options.num_neurons > 1
        return last in UPSTREAM_NAMES and decides

    def dsts_layers(self) -> Iterator[DSTSLayer]:
        """The layers, typed."""
        for layer in self.layers:
            assert isinstance(layer, DSTSLayer)
            yield layer

    def check_input(self, x: Tensor) -> None:
        """Refuse maps of another rank or channel count; warn where T = 1.

        In evaluation mode also maps with NaN. A training looks for them where waiting costs
        nothing, and else at its loss.
        """
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"feature map has shape {tuple(x.shape)}; expected [B, C, T, H, W] with "
                f"C = {self.in_channels} (in_channels)"
            )
        if x.shape[2] == 1 and self.layers:
            warnings.warn(
                "feature map has T = 1: temporal operators see a single step beside zero padding, "
                "so specialization over time means nothing; tap the backbone before it pools time",
                stacklevel=3,
            )
        if not torch.compiler.is_compiling() and not self.training:
            self.check_values(x)

    def check_values(self, x: Tensor) -> None:
        """Refuse maps that hold NaN or infinity: the host waits for the answer."""
        finite = torch.isfinite(x.sum(dim=(1, 2, 3, 4), dtype=torch.float32))
        if not finite.all():
            raise ValueError(
                f"feature map of sample {int(finite.logical_not().nonzero()[0, 0])} of the "
                "batch holds NaN or infinity; check the feature store (`verify`)"
            )


def _check_options(in_channels: int, num_classes: int, options: HeadSettings) -> None:
    """Refuse what no head can have: sizes, and options that exclude each other."""
    for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{name}={value}; expected at least 1")
    if options.bottleneck is not None and options.width is not None:
        raise ValueError(
            f"bottleneck={options.bottleneck} and width={options.width} are two readings of the "
            "paper's size; set one of them to None (null)"
        )
    if options.bottleneck is not None and options.bottleneck > in_channels:
        raise ValueError(
            f"bottleneck={options.bottleneck} is above in_channels={in_channels}; use a smaller one"
        )
    if options.common_neuron and options.specialization == "conv3d" and not options.bottleneck:
        raise ValueError(
            "common_neuron=True adds neurons by their fusions, and conv3d has one only from "
            "a bottleneck; set bottleneck, or another specialization"
        )
    if options.zero_start and not options.skip:
        raise ValueError("zero_start=True with skip=False would ignore the input; use skip")
    selected = options.synapse and options.routing_gradient == "selected"
    if options.norm_statistics == "batch" and selected:
        raise ValueError(
            "norm_statistics='batch' needs the outputs of all neurons, which "
            "routing_gradient='selected' does not compute; use 'routed' or 'dense'"
        )


def takes_over(options: HeadSettings, own: OwnHead) -> bool:
    """Whether a head of these options starts from the backbone's own, whose readout is like its."""
    if options.kind == "tqn":  # its classifier tells attributes apart
        return False
    if not options.take_over_classifier or own.pooler is None:
        return options.take_over_classifier and options.readout == "average"
    names = ("readout_depth", "readout_heads", "readout_width", "readout_positions")
    is_alike = all(own.config[name] == getattr(options, name) for name in names)
    return options.readout == "attentive" and is_alike


def readout_options(options: HeadSettings, *, with_kind: bool = True) -> dict[str, Any]:
    """The arguments of a `ReadoutHead`, of a section of settings; `readout` where `with_kind`."""
    names = set(READOUT_NAMES) if with_kind else set(READOUT_NAMES) - {"readout"}
    return options.model_dump(include=names)


def _average(tokens: Tensor) -> Tensor:
    return tokens.mean(dim=(1, 2, 3))


# ---- the classifier of the backbone --------------------------------------------------------------


@torch.no_grad()
def take_over(head: ReadoutHead, own: OwnHead) -> None:
    """Copy the backbone's own readout and classifier into `head`, whose readout is built alike.

    Raises:
        CheckpointError: Another number of classes or channels.
    """
    if own.pooler is not None:
        assert head.pooler is not None
        head.pooler.load_state_dict(own.pooler.state_dict())
    take_over_classifier(head, own.classifier.weight, own.classifier.bias)


@torch.no_grad()
def take_over_classifier(head: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Copy a classifier into `head.classifier`.

    Args:
        weight: `[K, C]`.
        bias: `[K]`.

    Raises:
        CheckpointError: Another number of classes or channels.
    """
    classifier = head.classifier
    assert isinstance(classifier, nn.Linear)
    expected = (tuple(classifier.weight.shape), tuple(classifier.bias.shape))
    found = (tuple(weight.shape), tuple(bias.shape))
    if found != expected:
        raise CheckpointError(
            f"backbone's classifier has weight {found[0]} and bias {found[1]}, the head expects "
            f"{expected[0]} and {expected[1]}; use a backbone trained on these classes, or set "
            "head.take_over_classifier to false"
        )
    classifier.weight.copy_(weight)
    classifier.bias.copy_(bias)
