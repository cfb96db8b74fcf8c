"""Bundles on the Hugging Face hub: sent there after a check, taken from there file by file.

Enters: a bundle's folder and a repository's name, USER/NAME. Leaves: the same files in the
repository, beside a README.md with the metadata that the hub shows; from there a `Bundle` again.
Only files that bundle.json lists are fetched, of names that an export writes, and the folder is
compared with bundle.json as any other. No code of a repository is fetched or run.

By the package huggingface_hub, with its cache, login and variables (HF_HUB_OFFLINE, HF_TOKEN,
HF_HOME, HF_ENDPOINT).
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from dsts_pipeline.base import hub
from dsts_pipeline.base.errors import BundleError, UserError
from dsts_pipeline.base.files import unfinished_folder, write_atomic
from dsts_pipeline.base.hub import PREFIX
from dsts_pipeline.extract.downloads import is_address
from dsts_pipeline.serve.bundle import Bundle
from dsts_pipeline.serve.bundle_folder import CARD, RECORD, load_bundle, read_listing

PAGE = "README.md"  # of the repository; no part of the bundle
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
TAGS = "action-recognition", "fine-grained", "video", "dsts"


class PushedFile(NamedTuple):
    """A file of the repository."""

    name: str
    num_bytes: int
    source: Path | bytes


# ---- to the hub ----------------------------------------------------------------------------------


def list_files(
    folder: Path, repository: str, *, license: str | None = None, weights: str | None = None
) -> list[PushedFile]:
    """What a push of the bundle in `folder` sends; all of it is checked first.

    Args:
        license: The hub's identifier, such as apache-2.0; None: none is stated.
        weights: Where the backbone's weights are, for the check, if the bundle holds none.

    Raises:
        BundleError: The bundle is damaged, or its weights are a path of this machine.
        UserError: `repository` is no USER/NAME, or the license no identifier.
    """
    _require_name(repository)
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(f"license {license!r}: expected an identifier such as apache-2.0")
    load_bundle(folder, weights=weights)
    record = read_listing(folder / RECORD)
    reference = record["backbone"]["weights"]
    if not record["backbone"]["file"] and os.path.isabs(reference) and not is_address(reference):
        raise BundleError(
            f"{folder}: its backbone's weights are at {reference}, which nobody else has; export "
            "it again with --with-backbone"
        )
    files = [
        PushedFile(name, (folder / name).stat().st_size, folder / name)
        for name in (*record["files"], RECORD)
    ]
    page = make_page((folder / CARD).read_text("utf-8"), repository, license).encode()
    return [PushedFile(PAGE, len(page), page), *files]


def make_page(card: str, repository: str, license: str | None) -> str:
    """The model card with the hub's metadata before it and how to load it behind it.

    Source: hub-docs, modelcard.md: library_name, license, pipeline_tag, tags.
    """
    lines = ["---", "library_name: dsts-pipeline", "pipeline_tag: video-classification"]
    if license is not None:
        lines.append(f"license: {license}")
    lines += ["tags:", *(f"- {tag}" for tag in TAGS), "---", ""]
    return "\n".join(lines) + card.rstrip() + _FROM_THE_HUB.format(repository=repository)


_FROM_THE_HUB = """

## From the hub

```python
from dsts_pipeline.serve import from_hub

bundle = from_hub("{repository}")
```

or `python cli.py predict video.mp4 --bundle hub:{repository}`; needs the extra `hub`.
"""


def push_files(
    files: list[PushedFile], repository: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Make the repository if there is none, and add `files` in one commit; its address.

    Args:
        revision: A branch, made if there is none; None: main.

    Raises:
        UserError: huggingface_hub is not installed, nobody is logged in, or the hub refuses.
    """
    package = import_hub()
    api = package.HfApi()
    with _told(f"{PREFIX}{repository}"):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        made = api.create_commit(
            repository,
            [package.CommitOperationAdd(file.name, file.source) for file in files],
            commit_message="Bundle of dsts-pipeline",
            revision=revision,
        )
    return str(made.commit_url)


def copy_files(files: list[PushedFile], out: Path) -> None:
    """Write `files` into the folder `out`, as the repository would hold them.

    Raises:
        BundleError: `out` exists, or lies in the bundle.
    """
    if out.exists():
        raise BundleError(f"{out} exists already; give another name, or delete it first")
    sources = [file.source for file in files if isinstance(file.source, Path)]
    if any(out.resolve().is_relative_to(source.resolve().parent) for source in sources):
        raise BundleError(f"{out} lies in the bundle itself; give a place outside of it")
    with unfinished_folder(out) as folder:
        for file in files:
            place = folder / file.name
            place.parent.mkdir(exist_ok=True)
            content = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
            write_atomic(place, content)
        folder.chmod(0o755)
        os.rename(folder, out)


# ---- from the hub --------------------------------------------------------------------------------


def from_hub(repository: str, *, revision: str | None = None, weights: str | None = None) -> Bundle:
    """The bundle of a repository, from the hub or, where it was fetched before, from the cache.

    Args:
        repository: USER/NAME.
        revision: Branch, tag or commit; None: main. A commit can't be changed by its owner.
        weights: Where the backbone's weights are, if the bundle holds none.

    Raises:
        BundleError: It holds no sound bundle.
        UserError: huggingface_hub is not installed, there is no such repository or revision, or
            the hub can't be reached.
    """
    return load_bundle(fetch_bundle(repository, revision), weights=weights)


def open_bundle(place: str | Path, *, weights: str | None = None) -> Bundle:
    """The bundle in a folder, or that of hub:USER/NAME or hub:USER/NAME@REVISION."""
    if not str(place).startswith(PREFIX):
        return load_bundle(place, weights=weights)
    repository, _, revision = str(place).removeprefix(PREFIX).partition("@")
    return from_hub(repository, revision=revision or None, weights=weights)


def fetch_bundle(repository: str, revision: str | None = None) -> Path:
    """The folder of a repository's bundle, each of its files a plain one; not checked yet.

    The hub's cache holds links; so the files are linked hard, or copied, into a folder beside it,
    one for each commit.
    """
    package = import_hub()
    _require_name(repository)
    with _told(f"{PREFIX}{repository}" + (f"@{revision}" if revision else "")):
        record = Path(package.hf_hub_download(repository, RECORD, revision=revision))
        commit = record.parent.name
        root = Path(package.constants.HF_HOME) / "dsts-bundles" / repository.replace("/", "--")
        folder = root / commit
        names = [*read_listing(record)["files"], RECORD]
        if folder.is_dir():
            return folder
        with unfinished_folder(folder) as unfinished:
            for name in names:
                found = Path(package.hf_hub_download(repository, name, revision=commit))
                _place(found.resolve(), unfinished / name)
            unfinished.chmod(0o755)
            try:
                os.rename(unfinished, folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
    return folder


def _place(source: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    try:
        os.link(source, place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, place)


# ---- the package, and what it says ---------------------------------------------------------------


def import_hub() -> Any:
    """The package huggingface_hub.

    Raises:
        UserError: It is not installed.
    """
    return hub.import_hub("sharing bundles on the hub")


def _require_name(repository: str) -> None:
    if not hub.is_repository(repository):
        raise UserError(
            f"{repository!r} is no repository of the hub: expected USER/NAME, or {PREFIX}USER/NAME"
            "@REVISION after --bundle"
        )


def _told(what: str) -> AbstractContextManager[None]:
    """Say what the hub refuses, and what to do, in a line."""
    lacks = BundleError(f"{what}: holds no bundle that `python cli.py push` made")
    return hub.telling(import_hub(), what, lacks=lacks, instead="a bundle's folder")
