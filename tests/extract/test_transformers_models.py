"""ViViT, VideoMAE and V-JEPA 2, small, against the transformers library's own models."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from dsts_pipeline.base.errors import BundleError, CheckpointError, MissingExtraError, SettingsError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.model_zoo import TRANSFORMERS_PRESETS
from dsts_pipeline.extract.transformers_models import TokenModel
from dsts_pipeline.serve import BackboneSource, load_bundle, save_bundle
from dsts_pipeline.serve.bundle_folder import write_record
from tests.serve.small_bundle import make_bundle, make_head, make_of

transformers = pytest.importorskip("transformers", reason="the optional extra is not installed")
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VIDEO_SIZES = SIZES | {"intermediate_size": 48, "image_size": 48, "num_frames": 6}


IMAGE_SIZES = SIZES | {"intermediate_size": 48, "image_size": 48, "patch_size": 16}
DINO = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
DINO |= {"image_size": 48, "patch_size": 16}
IMAGE_KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "siglip")
KINDS = (
    *IMAGE_KINDS,
    "timesformer",
    "videomae",
    "videoprism_vision_model",
    "vivit",
    "vjepa2",
)
HEADS = ("fc_norm", "pooler", "text_model")  # of a folder, and no part of a backbone


def preset_of(kind):
    """The preset of a word `model_type`."""
    return next(preset for preset in TRANSFORMERS_PRESETS if kind.startswith(preset))


def new_model(kind):
    """A small model as its folder is published: with its head or its tower for text, if any."""
    t = transformers
    if kind == "vivit":
        config = t.VivitConfig(**VIDEO_SIZES, tubelet_size=[2, 16, 16])
        return t.VivitForVideoClassification(config)
    if kind == "videomae":
        return t.VideoMAEForVideoClassification(t.VideoMAEConfig(**VIDEO_SIZES))
    if kind == "timesformer":
        return t.TimesformerForVideoClassification(
            t.TimesformerConfig(**VIDEO_SIZES, attention_type="divided_space_time")
        )
    if kind == "videoprism_vision_model":
        sizes = SIZES | {"intermediate_size": 48, "image_size": 48, "num_frames": 6}
        del sizes["num_hidden_layers"]
        layers = {"num_spatial_layers": 2, "num_temporal_layers": 1}
        return t.VideoPrismVisionModel(
            t.VideoPrismVisionConfig(**sizes, **layers, tubelet_size=(1, 16, 16))
        )
    if kind == "dinov2":
        return t.Dinov2ForImageClassification(t.Dinov2Config(**DINO))
    if kind == "dinov2_with_registers":
        return t.Dinov2WithRegistersForImageClassification(
            t.Dinov2WithRegistersConfig(**DINO, num_register_tokens=4)
        )
    if kind == "dinov3_vit":
        return t.DINOv3ViTModel(
            t.DINOv3ViTConfig(**IMAGE_SIZES, num_register_tokens=4, pos_embed_rescale=None)
        )
    if kind == "siglip":
        text = SIZES | {"intermediate_size": 48, "vocab_size": 30}
        return t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=IMAGE_SIZES))
    predictor = {f"pred_{name}": value for name, value in SIZES.items()}
    config = t.VJEPA2Config(**SIZES, **predictor, crop_size=48, frames_per_clip=6)
    return t.VJEPA2ForVideoClassification(config)


def make_model(kind):
    torch.manual_seed(0)
    model = new_model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(request.param)
    model.save_pretrained(folder)
    return request.param, folder, model


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 6, 48, 48, 3), dtype=torch.uint8, generator=generator)


def test_shapes_are_told_without_a_pass_and_are_those_of_one(saved, monkeypatch):
    kind, folder, _ = saved
    taps = ["backbone", "backbone:1x1x3"]
    devices = set()
    run = TokenModel.run
    monkeypatch.setattr(
        TokenModel,
        "run",
        lambda self, inputs, last: (devices.add(inputs.device.type), run(self, inputs, last)),
    )
    backbone = build_backbone(preset_of(kind), weights=str(folder), taps=taps)
    assert devices == {"meta"}, "a pass with numbers takes a large model a minute"
    frames = torch.zeros(1, backbone.num_frames, 48, 48, 3, dtype=torch.uint8)
    with torch.inference_mode():
        maps = backbone.extract(frames)
    assert {tap: tuple(m.shape[1:]) for tap, m in maps.items()} == backbone.map_shapes


@torch.no_grad()
def tokens_of(kind, model, frames, cells=3):
    """The library's own way from pixels to tokens [B, T, H, W, C], without class and registers."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    if kind in ("vivit", "siglip"):
        mean, std = [0.5] * 3, [0.5] * 3
    if kind == "videoprism_vision_model":
        mean, std = [0.0] * 3, [1.0] * 3
    pixels = (frames / 255 - torch.tensor(mean)) / torch.tensor(std)
    pixels = pixels.permute(0, 1, 4, 2, 3)
    time = 3 if kind in ("vivit", "videomae", "vjepa2") else 6
    if kind in IMAGE_KINDS:
        inner = {"siglip": "vision_model", "dinov3_vit": ""}.get(kind, kind)
        model = getattr(model, inner) if inner else model
        tokens = model(pixels.flatten(0, 1)).last_hidden_state
        prefix = {"dinov2": 1, "siglip": 0}.get(kind, 5)
        return tokens[:, prefix:].unflatten(0, (2, 6)).unflatten(2, (3, 3))
    if kind == "vjepa2":
        tokens = model.vjepa2.get_vision_features(pixels)
    elif kind == "videoprism_vision_model":
        tokens = model(pixels).last_hidden_state
    else:
        tokens = getattr(model, kind)(pixels).last_hidden_state
    if kind == "timesformer":
        return tokens[:, 1:].unflatten(1, (3, 3, time)).permute(0, 3, 1, 2, 4)
    tokens = tokens[:, 1:] if kind == "vivit" else tokens
    return tokens.unflatten(1, (time, cells, cells))


def test_tokens_are_folded_back_to_time_rows_and_columns(saved, frames):
    kind, folder, model = saved
    options = {"num_frames": 6} if kind in IMAGE_KINDS else {}  # 8 of these, if nothing is said
    backbone = build_backbone(preset_of(kind), weights=folder, **options)
    expected = tokens_of(kind, model, frames)
    assert backbone.map_shape == (24, *expected.shape[1:4]) and backbone.num_frames == 6
    found = backbone(frames).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1


def test_vjepa2_finds_its_rows_and_columns_at_another_size(tmp_path):
    model = make_model("vjepa2")
    model.save_pretrained(tmp_path)
    frames = torch.randint(0, 256, (2, 6, 64, 64, 3), dtype=torch.uint8)
    model.config.crop_size = 64
    larger = type(model)(model.config).eval()
    larger.load_state_dict(model.state_dict())
    expected = tokens_of("vjepa2", larger, frames, cells=4)
    backbone = build_backbone("vjepa2", weights=tmp_path, size_px=64)
    assert backbone.map_shape == (24, 3, 4, 4)
    found = backbone(frames).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_image_models_see_eight_frames_one_by_one(saved):
    kind, folder, _ = saved
    if kind in IMAGE_KINDS:
        assert build_backbone(preset_of(kind), weights=folder).map_shape == (24, 8, 3, 3)


def test_the_weights_are_described_by_their_digest_and_every_key_is_told(saved):
    kind, folder, _ = saved
    backbone = build_backbone(preset_of(kind), weights=folder)
    digest = sha256_file(folder / "model.safetensors")
    described = backbone.describe()
    assert described["weights"] == {"sha256": digest}
    assert json.loads(json.dumps(described)) == described
    report = backbone.load_report
    assert not report.missing and not report.unexpected and len(report.matched) > 20
    assert bool(report.left_out) == (kind not in ("dinov3_vit", "videoprism_vision_model"))
    assert (
        build_backbone(str(folder), weights=folder, weights_sha256=digest).describe() == described
    )
    with pytest.raises(CheckpointError, match=r"backbone\.weights_sha256 expects 0000"):
        build_backbone(preset_of(kind), weights=folder, weights_sha256="0" * 64)


def test_layers_are_tapped_by_name_and_class_tokens_dropped(saved, frames):
    kind, folder, _ = saved
    layer = {
        "vivit": "layers.1",
        "dinov3_vit": "model.layer.1",
        "siglip": "encoder.layers.1",
        "videomae": "encoder.layer.0",  # the last one's output is the model's
        "videoprism_vision_model": "spatial_layers.1@NHW",
    }.get(kind, "encoder.layer.1")
    taps = ("backbone", f"backbone.{layer}")
    backbone = build_backbone(preset_of(kind), weights=folder, taps=taps, num_frames=6)
    found = backbone.extract(frames)
    assert found[taps[1]].shape == found[taps[0]].shape == (2, *backbone.map_shape)
    assert not torch.equal(found[taps[1]], found[taps[0]])


def test_random_weights_follow_their_seed_and_are_marked(saved, frames):
    _, folder, _ = saved
    first, again, other = (
        build_backbone(str(folder), weights="random", seed=seed, num_frames=6) for seed in (1, 1, 2)
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
    pipeline = build_backbone(preset_of(kind), weights=tmp_path).pipeline
    for pixel in (0, 100, 255):
        found = (pixel - pipeline.mean[0]) / pipeline.std[0]
        assert found == pytest.approx((pixel / 127.5 - 1 - 0.5) / 0.5)


def test_folders_that_do_not_fit_are_refused(saved, tmp_path):
    kind, folder, model = saved
    other = "vivit" if kind != "vivit" else "videomae"
    with pytest.raises(SettingsError, match=f"holds a {kind} model, expected {other}"):
        build_backbone(other, weights=folder)
    with pytest.raises(CheckpointError, match=r"no config\.json; expected a folder"):
        build_backbone(preset_of(kind), weights=tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        build_backbone(preset_of(kind), weights=tmp_path)


def test_a_missing_norm_is_an_error_that_names_it(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    kind, folder, _ = saved
    state = load_file(folder / "model.safetensors")
    norms = [name for name in state if "norm" in name and name.endswith("weight")]
    gone = next(name for name in norms if not name.startswith(HEADS))
    del state[gone]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    named = gone.removeprefix(f"{kind}.").split(".")[-2]
    with pytest.raises(CheckpointError, match=rf"missing \[.*{named}"):
        build_backbone(preset_of(kind), weights=tmp_path)


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
        build_backbone(preset_of(kind), weights=tmp_path)
    change_config(folder, tmp_path / "plain", attn_implementation="eager")
    build_backbone(preset_of(kind), weights=tmp_path / "plain")


def test_no_file_of_a_folder_leads_elsewhere(saved, tmp_path):
    kind, folder, _ = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(CheckpointError, match="models with adapters are not read"):
        build_backbone(preset_of(kind), weights=tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    for part in ("../other.safetensors", "/x/model.safetensors", "pytorch_model.bin", "x.py"):
        index = {"metadata": {}, "weight_map": {"a": part}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="expected safetensors files of its own folder"):
            build_backbone(preset_of(kind), weights=tmp_path)


def bundle_of(folder, kind, **source):
    backbone = build_backbone(preset_of(kind), weights=folder, num_frames=6)
    chosen = {
        "name": preset_of(kind),
        "weights": str(folder),
        "tap": "backbone",
        "num_frames": 6,
    } | source
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
    assert loaded.source.name == preset_of(kind)
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


def test_layers_of_vjepa2_follow_each_other_normalised_as_its_evaluation_reads_them(
    frames, tmp_path
):
    """`outs.append(self.norm(x))` of each layer, joined along the tokens (vjepa2's repository)."""
    layers = ("backbone.encoder.layer.0/backbone.encoder.layernorm", "backbone")
    make_model("vjepa2").save_pretrained(tmp_path)
    backbone = build_backbone("vjepa2", weights=str(tmp_path), taps=["|".join(layers)])
    model = backbone.model.root["backbone"]
    raw = []
    handle = model.encoder.layer[0].register_forward_hook(lambda *given: raw.append(given[-1]))
    with torch.inference_mode():
        (found,) = backbone.extract(frames).values()
    handle.remove()
    first = raw[-1][0] if isinstance(raw[-1], tuple) else raw[-1]
    with torch.inference_mode():
        expected = model.encoder.layernorm(first)
    assert found.shape[2] == 2 * 3, "two layers of three steps of time"
    torch.testing.assert_close(found[:, :, :3].flatten(2).transpose(1, 2), expected)


def test_frames_at_an_interval_are_those_of_a_window_and_short_clips_repeat_the_last(saved):
    kind, folder, _ = saved
    name = preset_of(kind)
    backbone = build_backbone(name, weights=str(folder), num_frames=6, frame_interval=2)
    assert backbone.pipeline.sample(31).tolist() == [[10, 12, 14, 16, 18, 20]]
    assert backbone.pipeline.with_views(2).sample(31).tolist() == [
        [0, 2, 4, 6, 8, 10],
        [20, 22, 24, 26, 28, 30],
    ]
    assert backbone.pipeline.sample(7).tolist() == [[0, 2, 4, 6, 6, 6]]
    described = backbone.pipeline.describe()["sampling"]
    assert (described["rule"], described["frame_interval"]) == ("dense", 2)


def test_models_with_a_rule_of_their_own_take_no_interval():
    with pytest.raises(SettingsError, match="frame_interval is 2, and stick_r18 has a rule"):
        build_backbone("stick_r18", weights="random", frame_interval=2)
