"""Steps of one of several processes, or of one with the joined batch; run by test_distributed.py.

python -m tests.learn.joined_step RANK WORLD_SIZE RENDEZVOUS_FILE OUTPUT
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from dsts_pipeline.base.settings import UdlSettings
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.steps import Objective, Stepper
from tests.learn.recipes import sgd
from tests.reference.variants import VARIANTS, build, sample_input

SAMPLES = 8  # of the joined batch
NAMES = [name for name, config in VARIANTS.items() if config.get("num_layers") != 0]
OTHERS = {
    "paper": {"method": "forward_over_reverse"},
    "house-default": {"method": "forward_over_reverse"},
    "selected": {"balance_weight": 0.5},
    "standardized": {"balance_weight": 0.5, "clip_norm": 0.05},
    "width-selected": {"part_size": 2},
    "standardized-selected": {"redraw_noise": True},
}
CASES = {f"{name} {kind}": (name, kind, {}) for name in NAMES for kind in ("udl", "plain")}
CASES |= {f"{name} {options}": (name, "udl", options) for name, options in OTHERS.items()}
del CASES["no-synapse-conv3d udl"], CASES["no-synapse-fixed-width udl"]  # no upstream parameters


def share_of(seed, first_row, processes, part_size):
    """This process's batch; the joined one lists each part of all processes in turn."""
    maps, labels = sample_input(seed, SAMPLES)
    rows = torch.arange(SAMPLES) + first_row
    own = SAMPLES // 2
    size = part_size or own
    if processes.world_size == 1:
        order = torch.arange(SAMPLES).view(2, own).split(size, dim=1)
        place = torch.cat([part.reshape(-1) for part in order])
    else:
        place = torch.arange(own) + own * processes.rank
    return FeatureBatch(maps[place], labels[place], rows[place])


def step_twice(name, kind, options, processes):
    """Values of all parameters and buffers after two steps, and both losses."""
    head, _ = build(name)
    processes.adopt(head)
    options = dict(options)
    part_size = options.pop("part_size", None)
    clip_norm = options.pop("clip_norm", None)
    how = sgd(
        weight_decay=0.01,
        momentum=0.9,
        clip_norm=clip_norm,
        balance_weight=options.pop("balance_weight", 0.0),
        part_size=part_size and part_size * (2 if processes.world_size == 1 else 1),
    )

    def optimizer(parameters):
        return ScheduledOptimizer(parameters, dict.fromkeys(parameters, 0.05), how)

    stepper = Stepper(
        Objective(head, how, processes),
        optimizer(head.upstream_parameters()),
        optimizer(head.downstream_parameters()),
        UdlSettings(**options),
        generator=torch.Generator().manual_seed(5),
    )
    losses = []
    for number in (1, 2):
        train = share_of(number, 0, processes, part_size)
        val = share_of(10 + number, 100, processes, part_size)
        if kind == "udl":
            result = stepper.udl_step(train, val, inner_lr=0.2)
        else:
            result = stepper.plain_step(train)
        losses.append(result.loss)
    return head.state_dict() | {"losses": torch.tensor(losses, dtype=torch.float64)}


def all_cases(processes):
    return {
        f"{case}/{name}": value.clone()
        for case, arguments in CASES.items()
        for name, value in step_twice(*arguments, processes).items()
    }


if __name__ == "__main__":
    rank, world_size = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world_size
    )
    save_file(all_cases(Processes(rank, world_size)), sys.argv[4])
    dist.destroy_process_group()
