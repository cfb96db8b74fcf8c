"""Running the command line as a user does, in a folder of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from dvc.utils.hydra import compose_and_dump

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "dsts_pipeline" / "extract" / "pretrained" / "stick_r18.safetensors"
# As little as shows every stage: three epochs of 48 clips.
TINY = {
    "dataset.render.num_train": 48,
    "dataset.render.num_test": 24,
    "dataset.render.size_px": 64,
    "dataset.render.num_workers": 1,
    "backbone.weights": WEIGHTS,
    "backbone.num_decode_workers": 0,
    "train.num_epochs": 2,
    "train.batch_size": 16,
    "evaluate.num_bootstrap": 100,
    "report.num_gallery_clips": 1,
}


@cache
def params_of(experiment: str = "stick_diving") -> Path:
    """A params.yaml of an experiment, composed as `make params` does it.

    Most tests take the paper's regime: a classifier to start from, gates, ten neurons and UDL are
    more to test than the default's one neuron.
    """
    folder = Path(tempfile.mkdtemp(prefix="params-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    configs, chosen = str(ROOT / "configs"), [f"experiment={experiment}"]
    compose_and_dump(str(folder / "params.yaml"), configs, None, "config", configs, chosen)
    return folder / "params.yaml"


def run_cli(folder: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run `python cli.py ARGUMENTS` in `folder` with `params_of()` and `settings`.

    Settings are keywords with double underscores for dots: `dataset__root="nowhere"`.
    """
    return subprocess.run(
        command_of(*arguments, **settings),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def command_of(*arguments: str, **settings: object) -> list[str]:
    """The command line that `run_cli` runs."""
    overrides = [f"--set={key.replace('__', '.')}={value}" for key, value in settings.items()]
    params = [] if "--help" in arguments else ["--params", str(params_of())]
    return [sys.executable, str(ROOT / "cli.py"), *arguments, *params, *overrides]


def tell_plainly(run: subprocess.CompletedProcess[str], *, status: int = 2) -> str:
    """The message of a run that failed as it should: a status, one or two lines, no traceback."""
    assert run.returncode == status, run.stderr
    assert "Traceback" not in run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, run.stderr
    told = run.stderr[run.stderr.index(lines[0]) :].strip()
    assert len(told.splitlines()) <= 2, told
    return told
