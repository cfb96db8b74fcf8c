"""A backbone of a few hundred weights behind the real interface, with its literal twin, float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dsts_pipeline.base.settings import UdlSettings
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.taps import Recognizer
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.learn.end_to_end import EndToEnd
from dsts_pipeline.learn.finetune import JointObjective
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.processes import ALONE
from dsts_pipeline.learn.steps import Stepper, downstream_of, upstream_of
from tests.learn.recipes import sgd
from tests.reference.variants import VARIANTS

CHANNELS, CLASSES, FRAMES, SIZE = 6, 4, 4, 16


class TinyNet(nn.Module):
    """Two convolutions with batch norms, then one; time halved in the second, space in each."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3), stride=(1, 4, 4)), nn.BatchNorm3d(4))
        self.layer1 = nn.Sequential(
            nn.Conv3d(4, 5, 3, stride=(2, 1, 1), padding=1), nn.BatchNorm3d(5), nn.Softplus()
        )
        self.layer2 = nn.Sequential(nn.Conv3d(5, CHANNELS, (3, 1, 1), padding=(1, 0, 0)))
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        return self.drop(self.layer2(self.layer1(self.stem(x).tanh())))


class TinyRecognizer(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = TinyNet(dropout)
        self.cls_head = nn.Linear(CHANNELS, CLASSES)  # not on the way to the map


def new_backbone(seed: int = 0, dropout: float = 0.0) -> Backbone:
    torch.manual_seed(seed)
    recognizer = TinyRecognizer(dropout)
    for norm in recognizer.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.running_mean.normal_(0.0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    model = Recognizer(recognizer, is_2d=False)
    return Backbone("tiny", model, num_frames=FRAMES, size_px=SIZE, description={}).double()


def new_model(variant: str = "house-default", seed: int = 0, dropout=0.0, **options) -> EndToEnd:
    """A model whose head is that variant, with nothing at its initial symmetry."""
    torch.manual_seed(seed + 1)
    config = {"num_neurons": 3, "num_layers": 2, **VARIANTS[variant]}
    head = DSTSHead.paper(CHANNELS, CLASSES, **config).double()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            scale = 0.03 if name.endswith("scoring_kernel") else 0.3
            if name.endswith("scoring_kernel") and config.get("impulse", "sum") != "sum":
                scale = 1.0
            parameter.add_(scale * torch.randn_like(parameter))
    return EndToEnd(new_backbone(seed, dropout), head, **options)


def new_batch(seed: int, first_row: int = 0, samples: int = 5) -> FeatureBatch:
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, FRAMES, SIZE, SIZE, 3)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return FeatureBatch(frames, labels, torch.arange(samples) + first_row)


def stepper_of(
    model: EndToEnd, rate: float = 0.1, inner_step="head", processes=ALONE, **options
) -> Stepper:
    """A stepper of plain SGD; `options` are settings of the training."""
    how = sgd(**options)

    def optimizer(parameters):
        return ScheduledOptimizer(parameters, dict.fromkeys(parameters, rate), how)

    return Stepper(
        JointObjective(model, how, processes, inner_step=inner_step),
        optimizer(upstream_of(model)),
        optimizer(downstream_of(model)),
        UdlSettings(),
        generator=torch.Generator().manual_seed(5),
    )


def literal_map(frames, tensors):
    """The tiny backbone's map in float64; shares no code with it. `tensors` by its own names."""
    x = (frames.permute(0, 4, 1, 2, 3).double() - 127.5) / 63.75

    def norm(x, name):
        shape = (1, -1, 1, 1, 1)
        mean, var = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        x = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
        return x * tensors[f"{name}.weight"].view(shape) + tensors[f"{name}.bias"].view(shape)

    def convolve(x, name, **options):
        return F.conv3d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **options)

    x = norm(convolve(x, "stem.0", stride=(1, 4, 4)), "stem.1").tanh()
    x = norm(convolve(x, "layer1.0", stride=(2, 1, 1), padding=1), "layer1.1")
    x = torch.log1p(torch.exp(x))
    return convolve(x, "layer2.0", padding=(1, 0, 0))
