"""Video list -> clips: annotation readers, decoding, frame sampling, the embedded data set."""

from dsts_pipeline.clips.index import Clip, ClipIndex, Problem
from dsts_pipeline.clips.readers import read_annotations

__all__ = ["Clip", "ClipIndex", "Problem", "read_annotations"]
