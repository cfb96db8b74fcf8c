"""Use of each neuron beside the shares of its channels that go to space and to time."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dsts_pipeline.report.plots.svg import Drawing, line, rectangle, text

WIDTH, ROW, TOP = 340, 22, 52
USE_LEFT, USE_WIDTH = 24, 118
GATE_LEFT, GATE_WIDTH = 196, 104


def neuron_panel(
    layer: int, usage: Sequence[float], temporal_share: Sequence[float] | None
) -> Drawing:
    """One layer: a row per neuron with its share of clips and of temporal channels (0..1)."""
    height = TOP + len(usage) * ROW + 8
    parts = [
        text(0, 14, f"Layer {layer + 1}", "panel-title"),
        text(USE_LEFT, 38, "clips", "note"),
    ]
    if temporal_share is not None:
        parts.append(text(GATE_LEFT, 38, "space", "note space"))
        end = GATE_LEFT + GATE_WIDTH
        parts.append(text(end, 38, "time", "note time", text_anchor="end"))
    even = USE_LEFT + USE_WIDTH / len(usage) / max(*usage, 1e-9)  # at most the full width
    parts.append(line(even, TOP - 6, even, height - 6, "reference"))
    for neuron, share in enumerate(usage):
        y = TOP + neuron * ROW
        parts += _use_row(layer, neuron, share, share / max(*usage, 1e-9), y)
        if temporal_share is not None:
            parts += _gate_row(layer, neuron, temporal_share[neuron], y)
    spoken = "; ".join(f"neuron {i + 1} {share:.0%}" for i, share in enumerate(usage))
    return Drawing(WIDTH, height, f"Layer {layer + 1}, share of clips: {spoken}.", tuple(parts))


def _use_row(layer: int, neuron: int, share: float, scaled: float, y: float) -> list[Markup]:
    tip = f"layer {layer + 1}, neuron {neuron + 1}: chosen for {share:.1%} of clips"
    width = USE_WIDTH * scaled
    value = f"{100 * share:.0f} %" if share >= 0.005 else "<1 %" if share else "dead"
    return [
        text(USE_LEFT - 8, y + 12, str(neuron + 1), "tick", text_anchor="end"),
        rectangle(USE_LEFT, y + 2, max(width, 0.5), 13, "bar use", data_tip=tip),
        text(USE_LEFT + width + 5, y + 12, value, "value" if share else "value dead"),
    ]


def _gate_row(layer: int, neuron: int, share: float, y: float) -> list[Markup]:
    spatial = GATE_WIDTH * (1 - share)
    tip = (
        f"layer {layer + 1}, neuron {neuron + 1}: {1 - share:.0%} of channels to the spatial, "
        f"{share:.0%} to the temporal operator"
    )
    return [
        rectangle(GATE_LEFT, y + 2, spatial, 13, "bar space", data_tip=tip),
        rectangle(GATE_LEFT + spatial, y + 2, GATE_WIDTH - spatial, 13, "bar time", data_tip=tip),
        text(WIDTH, y + 12, f"{100 * share:.0f} %", "value", text_anchor="end"),
    ]
