"""Second moment of convolution patches from shifted channel products, without patches (stride 1).

Write ``T_s(R)[c, c'] = sum over pixels q in R of x[c, q] x[c', q + s]``. The patch entries ``(c, a)`` and ``(c', b)``,
taps ``a`` and ``b``, have the second moment ``T_(b-a)(R_a)``, where ``R_a`` is the rectangle of image pixels that tap
``a`` visits. So blocks depend on the taps through their shift alone, but for the borders of the image. Cut both axes
into the *interior*, visited by every tap, and single border lines: each ``R_a`` is a union of the cells of this grid,
and

    S[(c, a), (c', b)] = sum over cells K inside R_a of T_(b-a)(K)[c, c'].

Each pixel is in one cell, so all cells together cost one product of ``C x C`` per shift over the whole image, and the
sum has no cancellation. By symmetry only shifts that go down, ``(2 kw - 1) kh`` of them, are formed. The products of
all shifts over one cell are the weight gradient of a convolution of the image with itself, which libraries compute
directly at the speed of a convolution.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from lnb_kernels._captured import device_constants
from lnb_kernels.conv2d.geometry import Geometry

# Longest float32 sum on the CPU, in pixels times channels; its bounds in pixels; and the least number of sums. Measured
# so that the error is at most about twice that of a plain product of patches.
_SUM, _PIXELS, _PIECES = 65536, (256, 2048), 8

Range = tuple[int, int]


@functools.lru_cache(maxsize=512)
def _axis(size: int, taps: int, dilation: int, before: int, outputs: int) -> tuple[int, int, tuple[Range, ...]]:
    """``(low, high, ranges)`` of one axis: the interior ``[low, high)``, the pixels ``[start, stop)`` of each tap."""
    ranges = []
    for tap in range(taps):
        first = tap * dilation - before
        ranges.append((max(0, first), min(size, first + outputs)))
    return max(start for start, _ in ranges), min(stop for _, stop in ranges), tuple(ranges)


def axes(conv: Geometry, height: int, width: int) -> tuple[tuple[int, int, tuple[Range, ...]], ...]:
    """``(low, high, ranges)`` of the rows and of the columns of the image."""
    left, _, top, _ = conv.padding
    rows, columns = conv.output(height, width)
    return (
        _axis(height, conv.kernel[0], conv.dilation[0], top, rows),
        _axis(width, conv.kernel[1], conv.dilation[1], left, columns),
    )


def has_interior(conv: Geometry, height: int, width: int) -> bool:
    """Whether some pixel is visited by every tap; the decomposition is of no use otherwise."""
    return all(low < high for low, high, _ in axes(conv, height, width))


@device_constants(maxsize=256)
def _membership(
    conv: Geometry, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(taps x cells, kh x height, kw x width)`` 0/1 matrices: cells inside ``R_a``, and the lines each tap visits."""
    cells, lines = [], []
    for (low, high, ranges), size in zip(axes(conv, height, width), (height, width), strict=True):
        line = torch.zeros(len(ranges), size)
        for tap, (start, stop) in enumerate(ranges):
            line[tap, start:stop] = 1
        lines.append(line)
        cells.append(torch.cat((line[:, low : low + 1], line[:, :low], line[:, high:]), 1))  # interior, border lines
    return tuple(m.to(device, dtype) for m in (torch.kron(*cells), *lines))  # type: ignore[return-value]


def conv2d_second_moment_by_shifts(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """``S`` ``[groups, D+1, D+1]`` for stride 1; ``x`` ``[B, C, H, W]`` float32 or float64, with an interior."""
    batch, channels, height, width = x.shape
    groups, (kh, kw), per_group = conv.groups, conv.kernel, channels // conv.groups
    d = per_group * kh * kw
    inside, rows_of_tap, columns_of_tap = _membership(conv, height, width, x.dtype, x.device)
    products = _cell_products(x, conv)  # [cells, C, C/groups, kh, 2 kw - 1]
    u = torch.mm(inside, products.flatten(1))  # [taps, ...]: the sums over the cells inside R_a
    u = u.view(kh, kw, groups, per_group, per_group, kh, 2 * kw - 1)

    s = x.new_empty(groups, d + 1, d + 1)
    blocks = s[:, :d, :d].unflatten(2, (per_group, kh, kw)).unflatten(1, (per_group, kh, kw))
    strides, origin = u.stride(), u.storage_offset() + (kw - 1) * u.stride(6)
    for top in range(kh):
        for bottom in range(top, kh):
            # [g, c, a_x, c', b_x]: tap (top, a_x) against (bottom, b_x), so shift (bottom - top, b_x - a_x)
            block = u.as_strided(
                (groups, per_group, kw, per_group, kw),
                (strides[2], strides[3], strides[1] - strides[6], strides[4], strides[6]),
                origin + top * strides[0] + (bottom - top) * strides[5],
            )
            blocks[:, :, top, :, :, bottom, :] = block
            if top < bottom:
                blocks[:, :, bottom, :, :, top, :] = block.permute(0, 3, 4, 1, 2)

    sums = rows_of_tap @ x.sum(0) @ columns_of_tap.t()  # [C, kh, kw]
    s[:, d, :d] = s[:, :d, d] = sums.view(groups, d)
    rows, columns = conv.output(height, width)
    s[:, d, d] = batch * rows * columns
    return s


def _cell_products(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """``T_s(K)`` of every cell and shift, ``[cells, C, C/groups, kh, 2 kw - 1]``, cells as in ``_membership``."""
    height, width = x.shape[2:]
    (kh, kw), (dh, dw) = conv.kernel, conv.dilation
    (low_y, high_y, _), (low_x, high_x, _) = axes(conv, height, width)
    reach_y, reach_x = dh * (kh - 1), dw * (kw - 1)
    padded = F.pad(x, (reach_x, reach_x, 0, reach_y))

    def cell(rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The pixels of a cell, and those that they reach by a shift."""
        reached = padded[:, :, rows.start : rows.stop + reach_y, columns.start : columns.stop + 2 * reach_x]
        return x[:, :, rows, columns], reached

    rows, columns = slice(low_y, high_y), slice(low_x, high_x)
    border_rows = [slice(y, y + 1) for y in (*range(low_y), *range(high_y, height))]
    border_columns = [slice(i, i + 1) for i in (*range(low_x), *range(high_x, width))]
    interior = x.new_zeros(())
    for samples, lines in _pieces(x, rows, high_x - low_x, conv.groups):
        pixels, reached = cell(lines, columns)
        interior = interior + _self_gradient([(pixels[samples], reached[samples])], conv)
    parts = [interior]
    if border_columns:
        # Transposed, so that the long side of the line is the one that libraries vectorise.
        cells = [(pixels.mT, reached.mT) for pixels, reached in (cell(rows, column) for column in border_columns)]
        parts.append(_self_gradient(cells, conv, transposed=True).mT)
    if border_rows:
        of_rows = _self_gradient([cell(row, columns) for row in border_rows], conv).unsqueeze(1)
        if border_columns:
            corners = _corners([cell(row, column) for row in border_rows for column in border_columns], conv)
            of_rows = torch.cat((of_rows, corners.unflatten(0, (len(border_rows), len(border_columns)))), 1)
        parts.append(of_rows.flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _pieces(x: torch.Tensor, rows: slice, width: int, groups: int) -> list[tuple[slice, slice]]:
    """Samples and rows of the interior, cut so that no float32 sum runs over too many pixels before it is added up.

    CPU libraries add all pixels of a call one after the other, which costs digits that a product of matrices does not
    lose; accelerators split the sum by themselves.
    """
    batch, height = x.shape[0], rows.stop - rows.start
    if x.device.type != "cpu":
        return [(slice(0, batch), rows)]
    longest = min(_SUM * groups // x.shape[1], _PIXELS[1], batch * height * width // _PIECES)
    pixels = max(longest, _PIXELS[0])
    samples = max(1, pixels // (height * width))
    lines = min(height, max(1, pixels // width))
    return [
        (slice(sample, sample + samples), slice(row, min(row + lines, rows.stop)))
        for sample in range(0, max(batch, 1), samples)
        for row in range(rows.start, rows.stop, lines)
    ]


def _self_gradient(
    cells: list[tuple[torch.Tensor, torch.Tensor]], conv: Geometry, transposed: bool = False
) -> torch.Tensor:
    """Products of all shifts over cells of one size: a weight gradient with one group per cell and group.

    ``pixels`` take the place of the output's gradient and ``reached`` that of the input. The result is
    ``[cells, C, C/groups, kh, 2 kw - 1]``.
    """
    count, channels = len(cells), cells[0][0].shape[1]
    pixels, reached = cells[0] if count == 1 else (torch.cat(side, 1) for side in zip(*cells, strict=True))
    taps, dilation = (conv.kernel[0], 2 * conv.kernel[1] - 1), conv.dilation
    if transposed:
        taps, dilation = taps[::-1], dilation[::-1]
    shape = (count * channels, channels // conv.groups, *taps)
    gradient: torch.Tensor = torch.ops.aten.convolution_backward(
        pixels, reached, pixels.new_empty(1).expand(shape), None, (1, 1), (0, 0), dilation, False, (0, 0),
        count * conv.groups, (False, True, False),
    )[1]  # fmt: skip
    return gradient.view(count, channels, *shape[1:])


def _corners(cells: list[tuple[torch.Tensor, torch.Tensor]], conv: Geometry) -> torch.Tensor:
    """Products of all shifts over cells of one pixel: with only the batch to sum over, one batched product."""
    kh, kw = conv.kernel
    pixels = torch.stack([pixel for pixel, _ in cells]).unflatten(2, (conv.groups, -1))  # [cells, B, g, C/g, 1, 1]
    reached = torch.stack([window[:, :, :: conv.dilation[0], :: conv.dilation[1]] for _, window in cells])
    reached = reached.unflatten(2, (conv.groups, -1))  # [cells, B, g, C/g, kh, 2 kw - 1]
    left, right = pixels.flatten(3).permute(0, 2, 3, 1), reached.flatten(3).transpose(1, 2)
    products: torch.Tensor = left @ right  # [cells, g, C/g, entries]
    return products.reshape(len(cells), -1, pixels.shape[3], kh, 2 * kw - 1)
