"""One training of an ablation: all that decides it, the name of its folder, its untrained head.

Enters: plain values. Leaves: a `RunPlan`, and from it the head that `train-head` would build with
the same seed and settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import sha256_json
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.base.settings.ablation import Kind
from dsts_pipeline.head import (
    AttentiveProbe,
    ConvBlockHead,
    DSTSHead,
    LinearProbe,
    count_parameters,
    take_over_classifier,
)
from dsts_pipeline.learn.identity import digest_sources
from dsts_pipeline.learn.options import TrainingOptions

Classifier = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A head of a kind, trained with a seed.

    Args:
        name: Of the variant.
        kind: "dsts", or an opponent on the same maps: "baseline" (the backbone's own classifier as
            it is), "continued_classifier" (the same, trained on), "linear_probe" (from random
            values), "attentive_probe", "conv_block" (one 3x3x3 block of as many parameters).
        head: Arguments of `DSTSHead` beside the sizes.
        take_over: Whether a DSTS head starts from the backbone's classifier, where there is one.
        options: Of the training; its seed is this run's.
    """

    name: str
    kind: Kind
    head: dict[str, Any]
    take_over: bool
    options: TrainingOptions

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.options.seed

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train."""
        return self.kind != "baseline"

    def key(self, store: str, classifier: Classifier | None) -> str:
        """Twelve digits of all that decides the trained head: equal keys, equal heads.

        The code of feed, head and learn counts: figures of other code are other figures.

        Args:
            store: Its fingerprint.
        """
        decided: dict[str, Any] = {"kind": self.kind, "store": store, "torch": torch.__version__}
        if self.is_trained:
            decided |= {"options": dataclasses.asdict(self.options), "sources": digest_sources()}
        if self.kind in ("dsts", "conv_block"):
            decided["head"] = self.head
        if self.uses_classifier:
            decided["classifier"] = None if classifier is None else _digest(classifier)
        return sha256_json(decided)[:12]

    @property
    def uses_classifier(self) -> bool:
        """Whether it starts from the backbone's classifier, if there is one."""
        if self.kind == "dsts":
            return self.take_over
        return self.kind in ("baseline", "continued_classifier")

    def folder_name(self, store: str, classifier: Classifier | None) -> str:
        """Name of the folder that the trained head is kept in: variants that are trained alike,
        whatever they are called, share it."""
        seed = f"-seed{self.seed}" if self.is_trained else ""
        return f"{self.kind}{seed}-{self.key(store, classifier)}"

    def build(self, sizes: tuple[int, int], classifier: Classifier | None) -> nn.Module:
        """The untrained head; draws from torch's global generator, which it seeds.

        Args:
            sizes: Channels of the maps, number of classes.

        Raises:
            SettingsError: The head's arguments exclude each other, or it is the backbone's
                classifier and there is none for these classes.
        """
        stream = "dsts" if self.kind == "dsts" else "linear_probe"
        torch.manual_seed(derive_seed(self.seed, stream))
        try:
            head = self._new_head(sizes)
        except ValueError as error:
            raise SettingsError(f"variant {self.name}: {error}") from None
        if self.uses_classifier and classifier is not None:
            take_over_classifier(head, *classifier)
        elif self.kind in ("baseline", "continued_classifier"):
            raise SettingsError(
                f"variant {self.name} is the backbone's own classifier, and no classifier of this "
                f"backbone fits {sizes[0]} channels and {sizes[1]} classes; leave the variant out, "
                "or name the backbone.weights that were trained on these classes"
            )
        return head

    def _new_head(self, sizes: tuple[int, int]) -> nn.Module:
        if self.kind == "dsts":
            return DSTSHead(*sizes, **self.head)
        if self.kind == "attentive_probe":
            return AttentiveProbe(*sizes)
        if self.kind == "conv_block":
            same = count_parameters(DSTSHead(*sizes, **self.head))
            return ConvBlockHead(*sizes, num_parameters=same)
        return LinearProbe(*sizes)


def stream_of(plan: RunPlan) -> tuple[Any, ...]:
    """What decides which batches a training goes through: runs that agree can share them.

    UDL's pairs train on the same batches, in the same order, that an ordinary epoch has, so the
    two share them; class-balanced pairs are dealt out otherwise.
    """
    options = plan.options
    balanced = options.class_balanced
    return (
        options.stream_seed,
        options.batch_size,
        options.heldout_fraction,
        options.order,
        options.shard_window,
        balanced,
        balanced and options.udl and plan.kind == "dsts",
    )


def _digest(classifier: Classifier) -> str:
    values = (part.detach().cpu().contiguous().float().numpy().tobytes() for part in classifier)
    return hashlib.sha256(b"".join(values)).hexdigest()
