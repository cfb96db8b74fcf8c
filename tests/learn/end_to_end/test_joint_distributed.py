"""Two processes make the joint step of one process with the joined batch: float64, gloo."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.learn.processes import ALONE, Processes
from tests.learn.end_to_end.joined_joint_step import CASES, all_cases
from tests.learn.end_to_end.tiny import new_model
from tests.two_processes import run_in_two_processes


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    return run_in_two_processes("tests.learn.end_to_end.joined_joint_step", folder)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_joined_batch(of_two):
    of_one, start = all_cases(ALONE), new_model("house-default").state_dict()
    for values in of_two:
        for name, value in of_one.items():
            torch.testing.assert_close(values[name], value, rtol=1e-9, atol=1e-9)
    for case in CASES:
        name = "backbone.model.recognizer.backbone.stem.0.weight"
        assert (of_one[f"{case}/{name}"] - start[name]).abs().max() > 1e-6
    assert any(
        (of_one[f"head/{n}"] - of_one[f"all/{n}"]).abs().max() > 1e-7
        for n in start
        if n.endswith("scoring_kernel")
    )


def test_norms_of_the_batch_are_refused_to_several_processes():
    with pytest.raises(SettingsError, match="keeps statistics of one process's batch only"):
        Processes(0, 2).adopt(new_model(norms="batch"))
