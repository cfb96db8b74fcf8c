"""README and docs/ name commands, options, settings and groups that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from ruamel.yaml import YAML

import cli

ROOT = Path(__file__).resolve().parents[1]
# The log tells of what was tried, and may name what is gone.
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name != "log.md"),
]
COMMANDS = typer.main.get_command(cli.app).commands
PARAMS = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
GROUPS = {folder.name for folder in (ROOT / "configs").iterdir() if folder.is_dir()}
_CALL = re.compile(r"\bcli\.py[ \n]([a-z][a-z-]*)((?:\\\n|[^\n`#|;&)])*)")
_TARGET = re.compile(r"(?:^make|`make) ([a-z-]+)", re.MULTILINE)
_OVERRIDE = re.compile(r"(?:-S|--set|--grid|--space)[ =]'?([\w./]+)=([^\s'`,]*)")
_INLINE = re.compile(r"`([a-z]+)\.([a-z][a-z0-9_.]*)(?:=[^`]*)?`")
_FILES = {"json", "onnx", "safetensors", "h5", "md", "py", "csv", "yaml", "html", "npz", "pt2"}


def keys_of(section: dict, prefix: str = "") -> set[str]:
    """Dotted names of all sections and settings."""
    found = set()
    for name, value in section.items():
        found.add(prefix + name)
        if isinstance(value, dict):
            found |= keys_of(value, f"{prefix}{name}.")
    return found


KEYS = keys_of(PARAMS)


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_commands_and_options_exist(page):
    for name, rest in _CALL.findall(page.read_text()):
        assert name in COMMANDS, f"python cli.py {name}"
        known = {option for param in COMMANDS[name].params for option in param.opts}
        known |= {o for param in COMMANDS[name].params for o in param.secondary_opts} | {"--help"}
        used = {word.split("=")[0] for word in shlex.split(rest) if word.startswith("--")}
        assert used <= known, f"python cli.py {name}{rest}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_settings_exist(page):
    text = page.read_text()
    for key, value in _OVERRIDE.findall(text):
        if key in GROUPS:
            assert value == "..." or (ROOT / "configs" / key / f"{value}.yaml").exists(), value
        else:
            assert key in KEYS or key == "KEY", f"{key}={value}"
    for section, rest in _INLINE.findall(text):
        last = rest.rsplit(".", 1)[-1]
        if section in PARAMS and last not in _FILES and not last.isdigit():  # a tap's module
            assert f"{section}.{rest}" in KEYS, f"{section}.{rest}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(_TARGET.findall(page.read_text())) <= targets


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1050
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        if not name.startswith("api/") and name != "index.md":
            assert f"({name})" in index, f"docs/index.md leads nowhere near {name}"
