"""The page over plain HTTP: answers, refusals, limits, and what other sites may not do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.serve import Predictor, save_bundle
from dsts_pipeline.serve.app import Example, Limits, answer_video
from dsts_pipeline.serve.neighbours import Neighbours
from tests.clips.videos import write_video
from tests.pipeline import ROOT, command_of
from tests.serve.app_server import UPLOAD, SmallStore, call, make_neighbours, post, running_app
from tests.serve.small_bundle import CLASSES, make_bundle

SMALL = Limits(upload_bytes=200_000)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"clip{n}.mp4", num_frames=16, seed=n) for n in range(3)]


@pytest.fixture(scope="module")
def predictor():
    with Predictor(make_bundle(), num_decode_workers=2) as predictor:
        predictor.warm_up()
        yield predictor


@pytest.fixture(scope="module")
def place(predictor, videos, tmp_path_factory):
    """(address, folder of uploads) of a running page with small limits."""
    folder = tmp_path_factory.mktemp("app") / "uploads"
    near = make_neighbours(videos, "lost.mp4")
    with running_app(predictor, folder, neighbours=near, limits=SMALL) as address:
        yield address, folder


# ---- the page ---------------------------------------------------------------------------------


def test_page_is_escaped_and_closed_to_all_but_itself(place):
    address, _ = place
    status, headers, body = call(address, "GET", "/")
    text = body.decode()
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "&lt;b&gt;twist&lt;/b&gt; &amp; pike" in text and "<b>twist" not in text
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert "://" not in text, "the page names another site"
    assert "style=" not in text and "onclick" not in text
    assert headers["x-content-type-options"] == "nosniff" and "server" not in headers


@pytest.mark.parametrize("name", ["app.css", "app.js", "colours.css"])
def test_assets(place, name):
    status, headers, body = call(place[0], "GET", f"/assets/{name}")
    assert status == 200 and len(body) > 500 and "content-security-policy" in headers
    kind = "text/javascript" if name.endswith(".js") else "text/css"
    assert headers["content-type"].startswith(kind)


@pytest.mark.parametrize(
    "path", ["/assets/server.py", "/assets/..%2f..%2fserver.py", "/docs", "/openapi.json", "/etc"]
)
def test_nothing_else_is_served(place, path):
    status, _, body = call(place[0], "GET", path)
    assert status == 404 and b"import" not in body


# ---- answers ----------------------------------------------------------------------------------


def test_answer_is_that_of_predict(place, predictor, videos):
    address, folder = place
    status, result = post(address, videos[0].read_bytes())
    (expected,) = predictor.predict(videos[:1])
    assert status == 200
    best = [(CLASSES[number], pytest.approx(p)) for number, p in expected.top()]
    assert [(entry["name"], entry["probability"]) for entry in result["top"]] == best
    assert [layer["chosen"] for layer in result["layers"]] == expected.neurons.T.tolist()
    assert [layer["num_neurons"] for layer in result["layers"]] == [3, 3]
    assert result["strip"].startswith("data:image/webp;base64,")
    assert result["video"]["num_frames"] == 16
    assert list(folder.iterdir()) == []


def test_nearest_training_clips(place, predictor, videos):
    _, result = post(place[0], videos[1].read_bytes())
    names = [*(path.name for path in videos), "lost.mp4"]
    (answer,) = predictor.predict(videos[1:2])
    maps = SmallStore(names).maps[:, :, 0, 0, 0].astype(np.float64)
    mean = maps.mean(axis=0)
    maps, own = maps - mean, answer.pooled - mean
    cosines = maps @ own / np.linalg.norm(maps, axis=1) / np.linalg.norm(own)
    near = result["neighbours"]
    order = np.argsort(-cosines)
    assert [clip["id"] for clip in near] == [names[row] for row in order]
    assert [clip["name"] for clip in near] == [CLASSES[row] for row in order]
    np.testing.assert_allclose([c["similarity"] for c in near], cosines[order], atol=1e-5)
    shown = {clip["id"]: clip["strip"] for clip in near}
    assert shown.pop("lost.mp4") is None
    assert all(strip.startswith("data:image/webp") for strip in shown.values())


def test_a_video_far_from_all_training_clips_is_called_so():
    """Clips of three kinds, and videos of these and of none."""
    store = SmallStore([f"clip{n}" for n in range(60)])
    store.maps[:] = store.maps[np.arange(60) % 3] + store.maps / 4
    near = Neighbours(store, ClipIndex("small", ".", CLASSES, (), (), ()))
    maps = store.maps[:, :, 0, 0, 0].astype(np.float64)
    mean = maps.mean(axis=0)
    directions = (maps - mean) / np.linalg.norm(maps - mean, axis=1, keepdims=True)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, -1)
    assert near.threshold == pytest.approx(np.quantile(cosines.max(axis=1), 0.02), abs=1e-5)
    alike = maps[:20] + np.random.default_rng(9).normal(size=(20, 128)) / 100
    others = np.random.default_rng(9).random((20, 128))
    assert [near.is_far(near.find(one)) for one in (*alike, *others)] == [False] * 20 + [True] * 20


def test_the_nearest_clip_of_the_same_group_does_not_count(videos, monkeypatch):
    """Pairs of equal clips: each has its like in its own group, which tells nothing."""

    class PairedStore(SmallStore):
        def __init__(self, names):
            super().__init__(names)
            self.maps = np.repeat(self.maps[: len(names) // 2], 2, axis=0)

    names = [f"clip{n}" for n in range(60)]
    monkeypatch.setattr(PairedStore, "groups", [f"player {n // 2}" for n in range(60)])
    index = ClipIndex("small", ".", CLASSES, (), (), ())
    assert Neighbours(PairedStore(names), index).threshold < 0.9
    monkeypatch.setattr(PairedStore, "groups", ["all"] * 60)
    assert Neighbours(PairedStore(names), index).threshold == pytest.approx(1.0, abs=1e-5)


def test_of_few_training_clips_none_is_called_far(place, videos):
    assert make_neighbours(videos).threshold is None
    _, result = post(place[0], videos[1].read_bytes())
    assert result["is_far"] is None


def test_examples_are_answered_as_uploads_are(predictor, videos, tmp_path):
    offered = [Example("<b>one</b>", CLASSES[1], videos[2], "data:image/webp;base64,AAAA")]
    with running_app(predictor, tmp_path / "uploads", examples=offered) as address:
        _, _, body = call(address, "GET", "/examples")
        (shown,) = json.loads(body)["examples"]
        assert shown == {"name": "<b>one</b>", "class": CLASSES[1], "strip": offered[0].strip}
        status, _, body = call(address, "POST", "/examples/0", headers=UPLOAD)
        (expected,) = predictor.predict(videos[2:])
        assert status == 200
        assert json.loads(body)["top"][0]["probability"] == pytest.approx(expected.top()[0][1])
        assert call(address, "POST", "/examples/1", headers=UPLOAD)[0] == 404
        assert call(address, "POST", "/examples/0")[0] == 403
        assert call(address, "POST", "/examples/..%2f0", headers=UPLOAD)[0] in (404, 422)


def test_an_attentive_head_s_answer_has_what_it_took(videos, tmp_path):
    torch.manual_seed(0)
    head = DSTSHead(128, len(CLASSES), num_neurons=2, num_layers=1, width=8, readout="attentive")
    with Predictor(make_bundle(head=head.eval()), with_attention=True) as predictor:
        result = answer_video(videos[0], predictor, None)
        (answer,) = predictor.predict(videos[:1])
    assert result["shade"].startswith("data:image/webp;base64,")
    assert answer.attention.shape == (8, 4, 4)
    steps = answer.attention.sum(axis=(1, 2))
    assert len(result["shares"]) == result["strip_frames"]
    assert all(np.isclose(steps, share).any() for share in result["shares"])


def test_many_training_clips_are_thinned_out(monkeypatch, videos):
    monkeypatch.setattr("dsts_pipeline.serve.neighbours.MAX_CLIPS", 10)
    near = make_neighbours(videos, *(f"clip{n}" for n in range(40)))
    assert isinstance(near, Neighbours)
    assert (near.num_compared, near.num_clips) == (10, 43)


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (b"no video " * 300, 422, "FFmpeg"),
        (b"", 400, "the file is empty"),
    ],
)
def test_wrong_file(place, content, status, word):
    address, folder = place
    found, result = post(address, content)
    assert found == status and word in result["error"]
    assert str(folder) not in result["error"] and list(folder.iterdir()) == []


# ---- other sites ------------------------------------------------------------------------------


def test_other_names_of_this_machine_are_refused(place):
    # A name that was rebound to 127.0.0.1 would make another site's script one of ours.
    for name in ("evil.example", "127.0.0.1:1", "", "evil.example:80@127.0.0.1"):
        status, _, body = call(place[0], "GET", "/", headers={"Host": name})
        assert status in (400, 421) and b"<html" not in body


def test_other_sites_may_not_send_or_read(place, videos):
    content = videos[0].read_bytes()
    assert call(place[0], "POST", "/answers", data=content)[0] == 403
    origin = {"Origin": "http://evil.example"}
    status, headers, _ = call(place[0], "POST", "/answers", data=content, headers=UPLOAD | origin)
    assert status == 403
    asked = {**origin, "Access-Control-Request-Method": "POST"}
    status, headers, _ = call(place[0], "OPTIONS", "/answers", headers=asked)
    assert status in (403, 405)
    assert not any(name.lower().startswith("access-control") for name in headers)


def test_own_origin_is_let_in(place, videos):
    status, _ = post(place[0], videos[2].read_bytes(), Origin=place[0])
    assert status == 200


# ---- the command ------------------------------------------------------------------------------


def test_missing_extra_is_named(monkeypatch):
    for module in ("dsts_pipeline.serve.app", "stages.predict"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    from stages.predict import demo_app  # as where it was never installed

    with pytest.raises(
        UserError, match=r'needs uvicorn, .*: pip install .*"dsts-pipeline\[app\]"$'
    ):
        demo_app(Settings())


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_listens_on_loopback_and_ends_clean(tmp_path, videos, number):
    bundle = save_bundle(tmp_path / "b", make_bundle())
    arguments = ("demo-app", "--bundle", str(bundle), "--port", "0")
    process = subprocess.Popen(
        command_of(*arguments),
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = []
    while "open http://" not in (line := process.stderr.readline()):
        assert line, told
        told.append(line)
    assert any("no nearest clips" in line for line in told)
    address = line.split()[1]
    assert address.startswith("http://127.0.0.1:")
    with urlopen(address, timeout=60) as answer:
        assert b"not on this machine" in answer.read()
    assert post(address.rstrip("/"), videos[0].read_bytes())[0] == 200
    process.send_signal(number)
    assert process.wait(timeout=60) == (0 if number == signal.SIGINT else 128 + signal.SIGTERM)
    assert list(tmp_path.glob("dsts-uploads-*")) == []
    assert "Traceback" not in process.stderr.read()
