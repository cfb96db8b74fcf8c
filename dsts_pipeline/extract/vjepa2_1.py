"""V-JEPA 2.1's encoders, which the transformers library does not have.

Enters: a preset's name and the published .pt file, read without running anything in it. Leaves: a
`Backbone` whose tokens are folded back to T, H, W.

Against V-JEPA 2: a vector that says "video" is added to all tokens, rotary angles are interleaved
in pairs and rows and columns are scaled to the grid of pretraining, and four layers have norms of
their own, the last of which is the output; the others are taps, `backbone.norms_block.0` to 3.
The patch embedding of single images is not used: here every input is a video.

Choice: frames are the centres of equal segments, or follow each other at `frame_interval`, scaled
and cut by V-JEPA 2's rule.
Source: https://github.com/facebookresearch/vjepa2, app/vjepa_2_1/models and src/hub/backbones.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.model_zoo import LEFT_OUT
from dsts_pipeline.extract.pipelines import Pipeline
from dsts_pipeline.extract.taps import Grid, Recognizer
from dsts_pipeline.extract.weights import WeightsChoice

_OF_IMAGES = ("backbone.patch_embed_img.", "backbone.img_mod_embed")
_TUBELET = (2, 16, 16)
_PRETRAINED_CELLS = 16  # rows and columns of 256 px
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_NUM_FRAMES = 64
_SIZE_PX = 384


@dataclass(frozen=True)
class EncoderSize:
    """One of the published encoders.

    Attributes:
        width, depth, num_heads, mlp_width: Of the transformer.
        normed_layers: The layers with norms of their own, from 0; the last one is the last layer.
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    normed_layers: tuple[int, ...]


SIZES = {
    "vjepa2_1_vit_base_384": EncoderSize(768, 12, 12, 3072, (2, 5, 8, 11)),
    "vjepa2_1_vit_large_384": EncoderSize(1024, 24, 16, 4096, (5, 11, 17, 23)),
    "vjepa2_1_vit_giant_384": EncoderSize(1408, 40, 22, 6144, (9, 19, 29, 39)),
    "vjepa2_1_vit_gigantic_384": EncoderSize(1664, 48, 26, 8192, (11, 23, 37, 47)),
}


class _Block(nn.Module):
    """Attention and a feed-forward layer, each after its norm and beside a skip."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.norm1 = nn.LayerNorm(size.width, eps=1e-6)
        self.attn = nn.ModuleDict(
            {
                "qkv": nn.Linear(size.width, 3 * size.width),
                "proj": nn.Linear(size.width, size.width),
            }
        )
        self.norm2 = nn.LayerNorm(size.width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(size.width, size.mlp_width),
                "fc2": nn.Linear(size.mlp_width, size.width),
            }
        )

    def forward(self, tokens: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Tokens [B, N, C]; angles [N, C / heads]."""
        parts = self.attn["qkv"](self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [B, heads, N, C / heads]
        query, key = (x * cosines + _turn_pairs(x) * sines for x in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        hidden = functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.mlp["fc2"](hidden)


class VideoEncoder(nn.Module):
    """The encoder on videos; its parameters have the published names."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.head_width = size.width // size.num_heads
        self.normed_layers = size.normed_layers
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, size.width, _TUBELET, _TUBELET)})
        self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, size.width))
        self.blocks = nn.ModuleList([_Block(size) for _ in range(size.depth)])
        self.norms_block = nn.ModuleList(
            [nn.LayerNorm(size.width, eps=1e-6) for _ in size.normed_layers]
        )

    def forward(self, videos: Tensor) -> Tensor:
        """Videos [B, 3, T, H, W] to tokens [B, T / 2 * H / 16 * W / 16, C]."""
        cells = self.patch_embed["proj"](videos)
        time, height, width = cells.shape[2:]
        angles = rotary_angles((time, height, width), self.head_width).to(cells.device)
        cosines = angles.cos().to(cells.dtype)
        sines = angles.sin().to(cells.dtype)
        tokens = cells.flatten(2).transpose(1, 2) + self.video_mod_embed
        normed = tokens
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, cosines, sines)
            if number in self.normed_layers:
                normed = self.norms_block[self.normed_layers.index(number)](tokens)
        return normed


def rotary_angles(grid: Grid, head_width: int) -> Tensor:
    """Angles [N, head_width] of a head's channels for the cells of a grid T, H, W, in that order.

    A third each is turned by time, row and column, in pairs of neighbours: pair i of n at position
    p by p / 10000^(i / n). Rows and columns count as on the grid of pretraining; what is left of
    the channels is not turned.
    """
    scales = (1.0, *(((_PRETRAINED_CELLS - 1) / max(length - 1, 1)) for length in grid[1:]))
    lines = [torch.arange(length) * scale for length, scale in zip(grid, scales, strict=True)]
    places = torch.cartesian_prod(*lines)
    num_pairs = head_width // 3 // 2
    rates = 10000.0 ** -(torch.arange(num_pairs) / num_pairs)
    turned = (places[:, :, None] * rates).repeat_interleave(2, dim=-1).flatten(1)
    return functional.pad(turned, (0, head_width - turned.shape[1]))


def _turn_pairs(x: Tensor) -> Tensor:
    """(a, b) becomes (-b, a), for neighbours along the last dimension."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-second, first), dim=-1).flatten(-2)


class _Tapped(Recognizer):
    """The encoder as a recognizer's `backbone`, tokens folded by its grid."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__(nn.ModuleDict({"backbone": encoder}), is_2d=False)
        self.layouts = {5: "BCTHW", 3: "THW"}
        self.num_prefix_tokens = 0

    def grid(self, inputs: Tensor) -> Grid | None:
        """Tubelets along T, H, W."""
        time, height, width = (
            length // step for length, step in zip(inputs.shape[2:], _TUBELET, strict=True)
        )
        return time, height, width


def build_vjepa2_1(
    name: str,
    choice: WeightsChoice,
    *,
    num_frames: int | None,
    size_px: int | None,
    frame_interval: int | None = None,
    taps: Sequence[str],
) -> Backbone:
    """A backbone of V-JEPA 2.1.

    Args:
        name: A key of `SIZES`.
        choice: The published .pt file, of which `ema_encoder` or `target_encoder` is read, or
            random weights.
        num_frames, size_px: The input T and H = W; None: 64 and 384, those of pretraining.
        frame_interval: Frames from one to the next; None: centres of equal segments.
        taps: Where maps are taken; none: at the last layer's norm.

    Raises:
        CheckpointError: The weights are missing, others than expected, or do not fit.
    """
    size = SIZES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        model = _Tapped(VideoEncoder(size))
    origin, report = choice.fill(model.recognizer, leave_out=(*LEFT_OUT, *_OF_IMAGES))
    num_frames = num_frames or _NUM_FRAMES
    size_px = size_px or _SIZE_PX
    pipeline = Pipeline(
        sampler="segment_centres",
        options={"clip_len": num_frames},
        num_frames=num_frames,
        resize_px=int(size_px * 256 / 224),
        size_px=size_px,
        mean=tuple(255 * value for value in _MEAN),
        std=tuple(255 * value for value in _STD),
        scaling="bilinear",
    ).at_interval(frame_interval)
    return Backbone(
        name,
        model,
        num_frames=num_frames,
        size_px=size_px,
        taps=tuple(taps) or ("backbone",),
        pipeline=pipeline,
        load_report=report,
        description={
            "name": name,
            "recognizer": {**asdict(size), "normed_layers": list(size.normed_layers)},
            "weights": origin,
            "input": pipeline.describe_input(),
            "versions": {"torch": torch.__version__},
        },
    )
