"""Write the damaged shards of a store again, from the clips that the settings name."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.checks.repair import keep_provenance, remove_damaged
from dsts_pipeline.feature_store.checks.verdict import Verdict
from dsts_pipeline.feature_store.manifest import load_manifest
from stages.planned import planned_store


def renew_store(settings: Settings, location: str) -> str:
    """Make the store of these settings out of one that was made under the former rule of frames.

    Only maps that are suspect are extracted again. The former store is left as it is.

    Returns:
        Where the new store is.

    Raises:
        StoreError: Nothing of it can be taken over; the message says why.
    """
    from stages import extract

    planned = planned_store(settings)
    extract.run(settings, earlier=location)
    return str(planned)


def repair_store(settings: Settings, location: str, verdict: Verdict | None) -> None:
    """Remove exactly the damaged shards and run the extract stage, which writes them again.

    Args:
        verdict: what is damaged; None if the manifest itself is: then every shard that its
            sidecar vouches for is kept.

    Raises:
        StoreError: The settings describe another store; nothing is removed then.
    """
    from stages import extract

    store = _require_same(settings, location)
    before = None
    if verdict is not None:
        before = (store / layout.MANIFEST_NAME).read_bytes()
    shards = verdict.damaged_shards if verdict else []
    what = f"shards {', '.join(map(str, shards))}" if shards else "manifest and small files"
    console.print(f"{store}: writing {what} again", soft_wrap=True)
    remove_damaged(store, shards)
    extract.run(settings)
    if before is None:
        return
    if not keep_provenance(before, load_manifest(store), store):
        console.print(f"{store}: the shards differ from those first recorded", soft_wrap=True)


def _require_same(settings: Settings, location: str) -> Path:
    store = Path(location)
    if "://" in location or store.is_file():
        raise StoreError(f"{location}: only a store in a local folder can be repaired")
    planned = planned_store(settings)
    if planned.resolve() != store.resolve():
        raise StoreError(
            f"{store}: can't be repaired with these settings: they describe {planned}; give the "
            "settings that it was made with (--params, --set), or for imported features run "
            "`python cli.py import-features` again. Nothing was removed"
        )
    return store


def tell_cure(location: str, verdict: Verdict, *, named: bool) -> str:
    """What to run when a store is damaged; `named`: its place was given on the command line."""
    if location.endswith((".h5", ".hdf5")):
        return "export or copy the file again"
    if verdict.imported:
        return "run `python cli.py import-features` again, which writes the damaged shards"
    return f"run `python cli.py verify{' ' + location if named else ''} --repair`"
