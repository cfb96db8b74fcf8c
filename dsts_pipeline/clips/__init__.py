"""Annotations and videos -> the checked index of clips; decoding and frame sampling."""

from dsts_pipeline.clips.index import Clip, ClipIndex, Problem
from dsts_pipeline.clips.readers import read_annotations

__all__ = ["Clip", "ClipIndex", "Problem", "read_annotations"]
