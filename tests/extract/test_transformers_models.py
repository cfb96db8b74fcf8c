"""ViViT, VideoMAE and V-JEPA 2, small, against the transformers library's own models."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import BundleError, CheckpointError, MissingExtraError, SettingsError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.serve import BackboneSource, load_bundle, save_bundle
from dsts_pipeline.serve.bundle_folder import write_record
from tests.serve.small_bundle import make_bundle, make_head, make_of

transformers = pytest.importorskip("transformers", reason="the optional extra is not installed")
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VIDEO_SIZES = SIZES | {"intermediate_size": 48, "image_size": 48, "num_frames": 6}


def make_model(kind):
    torch.manual_seed(0)
    if kind == "vivit":
        config = transformers.VivitConfig(**VIDEO_SIZES, tubelet_size=[2, 16, 16])
        model = transformers.VivitForVideoClassification(config)
    elif kind == "videomae":
        model = transformers.VideoMAEForVideoClassification(
            transformers.VideoMAEConfig(**VIDEO_SIZES)
        )
    else:
        predictor = {f"pred_{name}": value for name, value in SIZES.items()}
        model = transformers.VJEPA2Model(
            transformers.VJEPA2Config(**SIZES, **predictor, crop_size=48, frames_per_clip=6)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module", params=["vivit", "videomae", "vjepa2"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(request.param)
    model.save_pretrained(folder)
    return request.param, folder, model


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 6, 48, 48, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def tokens_of(kind, model, frames):
    """The library's own way from pixels to tokens, without the class token."""
    mean = [0.5] * 3 if kind == "vivit" else [0.485, 0.456, 0.406]
    std = [0.5] * 3 if kind == "vivit" else [0.229, 0.224, 0.225]
    pixels = (frames / 255 - torch.tensor(mean)) / torch.tensor(std)
    pixels = pixels.permute(0, 1, 4, 2, 3)
    if kind == "vjepa2":
        return model.get_vision_features(pixels)
    tokens = getattr(model, kind)(pixels).last_hidden_state
    return tokens[:, 1:] if kind == "vivit" else tokens


def test_tokens_are_folded_back_to_time_rows_and_columns(saved, frames):
    kind, folder, model = saved
    backbone = build_backbone(kind, weights=folder)
    assert backbone.map_shape == (24, 3, 3, 3) and backbone.num_frames == 6
    found, tokens = backbone(frames), tokens_of(kind, model, frames)
    for time, row, column in np.ndindex(3, 3, 3):
        expected = tokens[:, time * 9 + row * 3 + column]
        torch.testing.assert_close(found[:, :, time, row, column], expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.1


def test_the_weights_are_described_by_their_digest_and_every_key_is_told(saved):
    kind, folder, _ = saved
    backbone = build_backbone(kind, weights=folder)
    digest = sha256_file(folder / "model.safetensors")
    described = backbone.describe()
    assert described["weights"] == {"sha256": digest}
    assert json.loads(json.dumps(described)) == described
    report = backbone.load_report
    assert not report.missing and not report.unexpected and len(report.matched) > 20
    assert bool(report.left_out) == (kind != "vjepa2")
    assert (
        build_backbone(str(folder), weights=folder, weights_sha256=digest).describe() == described
    )
    with pytest.raises(CheckpointError, match=r"backbone\.weights_sha256 expects 0000"):
        build_backbone(kind, weights=folder, weights_sha256="0" * 64)


def test_layers_are_tapped_by_name_and_class_tokens_dropped(saved, frames):
    kind, folder, _ = saved
    layer = {"vivit": "layers.1", "videomae": "encoder.layer.1", "vjepa2": "encoder.layer.1"}[kind]
    taps = ("backbone", f"backbone.{layer}")
    backbone = build_backbone(kind, weights=folder, taps=taps)
    found = backbone.extract(frames)
    assert found[taps[1]].shape == found[taps[0]].shape == (2, 24, 3, 3, 3)


def test_random_weights_follow_their_seed_and_are_marked(saved, frames):
    _, folder, _ = saved
    first, again, other = (
        build_backbone(str(folder), weights="random", seed=seed) for seed in (1, 1, 2)
    )
    assert first.describe()["weights"] == {"random_seed": 1}
    assert torch.equal(first(frames), again(frames)) and not torch.equal(
        first(frames), other(frames)
    )


def test_the_folders_own_normalisation_counts(saved, tmp_path):
    kind, folder, _ = saved
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    # As google/vivit-b-16x2 has it: x / 127.5 - 1, then (x - 0.5) / 0.5.
    values = {"rescale_factor": 1 / 127.5, "offset": True, "image_mean": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(values | {"image_std": [0.5] * 3})
    )
    pipeline = build_backbone(kind, weights=tmp_path).pipeline
    for pixel in (0, 100, 255):
        found = (pixel - pipeline.mean[0]) / pipeline.std[0]
        assert found == pytest.approx((pixel / 127.5 - 1 - 0.5) / 0.5)


def test_folders_that_do_not_fit_are_refused(saved, tmp_path):
    kind, folder, model = saved
    other = "vivit" if kind != "vivit" else "videomae"
    with pytest.raises(SettingsError, match=f"holds a {kind} model, expected {other}"):
        build_backbone(other, weights=folder)
    with pytest.raises(CheckpointError, match=r"no config\.json; expected a folder"):
        build_backbone(kind, weights=tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        build_backbone(kind, weights=tmp_path)


def test_a_missing_norm_is_an_error_that_names_it(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    kind, folder, _ = saved
    state = load_file(folder / "model.safetensors")
    norms = [name for name in state if "norm" in name and name.endswith("weight")]
    gone = next(name for name in norms if not name.startswith("fc_norm"))  # that is the head's
    del state[gone]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    named = gone.removeprefix(f"{kind}.").split(".")[-2]
    with pytest.raises(CheckpointError, match=rf"missing \[.*{named}"):
        build_backbone(kind, weights=tmp_path)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[transformers\]"):
        build_backbone("vivit", weights="random")


def change_config(folder, target, **changes):
    """A copy of a model's folder, its config changed."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | changes))


CODE = {
    "auto_map": {"AutoModel": "evil.Model"},
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "flash_attention_2",
    "quantization_config": {"quant_method": "bitsandbytes"},
    "nested": {"experts_implementation": "someone/kernel"},
}


@pytest.mark.parametrize("entry", CODE)
def test_entries_by_which_the_library_loads_code_are_refused(saved, tmp_path, entry):
    kind, folder, _ = saved
    change_config(folder, tmp_path, **{entry: CODE[entry]})
    with pytest.raises(CheckpointError, match=r"config.json: \w+ makes the .* load code"):
        build_backbone(kind, weights=tmp_path)
    change_config(folder, tmp_path / "plain", attn_implementation="sdpa")
    build_backbone(kind, weights=tmp_path / "plain")


def test_no_file_of_a_folder_leads_elsewhere(saved, tmp_path):
    kind, folder, _ = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(CheckpointError, match="models with adapters are not read"):
        build_backbone(kind, weights=tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    for part in ("../other.safetensors", "/x/model.safetensors", "pytorch_model.bin", "x.py"):
        index = {"metadata": {}, "weight_map": {"a": part}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="expected safetensors files of its own folder"):
            build_backbone(kind, weights=tmp_path)


def bundle_of(folder, kind, **source):
    backbone = build_backbone(kind, weights=folder)
    chosen = {"name": kind, "weights": str(folder), "tap": "backbone"} | source
    return make_bundle(
        head=make_head(channels=24),
        backbone=backbone,
        source=BackboneSource(**chosen),
        made_of=make_of(backbone),
    )


def test_a_bundle_holds_the_folder_and_needs_no_other(saved, frames, tmp_path):
    kind, folder, _ = saved
    moved = Path(shutil.copytree(folder, tmp_path / "model"))
    (moved / "modeling.py").write_text("raise SystemExit('run')")
    bundle = bundle_of(moved, kind, name=str(moved))
    path = save_bundle(tmp_path / "b", bundle)
    assert sorted(file.name for file in (path / "backbone").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    shutil.rmtree(moved)
    loaded = load_bundle(path)
    assert loaded.source.name == kind
    assert torch.equal(loaded.backbone(frames), bundle.backbone(frames))


def test_a_bundle_that_refers_to_the_folder(saved, tmp_path):
    kind, folder, _ = saved
    path = save_bundle(tmp_path / "b", bundle_of(folder, kind), with_backbone=False)
    assert not (path / "backbone").exists()
    assert load_bundle(path).source.weights == str(folder)


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("modeling.py", "", "names backbone/modeling.py, a file that no export writes"),
        ("pytorch_model.bin", "", "a file that no export writes"),
        ("deep/config.json", "{}", "a file that no export writes"),
        ("config.json", '{"auto_map": {"AutoModel": "m.M"}}', "auto_map makes the"),
    ],
)
def test_nothing_in_a_folder_of_a_bundle_is_run(saved, tmp_path, file, text, told):
    kind, folder, _ = saved
    path = save_bundle(tmp_path / "b", bundle_of(folder, kind))
    place = path / "backbone" / file
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        text = json.dumps(json.loads(place.read_text()) | json.loads(text))
    place.write_text(text)
    record = json.loads((path / "bundle.json").read_text())
    (path / "bundle.json").unlink()
    write_record(path, {key: v for key, v in record.items() if key not in ("files", "digest")})
    with pytest.raises(BundleError, match=told):
        load_bundle(path)


def test_a_folder_with_random_weights_is_not_exported(saved, tmp_path):
    _, folder, _ = saved
    backbone = build_backbone(str(folder), weights="random")
    source = BackboneSource(str(folder), "random", "backbone")
    parts = {"head": make_head(channels=24), "backbone": backbone, "source": source}
    with pytest.raises(BundleError, match="a bundle names a preset"):
        save_bundle(tmp_path / "b", make_bundle(**parts, made_of=make_of(backbone)))
    assert not (tmp_path / "b").exists()
