"""The page in a real browser: quiet, without requests, usable by mouse and by keyboard."""

from __future__ import annotations

import asyncio

import pytest

from dsts_pipeline.report import render_report, write_report
from tests.report.report_example import make_frames, make_inputs

pytest.importorskip("aiohttp")
from tests.report.browser import browser_tab, find_browser  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium installed"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    small = {"num_clips": 80, "num_classes": 8, "num_neurons": 3, "num_layers": 2}
    write_report(render_report(make_inputs(**small), frames_of=make_frames), path)
    return path.as_uri()


def drive(address, steps, **options):
    """Open the page, run `steps(tab)`, and hold it to silence and to no request."""

    async def session():
        async with browser_tab() as tab:
            await tab.open(address, **options)
            await steps(tab)
            assert tab.complaints == []
            loaded = [url for url in tab.requests if not url.startswith("data:")]
            assert loaded == [address]

    asyncio.run(session())


def test_cells_list_their_clips_by_mouse_and_by_keyboard(address):
    async def steps(tab):
        await tab.click(".matrix-2 .cell.right")
        listed = await tab.run("document.getElementById('listing').innerText")
        assert "right" in listed and "stick_0" in listed and "neurons" in listed
        await tab.run("document.querySelector('.matrix-2 .wide').focus()")
        for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
            await tab.press(key)
        said = await tab.run("document.querySelector('#listing p').textContent")
        assert "taken for" in said or "right" in said
        await tab.press("Home")
        await tab.press("Enter")
        assert "right" in await tab.run("document.querySelector('#listing p').textContent")
        assert await tab.run("document.querySelectorAll('#listing li').length") > 0

    drive(address, steps)


def test_head_choice_swaps_the_matrix_and_clears_the_list(address):
    async def steps(tab):
        shown = "getComputedStyle(document.querySelector('.matrix-{}')).display"
        assert await tab.run(shown.format(2)) == "block"
        await tab.click("#head-0")
        assert await tab.run(shown.format(0)) == "block"
        assert await tab.run(shown.format(2)) == "none"
        assert await tab.run("document.getElementById('listing').textContent") == ""

    drive(address, steps)


def test_light_and_dark_follow_the_system_until_the_button_says_otherwise(address):
    async def steps(tab):
        ground = "getComputedStyle(document.documentElement).backgroundColor"
        assert await tab.run(ground) == "rgb(22, 24, 27)"
        await tab.click("#theme")
        assert await tab.run(ground) == "rgb(253, 252, 249)"

    drive(address, steps, dark=True)


def test_previews_move_until_they_are_stopped(address):
    async def steps(tab):
        await tab.run("document.getElementById('gallery').scrollIntoView()")
        moving = "getComputedStyle(document.querySelector('.strip')).animationName"
        assert await tab.run(moving) == "strip"
        await tab.click("#play")
        assert await tab.run(moving) == "none"

    drive(address, steps)


def test_a_phone_scrolls_down_only(address):
    async def steps(tab):
        assert await tab.run("document.documentElement.scrollWidth <= innerWidth")

    drive(address, steps, width=390)
