"""What the specialized neurons compute, for their own samples or for all (paper 3.2.2, Eq. 4-8).

Enters: `x [B, T, H, W, C]`, the operators with gates folded into their kernels, the routing.
Leaves: `z = relu(bn(S x)) + relu(bn(T x))`, before fusion.

An operator that gives each sample its own neuron's kernel has two forms of equal values and
derivatives:
- *fixed*: every sample gets a copy of its neuron's kernel, by a product with its one-hot row; all
  of them are one batched product with columns of neighbours. Shapes and launches do not depend on
  the routing and the host reads nothing: what a GPU, a CUDA graph and torch.compile want. On a CPU
  the copies are of rows and the product is one convolution in groups, fast while kernels are small.
- *grouped*: samples sorted by neuron, a convolution per neuron that got any, on a CPU by oneDNN;
  for kernels too large to be copied for every sample. The host knows the counts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from dsts_pipeline.head.norms import Affine, NeuronNorm, routed_affine

Grid = tuple[int, int, int]
"""T, H, W of a map."""
Extent = tuple[int, int, int]
"""Kernel size over T, H, W; odd."""
POINT: Extent = (1, 1, 1)
SPATIAL: Extent = (1, 3, 3)
VOLUME: Extent = (3, 3, 3)

# ---- the routing ---------------------------------------------------------------------------------


Counts = tuple[int, ...]


class Groups(NamedTuple):
    """Samples sorted by neuron.

    order: `[B]` positions that sort a batch by neuron, inverse: `[B]` positions that undo it.
    counts: samples per neuron, on the host.
    """

    order: Tensor
    inverse: Tensor
    counts: Counts


class Routing(NamedTuple):
    """Which neuron each sample goes to: `choice [B]`, and as rows `onehot [B, N]`.

    With `groups` (the grouped form) samples are in sorted order, `choice` and `onehot` too.
    """

    choice: Tensor
    onehot: Tensor
    groups: Groups | None

    def take(self, rows: Tensor) -> Tensor:
        """Each sample's own of `rows [N, K]`: `[B, K]`.

        By a product, whose derivative is one: the same sum every time, and no atomic additions. A
        CPU copies rows faster and adds in order anyway.
        """
        if _as_a_gpu(rows):
            return self.onehot.to(rows.dtype) @ rows
        return rows.index_select(0, self.choice)

    def give_back(self, rows: Tensor) -> Tensor:
        """The derivative of `take`: sums `[N, K]` of each neuron's of `rows [B, K]`."""
        if _as_a_gpu(rows):
            return self.onehot.to(rows.dtype).t() @ rows
        total = rows.new_zeros(self.onehot.shape[1], rows.shape[1])
        return total.index_add_(0, self.choice, rows)

    def unsort(self, z: Tensor) -> Tensor:
        """`z [B, ...]` in the order of the batch."""
        return z if self.groups is None else z[self.groups.inverse]


Form = Literal["fixed", "columns", "grouped"]
_form: Form | None = None
MAX_COPIED_CHANNELS = 64  # of a kernel that is copied for every sample, on a CPU


@contextmanager
def force_form(form: Form) -> Iterator[None]:
    """Within the block every pass has this form, whatever its device and size: for tests.

    "columns" is the fixed form as a GPU computes it, on a CPU, too.
    """
    global _form
    before = _form
    _form = form
    try:
        yield
    finally:
        _form = before


def takes_fixed_form(
    device: torch.device, channels_in: int, channels_out: int, num_positions: int
) -> bool:
    """Whether operators of so many channels over maps of so many positions run in the fixed form.

    A sample's copy of its kernel takes `C * taps * M` values, its columns `P * taps * C`: with many
    more channels than positions, copies cost more memory than a GPU gains by them. On a CPU
    a convolution per neuron is faster once kernels are large enough (docs/performance.md).
    """
    if torch.compiler.is_compiling():
        return True
    if _form is not None:
        return _form != "grouped"
    if device.type == "cpu" and is_narrow(channels_out, channels_in):
        return 9 * channels_out <= num_positions  # copies are smaller than maps, sorted
    if device.type == "cpu":
        return channels_in <= MAX_COPIED_CHANNELS
    return channels_out <= 4 * num_positions


def _as_a_gpu(x: Tensor) -> bool:
    """Whether what is done with `x` is what suits a GPU, or a compiler."""
    return x.device.type != "cpu" or _form == "columns" or torch.compiler.is_compiling()


def is_fixed(x: Tensor, channels_out: int) -> bool:
    """`takes_fixed_form` of operators from `x [B, T, H, W, C]` to `channels_out`."""
    return takes_fixed_form(x.device, x.shape[4], channels_out, prod(x.shape[1:4]))


def group_samples(choice: Tensor, num_neurons: int) -> Groups:
    """Sort a batch by its chosen neurons `choice [B]`."""
    order = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=num_neurons).tolist()
    return Groups(order, order.argsort(), tuple(counts))


def sort_samples(
    x: Tensor, choice: Tensor, num_neurons: int, channels_out: int
) -> tuple[Tensor, Routing]:
    """`x [B, T, H, W, C]` as the form that it takes wants it, and its routing."""
    groups = None
    if not is_fixed(x, channels_out):
        groups = group_samples(choice, num_neurons)
        x = x[groups.order]
        choice = choice[groups.order]
    return x, Routing(choice, one_hot(choice, num_neurons, x.dtype), groups)


def one_hot(choice: Tensor, num_neurons: int, dtype: torch.dtype) -> Tensor:
    """Rows `[B, N]` of `choice [B]`: 1 at the neuron, else 0."""
    neurons = torch.arange(num_neurons, device=choice.device)
    return (choice[:, None] == neurons).to(dtype)


# ---- columns of neighbours -----------------------------------------------------------------------


@functools.cache
def neighbour_positions(grid: Grid, extent: Extent) -> list[int]:
    """For each position on `grid` its neighbours' numbers, tap by tap; P for one outside.

    Args:
        grid: T, H, W.
        extent: Kernel size over T, H, W; odd.

    Returns:
        P * taps numbers, the taps of a position together.
    """
    places = list(product(*map(range, grid)))
    numbers = {place: number for number, place in enumerate(places)}
    steps = list(product(*(range(-(size // 2), size // 2 + 1) for size in extent)))
    reached = ((t + dt, h + dh, w + dw) for t, h, w in places for dt, dh, dw in steps)
    return [numbers.get(place, len(places)) for place in reached]


@functools.cache
def _neighbours(grid: Grid, extent: Extent, device: torch.device) -> Tensor:
    return torch.tensor(neighbour_positions(grid, extent), device=device)


def columns_of(x: Tensor, extent: Extent) -> Tensor:
    """Zero-padded neighbours of every position.

    Args:
        x: `[B, T, H, W, C]`.
        extent: Kernel size over T, H, W.

    Returns:
        `[B, P, taps * C]`, taps outer, channels inner.
    """
    rows = x.flatten(1, 3)
    if extent == POINT:
        return rows
    if torch.compiler.is_compiling():
        return _traced_columns(x, extent)
    grid = (x.shape[1], x.shape[2], x.shape[3])
    rows = nn.functional.pad(rows, (0, 0, 0, 1))  # a row of zeros for what is outside
    neighbours = _neighbours(grid, extent, x.device)
    return rows.index_select(1, neighbours).view(x.shape[0], prod(grid), -1)


def _traced_columns(x: Tensor, extent: Extent) -> Tensor:
    """The same of slices, which a compiler sees through."""
    _, num_times, height, width, _ = x.shape
    around = [size // 2 for size in reversed(extent) for _ in (0, 1)]
    padded = nn.functional.pad(x, [0, 0, *around])
    windows = [
        padded[:, t : t + num_times, h : h + height, w : w + width]
        for t, h, w in product(*map(range, extent))
    ]
    return torch.cat(windows, dim=-1).flatten(1, 3)


# ---- operators to fewer channels -----------------------------------------------------------------
#
# Where an operator leaves far fewer channels than it takes (a bottleneck), neighbours are gathered
# on that side: products with the kernels of all taps first, then a sum over neighbours of
# `taps * M` numbers a position in place of columns of `taps * C`. As many products, and all of them
# in one matrix of `taps * M` by C.


def is_narrow(channels_out: int, channels_in: int) -> bool:
    """Whether an operator's neighbours are gathered among its products."""
    return 2 * channels_out <= channels_in


def sum_neighbours(products: Tensor, extent: Extent) -> Tensor:
    """`[B, P, M]`: at each position the sum over taps of what the tap's neighbour has for it.

    Args:
        products: `[B, T, H, W, taps, M]`.
        extent: Kernel size over T, H, W.
    """
    num_samples, num_times, height, width, num_taps, _ = products.shape
    grid = (num_times, height, width)
    if _as_a_gpu(products) and not torch.compiler.is_compiling():
        rows = nn.functional.pad(products.flatten(1, 4), (0, 0, 0, 1))
        found = rows.index_select(1, _tapped_neighbours(grid, extent, products.device))
        return found.view(num_samples, prod(grid), num_taps, -1).sum(dim=2)
    around = [size // 2 for size in reversed(extent) for _ in (0, 1)]
    padded = nn.functional.pad(products, [0, 0, 0, 0, *around])
    total = None
    for tap, (t, h, w) in enumerate(product(*map(range, extent))):
        part = padded[:, t : t + num_times, h : h + height, w : w + width, tap]
        total = part if total is None else total + part
    assert total is not None
    return total.flatten(1, 3)


@functools.cache
def _tapped_neighbours(grid: Grid, extent: Extent, device: torch.device) -> Tensor:
    """Rows of products `[P * taps + 1]` that each position and tap takes; the last one is zero."""
    num_taps = prod(extent)
    neighbours = torch.tensor(neighbour_positions(grid, extent)).view(-1, num_taps)
    rows = neighbours * num_taps + torch.arange(num_taps)
    outside = neighbours == prod(grid)
    return rows.masked_fill(outside, prod(grid) * num_taps).flatten().to(device)


def _taps_first(kernels: Tensor) -> Tensor:
    """`[..., M, taps, C]` as rows of one matrix, `[..., taps * M, C]`."""
    return kernels.transpose(-3, -2).flatten(-3, -2)


# ---- convolutions, and their derivatives ---------------------------------------------------------
#
# Kernels are `[M, taps, C]`: for every output channel what it takes of each neighbour. The
# convolution `y = k * x` and the gradient by its kernel are each other's derivatives:
#
#     <k * x, g> = <x, k' * g> = <k, kernels(x, g)>,     k'[c, tap, m] = k[m, -tap, c] (mirrored)
#
# so every order of derivative is made of these two operations.


def convolve(
    x: Tensor, kernel: Tensor, extent: Extent, bias: Tensor | None = None, *, mirrored: bool = False
) -> Tensor:
    """Convolution with one kernel, zero padded.

    Args:
        x: `[B, T, H, W, C]`.
        kernel: `[M, taps, C]`, or where mirrored `[C, taps, M]`.
        bias: `[M]` or None.

    Returns:
        `[B, P, M]`.
    """
    narrow = is_narrow(kernel.shape[0], kernel.shape[2])
    if narrow and not mirrored and extent != POINT:
        products = nn.functional.linear(x, _taps_first(kernel))
        products = products.unflatten(4, (prod(extent), -1))
        found = sum_neighbours(products, extent)
        return found if bias is None else found + bias
    if mirrored:
        kernel = kernel.flip(1).transpose(0, 2).contiguous()
    if extent == POINT or narrow or (_as_a_gpu(x) and not torch.compiler.is_compiling()):
        return nn.functional.linear(columns_of(x, extent), kernel.flatten(1), bias)
    size, images = _as_images(x.shape[1:4], extent)
    image = x.reshape(-1, *images[1:], x.shape[4]).movedim(-1, 1)
    kernel = kernel.view(-1, *size, kernel.shape[2]).movedim(-1, 1)
    found = _convolve_images(image, kernel, bias).movedim(1, -1)
    return found.reshape(x.shape[0], -1, kernel.shape[0])


def kernel_gradient(x: Tensor, gradient: Tensor, extent: Extent) -> Tensor:
    """Gradient `[M, taps, C]` by the one kernel that all samples have.

    Args:
        x: `[B, T, H, W, C]`. gradient: `[B, T, H, W, M]`.
    """
    shape = gradient.shape[4], prod(extent), x.shape[4]
    if extent != POINT and is_narrow(shape[0], shape[2]):
        columns = columns_of(gradient, extent).flatten(0, 1)
        return _from_taps(columns.t() @ x.flatten(0, 3), extent)
    if extent == POINT or _as_a_gpu(x):
        columns = columns_of(x, extent).flatten(0, 1)
        return (gradient.flatten(0, 3).t() @ columns).view(shape)
    size, images = _as_images(x.shape[1:4], extent)
    pair = [part.reshape(-1, *images[1:], part.shape[4]).movedim(-1, 1) for part in (gradient, x)]
    like = x.new_empty(shape[0], shape[2], *size)
    found = _image_gradients(pair[0], pair[1], like, wanted=(False, True))[1]
    return found.movedim(1, -1).reshape(shape)


def _from_taps(rows: Tensor, extent: Extent) -> Tensor:
    """Gradients `[..., M, taps, C]` of `[..., taps * M, C]` of a gradient's columns times a map.

    A kernel's tap meets the gradient on the other side, so they come in reverse order.
    """
    return rows.unflatten(-2, (prod(extent), -1)).flip(-3).transpose(-3, -2)


def _in_groups(
    x: Tensor, kernels: Tensor, routing: Routing, extent: Extent, mirrored: bool
) -> Tensor:
    """The fixed form on a CPU: one convolution in groups, samples side by side as channels."""
    own = routing.take(kernels.flatten(1))
    size, images = _as_images(x.shape[1:4], extent)
    rows = x.permute(1, 2, 3, 0, 4).reshape(*images, -1).movedim(-1, 1)
    kernel = own.view(-1, *size, kernels.shape[3]).movedim(-1, 1)
    if mirrored:
        like = rows.new_empty(*images, len(x) * kernels.shape[3]).movedim(-1, 1)
        found = _image_gradients(rows, like, kernel, len(x), wanted=(True, False))[0]
    else:
        found = _convolve_images(rows, kernel, num_groups=len(x))
    return found.movedim(1, -1).reshape(*x.shape[1:4], len(x), -1).permute(3, 0, 1, 2, 4)


def _convolve_images(
    image: Tensor, kernel: Tensor, bias: Tensor | None = None, num_groups: int = 1
) -> Tensor:
    function = nn.functional.conv2d if image.dim() == 4 else nn.functional.conv3d
    padding = [length // 2 for length in kernel.shape[2:]]
    return function(image, kernel, bias, padding=padding, groups=num_groups)


def _image_gradients(
    gradient: Tensor,
    image: Tensor,
    kernel: Tensor,
    num_groups: int = 1,
    *,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Of `_convolve_images` by image and kernel; of what is not wanted only the shape counts."""
    num = image.dim() - 2
    padding = [length // 2 for length in kernel.shape[2:]]
    ones = [1] * num
    return torch.ops.aten.convolution_backward(
        *(gradient, image, kernel, None, ones, padding, ones, False, [0] * num, num_groups),
        [*wanted, False],
    )[:2]


def _as_images(grid: Sequence[int], extent: Extent) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel size and images `(number, *space)` by which torch's convolutions take a map on `grid`.

    Over space alone every time is an image of its own; over time alone a row is one position.
    """
    if extent == SPATIAL:
        return extent[1:], tuple(grid)
    if extent[1:] == (1, 1):
        return (extent[0], 1), (1, grid[0], grid[1] * grid[2])
    return extent, (1, *grid)


Owners = Routing | Counts
"""Whose kernel a sample has: its own neuron's, or, samples sorted, those of so many each."""


def _spans(counts: Counts) -> list[tuple[int, slice]]:
    """Neurons that got samples, and which samples."""
    spans = []
    start = 0
    for neuron, count in enumerate(counts):
        if count:
            spans.append((neuron, slice(start, start + count)))
        start += count
    return spans


def _convolve_each(
    x: Tensor, kernels: Tensor, owners: Owners, extent: Extent, mirrored: bool
) -> Tensor:
    if not isinstance(owners, Routing):
        x = x.contiguous()
        parts = [
            convolve(x[span], kernels[neuron], extent, mirrored=mirrored)
            for neuron, span in _spans(owners)
        ]
        found = torch.cat(parts) if len(parts) > 1 else parts[0]
        return found.view(*x.shape[:4], -1)
    narrow = is_narrow(kernels.shape[1], kernels.shape[3]) and extent != POINT
    if narrow and not mirrored:
        own = owners.take(_taps_first(kernels).flatten(1)).view(len(x), -1, x.shape[4])
        products = torch.bmm(x.flatten(1, 3), own.transpose(1, 2))
        found = sum_neighbours(products.view(*x.shape[:4], prod(extent), -1), extent)
        return found.view(*x.shape[:4], -1)
    if extent != POINT and not narrow and not _as_a_gpu(x):
        return _in_groups(x, kernels, owners, extent, mirrored)
    if mirrored:
        kernels = kernels.flip(2).transpose(1, 3)
    own = owners.take(kernels.flatten(1)).view(len(x), kernels.shape[1], -1)
    found = torch.bmm(columns_of(x, extent), own.transpose(1, 2))
    return found.view(*x.shape[:4], -1)


def _kernels_each(x: Tensor, gradient: Tensor, owners: Owners, extent: Extent) -> Tensor:
    shape = gradient.shape[4], prod(extent), x.shape[4]
    if not isinstance(owners, Routing):
        x = x.contiguous()
        gradient = gradient.contiguous()
        kernels = x.new_zeros(len(owners), *shape)
        for neuron, span in _spans(owners):
            kernels[neuron] = kernel_gradient(x[span], gradient[span], extent)
        return kernels
    if extent != POINT and is_narrow(shape[0], shape[2]):
        rows = torch.bmm(columns_of(gradient, extent).transpose(1, 2), x.flatten(1, 3))
        return _from_taps(owners.give_back(rows.flatten(1)).view(-1, *rows.shape[1:]), extent)
    back = gradient.flatten(1, 3).transpose(1, 2)
    own = torch.bmm(back, columns_of(x, extent))
    return owners.give_back(own.flatten(1)).view(-1, *shape)


Inert = tuple[bool, bool]
"""Of input and kernels: whether what differentiates the gradients again does not ask for theirs."""


def have_tangents(*tensors: Tensor) -> bool:
    """Whether forward-mode derivatives are wanted of what is made of `tensors`."""
    return any(forward_ad.unpack_dual(one).tangent is not None for one in tensors)


def _move_both(
    function: Any, ctx: Any, along_first: Tensor | None, along_second: Tensor | None
) -> Tensor | None:
    """How a function that is linear in each of its two tensors moves along directions of them."""
    first, second = ctx.saved_tensors
    parts = []
    if along_first is not None:
        parts.append(function.apply(along_first, second, *ctx.rest))
    if along_second is not None:
        parts.append(function.apply(first, along_second, *ctx.rest))
    return sum(parts[1:], parts[0]) if parts else None


class _Convolution(torch.autograd.Function):
    """`[B, T, H, W, M]`, each sample by its own of `kernels [N, M, taps, C]`, maybe mirrored."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernels: Tensor,
        owners: Owners,
        extent: Extent,
        mirrored: bool,
        inert: Inert,
    ) -> Tensor:
        ctx.rest = owners, extent, mirrored, inert
        ctx.was_differentiated = False
        ctx.save_for_backward(x, kernels)
        ctx.save_for_forward(x, kernels)
        return _convolve_each(x, kernels, owners, extent, mirrored)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, kernels = ctx.saved_tensors
        owners, extent, mirrored, inert = ctx.rest
        wanted = ctx.needs_input_grad[:2]
        first, second = (gradient, x) if mirrored else (x, gradient)
        for_x = for_kernels = None
        if not torch.is_grad_enabled() and not have_tangents(x, kernels, gradient):
            spared = inert if ctx.was_differentiated else (False, False)
            if wanted[0] and not spared[0]:
                for_x = _convolve_each(gradient, kernels, owners, extent, not mirrored)
            if wanted[1] and not spared[1]:
                for_kernels = _kernels_each(first, second, owners, extent)
        elif not all(wanted) or not torch.is_grad_enabled():
            if wanted[0]:
                for_x = _Convolution.apply(
                    gradient, kernels, owners, extent, not mirrored, (False, False)
                )
            if wanted[1]:
                for_kernels = _Kernels.apply(first, second, owners, extent)
        else:
            for_x, for_kernels = _Gradients.apply(x, kernels, gradient, *ctx.rest)
            ctx.was_differentiated = True
        return for_x, for_kernels, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, along_x: Tensor | None, along_kernels: Tensor | None, *_: None) -> Any:
        return _move_both(_Convolution, ctx, along_x, along_kernels)


class _Kernels(torch.autograd.Function):
    """Gradient `[N, M, taps, C]` by the kernels, of `x` with C and `gradient` with M channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, owners: Owners, extent: Extent) -> Tensor:
        ctx.rest = owners, extent
        ctx.save_for_backward(x, gradient)
        ctx.save_for_forward(x, gradient)
        return _kernels_each(x, gradient, owners, extent)

    @staticmethod
    def backward(ctx: Any, of_kernels: Tensor) -> tuple:
        x, gradient = ctx.saved_tensors
        for_x = for_gradient = None
        if ctx.needs_input_grad[0]:
            for_x = _Convolution.apply(gradient, of_kernels, *ctx.rest, True, (False, False))
        if ctx.needs_input_grad[1]:
            for_gradient = _Convolution.apply(x, of_kernels, *ctx.rest, False, (False, False))
        return for_x, for_gradient, None, None

    @staticmethod
    def jvp(ctx: Any, along_x: Tensor | None, along_gradient: Tensor | None, *_: None) -> Any:
        return _move_both(_Kernels, ctx, along_x, along_gradient)


class _Gradients(torch.autograd.Function):
    """Both gradients of a convolution at once, so that their own derivatives share products.

    Along directions `Vx`, `Vk` of the two the derivative by the incoming gradient is
    `k * Vx + Vk * x`: one convolution of twice as many channels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernels: Tensor,
        gradient: Tensor,
        owners: Owners,
        extent: Extent,
        mirrored: bool,
        inert: Inert,
    ) -> tuple[Tensor, Tensor]:
        ctx.rest = owners, extent, mirrored, inert
        ctx.save_for_backward(x, kernels, gradient)
        ctx.set_materialize_grads(False)
        first, second = (gradient, x) if mirrored else (x, gradient)
        return (
            _convolve_each(gradient, kernels, owners, extent, not mirrored),
            _kernels_each(first, second, owners, extent),
        )

    @staticmethod
    def backward(ctx: Any, along_x: Tensor | None, along_kernels: Tensor | None) -> tuple:
        x, kernels, gradient = ctx.saved_tensors
        owners, extent, mirrored, inert = ctx.rest
        higher = torch.is_grad_enabled()  # a third order

        def convolve_by(one: Tensor, by: Tensor, backwards: bool) -> Tensor:
            way = mirrored != backwards
            if higher:
                return _Convolution.apply(one, by, owners, extent, way, (False, False))
            return _convolve_each(one, by, owners, extent, way)

        for_x = for_kernels = for_gradient = None
        if along_x is not None and along_kernels is not None and not mirrored:
            both = torch.cat([along_x, x], dim=4)
            for_gradient = convolve_by(both, torch.cat([kernels, along_kernels], dim=3), False)
        elif along_x is not None and along_kernels is not None:
            moved = convolve_by(along_x, kernels, False)
            for_gradient = moved + convolve_by(x, along_kernels, False)
        elif along_x is not None:
            for_gradient = convolve_by(along_x, kernels, False)
        elif along_kernels is not None:
            for_gradient = convolve_by(x, along_kernels, False)
        if along_kernels is not None and not inert[0]:
            for_x = convolve_by(gradient, along_kernels, True)
        if along_x is not None and not inert[1]:
            first, second = (gradient, along_x) if mirrored else (along_x, gradient)
            kernels_by = _Kernels.apply if higher else _kernels_each
            for_kernels = kernels_by(first, second, owners, extent)
        return for_x, for_kernels, for_gradient, None, None, None, None


def _convolution(
    x: Tensor, kernels: Tensor, owners: Owners, extent: Extent, inert: Inert = (False, False)
) -> Tensor:
    """`[B, P, M]`, differentiable any number of times."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
        kernels = kernels.to(dtype)
    if torch.compiler.is_compiling():
        found = _convolve_each(x, kernels, owners, extent, False)
    else:
        found = _Convolution.apply(x, kernels, owners, extent, False, inert)
    return found.flatten(1, 3)


def routed_product(
    x: Tensor,
    kernels: Tensor,
    extent: Extent,
    routing: Routing,
    inert: Inert = (False, False),
) -> Tensor:
    """`[B, P, M]` of `x [B, T, H, W, C]`, each sample by its neuron's of `[N, M, taps, C]`."""
    owners = routing if routing.groups is None else routing.groups.counts
    return _convolution(x, kernels, owners, extent, inert)


def joint_product(x: Tensor, kernels: Tensor, extent: Extent) -> Tensor:
    """`[B, P, N, M]` of every sample of `x` and all of `kernels [N, M, taps, C]`."""
    everyone: Owners = (len(x),)
    found = _convolution(x, kernels.flatten(0, 1)[None], everyone, extent)
    return found.unflatten(2, kernels.shape[:2])


# ---- the operators -------------------------------------------------------------------------------


class Branch(NamedTuple):
    """One operator of N neurons: its extent, kernels `[N, M, taps, C]` and norm."""

    extent: Extent
    kernels: Tensor
    norm: NeuronNorm


class RoutedRun(NamedTuple):
    """`z [B, P, C]` of each sample's own neuron, and the norm of each branch."""

    z: Tensor
    affines: list[Affine]


def run_routed(
    x: Tensor,
    branches: tuple[Branch, ...],
    routing: Routing,
    *,
    update: bool,
    inert: Inert = (False, False),
) -> RoutedRun:
    """Each sample's own neuron in a training pass; the operators' outputs lie side by side."""
    raws = [routed_product(x, b.kernels, b.extent, routing, inert) for b in branches]
    norms = [branch.norm for branch in branches]
    raw = widen(_side_by_side(raws))
    with torch.autocast(x.device.type, enabled=False):
        onehot = routing.onehot.to(raw.dtype)
        affine = routed_affine(norms, raw, onehot, update=update)
        scale = onehot @ affine.scale
        shift = onehot @ affine.shift
        z = torch.addcmul(shift[:, None], raw, scale[:, None]).relu()
    parts = z.chunk(len(branches), dim=2)
    z = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    scales = affine.scale.chunk(len(branches), dim=1)
    shifts = affine.shift.chunk(len(branches), dim=1)
    return RoutedRun(z, [Affine(*pair) for pair in zip(scales, shifts, strict=True)])


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """`[B, P, M]` each as one, positions outermost in memory where the parts have them so."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].stride(0) < parts[0].stride(1):
        return torch.cat([part.transpose(0, 1) for part in parts], dim=2).transpose(0, 1)
    return torch.cat(parts, dim=2)


def run_frozen(
    x: Tensor, branches: tuple[Branch, ...], affines: list[Affine], routing: Routing
) -> Tensor:
    """`z [B, P, C]` of each sample's own neuron, with given norms folded into the kernels."""
    total = None
    for branch, affine in zip(branches, affines, strict=True):
        kernels = fold(branch.kernels, affine.scale)
        raw = widen(routed_product(x, kernels, branch.extent, routing))
        z = (raw + affine.shift[routing.choice][:, None]).relu()
        total = z if total is None else total + z
    assert total is not None
    return total


def run_joint(x: Tensor, branches: tuple[Branch, ...], *, training: bool, update: bool) -> Tensor:
    """`z [B, P, N, C]` of all neurons, their statistics from the whole batch."""
    total = None
    for branch in branches:
        raw = widen(joint_product(x, branch.kernels, branch.extent))
        if training:
            affine = branch.norm.joint_affine(raw, update=update)
        else:
            affine = branch.norm.running_affine()
        z = torch.addcmul(affine.shift, raw, affine.scale).relu()
        total = z if total is None else total + z
    assert total is not None
    return total


def fold(kernels: Tensor, scale: Tensor) -> Tensor:
    """`kernels [N, M, taps, C]` with the factors of their outputs, `scale [N, M]`."""
    return kernels * scale[:, :, None, None]


def widen(z: Tensor) -> Tensor:
    """`z` in float32 at least: norms and sums over samples are not done in half precision."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
