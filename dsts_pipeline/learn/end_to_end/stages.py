"""The stages of a backbone in the order of the data's way: what is frozen, learns slower, or is
computed twice to save memory.

Enters: a backbone's root module, whose parts are `backbone` and, in some, `neck`. Leaves: named
modules. A stage is a child of `backbone` that has parameters (a ResNet's stem and its four layers;
Swin's patch embedding and final norm), or an entry of such a child that is a list (Swin's layers, a
transformer's blocks); a neck is one more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from torch import nn

from dsts_pipeline.base.errors import SettingsError


def stages_of(root: nn.Module) -> dict[str, nn.Module]:
    """Stages by their names below `root`, the first one next to the pixels."""
    stages: dict[str, nn.Module] = {}
    inner = getattr(root, "backbone", None)
    if not isinstance(inner, nn.Module):
        _add_children("", root, stages)
        return stages
    _add_children("backbone.", inner, stages)
    neck = getattr(root, "neck", None)
    if isinstance(neck, nn.Module):
        stages["neck"] = neck
    return stages


def _add_children(prefix: str, module: nn.Module, stages: dict[str, nn.Module]) -> None:
    for name, child in module.named_children():
        if next(child.parameters(), None) is None:
            continue
        entries = list(child.named_children())
        holds_a_list = len(entries) == 1 and isinstance(entries[0][1], nn.ModuleList)
        is_entry = isinstance(module, nn.ModuleList)
        # Such as an encoder that is its blocks; what is in a list is a stage whatever it holds.
        if not is_entry and (isinstance(child, nn.ModuleList) or holds_a_list):
            _add_children(f"{prefix}{name}.", child, stages)
        else:
            stages[f"{prefix}{name}"] = child


def stage_number(name: str, stages: Iterable[str]) -> int | None:
    """Which stage the parameter `name` is in; None where in none, such as a class token."""
    for number, stage in enumerate(stages):
        if name.startswith(f"{stage}."):
            return number
    return None


def choose_frozen(
    names: Iterable[str],
    stages: Mapping[str, nn.Module],
    *,
    num_stages: int,
    prefixes: Iterable[str],
) -> set[str]:
    """Parameters that keep their values: of the first `num_stages` stages, or named.

    What lies in no stage (position embeddings) counts as the first one.

    Args:
        names: Of all parameters below the root.
        prefixes: Beginnings of names.

    Raises:
        SettingsError: There are not so many stages, or nothing begins like that.
    """
    if num_stages > len(stages):
        raise SettingsError(
            f"finetune.frozen_stages is {num_stages}, this backbone has {len(stages)}: "
            f"{', '.join(stages)}; set it to at most that"
        )
    names, frozen = list(names), set()
    for prefix in prefixes:
        found = {name for name in names if name.startswith(prefix)}
        if not found:
            close = get_close_matches(prefix, stages, n=1) or list(stages)[:1]
            raise SettingsError(
                f"finetune.frozen: no parameter of the backbone begins with {prefix!r}; expected "
                f"such as {close[0]!r}"
            )
        frozen |= found
    return frozen | {name for name in names if (stage_number(name, stages) or 0) < num_stages}
