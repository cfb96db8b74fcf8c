"""Where a feature map is taken from a model, and how it becomes "B C T H W".

Enters: normalised frames [B, 3, T, H, W]. Leaves: by tap, a map [B, C, T', H', W'] made of the
output of a named module, in whatever layout it comes. Models run no further than they are tapped.

A tap is written `module`, `module[i]` for one of several outputs, `module@LAYOUT` where the layout
cannot be told from the module:
  BCTHW   convolutions over space and time                    [B, C, T, H, W]
  BTHWC   Video Swin's blocks                                 [B, T, H, W, C]
  NCHW    2-D recognizers, time folded into the batch         [B*T, C, H, W]
  NHWC    the same with channels last (timm's Swin)           [B*T, H, W, C]
  THW     tokens in the order time, row, column               [B, (1 +) T*H*W, C]
  HWT     tokens in the order row, column, time (TimeSformer) [B, (1 +) H*W*T, C]
  HWBT    tokens first, time in the batch (UniFormerV2)       [(1 +) H*W, B*T, C]
  NHW     tokens of an image model, H = W, time in the batch  [B*T, (P +) H*W, C]
Two names stand for more than a module: `neck_time`, TPN's neck with its time left, and
`pathways`, SlowFast's two maps joined along their channels, the fast one averaged over time to the
slow one's length: its mean over T, H, W is what SlowFast's classifier sees.
Several taps with a plus between them, `a+b`, are one map: theirs side by side along its channels.
With a bar, `a|b`, they follow each other along its time, so that a probe sees them as more tokens.
`module/norm` sends the module's output through another module, such as the model's last norm.
`:TxHxW` behind a tap or several, such as `backbone:1x2x2`, averages cells of so many positions.
A class token in front is dropped, of an image model all P tokens that it puts there. Without a
layout, 5 dimensions are BCTHW (BTHWC in a block of Swin), 4 are NCHW, 3 are THW; an image model
says its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsts_pipeline.base.errors import SettingsError

Layout = Literal["BCTHW", "BTHWC", "NCHW", "NHWC", "THW", "HWT", "HWBT", "NHW"]
Grid = tuple[int, int, int]
_TAP = re.compile(
    r"(?P<module>[\w.]+)(?:\[(?P<index>\d+)\])?(?:/(?P<norm>[\w.]+))?(?:@(?P<layout>\w+))?"
)
_CHANNELS_LAST = {"BasicLayer", "SwinTransformerBlock3D", "PatchMerging", "PatchEmbed3D"}
_BY_DIMENSIONS: Mapping[int, Layout] = MappingProxyType({5: "BCTHW", 4: "NCHW", 3: "THW"})


@dataclass(frozen=True)
class Tap:
    """One place in a model.

    Attributes:
        name: As the user wrote it; names the map in results and stores.
        module: Path of the module below the recognizer.
        index: Which of its outputs; None: the last that can be a map.
        layout: How its output is laid out; None: by the number of dimensions.
        joins_pathways: Whether its two maps are joined.
        norm: Path of a module that its output goes through; None: it is taken as it is.
    """

    name: str
    module: str
    index: int | None = None
    layout: Layout | None = None
    joins_pathways: bool = False
    norm: str | None = None


KEEP_TIME = "neck_time"
_SPECIAL = {
    KEEP_TIME: Tap(KEEP_TIME, "neck"),
    "pathways": Tap("pathways", "backbone", joins_pathways=True),
}


def parse_tap(text: str) -> Tap:
    """The tap written as `module`, `module[i]` or `module@LAYOUT`.

    Raises:
        SettingsError: It is not written like that.

    >>> tap = parse_tap("backbone.layers.2@BTHWC")
    >>> tap.module, tap.layout
    ('backbone.layers.2', 'BTHWC')
    """
    if text in _SPECIAL:
        return _SPECIAL[text]
    found = _TAP.fullmatch(text)
    if found is None or found["layout"] not in (None, *get_args(Layout)):
        raise SettingsError(
            f"backbone.taps: {text!r} is no tap; expected a module such as backbone.layer4, "
            f"backbone[0], module/norm, or module@LAYOUT with one of {', '.join(get_args(Layout))}"
        )
    index = None if found["index"] is None else int(found["index"])
    layout: Any = found["layout"]
    return Tap(text, found["module"], index, layout, norm=found["norm"])


@dataclass(frozen=True)
class MapRule:
    """A map that is made of one tap or of several.

    Attributes:
        name: As the user wrote it; names the map in results and stores.
        taps: Whose maps are joined.
        cell: T, H, W that are averaged into one position.
        dim: Of [B, C, T, H, W] that they lie along: 1, channels, or 2, time.
    """

    name: str
    taps: tuple[Tap, ...]
    cell: Grid = (1, 1, 1)
    dim: int = 1

    def make(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The map [B, C, T, H, W], of the taps' maps by name.

        Raises:
            SettingsError: They differ in T, H, W, or these are no multiples of the cell.
        """
        parts = [maps[tap.name] for tap in self.taps]
        shapes = [tuple(part.shape[2:]) for part in parts]
        if len(set(shapes)) > 1:
            raise SettingsError(
                f"backbone.taps: {self.name} joins maps of "
                f"{' and '.join('x'.join(map(str, shape)) for shape in shapes)} positions; join "
                "maps of one size"
            )
        joined = torch.cat(parts, dim=self.dim) if len(parts) > 1 else parts[0]
        if any(length % side for length, side in zip(shapes[0], self.cell, strict=True)):
            raise SettingsError(
                f"backbone.taps: {self.name} averages cells of {'x'.join(map(str, self.cell))}, "
                f"and the map has {'x'.join(map(str, shapes[0]))} positions; choose sides that "
                "divide them"
            )
        return average_cells(joined, self.cell)


def average_cells(maps: Tensor, cell: tuple[int, ...]) -> Tensor:
    """Maps [..., C, T, H, W] with cells of so many positions averaged into one."""
    return maps if cell == (1, 1, 1) else functional.avg_pool3d(maps, cell)


def pool_more(text: str, cell: Grid) -> str:
    """The map `text` with cells larger by the factors of `cell`.

    >>> pool_more("backbone", (1, 2, 2)), pool_more("backbone:2x2x2", (1, 2, 2))
    ('backbone:1x2x2', 'backbone:2x4x4')
    """
    sides = (side * factor for side, factor in zip(parse_map(text).cell, cell, strict=True))
    return f"{text.partition(':')[0]}:{'x'.join(map(str, sides))}"


def parse_map(text: str) -> MapRule:
    """The map written as `tap`, `tap+tap` or `tap|tap`, and each with `:TxHxW` behind it.

    Raises:
        SettingsError: It is not written like that.

    >>> rule = parse_map("backbone.layer3+backbone.layer4:1x2x2")
    >>> [tap.name for tap in rule.taps], rule.cell
    (['backbone.layer3', 'backbone.layer4'], (1, 2, 2))
    """
    taps, colon, cell = text.partition(":")
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", cell)
    if colon and found is None:
        raise SettingsError(
            f"backbone.taps: {text!r} ends with {cell!r}; expected sides of a cell along time, "
            "rows and columns, such as :1x2x2"
        )
    sides = (int(found[1]), int(found[2]), int(found[3])) if found else (1, 1, 1)
    if "+" in taps and "|" in taps:
        raise SettingsError(
            f"backbone.taps: {text!r} joins by + and by |; join all along the "
            "channels, a+b, or all along time, a|b"
        )
    parts = dict.fromkeys(re.split(r"[+|]", taps))
    return MapRule(text, tuple(parse_tap(tap) for tap in parts), sides, 2 if "|" in taps else 1)


def find_module(model: nn.Module, tap: Tap) -> nn.Module:
    """The module of `tap`.

    Raises:
        SettingsError: The model has no such module; the closest name is told.
    """
    modules = dict(model.named_modules())
    if tap.module in modules:
        return modules[tap.module]
    close = get_close_matches(tap.module, modules, n=3)
    raise SettingsError(
        f"backbone.taps: the model has no module {tap.module!r}; "
        f"{'did you mean ' + ' or '.join(close) if close else 'its parts are '}"
        f"{'' if close else ', '.join(name for name, _ in model.named_children())}?"
    )


@contextmanager
def listen(model: nn.Module, taps: Sequence[Tap], *, last: str) -> Iterator[dict[str, Any]]:
    """While the block runs, the outputs of the taps' modules, by tap name.

    Tensors are copied, since layers behind may work in place; not those of `last`, the module that
    runs last.
    """
    heard: dict[str, Any] = {}

    def keep(tap: Tap) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            heard[tap.name] = output if tap.module == last else _copy(output)

        return hook

    handles = [find_module(model, tap).register_forward_hook(keep(tap)) for tap in taps]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def fold(
    output: Any,
    tap: Tap,
    *,
    num_clips: int,
    grid: Grid | None = None,
    module: nn.Module | None,
    layouts: Mapping[int, Layout] = _BY_DIMENSIONS,
    num_prefix_tokens: int = 1,
) -> Tensor:
    """The map [B, C, T, H, W] in a module's output.

    Args:
        num_clips: B.
        grid: T, H, W of the model's tokens, where the model tells it.
        module: The module that gave the output.
        layouts: By the number of dimensions, where the tap names none.
        num_prefix_tokens: P of an image model.

    Raises:
        SettingsError: The output is no map, or its layout does not fit.
    """
    if tap.joins_pathways:
        return _join_pathways(output, tap)
    found, told = _choose(output, tap)
    layout = tap.layout or layouts.get(found.ndim)
    if tap.layout is None and found.ndim == 5 and type(module).__name__ in _CHANNELS_LAST:
        layout = "BTHWC"
    expected = {"BCTHW": 5, "BTHWC": 5, "NCHW": 4, "NHWC": 4}  # the others are tokens
    if layout is None or expected.get(layout, 3) != found.ndim:
        raise _unfit(tap, found, f"no map in the layout {layout}" if layout else "no map")
    if layout == "BCTHW":
        return found
    if layout == "BTHWC":
        return found.permute(0, 4, 1, 2, 3)
    if layout == "NHWC":
        found = found.permute(0, 3, 1, 2)
    if layout == "NHW":
        found = _fold_square(found, tap, num_prefix_tokens)
    if layout in ("NCHW", "NHWC", "NHW"):
        if found.shape[0] % num_clips:
            raise _unfit(tap, found, f"no whole number of frames for each of {num_clips} clips")
        return found.unflatten(0, (num_clips, -1)).transpose(1, 2)
    if layout == "HWBT":  # to the order row, column, time
        found = found.unflatten(1, (num_clips, -1)).permute(1, 0, 2, 3)  # [B, (1 +) H*W, T, C]
        if grid is not None and found.shape[1] == 1 + grid[1] * grid[2]:
            found = found[:, 1:]
        found = found.flatten(1, 2)
        layout = "HWT"
    return _fold_tokens(found, tap, layout, told or grid)


def _fold_tokens(tokens: Tensor, tap: Tap, layout: Layout, grid: Grid | None) -> Tensor:
    if grid is None:
        raise _unfit(tap, tokens, "tokens of a model that does not tell their grid")
    num_tokens = grid[0] * grid[1] * grid[2]
    if tokens.shape[1] - num_tokens not in (0, 1):
        raise _unfit(tap, tokens, f"not the {num_tokens} tokens of a grid {grid}")
    tokens = tokens[:, -num_tokens:].transpose(1, 2)  # [B, C, tokens]
    if layout == "THW":
        return tokens.unflatten(2, grid)
    return tokens.unflatten(2, (*grid[1:], grid[0])).permute(0, 1, 4, 2, 3)


def _fold_square(tokens: Tensor, tap: Tap, num_prefix: int) -> Tensor:
    """[N, C, H, W] of tokens [N, (P +) H*W, C] in the order row, column; H = W."""
    for num_dropped in (0, num_prefix):
        side = math.isqrt(max(0, tokens.shape[1] - num_dropped))
        if side and side * side == tokens.shape[1] - num_dropped:
            return tokens[:, num_dropped:].transpose(1, 2).unflatten(2, (side, side))
    raise _unfit(tap, tokens, f"no square of tokens, {num_prefix} in front of it or none")


def _join_pathways(output: Any, tap: Tap) -> Tensor:
    maps = [part for part in _flatten(output) if isinstance(part, Tensor) and part.ndim == 5]
    if len(maps) != 2 or maps[0].shape[3:] != maps[1].shape[3:]:
        raise SettingsError(
            f"backbone.taps: {tap.name} joins the slow and the fast map of SlowFast, this backbone "
            f"gives {[tuple(part.shape) for part in maps]}; tap backbone[0] or another module"
        )
    slow, fast = maps
    size = slow.shape[2], slow.shape[3], slow.shape[4]
    return torch.cat([slow, functional.adaptive_avg_pool3d(fast, size)], dim=1)


def _choose(output: Any, tap: Tap) -> tuple[Tensor, Grid | None]:
    """The tensor that is the map, and the grid of its tokens where the output has one beside it."""
    parts = list(_flatten(output))
    tensors = [part for part in parts if isinstance(part, Tensor)]
    grids = [part for part in parts if isinstance(part, tuple)]
    if tap.index is not None:
        if tap.index >= len(tensors):
            raise SettingsError(
                f"backbone.taps: {tap.name} asks for output {tap.index} of {len(tensors)}; "
                f"expected 0 to {len(tensors) - 1}"
            )
        return tensors[tap.index], grids[-1] if grids else None
    candidates = [t for t in tensors if t.ndim >= 4] or [t for t in tensors if t.ndim == 3]
    if not candidates:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise SettingsError(
            f"backbone.taps: {tap.name} gives {shapes or type(output).__name__}, which is no map; "
            "tap a module before the pooling, by its name"
        )
    return candidates[-1], grids[-1] if grids else None


def _normalize(root: nn.Module, tap: Tap, output: Any) -> Any:
    """A module's output as the tap takes it."""
    if tap.norm is None:
        return output
    return find_module(root, Tap(tap.name, tap.norm))(_choose(output, tap)[0])


def _flatten(output: Any) -> Iterator[Tensor | Grid]:
    """The tensors in nested outputs, and each triple of whole numbers, which is a token grid."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        last = output.get("last_hidden_state")  # how the transformers library calls its tokens
        for value in output.values() if last is None else (last,):
            yield from _flatten(value)
    elif isinstance(output, tuple | list):
        if len(output) == 3 and all(isinstance(value, int) for value in output):
            yield (output[0], output[1], output[2])
        else:
            for value in output:
                yield from _flatten(value)


def _copy(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, dict):
        return {key: _copy(value) for key, value in output.items()}
    return type(output)(map(_copy, output)) if type(output) in (tuple, list) else output


def _unfit(tap: Tap, found: Tensor, reason: str) -> SettingsError:
    return SettingsError(
        f"backbone.taps: {tap.name} gives {tuple(found.shape)}, {reason}; tap another module, or "
        "say its layout as module@LAYOUT"
    )


# ---- frozen models: normalised frames in, the outputs of named modules out ----------------------


class FrozenModel(nn.Module):
    """A model whose modules can be tapped.

    Attributes:
        layouts, num_prefix_tokens: Of its modules' outputs, see `fold`.
        runs_without_numbers: Whether a pass on the device "meta" leaves nothing behind in it, so
            that shapes can be told without its work.
    """

    layouts: Mapping[int, Layout] = _BY_DIMENSIONS
    num_prefix_tokens: int = 1
    runs_without_numbers: bool = False

    def tap(self, inputs: Tensor, taps: Sequence[Tap]) -> dict[str, Tensor]:
        """Maps [B, C, T', H', W'] by the names of the taps, from one pass.

        Raises:
            SettingsError: A tap names no module, or gives no map.
        """
        root = self.root
        last = self.last_module(taps)
        with listen(root, taps, last=last) as heard:
            self.run(inputs, last)
        missing = [tap.name for tap in taps if tap.name not in heard]
        assert not missing, f"taps {missing} were never reached"
        return {
            tap.name: fold(
                _normalize(root, tap, heard[tap.name]),
                tap,
                num_clips=inputs.shape[0],
                grid=self.grid(inputs),
                module=find_module(root, tap),
                layouts=self.layouts,
                num_prefix_tokens=self.num_prefix_tokens,
            ).contiguous()
            for tap in taps
        }

    @property
    def root(self) -> nn.Module:
        """The module below which taps are named."""
        raise NotImplementedError

    def last_module(self, taps: Sequence[Tap]) -> str:
        """The name of the part that has to run last for these taps."""
        raise NotImplementedError

    def run(self, inputs: Tensor, last: str) -> None:
        """Let the model see `inputs`, up to its part `last`."""
        raise NotImplementedError

    def grid(self, inputs: Tensor) -> Grid | None:
        """T, H, W of the tokens, where the model works on tokens of fixed size."""
        raise NotImplementedError


class Recognizer(FrozenModel):
    """An mmaction2 recognizer, 3-D, or 2-D with time folded into the batch."""

    def __init__(self, recognizer: Any, *, is_2d: bool) -> None:
        super().__init__()
        self.recognizer = recognizer
        self.is_2d = is_2d
        for module in recognizer.backbone.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                is_flat = isinstance(module, nn.Conv2d)
                layout = torch.channels_last if is_flat else torch.channels_last_3d
                module.weight.data = module.weight.data.contiguous(memory_format=layout)

    @property
    def root(self) -> nn.Module:
        """The recognizer: its parts are `backbone` and, in some, `neck`."""
        return self.recognizer

    def last_module(self, taps: Sequence[Tap]) -> str:
        """The neck where it is tapped, else the backbone."""
        return "neck" if any(tap.module.split(".")[0] == "neck" for tap in taps) else "backbone"

    def run(self, inputs: Tensor, last: str) -> None:
        """What mmaction2's `extract_feat` does, without its test-time settings."""
        num_clips = inputs.shape[0]  # of type int, len() would fix the batch size of an export
        if self.is_2d:
            inputs = inputs.transpose(1, 2).flatten(0, 1)
        features = self.recognizer.backbone(inputs)
        if last != "neck":
            return
        if self.is_2d:
            features = [
                part.unflatten(0, (num_clips, -1)).transpose(1, 2).contiguous() for part in features
            ]
        self.recognizer.neck(features)

    def grid(self, inputs: Tensor) -> Grid | None:
        """From the patch embedding, in transformers that have one."""
        backbone = self.recognizer.backbone
        embedding = getattr(getattr(backbone, "patch_embed", None), "projection", None)
        if type(backbone).__name__ == "UniFormerV2":
            embedding = backbone.conv1
        if not isinstance(embedding, nn.Conv2d | nn.Conv3d):
            return None
        # A 2-D embedding sees frames one by one.
        spare = (1,) * (3 - len(embedding.kernel_size))
        sizes = zip(
            inputs.shape[2:],
            spare + tuple(embedding.kernel_size),
            spare + tuple(embedding.stride),
            (0,) * len(spare) + tuple(int(side) for side in embedding.padding),
            strict=True,
        )
        time, height, width = ((n + 2 * pad - k) // step + 1 for n, k, step, pad in sizes)
        return time, height, width


# ---- TPN with its time left: the neck's map before the pool that folds 8 frames into one --------
#
# The published neck takes the maximum over all frames after its temporal modulation, a (3, 1, 1)
# convolution, and everything behind sees one frame. Without that pool all layers behind are per-
# frame, but for the bottom-up path's own (3, 1, 1) convolutions: in training these only ever saw
# one frame between two of zero padding, so their outer taps were never trained and would mix
# neighbouring frames by their initial values. With these taps at zero, frame t of the output is
# what the published layers make of frame t.


def keep_time(neck: Any) -> None:
    """Let the TPN `neck` return [B, C, T, H, W] instead of T = 1; weights must be loaded before.

    Raises:
        SettingsError: The neck is no TPN.
    """
    if type(neck).__name__ != "TPN":
        raise SettingsError(
            f"the tap neck_time is for TPN, this recognizer has {type(neck).__name__} for a neck; "
            "expected the tap backbone or the name of a module"
        )
    for operation in neck.temporal_modulation_ops:
        operation.pool = nn.Identity()
    with torch.no_grad():
        for operation in neck.downsample_ops:
            kernel = operation.conv.conv.weight  # [C, C, 3, 1, 1]
            middle = kernel.shape[2] // 2
            kernel[:, :, :middle] = 0
            kernel[:, :, middle + 1 :] = 0
