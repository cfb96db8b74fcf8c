"""Settings to better settings: trials on the held-out part of the training split."""

from dsts_pipeline.learn.search.space import (
    Dimension,
    name_study,
    parse_dimension,
    present_values,
    read_space,
)
from dsts_pipeline.learn.search.study import OnEpoch, Pruning, Study, import_optuna, locked_study
from dsts_pipeline.learn.search.table import print_trials, write_trials
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
    "name_study",
    "parse_dimension",
    "present_values",
    "print_trials",
    "read_space",
    "write_trials",
]
