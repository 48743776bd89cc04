"""What every launcher asks of its tensors: it refuses what a kernel would misread.

Only what can be seen without reading a value is looked at: a look at values would have the host
wait for the device. Ranges are promises, which each launcher states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EXACT = {"enable_fp_fusion": False}
"""What every launch asks of compilers: floats, where there are any, are not contracted."""

SERIAL = EXACT | {"maxnreg": 128}
"""What launches ask for of which a program owns a message: registers enough, where a compiler has
to be told, for the calls that divisions of 64 bits are; else it spills."""

MAX_SPAN = (1 << 31) - 1
"""Most elements of a tensor that kernels address with 32 bits."""


def check(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    shape: Sequence[int | None],
    device: torch.device | None = None,
    apart: int = 0,
) -> Tensor:
    """Give a tensor back if it is contiguous and what it has to be.

    Args:
        name: What messages call it.
        tensor: To be looked at.
        dtype: Its type.
        shape: Its sizes; None stands for any.
        device: Where it has to be; None for anywhere.
        apart: How many of its leading sizes kernels step over with 64 bits.

    Raises:
        TypeError: Its type is another.
        ValueError: Its shape, device or layout is another, or it is too large.
    """
    _check_kind(name, tensor, dtype, shape, device)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous")
    span = math.prod(tensor.shape[apart:])
    if span > MAX_SPAN:
        raise ValueError(f"{name} has {span} elements, more than {MAX_SPAN}")
    return tensor


def check_pixels(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    shape: Sequence[int | None],
    device: torch.device | None = None,
) -> int:
    """Check [N, h, w, C], which may be some neighboring channels of a wider contiguous tensor.

    Args:
        name: As in `check`.
        tensor: As in `check`.
        dtype: As in `check`.
        shape: As in `check`, four sizes.
        device: As in `check`.

    Returns:
        The distance of neighboring pixels, in elements.

    Raises:
        TypeError: As in `check`.
        ValueError: As in `check`.
    """
    _check_kind(name, tensor, dtype, shape, device)
    count, h, w, _ = tensor.shape
    pitch = tensor.stride(2)
    if tensor.stride() != (h * w * pitch, w * pitch, pitch, 1):
        raise ValueError(f"{name} has strides {tensor.stride()}: not channels of contiguous pixels")
    if count * h * w * pitch > MAX_SPAN:
        raise ValueError(f"{name} spans more than {MAX_SPAN} elements")
    return pitch


def _check_kind(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    shape: Sequence[int | None],
    device: torch.device | None,
) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}, not {dtype}")
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} is {list(tensor.shape)}, not {list(shape)} (None: any)")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, not on {device}")
