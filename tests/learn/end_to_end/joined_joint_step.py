"""Joint steps of one of several processes, or of one with the joined batch; run by a test.

python -m tests.learn.end_to_end.joined_joint_step RANK WORLD_SIZE RENDEZVOUS_FILE OUTPUT
"""

from __future__ import annotations

import sys

import torch.distributed as dist
from safetensors.torch import save_file

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.learn.processes import Processes
from tests.learn.end_to_end.tiny import new_batch, new_model, stepper_of

SAMPLES = 6  # of the joined batch
CASES = {
    "plain": {},
    "head": {"inner_step": "head"},
    "all": {"inner_step": "all"},
    "all recomputed": {"inner_step": "all"},
}


def share_of(seed, first_row, processes):
    batch = new_batch(seed, first_row, SAMPLES)
    own = SAMPLES // processes.world_size
    place = slice(own * processes.rank, own * (processes.rank + 1))
    return FeatureBatch(batch.maps[place], batch.labels[place], batch.rows[place])


def all_cases(processes):
    """Values of all parameters and buffers after two steps, by case."""
    found = {}
    for case, options in CASES.items():
        model = new_model("house-default", recompute=case.endswith("recomputed"))
        processes.adopt(model)
        stepper = stepper_of(model, 0.05, processes=processes, **options)
        for number in (1, 2):
            train = share_of(number, 0, processes)
            if case == "plain":
                stepper.plain_step(train)
            else:
                stepper.udl_step(train, share_of(10 + number, 100, processes), inner_lr=0.2)
        state = model.state_dict()
        found |= {f"{case}/{name}": v.clone().contiguous() for name, v in state.items()}
    return found


if __name__ == "__main__":
    rank, world_size = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world_size
    )
    save_file(all_cases(Processes(rank, world_size)), sys.argv[4])
    dist.destroy_process_group()
