"""mmaction2 is imported whatever else is installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import importlib.metadata, sys
assert importlib.metadata.version("transformers") == "5.0.0"
if sys.argv[1] == "timm":
    assert importlib.metadata.version("timm") == "1.0.0"
else:
    sys.modules["timm"] = None  # as where it is not installed
from dsts_pipeline.extract import build_recognizer
print(type(build_recognizer("stick_r18")).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["timm", "nothing"])
def test_transformers_does_no_harm(beside, repository, tmp_path):
    """Where transformers is found, mmaction2 imports models that need timm and old transformers."""
    for name, version in {"transformers": "5.0.0", "timm": "1.0.0"}.items():
        if name in ("transformers", beside):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(f"__version__ = '{version}'\n")
            information = tmp_path / f"{name}-{version}.dist-info"
            information.mkdir()
            (information / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    paths = os.pathsep.join([str(tmp_path), str(repository)])
    run = subprocess.run(
        [sys.executable, "-c", CODE, beside],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "Recognizer3D"


def test_half_a_grammar_in_the_cache_of_yapf_does_no_harm(repository, tmp_path):
    """As another process leaves it that is writing it, or was killed."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", "import yapf"], env=environment, check=True)
    pickles = list(tmp_path.rglob("*.pickle"))
    assert pickles
    for path in pickles:
        path.write_bytes(path.read_bytes()[:100])
    code = "from dsts_pipeline.extract.mmaction_compat import import_mmaction as f; f()"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert all(path.stat().st_size == 100 for path in pickles)
