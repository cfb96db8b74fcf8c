"""verify --repair on the embedded data set, with its real backbone: damage, then the old bytes.

The stages run in this process, in a folder of their own; one extraction serves all tests.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import read_json, sign, write_json
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips.decode import name_decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import StoreWriter, open_store
from dsts_pipeline.feature_store.opening import record_store
from dsts_pipeline.feature_store.planning import prepare_work
from stages import extract, prepare, stores
from tests.clips.encodings import Encoding, write_encoding
from tests.feature_store.small_store import read_tree
from tests.pipeline import TINY, WEIGHTS, params_of, run_cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here"),
]
SHARD = "maps/c.2.0.0.0.0"
verify = partial(stores.verify, extract=extract.run)


class WronglyNormalised:
    """The backbone as if its pixels were scaled to [0, 1], not by its own mean and spread.

    It takes (p - 127.5) / 63.75 of a pixel p; of p / 4 + 127.5 that is p / 255.
    """

    def __init__(self, backbone):
        self._backbone = backbone

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def __call__(self, frames):
        return self._backbone(frames // 4 + 127)


def settings_with(**changes):
    values = TINY | {"dataset.render.num_train": 96, "dataset.render.num_test": 48}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_settings(params_of(), [f"{k}={v}" for k, v in values.items()])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder in which 144 clips were prepared and extracted, 9 shards of 16."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.run(settings_with())
        extract.run(settings_with())
    return folder


@pytest.fixture
def store(original, tmp_path, monkeypatch):
    """A copy of that store, in a copy of that folder, which is the current one."""
    for name in ("outputs", "stores"):
        shutil.copytree(original / name, tmp_path / name)
    (tmp_path / "data").symlink_to(original / "data")
    monkeypatch.chdir(tmp_path)
    (path,) = Path("stores").iterdir()
    return path


def flip_bit(file, offset):
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x10
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def swap(file):
    """Another shard, with its sidecar, as a careless copy leaves it."""
    store = file.parents[1]
    shutil.copy(store / "maps/c.5.0.0.0.0", file)
    shutil.copy(store / "shards/000005.json", store / "shards/000002.json")


def change_version(file):
    content = json.loads(file.read_text())
    content["fingerprint"] = "0" * 32
    file.write_text(json.dumps(content))


DAMAGE = {
    "bit in a chunk": (SHARD, lambda f: flip_bit(f, 10)),
    "bit in the index": (SHARD, lambda f: flip_bit(f, -20)),
    "truncated": (SHARD, cut),
    "empty": (SHARD, lambda f: f.write_bytes(b"")),
    "missing": (SHARD, lambda f: f.unlink()),
    "foreign": (SHARD, swap),
    "bit in the manifest": ("manifest.json", lambda f: flip_bit(f, 200)),
    "manifest that is no JSON": ("manifest.json", lambda f: f.write_bytes(b"{")),
    "manifest of another store": ("manifest.json", change_version),
    "missing manifest": ("manifest.json", lambda f: f.unlink()),
    "bit in clips.json": ("clips.json", lambda f: flip_bit(f, 40)),
    "bit in the array's metadata": ("maps/zarr.json", lambda f: flip_bit(f, 40)),
    "bit in the frames": ("frames/c.0.0", lambda f: flip_bit(f, 40)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_repair_restores_every_byte(store, kind, capsys):
    before, features = read_tree(store), Path("outputs/features.json").read_bytes()
    name, damage = DAMAGE[kind]
    damage(store / name)
    with pytest.raises(StoreError):
        verify(settings_with())
    times = {p.name: p.stat().st_mtime_ns for p in (store / "maps").glob("c.*")}
    verify(settings_with(), repair=True)
    assert read_tree(store) == before
    assert Path("outputs/features.json").read_bytes() == features
    rewritten = [
        name for name, time in times.items() if (store / "maps" / name).stat().st_mtime_ns != time
    ]
    assert rewritten == (["c.2.0.0.0.0"] if name == SHARD and kind != "missing" else [])
    verify(settings_with())


@pytest.mark.parametrize("kind", ["failures", "counts", "made_of"])
def test_a_manifest_that_was_changed_and_signed_anew_is_found_and_repaired(store, kind):
    before, features = read_tree(store), Path("outputs/features.json").read_bytes()
    manifest = read_json(store / "manifest.json")
    clip = {"position": 0, "id": "x", "view": 0, "split": "train", "reason": "forged"}
    change = {"failures": [clip], "counts": manifest["counts"] | {"failed": 1}, "made_of": {}}
    write_json(store / "manifest.json", sign(manifest | {kind: change[kind]}))
    with pytest.raises(StoreError, match="other failures or counts|features.json recorded"):
        verify(settings_with())
    if kind == "made_of":  # sidecars know nothing of it
        extract.run(settings_with())
    else:
        verify(settings_with(), repair=True)
    verify(settings_with())
    assert Path("outputs/features.json").read_bytes() == features
    after = read_tree(store)
    assert {path for path in after if after[path] != before[path]} <= {Path("manifest.json")}


def test_several_damaged_shards_are_told_and_repaired_together(store):
    before = read_tree(store)
    for number in (0, 4, 8):
        flip_bit(store / f"maps/c.{number}.0.0.0.0", 99)
    with pytest.raises(StoreError, match=r"shard 0 .*shard 4 .*shard 8 .*verify --repair"):
        verify(settings_with())
    verify(settings_with(), repair=True)
    assert read_tree(store) == before


def test_repair_with_settings_of_another_store_removes_nothing(store):
    flip_bit(store / SHARD, 10)
    before = read_tree(store)
    with pytest.raises(StoreError, match="these settings: they describe .*Nothing was removed"):
        verify(settings_with(store__dtype="float32"), repair=True)
    assert read_tree(store) == before
    assert len(list(Path("stores").iterdir())) == 1


def test_repair_of_a_sound_store_does_nothing(store):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    verify(settings_with(), repair=True)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_json_has_the_whole_result(store, tmp_path):
    verify(settings_with(), json_file=tmp_path / "verify.json")
    result = json.loads((tmp_path / "verify.json").read_text())
    assert result["sound"] and result["num_maps"] == 144
    assert len(result["values"]["channels"]["mean"]) == 128
    assert result["values"]["drift"]["flagged"] == []
    assert result["values"]["drift"]["num_shards"] == 9


def test_shard_of_another_normalisation_is_flagged(store, capsys):
    """Pixels scaled to [0, 1] instead of the backbone's own mean and spread: digests hold."""
    settings = settings_with()
    index = ClipIndex.load(Path("outputs/clips.json"))
    work = prepare_work(index, settings.backbone, settings.dataset, settings.store)
    wrong = WronglyNormalised(work.backbone)
    for name in ("manifest.json", "shards/000004.json", "maps/c.4.0.0.0.0"):
        (store / name).unlink()
    with StoreWriter("stores", work.plan) as writer:
        chosen = BackboneSettings(num_decode_workers=0, max_failed_fraction=0.0)
        extract_features(work.views, wrong, writer, chosen)
        manifest = read_json(writer.finish({}))
    with pytest.raises(StoreError, match="its shards are not what outputs/features.json recorded"):
        verify(settings_with())
    write_json("outputs/features.json", record_store(manifest, store))
    verify(settings_with())
    told = capsys.readouterr().out
    assert "shard 4 differs from the others beyond chance" in told and "1 beyond chance" in told
    with pytest.raises(StoreError, match="shard 4 differs"):
        verify(settings_with(), strict=True)


def test_stores_lists_what_is_in_use_and_prunes_the_rest(store, capsys):
    other = Path("stores") / ("0" * 32)
    shutil.copytree(store, other)
    stores.show_stores(settings_with())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if store.name in line]
    for text in ("complete", "144", "float16", "stick_r18", "stick_diving", "features.json, set"):
        assert text in line
    stores.show_stores(settings_with(store__dtype="int8"), prune=True, yes=True)
    assert store.exists() and not other.exists(), "features.json still refers to it"
    Path("outputs/features.json").unlink()
    stores.show_stores(settings_with(), prune=True, yes=True)
    assert len(open_store(store)) == 144, "the settings still describe it"


def test_exit_status_of_the_command(store, tmp_path):
    settings = {key.replace(".", "__"): value for key, value in TINY.items()}
    sound = run_cli(tmp_path, "verify", "--fast", **settings)
    assert sound.returncode == 0 and "all sound" in sound.stdout, sound.stderr
    flip_bit(store / SHARD, 10)
    damaged = run_cli(tmp_path, "verify", str(store), **settings)
    assert damaged.returncode == 2
    told = damaged.stderr.splitlines()[-1]
    assert told.startswith("error: ") and "shard 2 (maps/c.2.0.0.0.0) is damaged" in told
    assert told.endswith(f"run `python cli.py verify {store} --repair`")


def test_suspect_clips_of_a_former_store_are_named_and_made_again(tmp_path, monkeypatch, capfd):
    """A store that decord made of files with open groups, too, as it was done before."""
    plain = Encoding("libx264", "mp4", num_frames=40, gop_size=10, num_b_frames=2)
    rows = ["path,label,split"]
    for number in range(24):
        groups = "open" if number == 5 else "closed"
        write_encoding(
            tmp_path / f"videos/{number}.mp4", replace(plain, groups=groups, seed=number)
        )
        rows.append(f"{number}.mp4,{number % 2},{'test' if number > 17 else 'train'}")
    (tmp_path / "videos/annotations.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    settings = settings_with(
        dataset__format="csv",
        dataset__root="videos",
        dataset__render="null",
        dataset__flip="forbidden",
        store__min_shards="6",
    )
    with monkeypatch.context() as patch:
        patch.setattr(ViewPlan, "_name_decoder", lambda plan: name_decoder("decord"))
        prepare.run(settings)
        extract.run(settings)
    former = json.loads(Path("outputs/features.json").read_text())["store"]
    capfd.readouterr()
    verify(settings, json_file=Path("verify.json"))
    told = capfd.readouterr().err
    assert f"{former}: 1 clips are suspect" in told and "verify --repair" in told
    assert json.loads(Path("verify.json").read_text())["suspects"] == ["5"]
    verify(settings, repair=True)
    assert "23 of 24 maps are taken over" in capfd.readouterr().err
    renewed = json.loads(Path("outputs/features.json").read_text())["store"]
    assert renewed != former and Path(former).is_dir()
    verify(settings)
    assert "suspect" not in capfd.readouterr().err
