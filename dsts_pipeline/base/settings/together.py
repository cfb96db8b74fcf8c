"""Settings that are sound one by one and wrong together, told before any command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsts_pipeline.base.errors import SettingsError

if TYPE_CHECKING:
    from dsts_pipeline.base.settings.tree import Settings


def check_together(settings: Settings) -> None:
    """Refuse combinations that can't do what they say.

    Raises:
        SettingsError: UDL of a head without upstream parameters; early stopping with nothing
            held out.
    """
    head, train = settings.head, settings.train
    if settings.udl.enabled and head.num_layers == 0:
        raise SettingsError(
            "udl.enabled is true and head.num_layers 0: a head without layers has no upstream "
            "parameters (scoring kernels, gates) for Upstream-Downstream Learning to update; set "
            "udl.enabled to false or head.num_layers to at least 1"
        )
    if settings.udl.enabled and not head.synapse and head.specialization != "gated":
        raise SettingsError(
            f"udl.enabled is true, head.synapse false and head.specialization "
            f"{head.specialization}: such a head has neither scoring kernels nor gates, so no "
            "upstream parameters for Upstream-Downstream Learning to update; set udl.enabled to "
            "false"
        )
    if train.early_stopping_epochs is not None and not train.heldout_fraction:
        raise SettingsError(
            f"train.early_stopping_epochs is {train.early_stopping_epochs} and "
            "train.heldout_fraction 0: there is nothing to judge an epoch by; set "
            "train.heldout_fraction, such as 0.1, or train.early_stopping_epochs to null"
        )
