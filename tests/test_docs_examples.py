"""The Python blocks of docs/ run as they stand, in order, in a folder of their own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from dsts_pipeline.base.files import write_json
from dsts_pipeline.feature_store import StorePlan, StoreWriter
from dsts_pipeline.serve import save_bundle
from tests.clips.videos import write_video
from tests.pipeline import run_cli
from tests.serve.small_bundle import make_bundle

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Pages whose blocks run here, with the optional package that they are about.
PAGES = {
    "dataloader.md": None,
    "export.md": "onnxruntime",
    "import-features.md": None,
    "lightning.md": "pytorch_lightning",
    "python-api.md": None,
    "transformers.md": "transformers",
}
# What a page says is there when its blocks begin: fixtures.
THERE = {
    "dataloader.md": "recorded_store",
    "lightning.md": "recorded_store",
    "python-api.md": "videos_and_bundle",
}
# Others: a config of mmaction2, an address that nobody has, and blocks with tests of their own
# (tests/metrics/test_results_format.py, tests/feature_store/test_store_format_page.py).
ELSEWHERE = {"mmaction2.md", "remote-stores.md", "results-format.md", "store-format.md"}
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: Path, language: str = "python") -> list[tuple[int, str]]:
    """The first line's number and the text of every block in `language`."""
    return [(line, text) for line, kind, text in all_blocks_of(page) if kind == language]


def all_blocks_of(page: Path) -> list[tuple[int, str, str]]:
    """The first line's number, the language and the text of every block."""
    text = page.read_text(encoding="utf-8")
    found = _BLOCK.finditer(text)
    return [(text.count("\n", 0, m.start(2)), m.group(1), m.group(2)) for m in found]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the blocks of a page run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def videos_and_bundle(folder):
    """Four short videos, and a bundle."""
    for number in range(4):
        write_video(folder / f"dive{number}.mp4", num_frames=20, seed=number)
    save_bundle(folder / "my_bundle", make_bundle())


@pytest.fixture
def recorded_store(folder):
    """The store that outputs/features.json names: splits train, val and test."""
    generator = np.random.default_rng(0)
    labels = np.arange(96) % 4
    centres = generator.normal(size=(4, 32, 4, 3, 3))
    maps = (0.5 * centres[labels] + generator.normal(size=(96, 32, 4, 3, 3))).astype(np.float32)
    splits = ["train"] * 64 + ["val"] * 16 + ["test"] * 16
    plan = StorePlan(
        {"made_of": "noise"},
        clips=[(f"clip{n}", int(labels[n]), split) for n, split in enumerate(splits)],
        class_names=("forward", "back", "reverse", "inward"),
        map_shape=maps.shape[1:],
        samples_per_shard=16,
    )
    with StoreWriter(folder / "stores", plan) as writer:
        for shard in writer.claims():
            rows = writer.shard_clips(shard)
            writer.write_shard(shard, maps[rows.start : rows.stop])
        path = writer.finish({}).parent
    write_json(folder / "outputs" / "features.json", {"store": str(path)})


def run_blocks(page: Path) -> None:
    """Run the Python blocks of a page, the `import-features` commands between them included."""
    names: dict = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for line, language, source in all_blocks_of(page):
            if language == "python":
                exec(compile("\n" * line + source, str(page), "exec"), names)
            elif len(names) > 1:  # what stands above the example is its summary
                for command in source.splitlines():
                    if command.startswith("python cli.py import-features"):
                        done = run_cli(Path.cwd(), *shlex.split(command)[2:])
                        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_examples_run(name, folder, request):
    if PAGES[name]:
        pytest.importorskip(PAGES[name], reason="the optional package is not installed")
    if name in THERE:
        request.getfixturevalue(THERE[name])
    assert blocks_of(DOCS / name)
    run_blocks(DOCS / name)


def test_every_page_with_python_is_run():
    having = {page.name for page in DOCS.rglob("*.md") if blocks_of(page)}
    assert having == PAGES.keys() | ELSEWHERE


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
