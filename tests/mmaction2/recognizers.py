"""Small recognizers with a DSTS head, in float64, and batches for them."""

from __future__ import annotations

import torch

from dsts_pipeline.mmaction2.loop import RecognizerBatch

CHANNELS, CLASSES = 16, 5
HEAD = {"num_neurons": 3, "num_layers": 2, "width": 6}
OPTIONS = {"impulse": "standardized", "impulse_spread": 2.0, **HEAD}


def backbone_of(**changes):
    return {
        "type": "ResNet3dSlowOnly",
        "depth": 18,
        "pretrained": None,
        "lateral": False,
        "base_channels": 2,
        "conv1_kernel": (1, 3, 3),
        "inflate": (0, 0, 0, 1),
        "norm_eval": False,
        "zero_init_residual": False,
        **changes,
    }


def config_of(*, backbone=None, **head):
    """The config of a `Recognizer3D` with a `DSTSHead`."""
    return {
        "type": "Recognizer3D",
        "backbone": backbone_of(**(backbone or {})),
        "cls_head": {
            "type": "DSTSHead",
            "num_classes": CLASSES,
            "in_channels": CHANNELS,
            **OPTIONS,
            **head,
        },
        "data_preprocessor": {
            "type": "ActionDataPreprocessor",
            "mean": [127.5] * 3,
            "std": [63.75] * 3,
            "format_shape": "NCTHW",
        },
    }


def build(*, seed=0, **changes):
    """A recognizer in training mode, float64, with nothing at its initial symmetry."""
    from dsts_pipeline.extract.mmaction_compat import build_model

    torch.manual_seed(seed)
    recognizer = build_model(config_of(**changes))
    recognizer.init_weights()
    recognizer.double().train()
    with torch.no_grad():
        for name, parameter in recognizer.cls_head.named_parameters():
            if "scoring" in name or "gate" in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return recognizer


def batch_of(seed, num_clips=4, num_views=1):
    """Frames as the preprocessor gives them, with labels."""
    from mmaction.structures import ActionDataSample

    generator = torch.Generator().manual_seed(seed)
    shape = (num_clips, num_views, 3, 4, 32, 32)
    frames = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (num_clips,), generator=generator)
    samples = [ActionDataSample().set_gt_label(int(label)) for label in labels]
    return RecognizerBatch(frames, samples)


def labels_of(batch):
    return torch.cat([sample.gt_label for sample in batch.data_samples])
