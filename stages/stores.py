"""List the feature stores below store.root; remove those that nothing refers to."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from dsts_pipeline.base.errors import StoreError, UserError
from dsts_pipeline.base.files import format_bytes, read_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store.checks.housekeeping import StoreEntry, list_stores, remove_store
from dsts_pipeline.feature_store.checks.tables import stores_table
from stages import places
from stages.planned import planned_store

MIN_COLUMNS = 170


def run(settings: Settings, *, prune: bool = False, yes: bool = False) -> None:
    """Print the table; with `prune` remove what nothing refers to, after asking unless `yes`.

    Raises:
        StoreError: Nothing says which stores are in use, or one to be removed is being written.
    """
    root = Path(settings.store.root)
    entries = list_stores(root)
    if not entries:
        console.print(f"{root}: no stores", soft_wrap=True)
        return
    referred, unknown = _find_references(settings)
    out = Console(width=max(MIN_COLUMNS, Console().width), highlight=False)
    out.print(stores_table(entries, referred))
    if unknown:
        console.print(f"the store that the settings describe is not known: {unknown}")
    if not prune:
        return
    if not referred:
        raise StoreError(
            f"{root}: not pruned: neither {places.FEATURES} nor the settings tell which store is "
            "in use; run `python cli.py prepare` first, or delete stores by hand"
        )
    _prune(root, [e for e in entries if e.removable and e.path.resolve() not in referred], yes)


def _find_references(settings: Settings) -> tuple[dict[Path, list[str]], str]:
    """What refers to which store, and why the settings' one is not known, if it is not."""
    referred: dict[Path, list[str]] = {}
    if places.FEATURES.exists():
        store = str(read_json(places.FEATURES)["store"])
        referred.setdefault(Path(store).resolve(), []).append(places.FEATURES.name)
    try:
        referred.setdefault(planned_store(settings).resolve(), []).append("settings")
    except UserError as error:
        return referred, str(error)
    return referred, ""


def _prune(root: Path, unused: list[StoreEntry], yes: bool) -> None:
    if not unused:
        console.print("nothing to remove")
        return
    size = format_bytes(sum(entry.num_bytes for entry in unused))
    names = ", ".join(str(entry.path) for entry in unused)
    if not yes and not typer.confirm(f"remove {len(unused)} stores ({size}): {names}?"):
        console.print("nothing removed")
        return
    for entry in unused:
        remove_store(root, entry)
        console.print(f"{entry.path}: removed, {format_bytes(entry.num_bytes)}", soft_wrap=True)
