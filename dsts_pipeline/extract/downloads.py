"""Weights by path or address -> a local file whose SHA-256 is known.

Enters: a path, an http(s) address (others, such as s3://, where fsspec is installed), or a model of
the hub. Leaves: a path and its digest. A download is checked before it gets its name, so a file
with a name is whole.
Beside a download, and beside weights that this package wrote (the embedded ones, too), lies a note
with the digest, `<name>.json`, which the file must have whenever it is read.
Weights that an installed package holds are named by a reference, a .json file of its own: package,
file in it, digest, and how it is installed. Files of this package itself are named by their place
in the repository, dsts_pipeline/..., also where only the installed package has them.
"""

from __future__ import annotations

import hashlib
import re
import urllib.request
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from dsts_pipeline.base.errors import CheckpointError, missing_extra
from dsts_pipeline.base.files import (
    open_atomic,
    read_json,
    remove_left_overs,
    sha256_file,
    sha256_json,
    write_json,
)
from dsts_pipeline.base.hub import PREFIX
from dsts_pipeline.base.transfers import (
    STALL_SECONDS,
    Pace,
    call_within,
    copy_file,
    open_filesystem,
)
from dsts_pipeline.extract.model_folders import fetch_folder, find_weights, is_read

RANDOM = "random"
CACHE_FOLDER = Path(".weights_cache")
_PACKAGE = Path(__file__).parents[1]
_BLOCK_BYTES = 1 << 20


class WeightsFile(NamedTuple):
    """A weights file on this machine."""

    path: Path
    sha256: str


def is_address(source: str | Path) -> bool:
    """Whether `source` has to be fetched."""
    return "://" in str(source)


def place_weights(source: str | Path) -> Path:
    """The path that `source` names; one that begins with dsts_pipeline/ and is not here is that of
    the installed package, that of a model of the hub is its folder in the cache.

    Raises:
        UserError: Of models of the hub, see `fetch_folder`.
    """
    if str(source).startswith(PREFIX):
        return fetch_folder(str(source))
    path = Path(source)
    if path.parts[:1] != (_PACKAGE.name,) or path.exists():
        return path
    installed = _PACKAGE.parent / path
    return installed if installed.exists() else path


def locate_weights(
    source: str | Path,
    *,
    sha256: str | None = None,
    cache_folder: str | Path = CACHE_FOLDER,
    digest: Callable[[Path], str] = sha256_file,
) -> WeightsFile:
    """The file at a path or an address, downloaded once.

    Args:
        sha256: The digest that the file must have.
        cache_folder: Where downloads stay.
        digest: File -> its SHA-256; one that remembers files spares the reading.

    Raises:
        CheckpointError: There is no such file, it cannot be fetched, or it is another one.
    """
    if is_address(source):
        path = _fetch(str(source), sha256, Path(cache_folder), digest)
    else:
        path = place_weights(source)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weights file; give backbone.weights an existing file, an address or "
            "the word random, or make weights with `python cli.py pretrain`"
        )
    if path.suffix == ".json":
        path = _find_in_package(path, digest)
    found = digest(path)
    _compare(str(source), found, sha256)
    _compare_note(path, found)
    return WeightsFile(path, found)


def describe_weights(
    source: str | None,
    *,
    sha256: str | None = None,
    cache_folder: str | Path = CACHE_FOLDER,
    digest: Callable[[Path], str] = sha256_file,
) -> dict[str, Any]:
    """What `source` stands for now, equal as long as its content is: what is made of it may stay.

    Args:
        source: A file, an address, a folder, a model of the hub, "random" or None. Others: those of
            `locate_weights`.

    Raises:
        CheckpointError: As `locate_weights`.
    """
    if source is None or source == RANDOM:
        return {"kind": source or "none"}
    folder = place_weights(source)
    if source.startswith(PREFIX):  # its folder is the cache's, where others may put files
        read = sorted(path for path in folder.iterdir() if is_read(path.name))
        files = {path.name: digest(path) for path in read}
        return {"kind": "hub", "model": source, "files": files}
    if not is_address(source) and folder.is_dir():
        read = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        return {"kind": "folder", "files": {path.name: digest(path) for path in read}}
    file = locate_weights(source, sha256=sha256, cache_folder=cache_folder, digest=digest)
    content = {"sha256": file.sha256, "size_bytes": file.path.stat().st_size}
    if is_address(source):
        return {"kind": "address", "address": _without_secrets(source)} | content
    return {"kind": "file"} | content


def digest_of_weights(path: Path) -> str:
    """SHA-256 of a weights file; of a folder's model.safetensors, or of its parts' names and
    digests where it is split.

    Raises:
        CheckpointError: The folder has none.
    """
    if not path.is_dir():
        return sha256_file(path)
    parts = find_weights(path)
    if len(parts) == 1:
        return sha256_file(parts[0])
    return sha256_json({part.name: sha256_file(part) for part in parts})


def note_of(path: Path) -> Path:
    """Where the note of a weights file is."""
    return path.with_name(f"{path.name}.json")


def write_note(path: Path, **more: Any) -> None:
    """Write down the digest of the weights file at `path`, beside it."""
    write_json(note_of(path), {**more, "sha256": sha256_file(path)})


def _compare_note(path: Path, found: str) -> None:
    note = note_of(path)
    if not note.is_file():
        return
    content = read_json(note)
    expected = content.get("sha256") if isinstance(content, dict) else None
    if expected is not None and expected != found:
        raise CheckpointError(
            f"{path}: its sha256 is {found}, {note.name} beside it says {expected}: damaged, or "
            "another file took its place; get a sound copy, or delete the note if the new file is "
            "meant"
        )


def _find_in_package(reference: Path, digest: Callable[[Path], str]) -> Path:
    """The weights that `reference` names in an installed package, of which no code runs."""
    content = read_json(reference)
    names = ("package", "file", "sha256", "install")
    values = content if isinstance(content, dict) else {}
    package, file, sha256, install = (str(values.get(name) or "") for name in names)
    # A module below another would be imported to be found.
    if not package.isidentifier() or not re.fullmatch(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*", file):
        raise CheckpointError(
            f"{reference}: names no weights of a package; expected {', '.join(names)}, or give "
            "backbone.weights a .safetensors or .pth file"
        )
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    path = next((Path(folder, file) for folder in folders if Path(folder, file).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{reference}: its weights are in the package {package}, which is not installed; "
            f"install it with `{install}`"
        )
    if (found := digest(path)) != sha256:
        raise CheckpointError(
            f"{path}: its sha256 is {found}, {reference} expects {sha256}: damaged, or of another "
            f"release; install the package again with `{install}`"
        )
    return path


def _compare(source: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected.lower():
        raise CheckpointError(
            f"{_without_secrets(source)}: its sha256 is {found}, backbone.weights_sha256 expects "
            f"{expected}; get the file again, or correct the setting if the new file is meant"
        )


def _fetch(address: str, sha256: str | None, cache: Path, digest: Callable[[Path], str]) -> Path:
    """The downloaded file; one that is there already is used if it is still what it was."""
    shown = _without_secrets(address)
    folder = (
        cache / hashlib.sha256(address.encode()).hexdigest()[:16]
    )  # its query names a file, too
    path = folder / (PurePosixPath(urlsplit(address).path).name or "weights")
    note = note_of(path)
    if path.is_file() and note.is_file() and read_json(note)["sha256"] == digest(path):
        return path
    remove_left_overs(path)
    with open_atomic(path) as file:
        taken = _Taken(file)
        _download(address, shown, taken)
        _compare(address, taken.sha256, sha256)
    write_json(note, {"address": shown, "sha256": taken.sha256, "size_bytes": taken.tell()})
    return path


class _Taken:
    """Takes a download: writes it, counts and digests it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self.problem: OSError | None = None

    def write(self, block: bytes) -> int:
        try:
            self._file.write(block)
        except OSError as problem:
            self.problem = problem  # the disk's, not the network's
            raise
        self._digest.update(block)
        self._num_bytes += len(block)
        return len(block)

    def read(self, size: int = -1) -> bytes:
        """Nothing can be read back; fsspec knows a file by this."""
        raise NotImplementedError

    def tell(self) -> int:
        return self._num_bytes

    def close(self) -> None:
        """The file is closed by who opened it."""

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _download(address: str, shown: str, taken: _Taken) -> None:
    try:
        if urlsplit(address).scheme.lower() in ("http", "https"):
            _download_http(address, shown, taken)
        else:
            _require_fsspec(shown)
            filesystem, path = open_filesystem(address)
            copy_file(filesystem, path, taken, STALL_SECONDS)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a server's answer makes of the libraries
        if taken.problem is not None:
            raise taken.problem from None
        raise _unreachable(shown, str(error).replace(address, shown)) from None


def _download_http(address: str, shown: str, taken: _Taken) -> None:
    opening = partial(urllib.request.urlopen, address, timeout=STALL_SECONDS)
    # The time limit of a socket holds for each piece; a head may come in a thousand of them.
    with call_within(STALL_SECONDS, opening) as remote:
        pace = Pace(STALL_SECONDS)
        while block := remote.read1(_BLOCK_BYTES):
            taken.write(block)
            pace.check(taken.tell())
        promised = int(getattr(remote, "length", None) or 0)  # what http.client still waits for
        if promised:
            raise _unreachable(shown, f"cut off after {taken.tell():,} bytes")


def _require_fsspec(shown: str) -> None:
    if find_spec("fsspec") is None:
        raise missing_extra("fsspec", f"{shown}, an address other than http(s),")


def _unreachable(shown: str, reason: object) -> CheckpointError:
    return CheckpointError(
        f"{shown}: cannot be downloaded ({reason}); check the address and the network, or download "
        "the file by hand and give backbone.weights its path"
    )


def _without_secrets(address: str) -> str:
    """The address without user, password and query, which may hold a token."""
    if not is_address(address):
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
