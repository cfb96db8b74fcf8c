"""Pictures of the page for README and docs, taken by a headless Chromium.

Enters: a written report. Leaves: PNG files of at most `MAX_BYTES` each, of 256 colours.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import write_atomic

MAX_BYTES = 300_000
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Shot:
    """One picture: its file, what the address says after the page, and the window."""

    name: str
    address: str
    width_px: int = 1240
    height_px: int = 900


def report_shots(cell: tuple[int, int], *, with_neurons: bool) -> list[Shot]:
    """The pictures that README and docs show.

    Args:
        cell: row and column of the confusion matrix (from 0) whose clips are listed.
        with_neurons: whether the page tells of a choice of neurons.
    """
    row, column = cell[0] + 1, cell[1] + 1
    shots = [
        Shot("report.png", "?tab=summary", height_px=1000),
        Shot("report-confusion.png", f"?tab=confusion&cell={row}-{column}", height_px=2160),
        Shot("report-mistakes.png", "?theme=dark&tab=mistakes", height_px=1250),
    ]
    if with_neurons:
        shots += [
            Shot("report-routing.png", "?theme=dark&tab=routing", height_px=1500),
            Shot("report-gallery.png", "?tab=gallery", height_px=1100),
        ]
    return shots


def find_browser() -> str | None:
    """Path of an installed Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def take_screenshots(page: Path | str, folder: Path, shots: Sequence[Shot]) -> list[Path]:
    """Write one PNG a shot into `folder`; returns their paths.

    Args:
        page: a file, or the address of a page that is being served.

    Raises:
        DataError: There is no browser, or it took no picture.
    """
    browser = find_browser()
    if browser is None:
        raise DataError(
            f"no Chromium found (looked for {', '.join(NAMES)}), which takes the pictures; "
            "install it: `make browser`, or `apt-get install chromium`"
        )
    for shot in shots:
        with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            taken = Path(scratch) / "taken.png"
            command = [
                browser,
                *FLAGS,
                f"--user-data-dir={scratch}/profile",
                f"--window-size={shot.width_px},{shot.height_px}",
                "--virtual-time-budget=8000",  # charts are drawn a moment after the page is there
                f"--screenshot={taken}",
                (page if isinstance(page, str) else page.resolve().as_uri()) + shot.address,
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
            )
            if not taken.exists():
                raise DataError(f"{browser} took no picture of {page}: {done.stderr[-300:]}")
            write_atomic(folder / shot.name, small_png(taken.read_bytes()))
    return [folder / shot.name for shot in shots]


def small_png(picture: bytes) -> bytes:
    """The same picture in 256 colours, scaled down until it has at most `MAX_BYTES`."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    while True:
        buffer = io.BytesIO()
        image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5))
