"""The wheel in an environment of its own: `dsts`, `dsts new`, and the pipeline in that project.

The environment holds nothing but the wheel; what the wheel asks for is lent to it from the one that
the tests run in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from dsts_pipeline.base.project import PROJECT_FILES
from tests.clips.videos import write_video
from tests.pipeline import ROOT

pytestmark = pytest.mark.slow
CLASSES = ("jump", "roll", "turn")


def run(folder: Path, *command: str | Path) -> str:
    """Run a program of the wheel's environment; nothing of the checkout is on its path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([sys.executable, *build, str(ROOT)], check=True, timeout=300)
    return next(folder.glob("dsts_pipeline-*.whl"))


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("env") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    own = run(folder, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    Path(own.strip(), "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for name in ("dvc",):  # a program, too, that runs in this environment
        program = folder / "bin" / name
        program.write_text(f"#!{python}\nfrom dvc.cli import main\nraise SystemExit(main())\n")
        program.chmod(0o755)
    return folder / "bin"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three classes of six clips."""
    root = tmp_path_factory.mktemp("mine")
    for number, name in enumerate(CLASSES):
        (root / name).mkdir()
        for clip in range(6):
            seed = 10 * clip + number
            write_video(root / name / f"{clip}.mp4", num_frames=20, size=(96, 72), seed=seed)
    return root


def test_it_carries_the_files_of_a_project(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in PROJECT_FILES:
        carried = f"dsts_pipeline/project/{name}"
        assert any(found == carried or found.startswith(f"{carried}/") for found in names), name
    tops = {name.split("/")[0] for name in names}
    assert tops == {"dsts_pipeline", next(t for t in tops if t.endswith(".dist-info"))}
    assert not [name for name in names if "__pycache__" in name]


def test_the_command_answers_anywhere(programs, tmp_path):
    assert "Usage: dsts" in run(tmp_path, programs / "dsts", "--help")
    done = subprocess.run(
        [programs / "dsts", "extract"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "dsts new" in done.stderr
    assert not list(tmp_path.iterdir())


def test_from_a_folder_of_videos_to_a_report(programs, videos, tmp_path):
    told = run(tmp_path, programs / "dsts", "new", "p", "--videos", videos)
    assert "18 clips of 3 classes" in told
    project = tmp_path / "p"
    run(project, programs / "dvc", "repro")
    page = (project / "outputs" / "report" / "report.html").read_text()
    assert all(name in page for name in CLASSES)
    assert "dsts" in run(project, programs / "dsts", "results").lower()
    assert run(project, programs / "python", "cli.py", "results")
    run(project, programs / "dsts", "export", "bundle")
    answers = run(
        tmp_path, programs / "dsts", "predict", videos / "jump" / "0.mp4", "--bundle", "p/bundle"
    )
    assert "0.mp4" in answers
