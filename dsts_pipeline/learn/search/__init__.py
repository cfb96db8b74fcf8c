"""Settings to better settings: trials on the held-out part of the training split."""

from dsts_pipeline.learn.search.space import Dimension, parse_dimension
from dsts_pipeline.learn.search.study import OnEpoch, Pruning, Study, import_optuna, locked_study
from dsts_pipeline.learn.search.trials import TrialRecord, TrialRefused, best_of

__all__ = [
    "Dimension",
    "OnEpoch",
    "Pruning",
    "Study",
    "TrialRecord",
    "TrialRefused",
    "best_of",
    "import_optuna",
    "locked_study",
    "parse_dimension",
]
