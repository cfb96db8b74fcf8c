"""The Python blocks of docs/ run as they stand, in order, in a folder of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dsts_pipeline.serve import save_bundle
from tests.clips.videos import write_video
from tests.serve.small_bundle import make_bundle

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("python-api.md", "export.md")
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> list[tuple[int, str]]:
    """The first line's number and the text of every Python block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)), m.group(1)) for m in _BLOCK.finditer(text)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for number in range(4):
        write_video(tmp_path / f"dive{number}.mp4", num_frames=20, seed=number)
    save_bundle(tmp_path / "my_bundle", make_bundle())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_examples_run(name, folder):
    page, names = DOCS / name, {"__name__": "__main__"}
    blocks = blocks_of(page)
    assert len(blocks) > 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for line, source in blocks:
            exec(compile("\n" * line + source, str(page), "exec"), names)


def test_training_takes_ten_lines():
    (source,) = [text for _, text in blocks_of(DOCS / "python-api.md") if "train_head(" in text]
    statements = source.replace("(\n    ", "(").replace("\n)", ")").split("\n")
    assert len([line for line in statements if line.strip()]) <= 10


def test_blocks_are_found_with_their_lines(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```python\na = 1\nb = 2\n```\n\n```sh\nls\n```\n```python\nc = 3\n```\n"
    )
    assert blocks_of(page) == [(3, "a = 1\nb = 2\n"), (11, "c = 3\n")]
