"""Folders of the transformers library: what of them is read, what refused, and how one is fetched.

Enters: a folder, or hub:OWNER/NAME@COMMIT. Leaves: a folder whose config names plain values alone
and whose weights are safetensors. Of a repository config, processor and weights are fetched, into
the cache of huggingface_hub, and nothing else; what is there already is never asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import CheckpointError, SettingsError, UserError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.hub import PREFIX, import_hub, is_repository, telling

CONFIG = "config.json"
PROCESSORS = (
    "video_preprocessor_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_PART = re.compile(r"model[\w-]*\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Entries of a config by which the library imports code of the folder or of its hub, or another
# package's: classes, attention and expert kernels, quantizers.
_LOADING = re.compile(
    r"^auto_map$|^custom_|_implementation(_internal)?$|kernel_config|use_kernels|quantization_config"
)


def is_read(name: str) -> bool:
    """Whether a folder's file of this name decides its model."""
    return name in (CONFIG, *PROCESSORS, INDEX) or _PART.fullmatch(name) is not None


def find_weights(folder: Path) -> list[Path]:
    """The model's safetensors: the whole one, else its parts.

    Raises:
        CheckpointError: There are none.
    """
    whole = folder / WHOLE
    parts = [path for path in sorted(folder.iterdir()) if _PART.fullmatch(path.name)]
    if not parts:
        raise CheckpointError(
            f"{folder}: no {WHOLE}; expected one (files that are pickles are not read)"
        )
    return [whole] if whole in parts else parts


def require_plain(folder: Path, values: Any) -> None:
    """Refuse a folder by which the library would load code, or weights from elsewhere.

    The class is chosen here, so `auto_map` would be passed over; but whoever names code means it to
    run, and the model would be another one.

    Args:
        values: Its config.

    Raises:
        CheckpointError: It names code, kernels of the hub, a quantizer, an adapter, or weights
            outside the folder.
    """
    for key, value in _all_entries(values):
        is_plain = not _LOADING.search(key)
        if key.endswith("_implementation"):
            is_plain = value in (None, "eager", "sdpa")
        if not is_plain:
            raise CheckpointError(
                f"{folder}/{CONFIG}: {key} makes the transformers library load code, which is "
                "never done here; delete that entry if the plain model is meant"
            )
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder}: has an {ADAPTER}; models with adapters are not read: merge the "
            "adapter into the model, or delete the file"
        )
    if (folder / INDEX).is_file():
        _parts_of(folder / INDEX)


def _parts_of(index: Path) -> list[str]:
    """Names of the files that an index lists."""
    content = read_json(index)
    parts = content.get("weight_map", {}) if isinstance(content, dict) else {}
    names = sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
    for name in names:
        if not _PART.fullmatch(name):
            raise CheckpointError(
                f"{index}: names the part {name!r}, expected safetensors files of its own "
                "folder; get the folder again"
            )
    return names


def _all_entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Names and values at every depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield key, value
            yield from _all_entries(value)
    elif isinstance(values, list):
        for value in values:
            yield from _all_entries(value)


# ---- models of the hub ---------------------------------------------------------------------------


def fetch_folder(model: str, *, with_weights: bool = True) -> Path:
    """The folder of a model of the hub in huggingface_hub's cache, with all that is read of it.

    Args:
        model: hub:OWNER/NAME@COMMIT.
        with_weights: Whether the weights are fetched as well, after the config was found plain.

    Raises:
        SettingsError: `model` names no commit.
        CheckpointError: The repository holds no such model, or one that is refused.
        UserError: huggingface_hub is not installed, there is no such repository or commit, or it is
            not in the cache and the hub can't be reached.
    """
    hub = import_hub(model)
    repository, _, commit = model.removeprefix(PREFIX).partition("@")
    if not is_repository(repository):
        raise SettingsError(f"{model}: expected {PREFIX}OWNER/NAME@COMMIT, a model of the hub")
    if not _COMMIT.fullmatch(commit):
        raise SettingsError(_tell_commit(hub, repository, commit))

    def fetch(name: str) -> Path | None:
        """The file in the cache; None where the commit has none of that name."""
        known = hub.try_to_load_from_cache(repository, name, revision=commit)
        if known is None:
            try:
                known = hub.hf_hub_download(repository, name, revision=commit)
            except hub.errors.LocalEntryNotFoundError:
                raise
            except hub.errors.EntryNotFoundError:
                return None
        return Path(known) if isinstance(known, str) else None

    lacks = CheckpointError(f"{model}: holds no model of the transformers library")
    with telling(hub, model, lacks=lacks, instead="the folder of a copy"):
        config = fetch(CONFIG)
        if config is None:
            raise CheckpointError(f"{lacks}: no {CONFIG}")
        for name in (*PROCESSORS, ADAPTER):
            fetch(name)
        if with_weights:
            require_plain(config.parent, read_json(config))
            index = None if fetch(WHOLE) else fetch(INDEX)
            for name in _parts_of(index) if index else ():
                if fetch(name) is None:
                    raise CheckpointError(f"{model}: lacks the part {name} of its {INDEX}")
            if index is None and fetch(WHOLE) is None:
                raise CheckpointError(
                    f"{model}: holds no {WHOLE} (pickles, such as pytorch_model.bin, are not read);"
                    " name a commit that has one, such as that of the hub's conversion (pull "
                    "requests of the repository), or save it so by the library"
                )
    return config.parent


def _tell_commit(hub: Any, repository: str, revision: str) -> str:
    """What to write in place of a branch, a tag or nothing."""
    asked = f"{PREFIX}{repository}" + (f"@{revision}" if revision else "")
    told = f"{asked}: names no commit, and a branch or tag may be another model tomorrow"
    lacks = UserError(f"{asked}: no {CONFIG}")
    try:
        with telling(hub, asked, lacks=lacks, instead=""):
            url = hub.hf_hub_url(repository, CONFIG, revision=revision or None)
            commit = hub.get_hf_file_metadata(url).commit_hash
    except UserError as error:
        return (
            f"{told}; write {PREFIX}{repository}@ and the 40 digits of a commit, as its page on it"
            f" lists them under Files, History (asked now: {error})"
        )
    return f"{told}; {revision or 'its main branch'} is {PREFIX}{repository}@{commit} now"
