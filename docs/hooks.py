"""Hooks of the documentation's site: the order of its pages, links that leave docs/.

Enters: the pages that are there. Leaves: a navigation with every one of them, and pages whose links
to files of the repository (`../configs/...`) show the file's path instead. A link to a file that
does not exist stays as it is, and the strict build fails on it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In the order of a first project; pages that are not named here follow under MORE.
SECTIONS: dict[str, tuple[str, ...]] = {
    "First steps": ("first-run.md", "install.md", "new-project.md", "own-videos.md", "commands.md"),
    "Data": ("datasets.md", "groups.md", "stick-diving.md", "stick-something.md"),
    "Features": (
        "backbones.md",
        "transformers.md",
        "import-features.md",
        "extraction-on-clusters.md",
        "cache.md",
        "cached-views.md",
        "remote-stores.md",
        "store-format.md",
        "store-benchmark.md",
    ),
    "Training": (
        "heads.md",
        "frozen-evaluation.md",
        "training.md",
        "performance.md",
        "ablations.md",
        "search.md",
        "finetuning.md",
        "mmaction2.md",
    ),
    "Results and use": ("results-format.md", "report.md", "predict.md", "export.md"),
    "Findings": ("claims.md", "paper-claims.md", "paper.md"),
    "Python": ("python-api.md", "dataloader.md", "lightning.md"),
    "Development": ("layout.md", "dev/contributing.md", "dev/log.md"),
}
API = "Reference"
MORE = "More"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Make the navigation."""
    config.nav = navigation(Path(config.docs_dir))
    return config


def navigation(docs: Path) -> list[dict[str, Any]]:
    """Every page below `docs`, in mkdocs' form."""
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    nav: list[dict[str, Any]] = [{"Start": "index.md"}] if "index.md" in pages else []
    placed = {"index.md"}
    for title, names in SECTIONS.items():
        present: list[Any] = [name for name in names if name in pages]
        placed |= set(present)
        if title == "Python":
            reference = [name for name in pages if name.startswith("api/")]
            placed |= set(reference)
            present += [{API: reference}] if reference else []
        if present:
            nav.append({title: present})
    others = [name for name in pages if name not in placed]
    return [*nav, {MORE: others}] if others else nav


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show links to files outside docs/ as their paths."""
    folder = Path(page.file.abs_src_path).parent

    def show(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        place = (folder / target.partition("#")[0]).resolve()
        outside = place.is_relative_to(ROOT) and not place.is_relative_to(ROOT / "docs")
        if image or not outside or not place.exists():
            return link.group(0)
        path = place.relative_to(ROOT).as_posix()
        bare = text.strip("`")
        return f"`{path}`" if bare == path else f"{text} (`{path}`)"

    return _LINK.sub(show, markdown)
