"""Taps: layouts folded to B C T H W, modules by name, several in one pass, TPN with its time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.mmaction_compat import build_model
from dsts_pipeline.extract.taps import Recognizer, fold, parse_tap
from tests.extract.small_models import MVIT, SWIN, TPN, VIT

GRID = (2, 3, 4)


@pytest.fixture(scope="module")
def maps():
    return torch.randn(2, 5, *GRID, generator=torch.Generator().manual_seed(0))


def folded(output, text="x", *, grid=None, module=None):
    return fold(output, parse_tap(text), num_clips=2, grid=grid, module=module)


def with_class_token(tokens):
    return torch.cat([torch.full_like(tokens[:, :1], 9.0), tokens], dim=1)


def with_class_row(maps):
    tokens = maps.flatten(3).permute(3, 0, 2, 1).flatten(1, 2)
    return torch.cat([torch.full_like(tokens[:1], 9.0), tokens])


def test_every_layout_folds_back_to_the_same_map(maps):
    tokens = maps.flatten(2).transpose(1, 2)
    columns_first = maps.permute(0, 3, 4, 2, 1).flatten(1, 3)
    for found in [
        folded(maps),
        folded(maps.permute(0, 2, 3, 4, 1), "x@BTHWC"),
        folded(maps.transpose(1, 2).flatten(0, 1)),
        folded(maps.permute(0, 2, 3, 4, 1).flatten(0, 1), "x@NHWC"),
        folded(tokens, grid=GRID),
        folded(with_class_token(tokens), "x@THW", grid=GRID),
        folded((tokens, list(GRID)), grid=(7, 7, 7)),  # the grid beside the tokens counts
        folded(columns_first, "x@HWT", grid=GRID),
        folded(with_class_token(columns_first), "x@HWT", grid=GRID),
        folded(maps.flatten(3).permute(3, 0, 2, 1).flatten(1, 2), "x@HWBT", grid=GRID),
        folded(with_class_row(maps), "x@HWBT", grid=GRID),
        folded([maps * 2, maps]),
        folded([maps, maps * 2], "x[0]"),
        folded(([maps, torch.zeros(2, 5)],)),
        folded((maps, {})),
        folded({"last_hidden_state": tokens, "pooled": maps * 2}, grid=GRID),
    ]:
        assert torch.equal(found, maps)


def test_two_pathways_are_joined_to_what_their_classifier_averages(maps):
    fast = torch.randn(2, 3, 8, 3, 4)
    joined = folded((maps, fast), "pathways")
    assert joined.shape == (2, 8, *GRID) and torch.equal(joined[:, :5], maps)
    torch.testing.assert_close(joined[:, 5:].mean((2, 3, 4)), fast.mean((2, 3, 4)))
    with pytest.raises(SettingsError, match="joins the slow and the fast map"):
        folded(maps, "pathways")


@pytest.mark.parametrize(
    ("output", "text", "message"),
    [
        (torch.zeros(2, 5), "x", r"gives \[\(2, 5\)\], which is no map"),
        (torch.zeros(3, 5, 4, 4), "x", "no whole number of frames for each of 2 clips"),
        (torch.zeros(2, 24, 5), "x", "tokens of a model that does not tell their grid"),
        (torch.zeros(2, 5, 2, 3, 4), "x@THW", "no map in the layout THW"),
        ([torch.zeros(2, 5, 2, 3, 4)], "x[1]", "asks for output 1 of 1"),
    ],
)
def test_outputs_that_are_no_maps_are_refused(output, text, message):
    with pytest.raises(SettingsError, match=message):
        folded(output, text)
    with pytest.raises(SettingsError, match=r"not the 24 tokens of a grid \(2, 3, 4\)"):
        folded(torch.zeros(2, 23, 5), grid=GRID)


@pytest.mark.parametrize("text", ["", "a b", "x[-1]", "x@NTHWC", "x@", "x[0"])
def test_what_is_no_tap_is_refused(text):
    with pytest.raises(SettingsError, match="is no tap; expected a module such as"):
        parse_tap(text)


def tiny_config(tmp_path, *, two_d=False):
    """A config file of a TPN that is small, as a user would write one."""
    backbone = (
        "dict(type='ResNetTSM', depth=18, out_indices=(2, 3), shift_div=8, "
        "pretrained='torchvision://resnet18')"
        if two_d
        else "dict(type='ResNet3dSlowOnly', depth=50, base_channels=8, lateral=False, "
        "out_indices=(2, 3), conv1_kernel=(1, 7, 7), conv1_stride_t=1, pool1_stride_t=1, "
        "inflate=(0, 0, 1, 1), pretrained='torchvision://resnet50')"
    )
    sampler = "clip_len=1, num_clips=8" if two_d else "clip_len=8, frame_interval=2"
    channels = {"in_channels": (256, 512)} if two_d else {"in_channels": (128, 256)}
    spatial = {**channels, "out_channels": channels["in_channels"][1]}
    neck = {**TPN, **channels, "spatial_modulation_cfg": spatial}
    neck["aux_head_cfg"] = {"out_channels": 4}
    path = tmp_path / "tiny_tpn.py"
    path.write_text(
        f"model = dict(type='Recognizer{'2D' if two_d else '3D'}', backbone={backbone},\n"
        f"  neck={neck!r},\n"
        "  cls_head=dict(type='TPNHead', num_classes=4, in_channels=2048),\n"
        "  data_preprocessor=dict(type='ActionDataPreprocessor', mean=[120, 110, 100],\n"
        "    std=[50, 60, 70], format_shape='NCTHW'))\n"
        "test_pipeline = [dict(type='DecordInit'),\n"
        f"  dict(type='SampleFrames', {sampler}, test_mode=True),\n"
        "  dict(type='DecordDecode'), dict(type='Resize', scale=(-1, 32)),\n"
        "  dict(type='CenterCrop', crop_size=32)]\n"
    )
    return str(path)


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("two_d", [False, True], ids=["3d", "2d"])
def test_several_taps_from_one_pass_are_those_of_single_passes(two_d, frames, tmp_path):
    config = tiny_config(tmp_path, two_d=two_d)
    taps = ("neck_time", "backbone[0]", "backbone", "backbone.layer4", "backbone.layer2.0")
    backbone = build_backbone(config, weights="random", taps=taps)
    assert backbone.name == "tiny_tpn" and backbone.taps == taps
    found = backbone.extract(frames)
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == backbone.map_shapes
    assert backbone.map_shape == (2048, 8, 1, 1) == backbone.map_shapes["neck_time"]
    assert backbone.map_shapes["backbone[0]"] == (256 if two_d else 128, 8, 2, 2)
    assert torch.equal(found["backbone"], found["backbone.layer4"])
    for tap in taps:
        alone = build_backbone(config, weights="random", taps=(tap,))
        torch.testing.assert_close(alone(frames), found[tap], rtol=1e-4, atol=1e-5)
        assert alone.describe() == backbone.describe(tap)
    assert torch.equal(backbone(frames), found["neck_time"])


def test_layers_side_by_side_and_averaged_cells_are_those_made_by_hand(frames, tmp_path):
    config = tiny_config(tmp_path)
    single = ("backbone.layer2", "backbone.layer2.0", "backbone.layer3")
    joined = "backbone.layer2+backbone.layer2.0"
    taps = (*single, joined, f"{joined}:2x1x2", "backbone.layer3:4x2x2")
    backbone = build_backbone(config, weights="random", taps=taps)
    found = backbone.extract(frames)
    expected = torch.cat([found[single[0]], found[single[1]]], dim=1)
    assert torch.equal(found[joined], expected)
    batch, channels, time, height, width = expected.shape
    by_hand = expected.view(batch, channels, time // 2, 2, height, width // 2, 2).mean(dim=(3, 6))
    torch.testing.assert_close(found[f"{joined}:2x1x2"], by_hand)
    cells = found[single[2]].unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 4))
    torch.testing.assert_close(found["backbone.layer3:4x2x2"], cells.mean(dim=(3, 5, 7)))
    behind = "backbone.layer2.0|backbone.layer2:1x2x1"
    (longer,) = build_backbone(config, weights="random", taps=(behind,)).extract(frames).values()
    in_time = torch.cat([found[single[1]], found[single[0]]], dim=2)
    torch.testing.assert_close(longer, in_time.unflatten(3, (-1, 2)).mean(dim=4))
    alone = build_backbone(config, weights="random", taps=(f"{joined}:2x1x2",))
    assert alone.describe() == backbone.describe(f"{joined}:2x1x2")
    torch.testing.assert_close(alone(frames), by_hand)


@pytest.mark.parametrize(
    ("tap", "told"),
    [
        ("backbone.layer2+backbone.layer3", "joins maps of 8x4x4 and 8x2x2 positions"),
        ("backbone.layer2:1x3x3", "cells of 1x3x3, and the map has 8x4x4 positions"),
        ("backbone+backbone.layer2|backbone", r"joins by \+ and by \|"),
        ("backbone.layer2/backbone.layer9", "no module 'backbone.layer9'"),
        ("backbone.layer2:2x2", "expected sides of a cell along time"),
        ("backbone.layer2:0x1x1", "expected sides of a cell"),
    ],
)
def test_maps_that_cannot_be_made_are_refused(tap, told, tmp_path):
    with pytest.raises(SettingsError, match=told):
        build_backbone(tiny_config(tmp_path), weights="random", taps=(tap,))


def test_segments_of_a_2d_recognizer_become_time(frames, tmp_path):
    backbone = build_backbone(
        tiny_config(tmp_path, two_d=True), weights="random", taps=("backbone",)
    )
    from dsts_pipeline.extract.backbones import normalize_frames

    pipeline = backbone.pipeline
    inputs = normalize_frames(frames, pipeline.mean, pipeline.std)
    with torch.no_grad():
        single = backbone.recognizer.backbone(inputs.transpose(1, 2).flatten(0, 1))[-1]
    found = backbone(frames)
    for clip in range(2):
        for time in range(8):
            torch.testing.assert_close(found[clip, :, time], single[8 * clip + time])


def test_a_published_checkpoint_loads_for_time_kept_and_its_outer_taps_are_zeroed(tmp_path, frames):
    config = tiny_config(tmp_path)
    published = build_backbone(config, weights="random", seed=4, taps=("neck",))
    assert published.map_shape == (2048, 1, 1, 1)
    state = {
        k: value.clone().contiguous() for k, value in published.recognizer.state_dict().items()
    }
    heads = {"cls_head.fc_cls.weight": torch.ones(4, 2048), "neck.aux_head.fc.bias": torch.ones(4)}
    save_file(state | heads, tmp_path / "published.safetensors")
    kept = build_backbone(config, weights=tmp_path / "published.safetensors")
    assert kept.taps == ("backbone",)
    kept = build_backbone(
        config, weights=tmp_path / "published.safetensors", taps=("neck_time", "backbone")
    )
    assert kept.load_report.left_out == tuple(sorted(heads)) and not kept.load_report.missing
    (operation,) = kept.recognizer.neck.downsample_ops
    kernel, original = operation.conv.conv.weight, state["neck.downsample_ops.0.conv.conv.weight"]
    assert torch.equal(kernel[:, :, 1], original[:, :, 1])
    assert not kernel[:, :, [0, 2]].any() and original[:, :, [0, 2]].any()
    assert kept(frames).shape == (2, 2048, 8, 1, 1)
    del state["neck.level_fusion_1.fusion_conv.bn.weight"]
    save_file(state, tmp_path / "altered.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: neck\.level_fusion_1\.fusion_conv\.bn"):
        build_backbone(config, weights=tmp_path / "altered.safetensors")


def test_the_neck_cannot_be_both_kept_and_published(tmp_path):
    with pytest.raises(SettingsError, match="changes the neck, so that neck, neck.level_fusion_2"):
        build_backbone(
            tiny_config(tmp_path),
            weights="random",
            taps=("neck_time", "neck", "neck.level_fusion_2"),
        )


def test_unknown_modules_and_inputs_are_refused_with_a_hint(tmp_path):
    config = tiny_config(tmp_path)
    with pytest.raises(SettingsError, match=r"no module 'backbone\.layer5'; did you mean"):
        build_backbone(config, weights="random", taps=("backbone.layer5",))
    fixed = config.replace("tiny_tpn", "fixed_length")
    text = Path(config).read_text()
    start, end = text.index("backbone="), text.index("  cls_head")
    Path(fixed).write_text(f"{text[:start]}backbone={VIT['backbone']!r},\n{text[end:]}")
    assert build_backbone(fixed, weights="random", size_px=64).map_shape == (24, 4, 4, 4)
    with pytest.raises(SettingsError, match="fixed_length cannot take 4 frames of 64 px"):
        build_backbone(fixed, weights="random", num_frames=4, size_px=64)
    with pytest.raises(SettingsError, match="is built without its classifier"):
        build_backbone(config, weights="random").classify(torch.zeros(1))


def test_random_weights_are_marked_and_only_by_the_word(tmp_path):
    config = tiny_config(tmp_path)
    backbone = build_backbone(config, weights="random", seed=3)
    assert backbone.describe()["weights"] == {"random_seed": 3} and backbone.load_report is None
    with pytest.raises(SettingsError, match=r"expected a file, an address, or the word random"):
        build_backbone(config, weights=None)
    with pytest.raises(CheckpointError, match="no such weights file"):
        build_backbone(config, weights="rnadom")


@pytest.mark.parametrize(
    ("config", "block", "norm"),
    [
        (SWIN, "backbone.layers.3", "norm3"),
        (MVIT, "backbone.blocks.1", "norm1"),
        (VIT, "backbone.blocks.1", "norm"),
    ],
    ids=["swin", "mvit", "vit"],
)
def test_blocks_of_transformers_are_folded_as_the_models_own_output_is(config, block, norm):
    torch.manual_seed(0)
    recognizer = build_model(config)
    model = Recognizer(recognizer, is_2d=False)
    model.eval()
    inputs = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        found = model.tap(inputs, [parse_tap(block), parse_tap("backbone")])
        last = getattr(recognizer.backbone, norm)
        normed = last(found[block].permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    assert found["backbone"].ndim == 5 and len(set(found["backbone"].shape[1:3])) == 2
    torch.testing.assert_close(normed, found["backbone"], rtol=1e-4, atol=1e-5)
