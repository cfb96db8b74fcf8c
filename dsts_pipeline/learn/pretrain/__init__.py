"""Making the embedded backbone: rendered clips in, a recognizer's weights out.

The clips are rendered, encoded and decoded exactly as the data set's are, from random streams that
no data set of any seed uses, so the frozen backbone has never seen a clip that a head trains on.
"""

from dsts_pipeline.learn.pretrain.pool import Pool, PoolRecipe, render_pool
from dsts_pipeline.learn.pretrain.training import TrainingRecipe, pretrain_recognizer

__all__ = ["Pool", "PoolRecipe", "TrainingRecipe", "pretrain_recognizer", "render_pool"]
