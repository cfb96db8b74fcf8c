"""Sections of settings for small trainings: one learning rate for all, nothing held out."""

from __future__ import annotations

from dsts_pipeline.base.settings import FeedSettings, FinetuneSettings, TrainSettings, UdlSettings
from dsts_pipeline.learn import Recipe

PLAIN = {"classifier_learning_rate_factor": 1.0, "gate_learning_rate_factor": 1.0}
OF_UDL = {"udl": "enabled", "udl_method": "method", "redraw_noise": "redraw_noise"}
OF_UDL |= {name: name for name in ("inner_learning_rate", "validation_by")}
# A step of plain SGD, so that results can be compared with equations.
SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
SGD |= {"warmup_fraction": 0.0}


def how(seed=0, **options):
    """Arguments of `train_head` by the names of single settings; `udl` switches it on or off."""
    udl = {OF_UDL[name]: options.pop(name) for name in OF_UDL if name in options}
    names = [name for name in options if name in FeedSettings.model_fields]
    names = [name for name in names if name not in TrainSettings.model_fields]
    reading = {name: options.pop(name) for name in names}
    return {
        "train": TrainSettings(**{**PLAIN, "heldout_fraction": 0.0, **options}),
        "udl": UdlSettings(**udl),
        "reading": FeedSettings(**reading),
        "seed": seed,
    }


def recipe(**options):
    """The same as a `Recipe`."""
    return Recipe(**how(**options))


def finetune_how(seed=0, **options):
    """Arguments of `finetune`, likewise."""
    udl = {OF_UDL[name]: options.pop(name) for name in OF_UDL if name in options}
    of_clips = {"heldout_fraction": options.pop("heldout_fraction", 0.0)}
    return {
        "how": FinetuneSettings(**options),
        "udl": UdlSettings(**udl),
        "train": TrainSettings(**of_clips),
        "seed": seed,
    }


def sgd(**options):
    """A step of plain SGD."""
    return TrainSettings(**SGD | options)
