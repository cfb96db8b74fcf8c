"""The trainings of an ablation: what is finished on disk, and how the rest is trained.

Enters: plans, the feed of the training split, where to keep things. Leaves: a folder per run with
`history.json`, `head.safetensors` and, written last, `head.json`. A run that has those is finished:
it is never trained again, whatever variants come later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import read_signed, sign, write_json
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import save_head
from dsts_pipeline.learn.ablation.member import Member
from dsts_pipeline.learn.ablation.plan import Classifier, RunPlan, stream_of
from dsts_pipeline.learn.ablation.together import Tell, Together
from dsts_pipeline.learn.checks import check_clips
from dsts_pipeline.learn.parts import upstream_of
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.resume import CheckpointOptions
from dsts_pipeline.learn.stopping import StopRequest


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where runs are kept, and what all of them are made of.

    Args:
        root: Folder of the finished runs' folders.
        checkpoints: Folder of the unfinished ones' checkpoints.
        store: Fingerprint of the maps.
        sizes: Channels of the maps, number of classes.
        classifier: The backbone's own, where there is one.
        made_of: What every head's file says of its making.
        every_batches: Checkpoints after so many batches, and after every epoch.
        num_together: Trainings in memory at a time, at most.
    """

    root: Path
    checkpoints: Path
    store: str
    sizes: tuple[int, int]
    classifier: Classifier | None
    made_of: dict[str, Any]
    every_batches: int | None = None
    num_together: int = 64

    def folder(self, plan: RunPlan) -> Path:
        """The run's folder, there or not."""
        return self.root / plan.folder_name(self.store, self.classifier)

    def is_finished(self, plan: RunPlan) -> bool:
        """Whether its trained head is there."""
        return (self.folder(plan) / "head.json").exists()

    def history(self, plan: RunPlan) -> list[dict[str, Any]]:
        """An entry per epoch of a finished run."""
        return read_signed(self.folder(plan) / "history.json")["epochs"]

    def unfinished(self, plans: Sequence[RunPlan]) -> list[RunPlan]:
        """Those to train, each once, those of one order of batches side by side."""
        wanted: dict[Path, RunPlan] = {}
        for plan in plans:
            if not self.is_finished(plan):
                wanted.setdefault(self.folder(plan), plan)
        return sorted(wanted.values(), key=lambda plan: repr(stream_of(plan)))

    def check(self, plans: Sequence[RunPlan], store: FeatureStore, rows: np.ndarray) -> None:
        """Build every head and look at the clips, so that what can't train is told first.

        Args:
            rows: Those of the training split.

        Raises:
            SettingsError: A head can't be built, or there are too few clips.
        """
        for plan in {(plan.name, plan.kind): plan for plan in plans}.values():
            head = plan.build(self.sizes, self.classifier)
            paired = plan.options.udl and bool(upstream_of(head))
            if not plan.is_trained:
                continue
            try:
                check_clips(store, rows, plan.options, paired=paired)
            except SettingsError as error:
                raise SettingsError(f"variant {plan.name}: {error}") from None

    def save(self, plan: RunPlan, head: nn.Module, history: list[dict[str, Any]]) -> None:
        """Keep a trained head."""
        folder = self.folder(plan)
        write_json(folder / "history.json", sign({"epochs": history}))
        run = {"options": dataclasses.asdict(plan.options), "head": plan.head}
        of_run = {"variant": plan.name, "seed": plan.seed, "title": plan.name, "run": run}
        save_head(folder, head, self.made_of | {"store": self.store} | of_run)

    def train(
        self,
        plans: Sequence[RunPlan],
        feed: FeatureFeed,
        device: torch.device,
        *,
        tell: Tell = lambda statuses: None,
        stop: StopRequest | None = None,
    ) -> dict[Path, str]:
        """Train `plans` in as few passes as their orders of batches allow.

        Returns:
            Why each that diverged did so, by its folder.

        Raises:
            TrainingStopped: A stop was asked for; all are saved.
        """
        for plan in plans:
            if not plan.is_trained:
                self.save(plan, plan.build(self.sizes, self.classifier), [])
        told: dict[Path, str] = {}
        trained = [plan for plan in plans if plan.is_trained]
        for _, alike in groupby(trained, key=lambda plan: repr(stream_of(plan))):
            of_stream = list(alike)
            for start in range(0, len(of_stream), self.num_together):
                part = of_stream[start : start + self.num_together]
                members = [self._member(plan, feed, device) for plan in part]
                on_finished = partial(self._keep, dict(zip(members, part, strict=True)))
                Together(members, feed, device, tell=tell, on_finished=on_finished, stop=stop).run()
                for member, plan in zip(members, part, strict=True):
                    if member.failure is not None:
                        told[self.folder(plan)] = member.describe_failure()
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()
        return told

    def _keep(self, plans: dict[Member, RunPlan], member: Member) -> None:
        self.save(plans[member], member.training.head, member.training.history)

    def _member(self, plan: RunPlan, feed: FeatureFeed, device: torch.device) -> Member:
        identity = {"store": self.store}
        checkpoints = CheckpointOptions(self.checkpoints, identity, self.every_batches)
        build = partial(plan.build, self.sizes, self.classifier)
        return Member(plan.name, build, feed, plan.options, Processes(device=device), checkpoints)
