"""The folder of a bundle: written whole or not at all, read only if every file is what it was.

Enters: a `Bundle`. Leaves: `bundle.json` (what decides an answer, where it comes from), `head.json`
and `head.safetensors`, a model card, and by choice the backbone's weights; and from there the
`Bundle` again. `bundle.json` names every other file with its size and SHA-256 and bears a digest of
itself.

A bundle may come from anywhere, and nothing in it can run code: a config of mmaction2 is a program
(a .json may name one as its base), so a bundle names a preset, a model of timm, a config of the
model zoo that this machine's mmaction2 ships, or holds a folder of the transformers library, of
which the config's plain values and safetensors are read. The folder is looked through before a
file of it is opened: any other backbone, files that `bundle.json` does not list, links, and names
that no export writes are refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, get_args

from dsts_pipeline.base.errors import BundleError, UserError
from dsts_pipeline.base.files import (
    fsync_directory,
    is_signed,
    sha256_file,
    sign,
    unfinished_folder,
    write_atomic,
    write_json,
)
from dsts_pipeline.base.hub import PREFIX
from dsts_pipeline.clips.decode import Decoder, name_decoder
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.downloads import (
    digest_of_weights,
    is_address,
    locate_weights,
    place_weights,
)
from dsts_pipeline.extract.flow import Modality
from dsts_pipeline.extract.model_folders import CONFIG, is_read
from dsts_pipeline.extract.model_zoo import (
    find_config,
    is_config_name,
    is_timm_name,
    preset_names,
    zoo_names,
)
from dsts_pipeline.extract.weights import KEY_MAPS, RANDOM
from dsts_pipeline.head import load_head, save_head
from dsts_pipeline.serve.bundle import BackboneSource, Bundle, model_card

FORMAT = "dsts-bundle"
VERSION = 1
RECORD = "bundle.json"
CARD = "MODEL_CARD.md"
BACKBONE_FOLDER = "backbone"  # where a model is a folder of the transformers library
# Weights are read by their content, whatever their name; no name of a program or config is let in.
_KNOWN_NAMES = re.compile(
    r"head\.json|head\.safetensors|MODEL_CARD\.md|"
    r"backbone(\.(safetensors|pth|pt|pth\.tar|tar|ckpt|bin))?"
)
# Weights up to this size are copied into a bundle unless the caller says otherwise.
COPIED_BYTES = 16 * 2**20
# Where a bundle may have its weights fetched from. Others of fsspec's open files inside others,
# or hold templates that are run.
_FETCHED = ("https", "http", "s3", "gs", "hf")
_AGAIN = "export the bundle again, or get a sound copy"
_NAMED = (
    "a bundle names a preset, a model of timm or a config of mmaction2's model zoo by its name, or "
    "holds a folder of the transformers library; a config file is a program and is never read from "
    "a bundle"
)


def save_bundle(out: str | Path, bundle: Bundle, *, with_backbone: bool | None = None) -> Path:
    """Write `bundle` as the folder `out`, which appears when it is complete.

    What an export that was killed left beside it is removed first.

    Args:
        with_backbone: Whether the backbone's weights are copied in; None: files up to
            `COPIED_BYTES` are, which takes in the embedded one. Otherwise the bundle holds their
            path or address, and their digest.

    Raises:
        BundleError: `out` exists, or the backbone is a config file of one's own, which is a program
            and has no place in a bundle.
    """
    out = Path(out)
    content = _describe(bundle)
    if out.exists():
        raise BundleError(f"{out} exists already; give another name, or delete it first")
    with unfinished_folder(out) as folder:
        save_head(folder, bundle.head, dict(bundle.head_record))
        if (source := _what_to_copy(bundle.source.weights, with_backbone)) is not None:
            copy = _copy_weights(source, folder)
            if digest_of_weights(copy) != bundle.weights_sha256:
                raise BundleError(f"{source}: changed since it was loaded; export again")
            content["backbone"]["file"] = copy.name
        card = model_card(bundle, weights_file=content["backbone"]["file"])
        write_atomic(folder / CARD, card.encode())
        write_record(folder, content)
        folder.chmod(0o755)
        fsync_directory(folder)
        try:
            os.rename(folder, out)
        except OSError as error:
            raise BundleError(f"{out}: the folder cannot be put there ({error.strerror})") from None
    fsync_directory(out.parent)
    return out


def _describe(bundle: Bundle) -> dict[str, Any]:
    return {
        "title": bundle.title,
        "classes": {
            "names": list(bundle.class_names),
            "attribute_names": list(bundle.attribute_names),
            "attributes": [list(row) for row in bundle.attributes],
        },
        "backbone": asdict(bundle.source)
        | {"name": portable_name(bundle.source, bundle.backbone)}
        | {"file": None, "sha256": bundle.weights_sha256, "map_shape": list(bundle.map_shape)},
        "made_of": dict(bundle.made_of),
        "store": dict(bundle.store),
        "provenance": dict(bundle.provenance),
        "figures": bundle.figures,
    }


def _what_to_copy(source: str, with_backbone: bool | None) -> Path | None:
    """The weights file or folder that goes into the bundle, if one does."""
    if with_backbone is False or source == RANDOM:
        return None
    folder = place_weights(source)
    place = folder if folder.is_dir() else locate_weights(source).path
    files = [path for path in place.iterdir() if path.is_file()] if place.is_dir() else [place]
    size = sum(file.stat().st_size for file in files)
    return place if with_backbone or size <= COPIED_BYTES else None


def _copy_weights(source: Path, folder: Path) -> Path:
    """Copy a weights file, or what is read of a folder of the transformers library."""
    if not source.is_dir():
        known = _KNOWN_NAMES.fullmatch(f"backbone{source.suffix}")
        suffix = source.suffix if known else ""
        return Path(shutil.copyfile(source, folder / f"backbone{suffix}"))
    copy = folder / BACKBONE_FOLDER
    copy.mkdir()
    for path in source.iterdir():
        if is_read(path.name):
            shutil.copyfile(path, copy / path.name)
    return copy


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Write bundle.json over the files that are in `folder`, last of all."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(
        folder / RECORD, sign({"format": FORMAT, "version": VERSION, **content, "files": files})
    )


# ---- reading -----------------------------------------------------------------------------------


def load_bundle(path: str | Path, *, weights: str | None = None) -> Bundle:
    """Read a bundle that `save_bundle` wrote, the backbone on the CPU.

    Args:
        weights: Where the backbone's weights are now, if the bundle holds only a reference that
            does not lead there; they must be the same ones.

    Raises:
        BundleError: A part is missing, damaged, or does not belong to the others.
    """
    folder = Path(path)
    record = read_record(folder)
    try:
        head, head_record = load_head(folder)
        source, sha256 = _read_source(folder, record, weights)
        backbone = source.build(sha256)
        _require_same_frames(record["made_of"], backbone)
        classes = record["classes"]
        return Bundle(
            head=head,
            head_record=head_record,
            backbone=backbone,
            source=source,
            made_of=record["made_of"],
            store=record["store"],
            class_names=tuple(classes["names"]),
            attribute_names=tuple(classes["attribute_names"]),
            attributes=tuple(map(tuple, classes["attributes"])),
            provenance=record["provenance"],
            figures=record["figures"],
            notes=_tell_versions(record["made_of"], backbone),
        )
    except KeyError as error:
        raise BundleError(f"{folder / RECORD}: lacks {error}; export the bundle again") from None
    except (TypeError, ValueError, AttributeError) as error:  # a value of another kind
        raise BundleError(
            f"{folder / RECORD}: damaged ({error}); export the bundle again"
        ) from None
    except UserError as error:
        raise BundleError(f"{folder}: {error}") from None


def _read_source(
    folder: Path, record: Mapping[str, Any], weights: str | None
) -> tuple[BackboneSource, str | None]:
    """How the backbone is built, its weights where they are now, and their digest."""
    values = dict(record["backbone"])
    del values["map_shape"]
    file = values.pop("file")
    sha256 = values.pop("sha256")
    source = BackboneSource(**values)
    _require_portable(source)
    if file and not any(name == file or name.startswith(f"{file}/") for name in record["files"]):
        raise BundleError(f"{RECORD} names no digest of {file}; export the bundle again")
    if weights is None and file is None:
        _require_safe_reference(source.weights, sha256)
    place = weights or (str(folder / file) if file else source.weights)
    if not (place == RANDOM or is_address(place) or place_weights(place).exists()):
        raise BundleError(
            f"backbone: its weights {place} are not here and not in the bundle (sha256 {sha256}); "
            "say where they are by --weights, or export with --with-backbone"
        )
    return replace(source, weights=place), sha256


def _require_safe_reference(weights: str, sha256: str | None) -> None:
    """Refuse addresses of kinds that do more than fetch a file, and those without a digest."""
    if weights.startswith(PREFIX) and sha256 is None:
        raise BundleError(f"backbone: the sha256 of {weights} is not stated; export again")
    if weights == RANDOM or not is_address(weights):
        return
    scheme = weights.partition("://")[0].lower()
    if scheme not in _FETCHED or "::" in weights or sha256 is None:
        raise BundleError(
            f"backbone: its weights are at {scheme}://..., expected an address of "
            f"{', '.join(_FETCHED)} whose sha256 is stated; get the file yourself and give it by "
            "--weights"
        )


def _require_same_frames(made_of: Mapping[str, Any], backbone: Backbone) -> None:
    """Refuse a head whose maps were made of frames that are chosen, scaled or cut otherwise now."""
    before = made_of.get("input_pipeline")
    if before is None or backbone.pipeline is None:
        return
    now = json.loads(json.dumps(backbone.pipeline.with_views().describe()))
    differing = sorted(key for key in before | now if before.get(key) != now.get(key))
    if differing:
        told = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in differing)
        raise BundleError(
            f"backbone: this release gives it other frames than the head was trained on ({told}); "
            "extract, train and export again, or use the release that exported it"
        )


def _tell_versions(made_of: Mapping[str, Any], backbone: Backbone) -> tuple[str, ...]:
    """What differs from where the maps were made and may change last digits."""
    before = made_of["backbone"].get("versions", {})
    now = backbone.describe().get("versions", {})
    pairs = [(f"{name} {before[name]}", f"{name} {now.get(name)}") for name in sorted(before)]
    decoders = [made_of[key] for key in ("decoder", "decoder_fallback") if key in made_of]
    for named in decoders:
        here = name_decoder(cast(Decoder, named.split()[0]))
        pairs.append((named.removesuffix(" (exact frames only)"), here))
    return tuple(f"{new} here, {old} where the maps were made" for old, new in pairs if old != new)


def read_record(folder: Path) -> dict[str, Any]:
    """The content of bundle.json, after every file of the folder was compared with it.

    A folder that holds anything that bundle.json does not name, a link, or a file of a kind that no
    export writes, is refused before any of its files but bundle.json is opened.

    Raises:
        BundleError: There is no bundle, it is of another version, holds something else, or a part
            is missing or is not the one that was exported; the message names the part.
    """
    path = folder / RECORD
    if not path.is_file() or path.is_symlink():
        raise BundleError(
            f"{folder}: no bundle here (no {RECORD}); make one with "
            "`python cli.py export my_bundle --format bundle`"
        )
    content = read_listing(path)
    files = content["files"]
    if unlisted := sorted(_list_plain_files(folder) - {RECORD, *files}):
        raise BundleError(
            f"{folder}: holds {unlisted[0]}, which {RECORD} does not name; a bundle holds what was "
            f"exported and nothing else: delete it if it is yours, or {_AGAIN}"
        )
    _compare_files(folder, files)
    return content


def read_listing(path: Path) -> dict[str, Any]:
    """The content of the file `path`, a bundle.json; the names of the files that it lists are
    sound, and nothing was compared yet.

    Raises:
        BundleError: It is damaged, of another version, or lists what no export writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"], content["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else "is no JSON record"
        raise BundleError(f"{path}: damaged, {reason}; {_AGAIN}") from None
    if found != (FORMAT, VERSION):
        raise BundleError(
            f"{path}: format {found[0]} version {found[1]}, expected {FORMAT} version {VERSION}; "
            "export the bundle again with this version, or use the one that wrote it"
        )
    if not is_signed(content):
        raise BundleError(
            f"{path}: changed after it was written, its digest does not hold; {_AGAIN}"
        )
    _require_known_names(path, content.get("files"))
    return content


def _require_known_names(record: Path, files: Any) -> None:
    """Refuse names that lead elsewhere, and those of files that an export never writes."""
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise BundleError(f"{record}: damaged, it lists no files; {_AGAIN}")
    for name in files:
        parts = name.split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in name:
            raise BundleError(f"{record}: names {name}, which is outside; {_AGAIN}")
        is_of_model = parts[:-1] == [BACKBONE_FOLDER] and is_read(parts[-1])
        if not (is_of_model or _KNOWN_NAMES.fullmatch(name)):
            raise BundleError(
                f"{record}: names {name}, a file that no export writes; a bundle holds a head, "
                f"weights and a card; {_AGAIN}"
            )


def _list_plain_files(folder: Path) -> set[str]:
    """Every file below `folder`, and folders that hold none, by relative name.

    Raises:
        BundleError: There is a link, or something that is neither file nor folder.
    """

    def fail(error: OSError) -> None:  # os.walk would pass over what can't be listed
        raise error

    found: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=fail):
        for name in (*folders, *files):
            path = Path(place, name)
            shown = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                kind = "a link" if path.is_symlink() else "no plain file"
                raise BundleError(
                    f"{folder}: {shown} is {kind}; a bundle holds plain files only: {_AGAIN}"
                )
            if path.is_file() or not any(path.iterdir()):
                found.add(shown)
    return found


def _compare_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, promised in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path}: missing, {RECORD} names it; {_AGAIN}")
        if (size := path.stat().st_size) != promised.get("bytes"):
            raise BundleError(
                f"{path}: {size:,} bytes, {RECORD} expects {promised.get('bytes')}: damaged, or "
                f"of another bundle; {_AGAIN}"
            )
        if (digest := sha256_file(path)) != promised.get("sha256"):
            raise BundleError(
                f"{path}: its sha256 is {digest[:12]}..., {RECORD} expects "
                f"{str(promised.get('sha256'))[:12]}...: damaged, or of another bundle; {_AGAIN}"
            )


# ---- which backbones a bundle names ------------------------------------------------------------


def portable_name(source: BackboneSource, backbone: Backbone) -> str:
    """What a bundle calls the backbone: a name that means the same everywhere, and is no program.

    Raises:
        BundleError: It is built from a config file of one's own.
    """
    name = source.name
    if _is_own_name(name):
        return name
    is_folder = name.startswith(PREFIX) or (Path(name) / CONFIG).is_file()
    if is_folder and source.weights != RANDOM:
        return backbone.name  # of the transformers library: its folder is where the weights are
    path = find_config(name) if is_config_name(name) or Path(name).suffix == ".py" else None
    if path is not None and zoo_names().get(path.stem, Path()).resolve() == path.resolve():
        return path.stem
    raise BundleError(
        f"backbone.name is {name}: {_NAMED}; `predict` and `demo-app` without --bundle work with it"
    )


def _require_portable(source: BackboneSource) -> None:
    """Refuse a bundle that names anything that could be read or run as a program.

    Raises:
        BundleError: Its backbone has no name of a preset or of a config of the model zoo, or a
            value of another type.
    """
    if not isinstance(source.name, str) or not _is_own_name(source.name):
        raise BundleError(f"backbone {source.name!r}: {_NAMED}; export the bundle again")
    texts = source.weights, source.tap, source.key_map
    sizes = source.num_frames, source.size_px, source.frame_interval
    if not all(isinstance(text, str) for text in texts) or not all(
        size is None or type(size) is int for size in sizes
    ):
        raise BundleError("backbone: values of other types than expected; export the bundle again")
    if source.key_map not in ("auto", *KEY_MAPS):
        raise BundleError(
            f"backbone: key map {source.key_map!r}, expected one of {', '.join(KEY_MAPS)}; export "
            "the bundle again"
        )
    if source.input not in get_args(Modality):
        raise BundleError(
            f"backbone: input {source.input!r}, expected one of {', '.join(get_args(Modality))}; "
            "export the bundle again"
        )


def _is_own_name(name: str) -> bool:
    """Whether it is exactly a preset's, a zoo config's or one of timm; a path never is."""
    return name in preset_names() or is_timm_name(name) or name in zoo_names()
