"""A bundle comes back as it was; one whose parts do not belong together is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsts_pipeline.base.errors import BundleError, CheckpointError
from dsts_pipeline.base.files import sign, write_json
from dsts_pipeline.extract.build import build_backbone
from dsts_pipeline.extract.model_zoo import zoo_names
from dsts_pipeline.extract.pipelines import Pipeline
from dsts_pipeline.head import DSTSHead, save_head
from dsts_pipeline.serve import BackboneSource, load_bundle, save_bundle
from dsts_pipeline.serve.bundle_folder import (
    _require_same_frames,
    portable_name,
    write_record,
)
from tests.pipeline import ROOT, WEIGHTS
from tests.serve.small_bundle import CLASSES, SOURCE, backbone, make_bundle, make_head, make_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("bundles") / "sound", make_bundle())


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_record(folder: Path, change) -> None:
    """Change bundle.json as someone would who also brings its digest up to date."""
    record = json.loads((folder / "bundle.json").read_text())
    change(record)
    write_json(folder / "bundle.json", sign(record))


def refuse(folder: Path, *words: str, **options) -> None:
    with pytest.raises(BundleError) as refusal:
        load_bundle(folder, **options)
    for word in words:
        assert word in str(refusal.value), str(refusal.value)


# ---- round trip -------------------------------------------------------------------------------


def test_a_bundle_comes_back_as_it_was(saved):
    made, loaded = make_bundle(), load_bundle(saved)
    frames = torch.randint(0, 256, (3, 16, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        maps = made.backbone(frames)
        assert torch.equal(loaded.backbone(frames), maps)
        assert torch.equal(loaded.head(maps), made.head(maps))
    for name in ("class_names", "attribute_names", "attributes", "made_of", "store", "figures"):
        assert getattr(loaded, name) == getattr(made, name)
    assert loaded.title == "a head" and loaded.notes == ()
    assert (loaded.views.test_clips, loaded.views.test_crops) == (1, 1)
    assert (loaded.decoder, loaded.decoder_fallback) == ("auto", None)


def test_a_bundle_of_an_attentive_head_comes_back(tmp_path):
    torch.manual_seed(0)
    options = {"num_neurons": 3, "num_layers": 1, "width": None, "bottleneck": 4}
    options |= {"common_neuron": True, "readout": "attentive", "readout_depth": 2}
    head = DSTSHead(128, len(CLASSES), **options, zero_start=False).eval()
    loaded = load_bundle(save_bundle(tmp_path / "attentive", make_bundle(head=head)))
    maps = torch.randn(3, 128, 8, 4, 4)
    assert torch.equal(loaded.head(maps), head(maps))


def test_the_same_bundle_has_the_same_bytes(saved, tmp_path):
    again = save_bundle(tmp_path / "again", make_bundle())
    for path in saved.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in again.iterdir()} == {path.name for path in saved.iterdir()}


def test_views_decoders_and_precision_come_from_what_made_the_maps(tmp_path):
    made_of = make_of(backbone()) | {
        "views": {"train": 2, "test_clips": 2, "test_crops": 3},
        "decoder_fallback": "pyav 18.1.0",
        "precision": "bfloat16",
    }
    loaded = load_bundle(save_bundle(tmp_path / "b", make_bundle(made_of=made_of)))
    assert loaded.views.count("test") == 6
    assert loaded.decoder_fallback == "pyav"
    assert loaded.computing.precision == "bfloat16"


def test_weights_are_copied_or_referred_to(saved, tmp_path):
    assert (saved / "backbone.safetensors").read_bytes() == WEIGHTS.read_bytes()
    moved = shutil.copy(WEIGHTS, tmp_path / "weights.safetensors")
    source = SOURCE.__class__(**{**SOURCE.__dict__, "weights": str(moved)})
    folder = save_bundle(tmp_path / "b", make_bundle(source=source), with_backbone=False)
    assert not (folder / "backbone.safetensors").exists()
    assert load_bundle(folder).source.weights == str(moved)
    Path(moved).rename(tmp_path / "elsewhere.safetensors")
    refuse(folder, "weights.safetensors are not here", "--weights")
    loaded = load_bundle(folder, weights=str(tmp_path / "elsewhere.safetensors"))
    assert loaded.weights_sha256 == make_bundle().weights_sha256


def test_another_release_of_what_made_the_maps_is_noted(tmp_path):
    made_of = make_of(backbone())
    made_of["decoder"] = "decord 0.5.0"
    made_of["backbone"]["versions"]["torch"] = "2.0.0"
    loaded = load_bundle(save_bundle(tmp_path / "b", make_bundle(made_of=made_of)))
    assert len(loaded.notes) == 2
    assert any("torch 2.0.0 where the maps were made" in note for note in loaded.notes)


# ---- refusals ---------------------------------------------------------------------------------


def test_no_bundle(tmp_path):
    refuse(tmp_path / "nowhere", "no bundle here", "export")


def test_an_existing_folder_is_left_alone(copy):
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="exists already"):
        save_bundle(copy, make_bundle())
    assert (copy / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "dsts-bundle"}'])
def test_damaged_record(copy, text):
    (copy / "bundle.json").write_text(text)
    refuse(copy, "bundle.json: damaged", "export the bundle again")


def test_other_version(copy):
    change_record(copy, lambda record: record.update(version=2))
    refuse(copy, "version 2, expected dsts-bundle version 1")


def test_record_changed_by_hand(copy):
    path = copy / "bundle.json"
    path.write_text(path.read_text().replace(CLASSES[2], "another"))
    refuse(copy, "changed after it was written")


@pytest.mark.parametrize("name", ["head.safetensors", "head.json", "backbone.safetensors"])
def test_every_file_is_compared(copy, name):
    path = copy / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(bytes(changed))
    refuse(copy, name, "its sha256 is")
    path.write_bytes(content[:-1])
    refuse(copy, name, f"{len(content) - 1:,} bytes")
    path.unlink()
    refuse(copy, name, "missing")


def test_head_of_another_bundle(copy):
    save_head(copy, make_head(seed=1), {"store": "e" * 32, "title": "other"})
    refuse(copy, "of another bundle")


def resave_head(folder: Path, head, store: str) -> None:
    """Another head, every digest brought up to date."""
    save_head(folder, head, {"store": store, "title": "other"})
    record = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").unlink()
    write_record(folder, {key: v for key, v in record.items() if key not in ("files", "digest")})


def test_head_trained_on_another_store(copy):
    resave_head(copy, make_head(), "e" * 32)
    refuse(copy, "head: trained on store eeee", "train-head")


def test_head_for_other_maps(copy):
    resave_head(copy, make_head(channels=64), json.loads(_fingerprint(copy)))
    refuse(copy, "head: expects maps of 64 channels, the backbone stick_r18 gives 128")


def test_head_of_other_classes(copy):
    resave_head(copy, make_head(num_classes=5), json.loads(_fingerprint(copy)))
    refuse(copy, "labels: 6 names for the head's 5 classes")


def _fingerprint(folder: Path) -> str:
    return json.dumps(json.loads((folder / "bundle.json").read_text())["store"]["fingerprint"])


def test_attributes_of_other_classes(copy):
    change_record(copy, lambda record: record["classes"]["attributes"].pop())
    refuse(copy, "labels: attributes of 5 classes")


def test_other_tap(copy):
    change_record(copy, lambda record: record["backbone"].update(tap="backbone.layer3"))
    refuse(copy, "the backbone stick_r18 gives 64")


def test_other_input(copy):
    change_record(copy, lambda record: record["backbone"].update(num_frames=8))
    refuse(copy, "backbone stick_r18: its frames", "settings of `backbone`")


def test_a_backbone_that_would_be_fed_other_frames_now():
    pipeline = Pipeline(
        sampler="segment_centres",
        options={"clip_len": 4},
        num_frames=4,
        resize_px=36,
        size_px=32,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        scaling="bilinear",
    )
    made_of = {"input_pipeline": json.loads(json.dumps(pipeline.with_views().describe()))}
    _require_same_frames(made_of, SimpleNamespace(pipeline=pipeline))
    for change, told in (
        ({"resize_px": 40}, "resize_px was 36, is 40"),
        ({"scaling": "bicubic"}, ""),
    ):
        with pytest.raises(BundleError, match=f"other frames than .*{told}"):
            _require_same_frames(made_of, SimpleNamespace(pipeline=replace(pipeline, **change)))


def test_other_weights(copy, tmp_path):
    from dsts_pipeline.extract.build import build_recognizer
    from dsts_pipeline.extract.weights import save_weights

    other = tmp_path / "other.safetensors"
    save_weights(build_recognizer("stick_r18", seed=5), other)
    refuse(copy, "other.safetensors: its sha256", weights=str(other))


def test_unknown_backbone_or_argument(copy):
    change_record(copy, lambda record: record["backbone"].update(name="stick_r81"))
    refuse(copy, "backbone 'stick_r81'")
    change_record(copy, lambda record: record["backbone"].update(surprise=1))
    refuse(copy, "surprise")


def test_lost_entry(copy):
    change_record(copy, lambda record: record.pop("made_of"))
    refuse(copy, "lacks 'made_of'")


def test_file_outside_of_the_folder(copy):
    def point_outside(record):
        record["files"]["../secret"] = {"bytes": 1, "sha256": "0" * 64}

    (copy.parent / "secret").write_text("x")
    change_record(copy, point_outside)
    refuse(copy, "../secret, which is outside")


def test_parts_that_differ_are_not_exported(tmp_path):
    with pytest.raises(BundleError, match="trained on store"):
        make_bundle(store={"fingerprint": "e" * 32, "stored_type": "float16"})
    with pytest.raises(BundleError, match="labels: 2 names"):
        make_bundle(class_names=("a", "b"))
    with pytest.raises(BundleError, match="imported"):
        make_bundle(made_of={"import": {}})
    made_of = make_of(backbone())
    made_of["backbone"]["weights"]["sha256"] = "0" * 64
    with pytest.raises(BundleError, match="its weights is"):
        make_bundle(made_of=made_of)


def test_a_pickle_in_the_place_of_the_head_is_not_run(copy):
    torch.save({"state": os.system}, copy / "head.safetensors")
    with pytest.raises((BundleError, CheckpointError)):
        load_bundle(copy)


_KILLED = """
import sys, time
import dsts_pipeline.serve.bundle_folder as module
from tests.serve.small_bundle import make_bundle
write = module.write_record
def wait(*arguments):
    print("now", flush=True)
    time.sleep(600)
module.write_record = wait
module.save_bundle(sys.argv[1], make_bundle())
"""


@pytest.mark.slow
def test_a_killed_export_leaves_no_bundle(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "b")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b").exists()
    (left,) = tmp_path.glob(".b.*.tmp")
    load_bundle(save_bundle(tmp_path / "b", make_bundle()))
    assert not left.exists() and [path.name for path in tmp_path.iterdir()] == ["b"]


# ---- a bundle from anywhere -------------------------------------------------------------------


def rename_backbone(folder: Path, name: str, **files: str) -> None:
    """Name another backbone, and list `files`, as whoever makes a bundle to harm can."""
    record = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").unlink()
    for file, text in files.items():
        (folder / file.replace("_dot_", ".")).write_text(text)
    record["backbone"]["name"] = name
    write_record(folder, {key: v for key, v in record.items() if key not in ("files", "digest")})


def spy(marker: Path) -> str:
    """A config of mmaction2 that tells when it is run."""
    return f"open({str(marker)!r}, 'w').close()\nmodel = dict(type='Recognizer3D')\n"


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("kind", ["py", "json with a base", "json that imports", "yaml"])
def test_no_config_in_a_bundle_is_run(copy, tmp_path, monkeypatch, kind, listed):
    marker = tmp_path / "ran"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "imported_by_a_config.py").write_text(spy(marker))
    suffix = kind.split()[0]
    files = {
        "py": {"cfg_dot_py": spy(marker)},
        "json with a base": {"b_dot_py": spy(marker), "cfg_dot_json": '{"_base_": ["b.py"]}'},
        "json that imports": {
            "cfg_dot_json": json.dumps({"custom_imports": {"imports": ["imported_by_a_config"]}})
        },
        "yaml": {"b_dot_py": spy(marker), "cfg_dot_yaml": "_base_: [b.py]"},
    }[kind]
    name = str(copy / f"cfg.{suffix}")
    if listed:
        rename_backbone(copy, name, **files)
        refuse(copy, "a file that no export writes")
    else:
        change_record(copy, lambda record: record["backbone"].update(name=name))
        for file, text in files.items():
            (copy / file.replace("_dot_", ".")).write_text(text)
        refuse(copy, "which bundle.json does not name", "delete it")
    assert not marker.exists()


ZOO = "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv2-rgb"


@pytest.mark.parametrize(
    "name",
    ["cfg.py", "./stick_r18", f"../{ZOO}", f"{ZOO}.py", f"tsm/{ZOO}", ZOO.upper(), "", 3, None],
)
def test_a_name_is_exactly_a_presets_or_the_zoos(copy, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "cfg.py", tmp_path / f"{ZOO}.py"):
        place.write_text(spy(tmp_path / "ran"))
    change_record(copy, lambda record: record["backbone"].update(name=name))
    refuse(copy, f"backbone {name!r}: a bundle names a preset", "export the bundle again")
    assert not (tmp_path / "ran").exists()


def test_an_absolute_path_of_the_zoo_is_no_name(copy):
    path = str(zoo_names()[ZOO])
    change_record(copy, lambda record: record["backbone"].update(name=path))
    refuse(copy, "a bundle names a preset")


@pytest.mark.parametrize("name", ["stick_r18", ZOO])
def test_a_folder_of_that_name_does_not_take_its_place(tmp_path, monkeypatch, name):
    """What lies where `predict` is started has no say in what a bundle's name means."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text('{"model_type": "vivit"}')
    weights = WEIGHTS if name == "stick_r18" else "random"
    assert build_backbone(name, weights=weights, num_frames=None).name == name


def test_zoo_configs_are_named_alike_whatever_the_settings_call_them(tmp_path):
    path = zoo_names()[ZOO]
    for name in (ZOO, f"{ZOO}.py", f"configs/{ZOO}.py", str(path)):
        source = BackboneSource(name, "random", "backbone")
        assert portable_name(source, backbone()) == ZOO
    own = tmp_path / f"{ZOO}.py"
    own.write_text(spy(tmp_path / "ran"))
    for name in (str(own), "my_config.json"):
        (tmp_path / "my_config.json").write_text("{}")
        with pytest.raises(BundleError, match="a config file is a program"):
            source = BackboneSource(str(tmp_path / name), "random", "backbone")
            portable_name(source, backbone())
    assert not (tmp_path / "ran").exists()


def link(path: Path) -> None:
    path.symlink_to(WEIGHTS)


def link_to_a_folder(path: Path) -> None:
    path.symlink_to(WEIGHTS.parent, target_is_directory=True)


UNLISTED = {
    "file": lambda path: path.write_text(""),
    "hidden file": lambda path: path.with_name(".hidden").write_text(""),
    "file in a folder": lambda path: (path.mkdir(), (path / "deep").write_text("")),
    "empty folder": lambda path: path.mkdir(),
    "another case": lambda path: path.with_name("HEAD.json").write_text("{}"),
    "link": link,
    "broken link": lambda path: path.symlink_to("nowhere"),
    "link to a folder": link_to_a_folder,
    "pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", UNLISTED)
def test_nothing_unlisted_is_let_in(copy, kind):
    UNLISTED[kind](copy / "extra")
    refuse(copy, "does not name" if "link" not in kind and kind != "pipe" else "extra is ")


@pytest.mark.parametrize("name", ["head.safetensors", "backbone.safetensors", "bundle.json"])
def test_a_listed_file_is_no_link(copy, tmp_path, name):
    (copy / name).rename(tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    refuse(copy, "no bundle here" if name == "bundle.json" else f"{name} is a link")


def test_the_folder_of_a_bundle_may_be_a_link(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy, target_is_directory=True)
    load_bundle(tmp_path / "link")


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b", "C:/x", "\\\\host\\x"])
def test_names_that_lead_out_are_refused(copy, name):
    change_record(copy, lambda record: record["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    refuse(copy, f"names {name}, which is outside")


@pytest.mark.parametrize("files", [None, [], "x", {"head.json": 3}])
def test_a_list_of_files_that_is_none(copy, files):
    change_record(copy, lambda record: record.update(files=files))
    refuse(copy, "it lists no files")


@pytest.mark.parametrize(
    "address",
    ["reference://x::http://127.0.0.1:9/r.json", "simplecache::http://127.0.0.1:9/w", "file:///w"],
)
def test_weights_are_fetched_by_plain_addresses_alone(copy, address):
    change_record(copy, lambda record: record["backbone"].update(weights=address, file=None))
    refuse(copy, "expected an address of https", "--weights")


def test_weights_behind_an_address_need_a_digest(copy):
    change = {"weights": "http://127.0.0.1:9/w.pth", "file": None, "sha256": None}
    change_record(copy, lambda record: record["backbone"].update(change))
    refuse(copy, "whose sha256 is stated")


@pytest.mark.parametrize(
    "change",
    [{"num_frames": "16"}, {"size_px": True}, {"weights": 3}, {"tap": None}, {"key_map": "mine"}],
)
def test_values_of_other_kinds(copy, change):
    change_record(copy, lambda record: record["backbone"].update(change))
    refuse(copy, "backbone: ", "export the bundle again")


@pytest.mark.parametrize("part", ["backbone", "classes", "made_of", "store", "provenance"])
@pytest.mark.parametrize("value", [3, [1], "text", None])
def test_parts_of_other_kinds_give_no_traceback(copy, part, value):
    change_record(copy, lambda record: record.update({part: value}))
    if part == "provenance":
        load_bundle(copy)  # told, not used
    else:
        refuse(copy)
