"""Weights: files of several makes, key maps, harmful pickles, downloads."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import pickle
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.extract.build import build_backbone
from dsts_pipeline.extract.downloads import describe_weights, locate_weights, place_weights
from dsts_pipeline.extract.weights import (
    find_classifier,
    load_weights,
    read_state,
    rename_keys,
    save_weights,
)
from stages import weights as weights_stage
from tests.feature_store.servers import send_stalled, wait_for_the_other_side
from tests.pipeline import WEIGHTS


class Recognizer(nn.Module):
    """Two layers under the names of a Swin recognizer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"proj": nn.Linear(3, 4), "norm3": nn.LayerNorm(4)})


@pytest.fixture
def recognizer():
    torch.manual_seed(0)
    model = Recognizer()
    nn.init.normal_(model.backbone["norm3"].weight)
    return model


def save_as_mmengine_does(path, state):
    """OpenMMLab's published format: weights, and the log of the training as mmengine keeps it."""
    from mmengine.logging import HistoryBuffer, MessageHub

    hub = MessageHub("test_weights_files")
    for step in range(3):
        hub.update_scalar("train/loss", np.float64(step) + 0.5)
        hub.update_scalar("train/lr", 0.1)
    hub.update_info("acc", np.float64(0.5))
    buffers = hub.state_dict()
    assert isinstance(buffers["log_scalars"]["train/loss"], HistoryBuffer)
    meta = {"epoch": np.int64(3), "iter": 9, "seed": np.float32(0.0), "ids": np.arange(4)}
    torch.save({"meta": meta, "message_hub": buffers, "state_dict": state}, path)


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def nothing_allowed():
    """Whatever other tests have allowed `torch.load` (mmaction2's tools need more)."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


def test_a_checkpoint_of_openmmlab_with_its_training_log_loads(
    recognizer, tmp_path, nothing_allowed
):
    path = tmp_path / "epoch_3.pth"
    save_as_mmengine_does(path, recognizer.state_dict())
    with pytest.raises(pickle.UnpicklingError, match="numpy._core.multiarray.scalar"):
        torch.load(path, weights_only=True)  # which is why there is an allow-list
    fresh = Recognizer()
    report = load_weights(fresh, path)
    assert_equal_states(fresh.state_dict(), recognizer.state_dict())
    assert report.key_map == "mmaction2" and len(report.matched) == 4
    assert report.missing == report.unexpected == report.left_out == ()


def test_the_file_of_mmengines_own_runner_loads(recognizer, tmp_path):
    from mmengine.runner import save_checkpoint

    content = {"meta": {"time": "x"}, "state_dict": recognizer.state_dict()}
    save_checkpoint(content, str(tmp_path / "c"))
    assert_equal_states(read_state(tmp_path / "c"), dict(recognizer.state_dict()))


def test_an_extra_missing_norm_is_an_error_that_names_it(recognizer, tmp_path):
    state = dict(recognizer.state_dict())
    for name in ("backbone.norm3.weight", "backbone.norm3.bias"):
        del state[name]
    save_as_mmengine_does(tmp_path / "c.pth", state)
    expected = r"2 missing: backbone\.norm3\.bias, backbone\.norm3\.weight \(2 of 4 match by"
    with pytest.raises(CheckpointError, match=expected):
        load_weights(Recognizer(), tmp_path / "c.pth")


def test_a_failed_load_changes_nothing(recognizer, tmp_path):
    torch.save({"backbone.proj.weight": torch.zeros(4, 3)}, tmp_path / "c.pth")
    before = {name: value.clone() for name, value in recognizer.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(recognizer, tmp_path / "c.pth")
    assert_equal_states(before, dict(recognizer.state_dict()))


class Harmful:
    """Unpickled without care, it creates a file."""

    def __init__(self, command):
        self._command = command

    def __reduce__(self):
        return os.system, (self._command,)


@pytest.mark.parametrize("where", ["alone", "beside the weights", "old format"])
def test_a_harmful_pickle_is_refused_and_nothing_of_it_runs(recognizer, tmp_path, where):
    harmed, path = tmp_path / "harmed", tmp_path / "weights.pth"
    payload = Harmful(f"touch {harmed}")
    if where == "alone":
        path.write_bytes(pickle.dumps(payload))
    else:
        content = {"state_dict": recognizer.state_dict(), "meta": payload}
        torch.save(content, path, _use_new_zipfile_serialization=where != "old format")
    with pytest.raises(
        CheckpointError, match=r"refused, it (names (posix|nt)\.system|is no plain)"
    ):
        read_state(path)
    assert not harmed.exists()
    pickle.loads(pickle.dumps(payload))  # the payload is a real one
    assert harmed.exists()


@pytest.mark.parametrize("function", [eval, print, np.load, os.remove, setattr, __import__])
def test_functions_beyond_the_allow_list_are_refused_by_name(function, tmp_path):
    class Call:
        def __reduce__(self):
            return function, ("x",)

    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": Call()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"it names [\w.]*{function.__name__},"):
        read_state(tmp_path / "c.pth")


def test_the_getattr_of_a_history_is_not_pythons(tmp_path):
    class Call:
        def __reduce__(self):
            return getattr, ("text", "no such attribute")  # would raise AttributeError

    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": Call()}, tmp_path / "c.pth")
    assert torch.equal(read_state(tmp_path / "c.pth")["a"], torch.ones(1))


def test_allowed_names_are_bound_to_objects_that_do_nothing(tmp_path):
    # An array whose unpickling would run numpy's code comes back as an inert stand-in: an error
    # where a tensor is expected, never an array.
    torch.save({"a": torch.ones(1), "b": np.ones(2)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"1 entries of its weights are no tensors \(b\)"):
        read_state(tmp_path / "c.pth")


def test_damaged_and_foreign_files_are_refused(recognizer, tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save(recognizer.state_dict(), whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:-300])
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name, message in [
        ("cut.pth", "not a sound"),
        ("list.pth", "holds a list without weights"),
        ("text.pth", "not a sound safetensors file"),
        ("none.pth", "no such weights file"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            read_state(tmp_path / name)


@pytest.mark.parametrize(
    ("rename", "chosen"),
    [
        (lambda k: f"module.{k}", "mmaction2"),
        (lambda k: f"module._orig_mod.{k}", "mmaction2"),
        (lambda k: k.replace("norm3", "norm"), "video_swin"),
        (lambda k: f"module.{k.replace('norm3', 'norm')}", "video_swin"),
        (lambda k: k.removeprefix("backbone.").replace("norm3", "norm"), "video_swin"),
        (lambda k: k.removeprefix("backbone."), "bare_backbone"),
    ],
)
def test_names_of_other_makers_are_mapped(recognizer, tmp_path, rename, chosen):
    torch.save({rename(k): v for k, v in recognizer.state_dict().items()}, tmp_path / "c.pth")
    fresh = Recognizer()
    assert load_weights(fresh, tmp_path / "c.pth").key_map == chosen
    assert_equal_states(dict(fresh.state_dict()), dict(recognizer.state_dict()))


def test_a_fine_tuned_dsts_model_gives_its_backbone_by_the_named_map_only(recognizer, tmp_path):
    state = {f"module.{k}": v for k, v in recognizer.state_dict().items()}
    state |= {"module.head.classifier.weight": torch.ones(2, 2)}
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected: head\.classifier\.weight"):
        load_weights(Recognizer(), tmp_path / "c.pth")
    fresh = Recognizer()
    report = load_weights(fresh, tmp_path / "c.pth", key_map="dsts")
    assert report.left_out == ("module.head.classifier.weight",) and len(report.matched) == 4
    assert report.summarize() == "4 keys loaded by the key map dsts, 1 of the file left out"


def test_a_classifier_is_left_out_only_where_the_recognizer_has_none(recognizer, tmp_path):
    state = dict(recognizer.state_dict()) | {"cls_head.fc_cls.weight": torch.ones(2, 4)}
    torch.save(state | {"cls_head.fc_cls.bias": torch.ones(2)}, tmp_path / "c.pth")
    report = load_weights(Recognizer(), tmp_path / "c.pth", leave_out=("cls_head.",))
    assert report.left_out == ("cls_head.fc_cls.bias", "cls_head.fc_cls.weight")
    assert find_classifier(tmp_path / "c.pth", 4, 2) is not None
    assert find_classifier(tmp_path / "c.pth", 4, 3) is None
    assert find_classifier("random", 4, 2) is None


def test_two_keys_for_one_name_are_an_error(recognizer, tmp_path):
    with pytest.raises(ValueError, match="two tensors would be called a by the key map mmaction2"):
        rename_keys(["a", "module.a"], "mmaction2")
    state = dict(recognizer.state_dict())
    torch.save(state | {f"module.{k}": v for k, v in state.items()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"choose another backbone\.key_map"):
        load_weights(Recognizer(), tmp_path / "c.pth")


def test_counters_of_old_files_may_be_missing(tmp_path):
    model = nn.ModuleDict({"backbone": nn.BatchNorm3d(2)})
    state = model.state_dict()
    del state["backbone.num_batches_tracked"]
    torch.save(state, tmp_path / "c.pth")
    assert len(load_weights(model, tmp_path / "c.pth").matched) == 4


class _Handler(http.server.BaseHTTPRequestHandler):
    content = b"weights" * 1000
    num_requests = 0

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self):
        type(self).num_requests += 1
        path = self.path.split("?")[0]
        if path == "/silent.pth":
            wait_for_the_other_side(self.rfile)
        if path == "/slow-head.pth":
            send_stalled("slow", b"HTTP/1.0 200 OK\r\nX-A: " + b"a" * 1000, self.wfile, self.rfile)
        self.send_response(404 if path == "/gone.pth" else 200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if path in ("/short.pth", "/slow.pth"):
            send_stalled(path[1:-4], self.content, self.wfile, self.rfile)
        self.wfile.write(self.content[:100] if path == "/cut.pth" else self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    _Handler.num_requests = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_download_is_checked_kept_and_fetched_once(server, tmp_path):
    digest = hashlib.sha256(_Handler.content).hexdigest()
    first = locate_weights(f"{server}/w.pth", cache_folder=tmp_path)
    assert first.sha256 == digest and first.path.read_bytes() == _Handler.content
    again = locate_weights(f"{server}/w.pth", sha256=digest.upper(), cache_folder=tmp_path)
    assert again == first and _Handler.num_requests == 1
    first.path.write_bytes(b"damaged")
    assert locate_weights(f"{server}/w.pth", cache_folder=tmp_path) == first
    assert first.path.read_bytes() == _Handler.content and _Handler.num_requests == 2


def test_addresses_that_differ_in_their_query_are_different_files(server, tmp_path, monkeypatch):
    first = locate_weights(f"{server}/w.pth?id=a", cache_folder=tmp_path)
    monkeypatch.setattr(_Handler, "content", b"other weights")
    second = locate_weights(f"{server}/w.pth?id=b", cache_folder=tmp_path)
    assert second.path.read_bytes() == b"other weights" and second.sha256 != first.sha256
    assert "id=" not in str(second.path)


def test_the_classifier_of_weights_behind_an_address(server, tmp_path, monkeypatch):
    head = {"cls_head.fc_cls.weight": torch.ones(2, 4), "cls_head.fc_cls.bias": torch.ones(2)}
    torch.save(head, tmp_path / "c.pth")
    monkeypatch.setattr(_Handler, "content", (tmp_path / "c.pth").read_bytes())
    monkeypatch.chdir(tmp_path)
    found = find_classifier(f"{server}/c.pth", 4, 2)
    assert found is not None and torch.equal(found[0], torch.ones(2, 4))
    assert find_classifier(tmp_path, 4, 2) is None, "a folder of the transformers library"


def test_what_weights_stand_for_is_equal_as_long_as_their_content_is(server, tmp_path):
    assert describe_weights(None) == {"kind": "none"}
    assert describe_weights("random") == {"kind": "random"}
    digest = hashlib.sha256(_Handler.content).hexdigest()
    content = {"sha256": digest, "size_bytes": len(_Handler.content)}
    first = describe_weights(f"{server}/w.pth?token=secret", cache_folder=tmp_path)
    assert first == {"kind": "address", "address": f"{server}/w.pth"} | content
    assert describe_weights(f"{server}/w.pth?token=secret", cache_folder=tmp_path) == first
    assert _Handler.num_requests == 1
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(_Handler.content)
        assert describe_weights(str(tmp_path / name)) == {"kind": "file"} | content
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text(name)
    found = describe_weights(str(folder))
    assert found["files"].keys() == {"config.json", "model.safetensors"}
    (folder / "config.json").write_text("other")
    assert describe_weights(str(folder)) != found


def test_weights_of_this_package_are_found_where_only_the_package_has_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "dsts_pipeline/extract/pretrained/stick_r18.safetensors"
    assert place_weights(name) == WEIGHTS
    assert find_classifier(name, 128, 48) is not None
    assert describe_weights(name) == describe_weights(str(WEIGHTS))
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"x")
    assert place_weights(name).resolve() == own, "one of the project's own comes first"
    assert str(place_weights("dsts_pipeline/nowhere.pth")) == "dsts_pipeline/nowhere.pth"


def test_a_file_is_read_again_only_where_it_changed(tmp_path, monkeypatch):
    read = []
    digest = weights_stage.sha256_file
    monkeypatch.setattr(
        weights_stage, "sha256_file", lambda path: read.append(path) or digest(path)
    )
    file = tmp_path / "w.pth"

    def ask(content=None, age_seconds=60.0):
        if content is not None:
            file.write_bytes(content)
            os.utime(file, (time.time() - age_seconds,) * 2)
        known = weights_stage.Digests(tmp_path / "digests.json")
        found = known.of(file)
        known.save()
        assert found == digest(file)
        return len(read)

    assert ask(b"one") == 1 and ask() == 1
    assert ask(b"two", age_seconds=50.0) == 2, "of the same size, changed at another time"
    assert ask(b"six", age_seconds=0.0) == 3 and ask() == 4, "just written"


def test_a_download_of_another_digest_is_refused_and_leaves_nothing(server, tmp_path):
    with pytest.raises(CheckpointError, match=r"backbone\.weights_sha256 expects 0000") as error:
        locate_weights(
            f"{server}/w.pth?token=secret",
            sha256="0" * 64,
            cache_folder=tmp_path,
        )
    assert "secret" not in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_cannot_be_downloaded_says_why(server, tmp_path):
    for name, message in [("gone.pth", "404"), ("cut.pth", "cannot be downloaded")]:
        with pytest.raises(CheckpointError, match=message):
            locate_weights(f"{server}/{name}", cache_folder=tmp_path)
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        locate_weights("http://127.0.0.1:9/w.pth", cache_folder=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["short", "slow", "silent", "slow-head"])
def test_a_download_that_stalls_ends(server, tmp_path, monkeypatch, name):
    monkeypatch.setattr("dsts_pipeline.extract.downloads.STALL_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(
        CheckpointError, match="cannot be downloaded .*(stalled|timed out)"
    ) as error:
        locate_weights(f"{server}/{name}.pth?token=secret", cache_folder=tmp_path)
    assert f"{server}/{name}.pth" in str(error.value) and "secret" not in str(error.value)
    assert time.monotonic() - began < 5
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_download_by_fsspec(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/weights/w.pth", b"abc")
    found = locate_weights("memory://weights/w.pth", cache_folder=tmp_path)
    assert found.path.read_bytes() == b"abc"
    assert found.sha256 == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        locate_weights("memory://weights/none.pth", cache_folder=tmp_path)


def test_the_digest_of_a_local_file_is_checked(tmp_path):
    (tmp_path / "w").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert locate_weights(tmp_path / "w", sha256=digest).sha256 == digest
    with pytest.raises(CheckpointError, match=f"its sha256 is {digest}"):
        locate_weights(tmp_path / "w", sha256="1" * 64)


def test_weights_of_ours_have_a_note_of_their_digest(recognizer, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(recognizer, path)
    assert json.loads((tmp_path / "w.safetensors.json").read_text()) == {
        "sha256": locate_weights(path).sha256
    }
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"w.safetensors.json beside it says .*sound copy"):
        locate_weights(path)
    (tmp_path / "w.safetensors.json").unlink()  # the new file is meant
    locate_weights(path)
    save_weights(recognizer, path)
    locate_weights(path)


def test_the_embedded_weights_have_one(tmp_path):
    for suffix in ("", ".json"):
        shutil.copy(f"{WEIGHTS}{suffix}", tmp_path)
    path = tmp_path / WEIGHTS.name
    build_backbone("stick_r18", weights=path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="damaged, or another file took its place"):
        build_backbone("stick_r18", weights=path)


def test_left_overs_of_a_killed_download_go_with_the_next(server, tmp_path):
    address = f"{server}/w.pth"
    file = locate_weights(address, cache_folder=tmp_path).path
    left = file.with_name(f".{file.name}.abcd1234.tmp")
    left.write_bytes(b"half of it")
    file.unlink()
    locate_weights(address, cache_folder=tmp_path)
    assert file.exists() and not left.exists()
