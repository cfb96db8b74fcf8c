"""Matrix products alone of a training step: `python -m benchmarks.products`.

What a step would take if columns, norms, ReLUs, copies and routing were free: the same products in
the same shapes, on random matrices that are written nowhere else. Their ratios are floors for
those of `benchmarks.head`, whatever is done about memory traffic, as long as an operator is a
product of columns and kernels. Samples are spread evenly over the neurons.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import measure, print_table

TAPS = {"spatial": 9, "temporal": 3, "fusion": 1}


class Products:
    """Operands of one layer, and the products that each kind of step makes of them."""

    def __init__(self, width: int, num_neurons: int, num_rows: int) -> None:
        self.num_neurons, self.share = num_neurons, -(-num_rows // num_neurons)
        self.columns = {name: torch.randn(num_rows, taps * width) for name, taps in TAPS.items()}
        self.kernels = {name: torch.randn(taps * width, width) for name, taps in TAPS.items()}
        self.joined = {
            name: torch.randn(taps * width, num_neurons * width) for name, taps in TAPS.items()
        }
        self.gradient = torch.randn(num_rows, width)

    def _train(self, name: str, rows: slice) -> list[Tensor]:
        """An operator's output and its two gradients, for some rows."""
        columns, gradient = self.columns[name][rows], self.gradient[rows]
        kernel = self.kernels[name]
        return [columns @ kernel, gradient @ kernel.t(), columns.t() @ gradient]

    def literal(self) -> None:
        """Every neuron on every sample, forward and backward, and its scoring convolution."""
        for _ in range(self.num_neurons):
            for name in (*TAPS, "fusion"):  # a scoring convolution costs what a fusion does
                self._train(name, slice(None))

    def selected(self) -> None:
        """Every neuron on its own samples, forward and backward."""
        for neuron in range(self.num_neurons):
            own = slice(neuron * self.share, (neuron + 1) * self.share)
            for name in TAPS:
                self._train(name, own)

    def dense(self) -> None:
        """`selected`, and all outputs before fusion of all neurons, for the routing's gradient."""
        self.selected()
        for name in ("spatial", "temporal"):
            torch.mm(self.columns[name], self.joined[name])
        torch.mm(self.gradient, self.joined["fusion"])


def main() -> None:
    """Print the floors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--extent", type=int, nargs=3, default=(8, 4, 4), metavar=("T", "H", "W"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    frames, height, width = arguments.extent
    num_rows = arguments.batch * frames * height * width
    products = Products(arguments.width, 10, num_rows)
    ways: dict[str, Callable[[], object]] = {
        "literal": products.literal,
        "dense": products.dense,
        "selected": products.selected,
    }
    result = measure(ways, num_rounds=arguments.rounds, device=torch.device("cpu"))
    rows = [
        (
            f"{name}, products of one layer alone",
            f"{result.milliseconds[name]:.1f} / {result.milliseconds[other]:.1f}",
            other,
            result.ratio(name, other),
            0.25,
            f"{result.peak_mib[name]:.0f} / {result.peak_mib[other]:.0f}",
        )
        for name, other in (("dense", "literal"), ("selected", "dense"))
    ]
    threads = torch.get_num_threads()
    print_table(f"Products alone, width {arguments.width}, N = 10, {threads} threads", rows)


if __name__ == "__main__":
    main()
