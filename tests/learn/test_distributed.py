"""Two processes make the step of one process with the joined batch, in every order of derivative.

Float64, gloo, real processes. Statistics of norms and standardized impulses, the load-balancing
loss, clipping and noise are those of the joined batch.
"""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.head.probes import ConvBlockHead
from dsts_pipeline.learn.processes import ALONE, Processes
from tests.learn.joined_step import CASES, all_cases
from tests.reference.variants import build
from tests.two_processes import run_in_two_processes


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What each of two processes ends with."""
    folder = tmp_path_factory.mktemp("gloo")
    return run_in_two_processes("tests.learn.joined_step", folder)


@pytest.fixture(scope="module")
def of_one():
    return all_cases(ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_joined_batch(case, of_one, of_two):
    names = [name for name in of_one if name.startswith(f"{case}/")]
    assert len(names) > 5
    for name in names:
        for values in of_two:
            torch.testing.assert_close(values[name], of_one[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["paper", "house-default"])
def test_the_compared_steps_move_everything_by_far_more_than_the_tolerance(name, of_one):
    start = build(name)[0].state_dict()
    for key, value in start.items():
        if key.startswith("layers"):
            moved = {kind: of_one[f"{name} {kind}/{key}"] for kind in ("udl", "plain")}
            assert (moved["udl"] - value).abs().max() > 1e-5, key
            assert (moved["udl"] - moved["plain"]).abs().max() > 1e-7, key


def test_a_norm_of_one_process_is_refused():
    head = ConvBlockHead(6, 4, num_parameters=500)
    with pytest.raises(SettingsError, match="norm keeps statistics of one process's batch only"):
        Processes(0, 2).adopt(head)
    ALONE.adopt(head)
