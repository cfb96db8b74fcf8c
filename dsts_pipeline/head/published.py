"""The attentive probe that a published encoder comes with, as a head on the encoder's maps.

Enters: the folder of a VJEPA2ForVideoClassification of the transformers library, such as
facebook/vjepa2-vitl-fpc16-256-ssv2: the tensors `pooler.` and `classifier.` of its safetensors, and
its config's plain values. Leaves: an `AttentiveProbe` that gives its logits. The library itself is
not needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.extract.model_folders import find_weights
from dsts_pipeline.head.probes import AttentiveProbe

_CROSS = "pooler.cross_attention_layer"
_LINEAR = ("weight", "bias")


def find_published_probe(
    folder: Path, num_channels: int, class_names: Sequence[str]
) -> AttentiveProbe | None:
    """The probe in `folder`, its classes in the order of `class_names`; None where none fits.

    Classes are matched by their names' letters and digits; where the names are others, the order is
    the published one, and that is said.

    Args:
        num_channels: C of the maps.

    Raises:
        CheckpointError: The probe's tensors are damaged, or not those of its config.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not isinstance(config, dict) or config.get("model_type") != "vjepa2":
        return None
    state = _read_probe(folder)
    weight = state.get("classifier.weight")
    if weight is None or tuple(weight.shape) != (len(class_names), num_channels):
        return None
    options: dict[str, Any] = {
        "readout_depth": int(config.get("num_pooler_layers", 3)) + 1,
        "readout_heads": int(config.get("num_attention_heads", 16)),
        "layer_norm_eps": float(config.get("layer_norm_eps", 1e-6)),
    }
    order = _order_classes(config.get("id2label"), class_names, folder)
    try:
        probe = AttentiveProbe(num_channels, len(class_names), **options)
        probe.load_state_dict(_rename(state, options["readout_depth"], order))
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder}: its probe is not the one of its config ({reason}); get the folder again"
        ) from None
    return probe.eval()


def _read_probe(folder: Path) -> dict[str, Tensor]:
    """Tensors of pooler and classifier, of all parts of the model's file."""
    state: dict[str, Tensor] = {}
    for path in find_weights(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = [n for n in file.keys() if n.startswith(("pooler.", "classifier."))]
                state |= {name: file.get_tensor(name).float() for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not readable ({error}); get the folder again") from None
    return state


def _rename(state: dict[str, Tensor], depth: int, order: list[int]) -> dict[str, Tensor]:
    """The tensors by the names of an `AttentiveProbe`."""
    found: dict[str, Tensor] = {"pooler.query": state["pooler.query_tokens"].flatten(0, 1)[0]}

    def take(own: str, *parts: str) -> None:
        for kind in _LINEAR:
            found[f"pooler.{own}.{kind}"] = torch.cat([state[f"{part}.{kind}"] for part in parts])

    def take_mlp(own: str, layer: str) -> None:
        take(f"{own}mlp_norm", f"{layer}.layer_norm2")
        take(f"{own}mlp.0", f"{layer}.mlp.fc1")
        take(f"{own}mlp.2", f"{layer}.mlp.fc2")

    take("input_norm", f"{_CROSS}.layer_norm1")
    take("to_query", f"{_CROSS}.cross_attn.q_proj")
    take("to_key_value", f"{_CROSS}.cross_attn.k_proj", f"{_CROSS}.cross_attn.v_proj")
    take_mlp("", _CROSS)
    for number in range(depth - 1):
        layer = f"pooler.self_attention_layers.{number}"
        take(f"blocks.{number}.norm", f"{layer}.layer_norm1")
        parts = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
        take(f"blocks.{number}.to_query_key_value", *parts)
        take(f"blocks.{number}.mix", f"{layer}.self_attn.out_proj")
        take_mlp(f"blocks.{number}.", layer)
    for kind in _LINEAR:
        found[f"classifier.{kind}"] = state[f"classifier.{kind}"][order]
    return found


def _order_classes(labels: Any, class_names: Sequence[str], folder: Path) -> list[int]:
    """For each class of ours, the number that the published classifier has for it."""
    published_order = list(range(len(class_names)))
    if not isinstance(labels, dict) or len(labels) != len(class_names):
        return published_order
    by_name = {_letters(str(name)): int(number) for number, name in labels.items()}
    found = [by_name.get(_letters(name)) for name in class_names]
    order = [number for number in found if number is not None]
    if sorted(order) == published_order:
        return order
    console.print(
        f"{folder}: its classes are called {labels.get('0')!r} and so on, ours {class_names[0]!r} "
        "and so on; its probe's classes are taken in their order",
        markup=False,
        soft_wrap=True,
    )
    return published_order


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
