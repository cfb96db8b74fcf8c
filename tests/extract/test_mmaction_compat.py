"""mmaction2 is imported whatever else is installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import importlib.metadata, sys
assert importlib.metadata.version("transformers") == "5.0.0"
sys.modules["timm"] = None  # as where it is not installed
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "timm" else find_spec(name, *rest)
from dsts_pipeline.extract import build_recognizer
print(type(build_recognizer("stick_r18")).__name__)
"""


@pytest.mark.slow
def test_transformers_without_timm_does_no_harm(repository, tmp_path):
    """Where transformers is found, mmaction2 imports models that need timm."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("__version__ = '5.0.0'\n")
    information = tmp_path / "transformers-5.0.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: transformers\nVersion: 5.0.0\n")
    paths = os.pathsep.join([str(tmp_path), str(repository)])
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "Recognizer3D"
