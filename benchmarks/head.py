"""Speed of the DSTS head: `python -m benchmarks.head`.

Three comparisons, each side by side in one run: test time with N = 10 against N = 1, the dense
training step against the text done literally, the selected-only step against the dense one. The
literal head is the float64 reference of the tests, run in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.launches import count_launches, describe
from benchmarks.measure import measure, print_table
from dsts_pipeline.head import AttentiveProbe, DSTSHead, compile_head
from dsts_pipeline.head.neurons import force_form
from tests.reference.literal_head import LiteralHead


def build(arguments: argparse.Namespace, **options: object) -> DSTSHead:
    """A head of the benchmark's size with routing that is spread over its neurons."""
    torch.manual_seed(0)
    defaults = {"width": arguments.width, "impulse": "standardized", "layer_residual": True}
    head = DSTSHead.paper(arguments.channels, 48, **(defaults | options))
    return head.to(arguments.device)


def new_maps(arguments: argparse.Namespace, samples: int) -> Tensor:
    """Random maps of the benchmark's extent."""
    shape = (samples, arguments.channels, *arguments.extent)
    return torch.randn(shape, device=arguments.device)


def test_time(arguments: argparse.Namespace, samples: int) -> list[tuple]:
    """Evaluation of one batch, N = 10 against N = 1, both ways to evaluate."""
    maps = new_maps(arguments, samples)
    heads = {n: build(arguments, num_neurons=n).eval() for n in (1, 10)}
    for head in heads.values():
        _settle_gates(head)
    compiled = {n: compile_head(head) for n, head in heads.items()}
    rows, num_rounds = [], arguments.rounds * (10 if samples == 1 else 2)
    for kind, group in (("head", heads), ("compiled head", compiled)):
        ways = {f"N = {n}": _evaluation(one, maps) for n, one in group.items()}
        result = measure(ways, num_rounds=num_rounds, device=maps.device)
        goal = 1.15 if samples == 1 else 1.3
        times = " / ".join(f"{result.milliseconds[name]:.2f}" for name in ("N = 10", "N = 1"))
        memory = f"{result.peak_mib['N = 10']:.0f}"
        what = f"{kind}, test time, N = 10, batch {samples}"
        rows.append((what, times, "N = 1", result.ratio("N = 10", "N = 1"), goal, memory))
    ways = {"head": _evaluation(heads[10], maps), "compiled": _evaluation(compiled[10], maps)}
    result = measure(ways, num_rounds=num_rounds, device=maps.device)
    times = f"{result.milliseconds['compiled']:.2f} / {result.milliseconds['head']:.2f}"
    what, memory = f"compiled head, N = 10, batch {samples}", f"{result.peak_mib['compiled']:.0f}"
    return [*rows, (what, times, "head", result.ratio("compiled", "head"), 1.0, memory)]


def training(arguments: argparse.Namespace) -> list[tuple]:
    """Forward and backward of one batch: literal, dense, selected."""
    maps = new_maps(arguments, arguments.batch)
    labels = torch.randint(0, 48, (arguments.batch,), device=maps.device)
    dense = build(arguments, routing_gradient="dense")
    selected = build(arguments, routing_gradient="selected")
    noise = dense.draw_noise(arguments.batch)

    def fast(head: DSTSHead) -> Callable[[], object]:
        parameters = list(head.parameters())

        def step() -> object:
            loss = F.cross_entropy(head(maps, noise, first_order=True), labels)
            return torch.autograd.grad(loss, parameters)

        return step

    tensors = {name: value.detach().clone() for name, value in dense.state_dict().items()}
    leaves = {name: tensors[name].requires_grad_() for name, _ in dense.named_parameters()}
    literal = LiteralHead(dense.config, tensors)

    def literal_step() -> object:
        loss = F.cross_entropy(literal.forward(maps, noise, training=True), labels)
        return torch.autograd.grad(loss, list(leaves.values()))

    ways = {"literal": literal_step, "dense": fast(dense), "selected": fast(selected)}
    result = measure(ways, num_rounds=arguments.rounds, device=maps.device)
    return [
        (
            f"{name} training step, N = 10, batch {arguments.batch}",
            f"{result.milliseconds[name]:.1f} / {result.milliseconds[other]:.1f}",
            other,
            result.ratio(name, other),
            0.25,
            f"{result.peak_mib[name]:.0f} / {result.peak_mib[other]:.0f}",
        )
        for name, other in (("dense", "literal"), ("selected", "dense"))
    ]


def own_operators(arguments: argparse.Namespace) -> list[tuple]:
    """A training step of own operators, against a shared width, and of an attentive readout.

    The goal of the former is the ratio of products, of the latter the time of its two parts.
    """
    maps = new_maps(arguments, arguments.batch)
    labels = torch.randint(0, 48, (arguments.batch,), device=maps.device)
    of_one = {"num_layers": 1, "routing_gradient": "selected", "specialization": "fixed"}
    c = arguments.channels
    narrow = max(1, c // 16)
    wide = max(2, c // 8)
    heads = {"width": build(arguments, **of_one)}
    for m in (narrow, wide):
        heads[f"bottleneck {m}"] = build(arguments, width=None, bottleneck=m, **of_one)
    attentive = build(arguments, width=None, bottleneck=narrow, readout="attentive", **of_one)
    heads[f"bottleneck {narrow}, attentive"] = attentive
    heads["attentive probe"] = AttentiveProbe(c, 48).to(arguments.device)

    def step(head: torch.nn.Module) -> Callable[[], object]:
        parameters = list(head.parameters())
        noise = head.draw_noise(arguments.batch)
        how = {"first_order": True} if isinstance(head, DSTSHead) else {}

        def run() -> object:
            loss = F.cross_entropy(head(maps, noise, **how), labels)
            return torch.autograd.grad(loss, parameters, allow_unused=True)

        return run

    ways = {name: step(head) for name, head in heads.items()}
    result = measure(ways, num_rounds=arguments.rounds, device=maps.device)
    w = arguments.width
    # Forward, gradients by kernels, and by inputs where something trained made them.
    of_width = 2 * c * w + 3 * 12 * w * w
    goals = {f"bottleneck {m}": 2 * 12 * c * m / of_width for m in (narrow, wide)}
    parts = f"bottleneck {narrow}", "attentive probe"
    goals[f"bottleneck {narrow}, attentive"] = sum(result.ratio(part, "width") for part in parts)
    return [
        (
            f"{name}, one layer, batch {arguments.batch}",
            f"{result.milliseconds[name]:.1f} / {result.milliseconds['width']:.1f}",
            f"width {w}",
            result.ratio(name, "width"),
            round(goal, 2),
            f"{result.peak_mib[name]:.0f} / {result.peak_mib['width']:.0f}",
        )
        for name, goal in goals.items()
    ]


def print_launches(arguments: argparse.Namespace) -> None:
    """What a pass at test time launches in the form that a GPU runs, for ten neurons and one."""
    maps = new_maps(arguments, arguments.batch)
    with force_form("columns"):
        for num_neurons in (10, 1):
            head = build(arguments, num_neurons=num_neurons).eval()
            _settle_gates(head)
            for kind, one in (("head", head), ("compiled head", compile_head(head))):
                counts = describe(count_launches(_evaluation(one, maps)))
                print(f"{kind}, test time, N = {num_neurons}: {counts}")


@torch.no_grad()
def _settle_gates(head: DSTSHead) -> None:
    """Gates as after training: about half of the channels each way."""
    for layer in head.dsts_layers():
        layer.gate_logits.normal_()


def _evaluation(head: torch.nn.Module, maps: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return head(maps)

    return run


def main() -> None:
    """Print the ratios that ARCHITECTURE's speed table asks of the head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--extent", type=int, nargs=3, default=(8, 4, 4), metavar=("T", "H", "W"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    extent = "x".join(map(str, arguments.extent))
    where = f"{arguments.device}, {torch.get_num_threads()} threads"
    title = f"DSTS head, {arguments.channels}x{extent}, width {arguments.width}, L = 3, {where}"
    rows = [*test_time(arguments, 1), *test_time(arguments, 32), *training(arguments)]
    print_table(title, rows)
    title = "Own operators, an attentive readout (training step, N = 10)"
    print_table(title, own_operators(arguments))
    print_launches(arguments)


if __name__ == "__main__":
    main()
