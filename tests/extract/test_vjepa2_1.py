"""V-JEPA 2.1's encoder against a literal reading of its code, and the published file's names."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.extract import build_backbone, vjepa2_1
from dsts_pipeline.extract.model_zoo import VJEPA2_1_PRESETS
from dsts_pipeline.extract.vjepa2_1 import SIZES, EncoderSize, VideoEncoder

SMALL = EncoderSize(width=40, depth=4, num_heads=2, mlp_width=60, normed_layers=(0, 1, 2, 3))
NAME = "vjepa2_1_vit_base_384"


def published_names(size: EncoderSize) -> dict[str, tuple[int, ...]]:
    """Parameters of app/vjepa_2_1/models/vision_transformer.py with img_temporal_dim_size=1, which
    src/hub/backbones.py loads strictly, and their shapes."""
    width, inner = size.width, size.mlp_width
    shapes: dict[str, tuple[int, ...]] = {"img_mod_embed": (1, 1, width)}
    shapes["video_mod_embed"] = (1, 1, width)
    for name, time in (("patch_embed", 2), ("patch_embed_img", 1)):
        shapes[f"{name}.proj.weight"] = (width, 3, time, 16, 16)
        shapes[f"{name}.proj.bias"] = (width,)
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for number in range(size.depth):
        for name, shape in linear.items():
            shapes[f"blocks.{number}.{name}.weight"] = shape
            shapes[f"blocks.{number}.{name}.bias"] = shape[:1]
        for name in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                shapes[f"blocks.{number}.{name}.{part}"] = (width,)
    for number in range(4):
        for part in ("weight", "bias"):
            shapes[f"norms_block.{number}.{part}"] = (width,)
    return shapes


@pytest.mark.parametrize("name", VJEPA2_1_PRESETS)
def test_the_encoder_has_the_published_parameters(name):
    with torch.device("meta"):
        found = VideoEncoder(SIZES[name]).state_dict()
    wanted = published_names(SIZES[name])
    spared = {key for key in wanted if "img" in key}
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        key: shape for key, shape in wanted.items() if key not in spared
    }


def rotated(x, place):
    """One vector [D] at one position along one axis."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = torch.tensor(place / 10000 ** (i / half), dtype=x.dtype)
        a, b = x[2 * i], x[2 * i + 1]
        out[2 * i] = a * angle.cos() - b * angle.sin()
        out[2 * i + 1] = b * angle.cos() + a * angle.sin()
    return out


def literal_forward(state, video, size):
    """Levels [4, N, C] of one video [3, T, H, W], token by token."""
    norm = lambda x, name: functional.layer_norm(  # noqa: E731
        x, (size.width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6
    )
    linear = lambda x, name: x @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731
    frames, rows, columns = video.shape[1] // 2, video.shape[2] // 16, video.shape[3] // 16
    tokens, places = [], []
    kernel = state["patch_embed.proj.weight"]
    for t in range(frames):
        for r in range(rows):
            for c in range(columns):
                patch = video[:, 2 * t : 2 * t + 2, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16]
                value = (kernel * patch).sum(dim=(1, 2, 3, 4)) + state["patch_embed.proj.bias"]
                tokens.append(value + state["video_mod_embed"][0, 0])
                places.append((t, r * 15 / (rows - 1), c * 15 / (columns - 1)))
    x = torch.stack(tokens)
    head = size.width // size.num_heads
    third = 2 * ((head // 3) // 2)
    levels = []
    for number in range(size.depth):
        block = f"blocks.{number}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        query, key, value = qkv.split(size.width, dim=1)
        mixed = torch.zeros_like(x)
        for h in range(size.num_heads):
            own = slice(h * head, (h + 1) * head)
            q, k = query[:, own].clone(), key[:, own].clone()
            for n, place in enumerate(places):
                for axis in range(3):
                    part = slice(axis * third, (axis + 1) * third)
                    q[n, part] = rotated(query[n, own][part], place[axis])
                    k[n, part] = rotated(key[n, own][part], place[axis])
            shares = (q @ k.T / head**0.5).softmax(dim=1)
            mixed[:, own] = shares @ value[:, own]
        x = x + linear(mixed, f"{block}.attn.proj")
        hidden = functional.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2")
        levels.append(norm(x, f"norms_block.{number}"))
    return torch.stack(levels)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small encoder's file as the authors save theirs, and its tensors."""
    monkeypatch.setitem(vjepa2_1.SIZES, NAME, SMALL)
    generator = torch.Generator().manual_seed(0)
    state = {
        key: 0.3 * torch.randn(shape, generator=generator)
        for key, shape in published_names(SMALL).items()
    }
    wrapped = {f"module.backbone.{key}": value for key, value in state.items()}
    file = {"encoder": {key: 0 * value for key, value in wrapped.items()}, "ema_encoder": wrapped}
    file |= {"predictor": {"module.backbone.x": torch.zeros(1)}, "epoch": 3, "loss": 0.5}
    torch.save(file, tmp_path / "small.pt")
    return tmp_path / "small.pt", state


def test_maps_are_those_of_a_literal_reading_of_its_code(published):
    path, state = published
    taps = ("backbone", "backbone.norms_block.1", "backbone.norms_block.0+backbone.norms_block.3")
    backbone = build_backbone(NAME, weights=path, num_frames=4, size_px=48, taps=taps)
    assert backbone.map_shape == (40, 2, 3, 3)
    report = backbone.load_report
    assert len(report.left_out) == 3 and not report.missing and not report.unexpected
    frames = torch.randint(0, 256, (1, 4, 48, 48, 3), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    video = ((frames[0] / 255 - mean) / std).permute(3, 0, 1, 2).double()
    levels = literal_forward({k: v.double() for k, v in state.items()}, video, SMALL).float()
    expected = levels.unflatten(1, (2, 3, 3)).permute(0, 4, 1, 2, 3)
    found = backbone.extract(frames)
    torch.testing.assert_close(found[taps[0]][0], expected[3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[taps[1]][0], expected[1], rtol=1e-4, atol=1e-4)
    both = torch.cat([expected[0], expected[3]])
    torch.testing.assert_close(found[taps[2]][0], both, rtol=1e-4, atol=1e-4)


def test_a_file_that_lacks_a_level_is_refused(published):
    path, _ = published
    file = torch.load(path)
    del file["ema_encoder"]["module.backbone.norms_block.2.bias"]
    torch.save({"target_encoder": file["ema_encoder"]}, path)
    with pytest.raises(CheckpointError, match=r"missing: backbone\.norms_block\.2\.bias"):
        build_backbone(NAME, weights=path, num_frames=4, size_px=48)
