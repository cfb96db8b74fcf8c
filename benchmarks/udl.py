"""Cost of a UDL iteration against a plain step: `python -m benchmarks.udl`.

Both update all parameters with AdamW; UDL takes a second batch beside. Every way to compute its
product is measured, for both estimators, and their meta-gradients are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.head import build, new_maps
from benchmarks.launches import count_launches, describe
from benchmarks.measure import measure, print_table
from dsts_pipeline.base.settings import Method, TrainSettings, UdlSettings
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.head.neurons import force_form
from dsts_pipeline.learn import meta_gradient
from dsts_pipeline.learn.graphs import IterationGraphs
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.processes import keep_freed_memory
from dsts_pipeline.learn.steps import Objective, Stepper

METHODS: tuple[Method, ...] = ("exact", "forward_over_reverse", "finite_difference")


def new_batch(arguments: argparse.Namespace, first_row: int) -> FeatureBatch:
    """A random batch with rows of its own."""
    maps = new_maps(arguments, arguments.batch)
    labels = torch.randint(0, 48, (arguments.batch,), device=maps.device)
    return FeatureBatch(maps, labels, torch.arange(arguments.batch) + first_row)


def new_stepper(
    head: DSTSHead,
    method: Method = "exact",
    *,
    rate: float = 1e-9,
    precision: Any = "highest",
    generator: torch.Generator | None = None,
    graphs: IterationGraphs | None = None,
) -> Stepper:
    """AdamW for u and d, by default at a rate too small to change anything in a benchmark."""
    how = TrainSettings(weight_decay=0.0, schedule="constant", matmul_precision=precision)

    def optimizer(parameters: dict) -> ScheduledOptimizer:
        return ScheduledOptimizer(parameters, dict.fromkeys(parameters, rate), how)

    keep_freed_memory()  # as a training does
    u, d = head.upstream_parameters(), head.downstream_parameters()
    return Stepper(
        Objective(head, how),
        optimizer(u),
        optimizer(d),
        UdlSettings(method=method),
        generator=generator,
        graphs=graphs,
    )


def iterations(arguments: argparse.Namespace, estimator: str) -> list[tuple]:
    """UDL's iteration in every method over a plain step on the same batch."""
    head = build(arguments, routing_gradient=estimator)
    train, val = new_batch(arguments, 0), new_batch(arguments, arguments.batch)

    def udl(method: Method) -> Callable[[], object]:
        stepper = new_stepper(head, method)
        return lambda: stepper.udl_step(train, val, inner_lr=0.01)

    plain = new_stepper(head, "exact")
    ways: dict[str, Callable[[], object]] = {"plain": lambda: plain.plain_step(train)}
    ways |= {method: udl(method) for method in METHODS}
    result = measure(ways, num_rounds=arguments.rounds, device=train.maps.device)
    return [
        (
            f"UDL, {estimator}, {method}",
            f"{result.milliseconds[method]:.1f} / {result.milliseconds['plain']:.1f}",
            "plain step",
            result.ratio(method, "plain"),
            4.0,
            f"{result.peak_mib[method]:.0f} / {result.peak_mib['plain']:.0f}",
        )
        for method in METHODS
    ]


def print_launches(arguments: argparse.Namespace, estimator: str) -> None:
    """What a plain step and a UDL iteration launch in the form that a GPU runs."""
    head = build(arguments, routing_gradient=estimator)
    stepper = new_stepper(head, "exact")
    train, val = new_batch(arguments, 0), new_batch(arguments, arguments.batch)
    ways = {
        "plain step": lambda: stepper.plain_step(train),
        "UDL iteration": lambda: stepper.udl_step(train, val, inner_lr=0.01),
    }
    with force_form("columns"):
        for name, run in ways.items():
            run()  # makes the optimisers' state
            print(f"{name}, {estimator}: {describe(count_launches(run))}")


def print_agreement(arguments: argparse.Namespace, estimator: str) -> None:
    """How far each method's meta-gradient is from the exact one, in float64."""
    head = build(arguments, routing_gradient=estimator).double()
    objective = Objective(head)
    u, d = head.upstream_parameters(), head.downstream_parameters()
    draws = []
    for first_row in (0, arguments.batch):
        batch = new_batch(arguments, first_row)
        draws.append(objective.draw(FeatureBatch(batch.maps.double(), batch.labels, batch.rows)))
    found = {
        method: torch.cat(
            [
                value.flatten()
                for value in meta_gradient(objective, u, d, *draws, 0.01, method=method).values()
            ]
        )
        for method in METHODS
    }
    exact = found["exact"]
    for method in METHODS[1:]:
        error = float((found[method] - exact).norm() / exact.norm())
        cosine = float(torch.cosine_similarity(found[method], exact, dim=0))
        print(f"{estimator}, {method}: relative error {error:.1e}, cosine {cosine:.6f}")


def main() -> None:
    """Print the ratios and the agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--extent", type=int, nargs=3, default=(8, 4, 4), metavar=("T", "H", "W"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    title = f"UDL iteration, width {arguments.width}, batch {arguments.batch}, {arguments.device}"
    print_table(
        title, [row for kind in ("selected", "dense") for row in iterations(arguments, kind)]
    )
    for kind in ("selected", "dense"):
        print_launches(arguments, kind)
    for kind in ("selected", "dense"):
        print_agreement(arguments, kind)


if __name__ == "__main__":
    main()
