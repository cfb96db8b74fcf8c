"""Models with a tenth of the channels, so that they run in no time."""

from __future__ import annotations

TPN = {
    "type": "TPN",
    "in_channels": (128, 256),
    "out_channels": 128,
    "spatial_modulation_cfg": {"in_channels": (128, 256), "out_channels": 256},
    "temporal_modulation_cfg": {"downsample_scales": (8, 8)},
    "upsample_cfg": {"scale_factor": (1, 1, 1)},
    "downsample_cfg": {"downsample_scale": (1, 1, 1)},
    "level_fusion_cfg": {
        "in_channels": (128, 128),
        "mid_channels": (128, 128),
        "out_channels": 256,
        "downsample_scales": ((1, 1, 1), (1, 1, 1)),
    },
}


SWIN = {
    "type": "Recognizer3D",
    "backbone": {
        "type": "SwinTransformer3D",
        "arch": {"embed_dims": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 6]},
        "pretrained2d": False,
    },
}
MVIT = {
    "type": "Recognizer3D",
    "backbone": {
        "type": "MViT",
        "arch": {"embed_dims": 24, "num_layers": 2, "num_heads": 1, "downscale_indices": [1]},
        "temporal_size": 8,
        "spatial_size": 64,
    },
}
VIT = {
    "type": "Recognizer3D",
    "backbone": {
        "type": "VisionTransformer",
        "img_size": 64,
        "embed_dims": 24,
        "depth": 2,
        "num_heads": 2,
        "num_frames": 8,
        "return_feat_map": True,
        "use_mean_pooling": False,
    },
}
