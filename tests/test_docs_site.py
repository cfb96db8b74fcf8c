"""The documentation's site: every page has its place, links hold, the strict build is clean."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PUBLIC = {
    "dsts_pipeline.head": ["DSTSHead"],
    "dsts_pipeline.learn": ["meta_gradient", "train_head"],
    "dsts_pipeline.feature_store": ["open_store"],
    "dsts_pipeline.clips": ["read_annotations"],
    "dsts_pipeline.extract": ["build_backbone"],
}  # the stable names


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_in(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_in(part)]


def test_every_page_has_one_place(hooks):
    placed = pages_in(hooks.navigation(DOCS))
    assert sorted(placed) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
    assert placed[0] == "index.md"


def test_the_order_names_pages_that_are_there(hooks):
    named = [name for names in hooks.SECTIONS.values() for name in names]
    assert [name for name in named if not (DOCS / name).is_file()] == []
    assert hooks.MORE not in {title for part in hooks.navigation(DOCS) for title in part}


def test_a_new_page_needs_no_line(hooks, tmp_path):
    for name in ("index.md", "datasets.md", "api/head.md", "unheard-of.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# A page")
    assert hooks.navigation(tmp_path) == [
        {"Start": "index.md"},
        {"Data": ["datasets.md"]},
        {"Python": [{"Reference": ["api/head.md"]}]},
        {"More": ["unheard-of.md"]},
    ]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[settings](../params.yaml)", "settings (`params.yaml`)"),
        ("[`params.yaml`](../params.yaml)", "`params.yaml`"),
        ("[cli.py](../cli.py#L3)", "`cli.py`"),
        ("[the\nsettings](../params.yaml)", "the\nsettings (`params.yaml`)"),
        ("[gone](../gone.yaml)", "[gone](../gone.yaml)"),
        ("[a page](datasets.md)", "[a page](datasets.md)"),
        ("![picture](../docs/report.png)", "![picture](../docs/report.png)"),
        ("[out](../../../etc/passwd)", "[out](../../../etc/passwd)"),
    ],
)
def test_links_that_leave_the_docs_show_paths(hooks, written, shown):
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(DOCS / "training.md")))
    assert hooks.on_page_markdown(f"See {written}.", page) == f"See {shown}."


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_lists_are_lists_on_the_site(page):
    """Python-Markdown, unlike GitHub, wants a blank line between a paragraph and a list."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r"\n\s*\n", text):
        first, *rest = block.strip("\n").split("\n")
        if not re.match(r"\s*(?:[-|>#]|\d+\.) ?", first):
            assert not [line for line in rest if line.startswith("- ")], first


@pytest.mark.parametrize("module", PUBLIC)
def test_stable_names_are_importable_and_in_the_reference(module):
    for name in PUBLIC[module]:
        assert getattr(importlib.import_module(module), name).__doc__
        reference = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
        assert re.search(rf"^::: {module}(\.\w+)*\.{name}$", reference, re.MULTILINE)


@pytest.mark.long
def test_site_builds_without_a_warning_and_asks_nobody(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.name: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    for name, text in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe|link)[^>]* (?:src|href)="(https?:[^"]+)', text)
        assert not loaded, f"{name} loads {loaded}"
    assert all(name in pages["head.html"] for name in ("upstream_parameters", "layer_input"))
