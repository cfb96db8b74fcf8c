"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = sorted(
    path
    for path in (ROOT / "dsts_pipeline").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_hold(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    module = importlib.import_module(name)
    with torch.random.fork_rng(devices=[]):
        found = doctest.testmod(module, extraglobs={"torch": torch, "np": np})
    assert found.attempted > 0 and found.failed == 0


def test_the_public_core_has_examples():
    names = {str(path.relative_to(ROOT / "dsts_pipeline")) for path in WITH_EXAMPLES}
    assert {"head/dsts.py", "learn/udl.py", "feed/epochs.py", "feature_store/plan.py"} <= names
