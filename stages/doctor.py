"""Before a run: whether this machine can run the settings, and what the settings are.

Enters: settings. Leaves: a line per check, ok or what to do. Torch and what needs it are imported
when a check asks for them: those before it are told at once.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dsts_pipeline.base.errors import DataError, UserError, explain_missing
from dsts_pipeline.base.params import settings_as_yaml
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import BackboneSettings, DatasetSettings, Settings
from dsts_pipeline.clips.decode import Decoder, decode_frames, has_decord, name_decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.clips.readers import read_annotations
from stages import common

if TYPE_CHECKING:
    from dsts_pipeline.feature_store.planning import ExtractionWork

NEEDED = ("", "pipeline")  # the base install, and what a run takes beside it
_NUM_SHOWN = 4


class NotReady(UserError):
    """At least one check failed."""

    exit_status = 1


def run(settings: Settings) -> None:
    """Print the findings.

    Raises:
        NotReady: Something has to be done first.
    """
    num_failed = 0
    for finding in examine_all(settings):
        verdict, colour = ("ok", "green") if finding.is_ok else ("do", "red")
        console.print(verdict, style=colour, end="")
        console.print(f"  {finding.topic:<9} {finding.text}", soft_wrap=True)
        num_failed += not finding.is_ok
    if num_failed:
        raise NotReady(f"{num_failed} of these checks failed; do what they say and run it again")


def examine_all(settings: Settings) -> Iterator[Finding]:
    """All checks in turn; space and time only where clips and backbone are known."""
    num_clips = 0
    map_shape: tuple[int, ...] = ()

    def data() -> str:
        nonlocal num_clips
        text, num_clips = check_data(settings.dataset)
        return text

    def weights() -> str:
        nonlocal map_shape
        text, map_shape = check_weights(settings.backbone)
        return text

    yield examine("versions", lambda: check_versions(tested=read_constraints("constraints.txt")))
    yield examine("decoder", lambda: check_decoder(settings.backbone.decoder))
    yield examine("devices", lambda: check_devices(settings.backbone.device))
    yield examine("data", data)
    yield examine("weights", weights)
    if num_clips and map_shape:
        yield examine("space", lambda: _judge_space(settings, map_shape, num_clips))
        yield examine("time", lambda: _describe_time(settings))


@dataclass(frozen=True)
class Finding:
    """One line of a checkup.

    Attributes:
        topic: What was looked at, in a word or two.
        is_ok: False if something must be done first.
        text: What was found, and what to do.
    """

    topic: str
    is_ok: bool
    text: str


def examine(topic: str, check: Callable[[], str]) -> Finding:
    """Run `check`; a problem that a user can act on becomes a finding, a bug stays an exception."""
    try:
        return Finding(topic, True, check())
    except UserError as error:
        return Finding(topic, False, str(error))
    except ModuleNotFoundError as error:
        return Finding(topic, False, str(explain_missing(error, f"the check of {topic}")))
    except ImportError as error:
        return Finding(topic, False, f"a package cannot be loaded ({error})")


# ---- versions ----------------------------------------------------------------------------------


def check_versions(
    requirements: Iterable[str] | None = None,
    *,
    installed: Callable[[str], str] = importlib.metadata.version,
    tested: Mapping[str, str] | None = None,
) -> str:
    """Compare installed packages with those that this project asks for.

    Args:
        requirements: Such as "zarr>=3.1,<4"; by default this project's own. What an extra other
            than `NEEDED` takes is compared where it is installed.
        installed: Name -> version; raises PackageNotFoundError.
        tested: Name -> version that the project's tests run with; a difference is told only.

    Raises:
        UserError: Python or a package is missing or of a wrong version.
    """
    problems: list[str] = []
    others: list[str] = []
    count = 0
    for text in _own_requirements() if requirements is None else requirements:
        requirement = Requirement(text)
        name = requirement.name
        marker = requirement.marker
        needed = marker is None or any(marker.evaluate({"extra": extra}) for extra in NEEDED)
        expected = str(requirement.specifier) or "any version"
        try:
            version = installed(name)
        except importlib.metadata.PackageNotFoundError:
            if needed:
                problems.append(f"{name} is missing (expected {expected})")
            continue
        count += 1
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{name} is {version}, expected {expected}")
        elif tested and tested.get(name, version) != version.split("+")[0]:
            others.append(f"{name} {version} (tested: {tested[name]})")
    if problems:
        raise UserError(
            f'{_list(problems)}; run `make setup`, or pip install "dsts-pipeline[pipeline]"'
        )
    text = f"Python {platform.python_version()}, {count} packages as required"
    return f"{text}; untested: {_list(others)}" if others else text


def _own_requirements() -> list[str]:
    wanted = importlib.metadata.metadata("dsts-pipeline")["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        raise UserError(
            f"Python is {platform.python_version()}, expected {wanted}; install that one"
        )
    return importlib.metadata.requires("dsts-pipeline") or []


def read_constraints(path: str | Path) -> dict[str, str]:
    """Versions by package of a constraints file ("name==version" per line); none if not there."""
    path = Path(path)
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    pins = [Requirement(line) for line in lines if line]
    return {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def _list(items: list[str]) -> str:
    rest = f" and {len(items) - _NUM_SHOWN} more" if len(items) > _NUM_SHOWN else ""
    return ", ".join(items[:_NUM_SHOWN]) + rest


# ---- decoder and devices -----------------------------------------------------------------------


def check_decoder(decoder: Decoder) -> str:
    """Encode a clip of eight grey frames, H.264 and VP9, and decode three of them.

    Raises:
        UserError: The decoder cannot be loaded, or gives other frames.
    """
    wanted = [0, 3, 7]
    shades = np.linspace(20, 230, 8).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (8, 64, 64, 3))
    with tempfile.TemporaryDirectory() as folder:
        try:
            from dsts_pipeline.stick.rendering import encode_mp4, encode_webm

            for name, encode in (("clip.mp4", encode_mp4), ("clip.webm", encode_webm)):
                path = Path(folder, name)
                path.write_bytes(encode(frames))
                decoded = decode_frames(path, wanted, decoder=decoder)
                # Compression may cost a dozen grey levels on average.
                if np.abs(decoded.astype(float) - frames[wanted]).mean() > 12.0:
                    raise DataError(f"{decoder} gives other frames of {name} than were encoded")
        except DataError as error:
            raise UserError(f"{error}; set backbone.decoder to another one") from None
    lacks = decoder == "auto" and not has_decord()
    told = "; decord is not installed, so PyAV reads all" if lacks else ""
    return f"{name_decoder(decoder)} decodes H.264 and VP9{told}"


def check_devices(wanted: Literal["auto", "cpu", "cuda"] = "auto") -> str:
    """Processors and accelerators that torch sees, and the one that extraction would use.

    Raises:
        UserError: "cuda" is wanted and there is none.
    """
    import torch

    from dsts_pipeline.extract.forward import choose_device

    chosen = choose_device(wanted)
    found = [f"{platform.machine()}, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        found.append(f"{properties.name} with {properties.total_memory / 1e9:.0f} GB")
    return f"{'; '.join(found)}; extraction runs on {chosen}"


# ---- data and weights --------------------------------------------------------------------------


def check_data(dataset: DatasetSettings) -> tuple[str, int]:
    """Read the annotations and look whether their videos are there; none is opened.

    Returns:
        What was found, and the number of annotated clips.

    Raises:
        DataError: The root, an annotation file or too many videos are missing.
    """
    if render := dataset.render:
        total = render.num_train + render.num_test
        return f"{total:,} clips, which `python cli.py prepare` renders", total
    root = dataset.root
    annotations = read_annotations(
        dataset.format,
        root,
        video_folder=dataset.video_folder,
        train_file=dataset.train_file,
        test_file=dataset.test_file,
        class_file=dataset.class_file,
        allow_outside_root=dataset.allow_outside_root,
        test_fraction=dataset.test_fraction,
    )
    missing = [
        clip.path for clip in annotations.clips if not os.path.isfile(os.path.join(root, clip.path))
    ]
    total = len(annotations.clips)
    if len(missing) > dataset.max_problem_fraction * total:
        raise DataError(
            f"{root}: {len(missing):,} of {total:,} annotated videos are missing, first "
            f"{missing[0]} (looked for {os.path.join(root, missing[0])}); put them there, or set "
            "dataset.root or dataset.video_folder"
        )
    classes = len(annotations.class_names)
    return f"{total:,} clips of {classes} classes in {root}, {len(missing):,} missing", total


def check_weights(chosen: BackboneSettings) -> tuple[str, tuple[int, int, int, int]]:
    """Load the weights into the backbone they are meant for, every key and shape compared.

    Returns:
        What was found, and the shape (C, T', H', W') of one clip's map.

    Raises:
        SettingsError: No backbone has this name.
        CheckpointError: The file is missing, damaged or belongs to another backbone.
    """
    from dsts_pipeline.extract.build import choose_backbone

    backbone = choose_backbone(chosen)
    shape = " x ".join(map(str, backbone.map_shape))
    digest = backbone.describe()["weights"].get("sha256")
    origin = f"(sha256 {digest[:12]}...) fits" if digest else "weights, never trained, for"
    report = backbone.load_report
    keys = f", {report.summarize()}" if report else ""
    text = f"{chosen.weights} {origin} {chosen.name}: maps of {shape}{keys}"
    return text, backbone.map_shape


# ---- what an extraction still costs, in bytes and in time --------------------------------------


def _judge_space(settings: Settings, map_shape: tuple[int, ...], num_clips: int) -> str:
    """Compare what the store still takes with what is free.

    Before `prepare`, that is `num_clips` maps; after it, exactly the pending shards.

    Raises:
        UserError: Too little is free.
    """
    from dsts_pipeline.feature_store.stored_types import STORED_DTYPES
    from dsts_pipeline.feature_store.writer import survey_store

    work = _plan_work(settings)
    if work is None:
        needed = num_clips * math.prod(map_shape) * STORED_DTYPES[settings.store.dtype].itemsize
    else:
        survey = survey_store(settings.store.root, work.plan)
        needed = survey.pending_bytes + survey.margin_bytes
    return check_space(settings.store.root, needed)


def check_space(folder: str | Path, needed_bytes: int) -> str:
    """Compare free space where `folder` is, or will be, with what is needed.

    Raises:
        UserError: Too little is free.
    """
    place = Path(os.path.abspath(folder))
    place = next(parent for parent in (place, *place.parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    text = (
        f"{needed_bytes / 1e9:,.2f} GB are still needed in {folder}, {free / 1e9:,.2f} GB are free"
    )
    if needed_bytes > free:
        raise UserError(
            f"{text}; free space, choose another store.root, or a smaller store.dtype or "
            "store.codec = zstd"
        )
    return text


def _describe_time(settings: Settings) -> str:
    """Time of the extraction, measured on four pending clips; unknown before `prepare`."""
    from dsts_pipeline.extract.runner import forecast_extraction
    from dsts_pipeline.feature_store.writer import survey_store

    work = _plan_work(settings)
    if work is None:
        return "unknown before `python cli.py prepare`"
    pending = survey_store(settings.store.root, work.plan).pending
    positions = [position for shard in pending for position in work.plan.positions_of(shard)]
    if not positions:
        return "the store is finished: nothing to extract"
    forecast = forecast_extraction(
        work.views,
        work.backbone,
        positions,
        num_decode_workers=settings.backbone.num_decode_workers,
        batch_size=2,  # two are timed: four clips, even where a forward pass takes long
    )
    seconds = forecast.seconds_per_clip * len(positions)
    return (
        f"about {seconds / 60:,.1f} min for {len(positions):,} pending clips, measured on "
        f"{forecast.num_clips} of them ({1000 * forecast.seconds_per_clip:.0f} ms a clip)"
    )


def _plan_work(settings: Settings) -> ExtractionWork | None:
    """Clips, backbone and store, if `prepare` has written the clip index of this data set."""
    from dsts_pipeline.feature_store.planning import prepare_work

    try:
        index = ClipIndex.load(common.CLIP_INDEX)
    except DataError:
        return None
    if (index.dataset, index.root) != (settings.dataset.name, settings.dataset.root):
        return None
    return prepare_work(index, settings.backbone, settings.dataset, settings.store)


# ---- show --------------------------------------------------------------------------------------


def show(settings: Settings) -> None:
    """Print all settings as YAML: what --params would need to hold for the same run."""
    sys.stdout.write(settings_as_yaml(settings))
