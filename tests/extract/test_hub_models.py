"""Encoders of the hub by id and commit: the same maps, from the cache; and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from dsts_pipeline.base.errors import BundleError, CheckpointError, MissingExtraError, UserError
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.downloads import describe_weights, digest_of_weights, place_weights
from dsts_pipeline.serve import BackboneSource, load_bundle, save_bundle
from dsts_pipeline.serve.hub import list_files
from tests.extract.test_transformers_models import make_model
from tests.pipeline import ROOT
from tests.serve.fake_hub import running_hub
from tests.serve.small_bundle import make_bundle, make_head, make_of

transformers = pytest.importorskip("transformers", reason="the optional extra is not installed")
pytest.importorskip("huggingface_hub", reason="the optional extra is not installed")
NAME = "lab/encoder"
FRAMES = torch.randint(
    0, 256, (1, 6, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small ViViT with a processor of its own."""
    place = tmp_path_factory.mktemp("vivit")
    make_model("vivit").save_pretrained(place)
    (place / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6]}')
    return place


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    """A hub that holds it, among files that nobody asks for, and this process's empty cache."""
    constants = sys.modules["huggingface_hub"].constants
    with running_hub() as running:
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "*")
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        others = {"README.md": b"x", "modeling.py": b"raise SystemExit", "pytorch_model.bin": b"x"}
        running.repositories[NAME] = {"main": files | others | {"model.fp16.safetensors": b"x"}}
        yield running


def commit_of(server, name=NAME):
    return f"hub:{name}@{server.find(name, 'main')[0]}"


def go_offline(monkeypatch):
    monkeypatch.setattr(sys.modules["huggingface_hub"].constants, "HF_HUB_OFFLINE", True)


def test_it_is_the_folder_whatever_it_is_called(server, folder, monkeypatch, tmp_path):
    model = commit_of(server)
    found = build_backbone(model, weights=None)
    here = build_backbone("vivit", weights=folder)
    assert found.describe() == here.describe()  # by which a store is named
    assert found.pipeline == here.pipeline and found.pipeline.mean[0] == pytest.approx(0.4 * 255)
    assert torch.equal(found(FRAMES), here(FRAMES))
    assert {"config.json", "preprocessor_config.json", "model.safetensors"} < set(server.asked)
    assert not {name for name in server.asked if name.endswith((".md", ".py", ".bin"))}
    assert "model.fp16.safetensors" not in server.asked

    server.asked.clear()  # the preset's name, and the cache alone
    assert build_backbone("vivit", weights=model).describe() == here.describe()
    go_offline(monkeypatch)
    assert build_backbone(model, weights=None, weights_sha256=digest_of_weights(folder))
    assert not server.asked
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    monkeypatch.setattr(
        sys.modules["huggingface_hub"].constants, "HF_HUB_CACHE", str(tmp_path / "moved")
    )
    assert build_backbone(model, weights=None).describe() == here.describe()
    with pytest.raises(CheckpointError, match=r"backbone\.weights_sha256 expects 0000"):
        build_backbone(model, weights=None, weights_sha256="0" * 64)


def test_random_weights_take_the_config_alone(server):
    backbone = build_backbone(commit_of(server), weights="random", seed=3)
    assert backbone.describe()["weights"] == {"random_seed": 3}
    assert "model.safetensors" not in server.asked


def test_weights_in_parts(server, folder, tmp_path):
    make_model("vivit").save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    assert len(files) > 3
    server.repositories["lab/parts"] = {"main": files}
    found = build_backbone(commit_of(server, "lab/parts"), weights=None)
    assert torch.equal(found(FRAMES), build_backbone("vivit", weights=tmp_path / "parts")(FRAMES))
    gone = next(name for name in files if "00002" in name)
    del files[gone]
    server.repositories["lab/less"] = {"main": files}
    with pytest.raises(CheckpointError, match=f"lacks the part {gone}"):
        build_backbone(commit_of(server, "lab/less"), weights=None)


def test_what_is_compared_by_dvc_is_what_is_read(server, folder):
    model = commit_of(server)
    found = describe_weights(model)
    assert found["kind"] == "hub" and found["model"] == model
    assert sorted(found["files"]) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    for name in ("model.fp16.safetensors", "tokenizer.json"):  # of other programs
        (place_weights(model) / name).write_text("{}")
    assert describe_weights(model) == found
    assert digest_of_weights(place_weights(model)) == digest_of_weights(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.safetensors": None}, r"holds no model\.safetensors \(pickles, such as"),
        ({"config.json": None}, r"no model of the transformers library: no config\.json"),
        ({"config.json": b'{"auto_map": {"AutoModel": "modeling.M"}}'}, "load code, which is"),
        ({"adapter_config.json": b"{}"}, "models with adapters are not read"),
    ],
)
def test_what_is_refused_is_refused_before_weights_are_fetched(server, changes, told):
    files = {**server.repositories[NAME]["main"], **changes}
    files = {name: data for name, data in files.items() if data is not None}
    server.repositories["lab/other"] = {"main": files}
    with pytest.raises(CheckpointError, match=told):
        build_backbone(commit_of(server, "lab/other"), weights=None)
    assert "pytorch_model.bin" not in server.asked and "modeling.py" not in server.asked
    assert "model.safetensors" not in server.asked or "model.safetensors" not in files


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (f"hub:{NAME}@{'0' * 40}", f"hub:{NAME}@0+: there is no such branch, tag or commit"),
        (f"hub:lab/nothing@{'0' * 40}", "no such repository, or you may not use it"),
        (f"hub:{NAME}", "names no commit, .*; its main branch is hub:.*@{commit} now"),
        (f"hub:{NAME}@main", "names no commit, .*; main is hub:.*@{commit} now"),
        (f"hub:{NAME}@v9", "names no commit.*40 digits of a commit.*no such branch"),
        (f"hub:encoder@{'0' * 40}", "expected hub:OWNER/NAME@COMMIT"),
    ],
)
def test_names_that_are_none_are_told_in_a_line(server, model, told):
    with pytest.raises(UserError, match=told.replace("{commit}", commit_of(server)[-40:])) as error:
        build_backbone(model, weights=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "repository", ["lab/a..b", "la--b/a", "lab/a-", "lab/a.git", "lab/" + "a" * 93]
)
def test_names_that_the_hub_has_not_are_refused_before_it_is_asked(server, repository):
    with pytest.raises(UserError, match="expected hub:OWNER/NAME@COMMIT"):
        build_backbone(f"hub:{repository}@{'0' * 40}", weights=None)
    assert not server.asked


def test_without_a_network_the_line_says_what_to_do(server, monkeypatch):
    model = commit_of(server)
    go_offline(monkeypatch)
    with pytest.raises(UserError, match=r"not in the cache, .* or give the folder of a copy"):
        build_backbone(model, weights=None)
    with pytest.raises(UserError, match=r"names no commit.*40 digits"):
        build_backbone(f"hub:{NAME}@main", weights=None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r'pip install .*"dsts-pipeline\[hub\]"'):
        build_backbone(model, weights=None)


def test_half_a_model_in_the_cache_is_not_taken_for_a_whole_one(server, monkeypatch):
    # As another program leaves it: the processor, which decides the pixels, was never asked for.
    repository, _, commit = commit_of(server).removeprefix("hub:").partition("@")
    for name in ("config.json", "model.safetensors"):
        sys.modules["huggingface_hub"].hf_hub_download(repository, name, revision=commit)
    go_offline(monkeypatch)
    with pytest.raises(UserError, match="not in the cache"):
        build_backbone(commit_of(server), weights=None)


def test_settings_name_it_once(tmp_path):
    model = f"hub:{NAME}@{'0' * 40}"
    text = (ROOT / "params.yaml").read_text()
    named = text.replace("  name: stick_r18 ", f"  name: {model} ")
    weights = "weights: dsts_pipeline/extract/pretrained/stick_r18.safetensors"
    place = tmp_path / "params.yaml"
    for written, expected in (("null", model), ("random", "random"), (model, model)):
        place.write_text(named.replace(weights, f"weights: {written}"))
        assert load_settings(place).backbone.weights == expected
    place.write_text(named)
    with pytest.raises(UserError, match="a model of the hub has its own weights; expected"):
        load_settings(place)
    with pytest.raises(UserError, match="a model of the hub has its own weights; expected"):
        build_backbone(model, weights="other.safetensors")


def bundle_of(model):
    backbone = build_backbone(model, weights=None)
    return make_bundle(
        head=make_head(channels=24),
        backbone=backbone,
        source=BackboneSource(name=model, weights=model, tap="backbone"),
        made_of=make_of(backbone),
    )


def test_a_bundle_names_it_or_holds_it(server, monkeypatch, tmp_path):
    model = commit_of(server)
    bundle = bundle_of(model)
    held = save_bundle(tmp_path / "held", bundle)
    assert {path.name for path in (held / "backbone").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    named = save_bundle(tmp_path / "named", bundle, with_backbone=False)
    assert json.loads((named / "bundle.json").read_text())["backbone"]["weights"] == model
    assert "bundle.json" in {file.name for file in list_files(named, "me/dives")}  # may be shared
    go_offline(monkeypatch)
    for place in (held, named):
        loaded = load_bundle(place)
        assert loaded.source.name == "vivit"
        assert torch.equal(loaded.backbone(FRAMES), bundle.backbone(FRAMES))
    monkeypatch.setattr(
        sys.modules["huggingface_hub"].constants, "HF_HUB_CACHE", str(tmp_path / "none")
    )
    load_bundle(held)
    with pytest.raises(BundleError, match=r"not in the cache, .* or give the folder of a copy"):
        load_bundle(named)
    assert load_bundle(named, weights=str(held / "backbone")).source.name == "vivit"
