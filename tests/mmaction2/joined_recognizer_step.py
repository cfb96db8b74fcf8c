"""Steps of one of two processes, or of one with the joined batch; run by test_mmaction2_step.py.

python -m tests.mmaction2.joined_recognizer_step RANK WORLD_SIZE RENDEZVOUS_FILE OUTPUT
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.mmaction2.loop import RecognizerBatch, RecognizerStep
from tests.mmaction2.recognizers import batch_of, build


def share_of(seed, rank, world_size):
    """This process's half of the batch `seed`."""
    whole = batch_of(seed, num_clips=8)
    places = slice(4 * rank, 4 * rank + 4) if world_size > 1 else slice(None)
    return RecognizerBatch(whole.inputs[places], whole.data_samples[places])


def two_steps(rank, world_size):
    """Parameters and the head's buffers after a step of each kind."""
    from mmengine.optim import OptimWrapper

    # The backbone's norms are each process's own, so here they keep their statistics.
    recognizer = build(backbone={"norm_eval": True}, balance_weight=0.1)
    processes = Processes(rank, world_size)
    if world_size > 1:
        processes.adopt(recognizer.cls_head)
    wrapper = OptimWrapper(torch.optim.SGD(recognizer.parameters(), lr=0.1, momentum=0.9))
    for simulate_backbone in (False, True):
        step = RecognizerStep(
            recognizer,
            simulate_backbone=simulate_backbone,
            processes=processes,
            generator=torch.Generator().manual_seed(5),
        )
        step(wrapper, share_of(1, rank, world_size), share_of(2, rank, world_size), 0.2)
    return {name: value.clone() for name, value in recognizer.state_dict().items()}


if __name__ == "__main__":
    rank, world_size = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world_size
    )
    save_file(two_steps(rank, world_size), sys.argv[4])
    dist.destroy_process_group()
