"""Frozen models behind one interface: normalised frames in, the outputs of named modules out.

Enters: frames [B, 3, T, H, W], normalised. Leaves: by tap, a map [B, C, T', H', W'].
Each model runs no further than the last module that is tapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.extract.models.taps import Grid, Tap, find_module, fold, listen


class FrozenModel(nn.Module):
    """A model whose modules can be tapped."""

    def tap(self, inputs: Tensor, taps: Sequence[Tap]) -> dict[str, Tensor]:
        """Maps [B, C, T', H', W'] by the names of the taps, from one pass.

        Raises:
            SettingsError: A tap names no module, or gives no map.
        """
        root, last = self.root, self.last_module(taps)
        with listen(root, taps, last=last) as heard:
            self.run(inputs, last)
        missing = [tap.name for tap in taps if tap.name not in heard]
        assert not missing, f"taps {missing} were never reached"
        return {
            tap.name: fold(
                heard[tap.name],
                tap,
                num_clips=inputs.shape[0],
                grid=self.grid(inputs),
                module=find_module(root, tap),
            ).contiguous()
            for tap in taps
        }

    @property
    def root(self) -> nn.Module:
        """The module below which taps are named."""
        raise NotImplementedError

    def last_module(self, taps: Sequence[Tap]) -> str:
        """The name of the part that has to run last for these taps."""
        raise NotImplementedError

    def run(self, inputs: Tensor, last: str) -> None:
        """Let the model see `inputs`, up to its part `last`."""
        raise NotImplementedError

    def grid(self, inputs: Tensor) -> Grid | None:
        """T, H, W of the tokens, where the model works on tokens of fixed size."""
        raise NotImplementedError


class Recognizer(FrozenModel):
    """An mmaction2 recognizer, 3-D, or 2-D with time folded into the batch."""

    def __init__(self, recognizer: Any, *, is_2d: bool) -> None:
        super().__init__()
        self.recognizer, self.is_2d = recognizer, is_2d
        for module in recognizer.backbone.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                is_flat = isinstance(module, nn.Conv2d)
                layout = torch.channels_last if is_flat else torch.channels_last_3d
                module.weight.data = module.weight.data.contiguous(memory_format=layout)

    @property
    def root(self) -> nn.Module:
        """The recognizer: its parts are `backbone` and, in some, `neck`."""
        return self.recognizer

    def last_module(self, taps: Sequence[Tap]) -> str:
        """The neck where it is tapped, else the backbone."""
        return "neck" if any(tap.module.split(".")[0] == "neck" for tap in taps) else "backbone"

    def run(self, inputs: Tensor, last: str) -> None:
        """What mmaction2's `extract_feat` does, without its test-time settings."""
        num_clips = inputs.shape[0]  # of type int, len() would fix the batch size of an export
        if self.is_2d:
            inputs = inputs.transpose(1, 2).flatten(0, 1)
        features = self.recognizer.backbone(inputs)
        if last != "neck":
            return
        if self.is_2d:
            features = [
                part.unflatten(0, (num_clips, -1)).transpose(1, 2).contiguous() for part in features
            ]
        self.recognizer.neck(features)

    def grid(self, inputs: Tensor) -> Grid | None:
        """From the patch embedding, in transformers that have one."""
        backbone = self.recognizer.backbone
        embedding = getattr(getattr(backbone, "patch_embed", None), "projection", None)
        if type(backbone).__name__ == "UniFormerV2":
            embedding = backbone.conv1
        if not isinstance(embedding, nn.Conv2d | nn.Conv3d):
            return None
        # A 2-D embedding sees frames one by one.
        spare = (1,) * (3 - len(embedding.kernel_size))
        sizes = zip(
            inputs.shape[2:],
            spare + tuple(embedding.kernel_size),
            spare + tuple(embedding.stride),
            (0,) * len(spare) + tuple(int(side) for side in embedding.padding),
            strict=True,
        )
        time, height, width = ((n + 2 * pad - k) // step + 1 for n, k, step, pad in sizes)
        return time, height, width
