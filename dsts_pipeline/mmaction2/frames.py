"""A transform that loads the very frames that extraction loads for the embedded backbone.

Enters: mmaction2's dict of one video. Leaves: the same with `imgs`, T frames uint8 [H, W, 3], RGB.
Sampling and scaling are those of `extract`: centres of equal segments (in training any frame of
each), scaled by the decoder to `size_px`, the middle square. Backbones of the model zoo need no
such thing: extraction follows mmaction2's own test pipeline for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform

from dsts_pipeline.clips.decode import Decoder, count_frames
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.views import FrameRequest, FrameView, jitter_frames, sample_views


@TRANSFORMS.register_module()
class DecodeSegments(BaseTransform):
    """One frame of each of `num_frames` equal segments of a video.

    Args:
        num_frames: T.
        size_px: The shorter side is scaled to this, the square in the middle kept.
        num_clips: Samples of the clip at test, shifted against each other.
        test_mode: Centres of the segments; otherwise any frame of each, by numpy's global random
            stream, which mmengine seeds.
        decoder: "auto", "decord" or "pyav", see `clips/decode.py`.
    """

    def __init__(
        self,
        num_frames: int,
        size_px: int,
        num_clips: int = 1,
        test_mode: bool = False,
        decoder: Decoder = "auto",
    ) -> None:
        self.num_frames = num_frames
        self.size_px = size_px
        self.num_clips = num_clips
        self.test_mode = test_mode
        self.decoder = decoder

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load the frames.

        Raises:
            VideoError: A frame cannot be had exactly; no clip is replaced by another one.
        """
        path = results["filename"]
        total = count_frames(path)
        num_clips = self.num_clips if self.test_mode else 1
        if self.test_mode:
            samples = sample_views(total, self.num_frames, num_clips, None, None)
        else:
            generator = np.random.default_rng(np.random.randint(2**31))
            samples = jitter_frames(total, self.num_frames, None, None, generator)[None]
        views = tuple(FrameView(tuple(sample.tolist())) for sample in samples)
        request = FrameRequest(path, self.decoder, views=views, size_px=self.size_px)
        frames = np.concatenate(decode_clip(request))
        results |= {"imgs": list(frames), "frame_inds": samples.ravel(), "total_frames": total}
        results |= {"num_clips": num_clips, "clip_len": self.num_frames, "frame_interval": None}
        results |= {"img_shape": frames.shape[1:3], "original_shape": frames.shape[1:3]}
        return results
