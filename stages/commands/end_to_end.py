"""Commands that train a backbone, too: on the videos, beside the default run."""

from __future__ import annotations

from typing import Annotated

import typer

from stages.commands.running import PARAMS_FILE, Debug, Overrides, Params, run_stage

Devices = Annotated[int, typer.Option(help="Processes; 0: as finetune.devices says.")]


def finetune(
    devices: Devices = 0,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train backbone and head together on the videos, from outputs/heads/dsts.

    Writes outputs/finetuned: backbone.safetensors, head/, history.json, metrics.json. Goes on from
    its checkpoints when it was stopped; SIGTERM saves and exits with finetune.requeue_status (99).

    Example: python cli.py finetune --set finetune.num_epochs=4 --set finetune.recompute=true
    """
    run_stage("finetune", params, _with_devices(overrides, devices), debug)


def pretrain_backbone(
    devices: Devices = 0,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train a backbone on the classes with a plain linear head, by the settings of finetune.

    The paper's order: this command, then extract with the new weights, train-head, finetune.
    Writes outputs/pretrained_backbone. (The embedded backbone itself is made by pretrain.)

    Example: python cli.py pretrain-backbone --set finetune.optimizer=sgd
    """
    run_stage("finetune.pretrain_backbone", params, _with_devices(overrides, devices), debug)


def _with_devices(overrides: list[str], devices: int) -> list[str]:
    return [*overrides, f"finetune.devices={devices}"] if devices else overrides
