"""Compare every file of the feature store with the digests of its manifest."""

from __future__ import annotations

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store import find_damage, open_store
from stages import places


def run(settings: Settings) -> None:
    """Read the whole store once.

    Raises:
        StoreError: The store is missing, unfinished or damaged; each damaged file is listed.
    """
    store = open_store(read_json(places.FEATURES)["store"])
    num_files = len(store.manifest["files"]) + len(store.manifest["shards"])
    damage = []
    with track("verify", num_files, "files") as progress:
        for what, problem in find_damage(store.path, store.manifest, digests=True):
            if problem:
                damage.append(f"{what} {problem}")
            progress.advance()
    if damage:
        more = f" and {len(damage) - 5} more" if len(damage) > 5 else ""
        raise StoreError(
            f"{store.path}: {'; '.join(damage[:5])}{more}; "
            "run `python cli.py extract` to write them again"
        )
    console.print(f"{store.path}: {num_files} files sound, {len(store)} maps", soft_wrap=True)
