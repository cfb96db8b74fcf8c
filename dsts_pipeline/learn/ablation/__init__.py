"""Many variants of a head, trained in one pass over the maps."""

from dsts_pipeline.learn.ablation.display import show_ablation
from dsts_pipeline.learn.ablation.jobs import train_in_processes
from dsts_pipeline.learn.ablation.member import Member, Status
from dsts_pipeline.learn.ablation.plan import RunPlan
from dsts_pipeline.learn.ablation.runs import Runs
from dsts_pipeline.learn.ablation.together import Together

__all__ = [
    "Member",
    "RunPlan",
    "Runs",
    "Status",
    "Together",
    "show_ablation",
    "train_in_processes",
]
