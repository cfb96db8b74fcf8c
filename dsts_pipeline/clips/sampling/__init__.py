"""Which frames of a clip a recognizer sees: the rules of the published recipes, by name.

Enters: the number of frames of a clip and, for training, a random generator. Leaves: frame numbers,
int64. Each rule is in the file that names its source and equals it.
"""

from dsts_pipeline.clips.sampling.centres import uniform_frames
from dsts_pipeline.clips.sampling.registry import SAMPLERS, build_sampler, jitter_generator

__all__ = ["SAMPLERS", "build_sampler", "jitter_generator", "uniform_frames"]
