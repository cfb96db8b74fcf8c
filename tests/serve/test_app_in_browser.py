"""The page of demo-app in a real browser: upload, result, wrong file, too large, two at once.

Needs Chromium (Debian: `apt-get install chromium`); skipped where there is none.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from dsts_pipeline.serve import Predictor
from dsts_pipeline.serve.app import Limits
from tests.clips.videos import write_video
from tests.report.browser import Tab, browser_tab, find_browser
from tests.serve.app_server import make_neighbours, running_app
from tests.serve.small_bundle import CLASSES, make_bundle

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium"),
]
ODD_NAME = "<img src=x onerror=alert(1)>.mp4"
IS_DONE = "!document.getElementById('answer').hidden || !document.getElementById('problem').hidden"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"clip{n}.mp4", num_frames=16, seed=n) for n in range(3)]


@pytest.fixture(scope="module")
def address(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app") / "uploads"
    near = make_neighbours(videos, "<i>lost</i>.mp4")
    limits = Limits(upload_bytes=200_000)
    with Predictor(make_bundle(), num_decode_workers=2) as predictor:
        predictor.warm_up()
        with running_app(predictor, folder, neighbours=near, limits=limits) as address:
            yield address
        assert list(folder.iterdir()) == []


async def choose(tab: Tab, path: Path) -> None:
    """As the file dialog does."""
    root = (await tab.send("DOM.getDocument"))["root"]["nodeId"]
    node = (await tab.send("DOM.querySelector", nodeId=root, selector="#file"))["nodeId"]
    await tab.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


async def drop(tab: Tab, path: Path) -> None:
    """As a mouse does that carries a file from the desktop."""
    x, y = await tab.run(
        "(() => { const b = document.getElementById('drop').getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        await tab.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


async def wait_until(tab: Tab, condition: str) -> None:
    for _ in range(600):
        if await tab.run(condition):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"never: {condition}; the page says {await text_of(tab, 'body')}")


async def text_of(tab: Tab, selector: str) -> str:
    return await tab.run(f"document.querySelector({selector!r}).innerText")


def all_of(selector: str, expression: str) -> str:
    """JavaScript for the values of `expression` of every element `e`."""
    return f"[...document.querySelectorAll({selector!r})].map(e => {expression})"


def check_calm(tab: Tab, address: str) -> None:
    """Nothing went wrong, and nothing was asked of anyone else."""
    assert tab.complaints == []
    assert all(url.startswith((address, "data:")) for url in tab.requests), tab.requests


def test_upload_and_result(address, videos, tmp_path):
    odd = Path(shutil.copy(videos[0], tmp_path / ODD_NAME))

    async def use():
        async with browser_tab() as tab:
            await tab.open(address)
            await choose(tab, odd)
            await wait_until(tab, IS_DONE)
            assert ODD_NAME in await text_of(tab, "#status")
            assert ODD_NAME in await text_of(tab, "#answer-title")
            names = await tab.run(all_of("#top .name", "e.innerText"))
            assert len(names) == 5 and set(names) <= set(CLASSES)
            widths = await tab.run(all_of("#top .bar", "e.getBoundingClientRect().width"))
            assert widths == sorted(widths, reverse=True) and widths[0] > 20
            chosen = "document.querySelectorAll('#route .neuron.chosen').length"
            assert await tab.run(chosen) == 2
            assert await tab.run("document.querySelectorAll('#route .neuron').length") == 6
            assert await tab.run("document.querySelectorAll('#route .path').length") == 1
            label = await tab.run("document.querySelector('#route svg').getAttribute('aria-label')")
            assert label.startswith("Route, layer 1: neuron ")
            assert "neuron" not in await text_of(tab, "#route-table tbody")
            near = await text_of(tab, "#neighbours")
            assert "<i>lost</i>.mp4" in near and "no preview" in near
            assert await tab.run("document.querySelectorAll('#neighbours .strip').length") == 3
            # Names with HTML are shown as they are.
            assert await tab.run("document.querySelectorAll('b b, i, img').length") == 0
            assert await tab.run("document.activeElement.id") == "answer"
            frames = "document.querySelectorAll('#film .frame').length"
            assert await tab.run(frames) == 6
            running = "getComputedStyle(document.querySelector('#neighbours .strip'))"
            running += ".animationPlayState"
            assert await tab.run(running) == "running"
            await tab.click("#pause")
            assert await tab.run(running) == "paused"
            check_calm(tab, address)

    asyncio.run(use())


def test_drop_in_the_dark_on_a_narrow_screen(address, videos):
    async def use():
        async with browser_tab() as tab:
            await tab.open(address, width=390, dark=True)
            await drop(tab, videos[1])
            await wait_until(tab, IS_DONE)
            assert "clip1.mp4: " in await text_of(tab, "#status")
            assert await tab.run("document.documentElement.scrollWidth") <= 390
            check_calm(tab, address)

    asyncio.run(use())


def test_wrong_and_too_large_files_then_a_good_one(address, videos, tmp_path):
    (tmp_path / "notes.mp4").write_text("no video " * 100)
    (tmp_path / "large.mp4").write_bytes(bytes(200_001))

    async def use():
        async with browser_tab() as tab:
            await tab.open(address)
            await choose(tab, tmp_path / "notes.mp4")
            await wait_until(tab, IS_DONE)
            told = await text_of(tab, "#problem")
            assert told.startswith("notes.mp4: This file cannot be used: FFmpeg")
            assert await tab.run(all_of("#problem", "e.getAttribute('role')")) == ["alert"]
            num_sent = len(tab.requests)
            await choose(tab, tmp_path / "large.mp4")
            await wait_until(tab, "document.getElementById('problem').innerText.includes('large')")
            assert "large.mp4 is larger than 0.190735" in await text_of(tab, "#problem")
            assert len(tab.requests) == num_sent, "it was sent all the same"
            # A page that does not look at the size is stopped by the server.
            await tab.run("document.body.dataset.uploadBytes = '1e12'")
            await choose(tab, tmp_path / "large.mp4")
            told_anew = "!/4 is |^$/.test(document.getElementById('problem').innerText)"
            await wait_until(tab, told_anew)
            # The server may hang up before the browser has read why.
            told = await text_of(tab, "#problem")
            assert "the file is larger than" in told or "no answer from the server" in told
            await choose(tab, videos[2])
            await wait_until(tab, "!document.getElementById('answer').hidden")
            assert await tab.run("document.getElementById('problem').hidden")

    asyncio.run(use())


def test_keyboard_and_names(address):
    async def use():
        async with browser_tab() as tab:
            await tab.open(address)
            await tab.press("Tab")
            assert await tab.run("document.activeElement.className") == "skip"
            await tab.press("Tab")
            assert await tab.run("document.activeElement.id") == "file"
            outline = "getComputedStyle(document.getElementById('drop')).outlineStyle"
            assert await tab.run(outline) == "solid"
            tree = (await tab.send("Accessibility.getFullAXTree"))["nodes"]
            named = {
                (node["role"]["value"], node.get("name", {}).get("value", ""))
                for node in tree
                if "role" in node
            }
            assert any("Choose a video file" in name for _, name in named)
            assert ("heading", "What does this video show?") in named
            unnamed = [role for role, name in named if role in ("button", "image") and not name]
            assert unnamed == []
            check_calm(tab, address)

    asyncio.run(use())


def test_two_at_once(address, videos):
    async def use():
        async with browser_tab() as first, browser_tab() as second:
            await first.open(address)
            await second.open(address)
            await asyncio.gather(choose(first, videos[0]), choose(second, videos[1]))
            await asyncio.gather(wait_until(first, IS_DONE), wait_until(second, IS_DONE))
            assert "clip0.mp4: " in await text_of(first, "#status")
            assert "clip1.mp4: " in await text_of(second, "#status")
            for tab in (first, second):
                check_calm(tab, address)

    asyncio.run(use())
