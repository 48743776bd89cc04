"""The `idf` model: one integer flow for luma, one for chroma that sees luma, and their coding.

A frame goes onto the message so that luma is popped first, then chroma, whose networks see that
luma, then extra planes, which the luma flow codes; inside a plane the coarsest latent is popped
first. Push is pop read from bottom to top.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowarchive import exact, planes
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.device import Kernels
from flowarchive.entropy import LogisticMixture
from flowarchive.errors import ModelError
from flowarchive.exact import ACTIVATION_MAX, ACTIVATION_MIN
from flowarchive.flows.integer import FlowConfig, IntegerFlow, Latent
from flowarchive.flows.phases import Layout, Tensors
from flowarchive.models.answer import noise
from flowarchive.models.stills import Device, Part, has_kernels

Int32 = NDArray[np.int32]


class IdfModel(nn.Module):
    """IDF++ over the components of single frames.

    Args:
        config: {"luma": fields of FlowConfig, "chroma": alike}; channels and context are implied.

    Raises:
        ModelError: The config is malformed.
    """

    has_memory = False

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        try:
            luma = FlowConfig(channels=1, context=0, **config["luma"])
            chroma = FlowConfig(channels=2, context=1, **config["chroma"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's config is malformed: {error}") from error
        self.luma, self.chroma = IntegerFlow(luma), IntegerFlow(chroma)
        self._device: Device | None = None

    @property
    def has_kernels(self) -> bool:
        """Whether a device can do its hot operations; see `models.Model`."""
        return has_kernels(self.luma) and has_kernels(self.chroma)

    @classmethod
    def _hollow(cls, config: dict[str, Any]) -> IdfModel:
        """Build the frozen model of a config without its integers, which costs no memory."""
        with torch.device("meta"):
            hollow = exact.hollow(cls(config))
        assert isinstance(hollow, cls)
        return hollow

    @classmethod
    def layout(cls, config: dict[str, Any]) -> Layout:
        """Return the type and shape of every tensor; see `models.Model`."""
        return {
            name: (torch.empty(0, dtype=tensor.dtype).numpy().dtype, tuple(tensor.shape))
            for name, tensor in cls._hollow(config).state_dict().items()
        }

    @classmethod
    def of_tensors(cls, config: dict[str, Any], tensors: Tensors) -> IdfModel:
        """Build the model; see `models.Model`."""
        model = cls._hollow(config)
        model.load_state_dict(
            {name: torch.from_numpy(values) for name, values in tensors.items()}, assign=True
        )
        exact.check(model)
        return model.eval()

    def check_crop(self, size: int) -> None:
        """Raise ValueError unless crops of `size`, half of it for chroma, can be squeezed."""
        luma, chroma = self.luma.config.multiple, self.chroma.config.multiple
        if size % luma or size % (2 * chroma):
            raise ValueError(f"crops of {size} are no multiple of {max(luma, 2 * chroma)}")

    def frame_bits(self, components: planes.Components) -> tuple[float, int]:
        """Return the training twin's ideal bits of one 8-bit frame, and its samples."""
        bits, samples = 0.0, 0
        for flow, x, context in self._parts(components):
            plane, mask = _pad(x, flow.config.multiple)
            seen = _see(context, flow.config.multiple, 0)
            bits += flow.bits(plane, seen, mask).sum().item()
            samples += x.size
        return bits, samples

    def use(self, kernels: Kernels | None) -> None:
        """Have a device do the hot operations from now on; None for the CPU."""
        self._device = None if kernels is None else Device(kernels, (self.luma, self.chroma))

    def for_rehearsal(self) -> IdfModel:
        """Return the model; see `models.Model`."""
        return self

    def macs_per_sample(self) -> dict[str, int]:
        """Return the multiplications a sample of each component costs, each way."""
        return {
            "luma": round(self.luma.macs_per_sample()),
            "chroma": round(self.chroma.macs_per_sample()),
        }

    def push_frames(
        self,
        message: Message,
        frames: Sequence[planes.Components],
        letters: str,
        bits: int,
        threads: int = 1,
    ) -> Account:
        """Push a chunk's frames, each on its own; see `models.Model`."""
        if self._device:
            parts = self._shapes(frames[0], bits)
            if self._device.holds(parts):
                return self._device.push_frames(message, frames, parts, bits)
        account = Account(len(frames), message.bits)
        with exact.one_thread():
            for number in reversed(range(len(frames))):
                ideal = self.push(message, frames[number], bits)
                account.integer(number, message.bits, ideal)
        return account

    def pop_frames(
        self,
        message: Message,
        count: int,
        shapes: Sequence[tuple[int, int]],
        letters: str,
        bits: int,
        threads: int = 1,
    ) -> Iterator[planes.Components]:
        """Pop `count` frames; see `models.Model`."""
        if self._device:
            parts = self._shapes(planes.blank(shapes, letters), bits)
            if self._device.holds(parts):
                yield from self._device.pop_frames(message, count, parts, bits)
                return
        for _ in range(count):
            with exact.one_thread():
                frame = self.pop(message, shapes, letters, bits)
            yield frame

    @torch.inference_mode()
    def push(self, message: Message, components: planes.Components, bits: int) -> float:
        """Push one frame.

        Args:
            message: Receives the bits.
            components: The frame's integers.
            bits: Depth of the samples, 8..16.

        Returns:
            The ideal code length in bits by the frozen integer model.
        """
        ideal = 0.0
        for flow, x, context in reversed(self._parts(components)):
            coder, shift = _coder(flow.config, bits), bits - planes.MIN_BITS
            plane, mask = _pad(x, flow.config.multiple)
            seen = _see(context, flow.config.multiple, shift)
            for latent in flow(plane, seen, mask, shift):
                symbols, parameters = _select(latent.z, latent.mask), _parameters(latent)
                ideal += coder.bits(symbols, *parameters)
                coder.push(message, symbols, *parameters)
        return ideal

    @torch.inference_mode()
    def pop(
        self, message: Message, shapes: Sequence[tuple[int, int]], letters: str, bits: int
    ) -> planes.Components:
        """Pop one frame.

        Args:
            message: Gives the bits back.
            shapes: (rows, columns) of the frame's planes.
            letters: A component letter for each, as in `planes.split`.
            bits: Depth of the samples, 8..16.
        """
        luma = self._pop_part(message, self.luma, shapes[0], None, bits)[0]
        chroma, rest = None, 1
        if letters.startswith(("RGB", "YUV")):
            context = planes.luma_context(luma, shapes[1])
            chroma, rest = self._pop_part(message, self.chroma, shapes[1], context, bits), 3
        extra = tuple(
            self._pop_part(message, self.luma, shape, None, bits)[0] for shape in shapes[rest:]
        )
        return planes.Components(luma, chroma, extra)

    def _parts(
        self, components: planes.Components
    ) -> list[tuple[IntegerFlow, Int32, Int32 | None]]:
        """(flow, samples [C, h, w], context) of each part, in the order they are popped."""
        parts: list[tuple[IntegerFlow, Int32, Int32 | None]]
        parts = [(self.luma, components.luma[None], None)]
        if components.chroma is not None:
            shape = (components.chroma.shape[1], components.chroma.shape[2])
            context = planes.luma_context(components.luma, shape)
            parts.append((self.chroma, components.chroma, context))
        return parts + [(self.luma, plane[None], None) for plane in components.extra]

    def _shapes(self, components: planes.Components, bits: int) -> list[Part]:
        """What a device asks of each part of such a frame."""
        found: list[Part] = []
        for index, part in enumerate(components.parts):
            chroma = index == 1 and components.chroma is not None
            coder = _coder((self.chroma if chroma else self.luma).config, bits)
            found.append((*part.shape, coder.low, coder.high, coder.precision, chroma))
        return found

    def _pop_part(
        self,
        message: Message,
        flow: IntegerFlow,
        shape: tuple[int, int],
        context: Int32 | None,
        bits: int,
    ) -> Int32:
        """Pop the samples [C, h, w] of one part."""
        coder, shift = _coder(flow.config, bits), bits - planes.MIN_BITS
        empty = np.zeros((flow.config.channels, *shape), dtype=np.int32)
        plane, mask = _pad(empty, flow.config.multiple)
        seen = _see(context, flow.config.multiple, shift)

        def read(latent: Latent) -> Tensor:
            return _place(coder.pop(message, *_parameters(latent)), latent)

        x = flow.inverse(read, (1, *plane.shape[2:]), seen, mask, shift)
        return x[0, :, : shape[0], : shape[1]].numpy().astype(np.int32)

    @torch.inference_mode()
    def known_answer(self) -> str:
        """Return what the networks make of a ramp with `noise`; see `models.Model`."""
        digest = hashlib.blake2b(digest_size=16)
        for flow in (self.luma, self.chroma):
            side = 2 * flow.config.multiple + 6
            count = (flow.config.channels + 1) * side * side
            i = np.arange(count)
            values = (i // side + i % side + noise(count) % 23) % 256 - 128
            x = values.astype(np.int32).reshape(-1, side, side)
            for level in self._answer(flow, x[:-1], x[-1] if flow.config.context else None):
                for array in level:
                    digest.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
        return digest.hexdigest()

    def _answer(
        self, flow: IntegerFlow, x: Int32, context: Int32 | None
    ) -> Iterable[Sequence[NDArray[Any]]]:
        """The symbols, means and scales of each level, of 8-bit samples; in padding too."""
        if self._device:
            seen = None if context is None else context.astype(np.int8)
            return self._device.answer(flow is self.chroma, x, seen)
        plane, mask = _pad(x, flow.config.multiple)
        latents = flow(plane, _see(context, flow.config.multiple, 0), mask, 0)
        return ([t.numpy() for t in (one.z, one.mean, one.scale)] for one in latents)


def _coder(config: FlowConfig, bits: int) -> LogisticMixture:
    """The entropy model whose support holds every latent that samples of `bits` can become."""
    shift = bits - planes.MIN_BITS
    reach = (config.reach << shift) + (1 << bits)
    return LogisticMixture(-reach, reach - 1, 24 + shift // 2)


def _pad(x: Int32, multiple: int) -> tuple[Tensor, Tensor | None]:
    """Pad [C, h, w] with zeros to multiples; give [1, C, H, W] and the mask of real samples."""
    _, h, w = x.shape
    if h % multiple == 0 and w % multiple == 0:
        return torch.from_numpy(x.astype(np.float32))[None], None
    after = ((0, 0), (0, -h % multiple), (0, -w % multiple))
    padded = np.pad(x.astype(np.float32), after)
    mask = np.pad(np.ones(x.shape, dtype=np.float32), after)
    return torch.from_numpy(padded)[None], torch.from_numpy(mask)[None]


def _see(context: Int32 | None, multiple: int, shift: int) -> Tensor | None:
    """Bring a context plane [h, w] to padded activations [1, 1, H, W]; None stays None."""
    if context is None:
        return None
    seen = (context + (1 << shift >> 1)) >> shift
    return _pad(np.clip(seen, ACTIVATION_MIN, ACTIVATION_MAX)[None], multiple)[0]


def _select(x: Tensor, mask: Tensor | None) -> Int32:
    """The real samples of [1, C, h, w(, K)] as int32 [n(, K)]."""
    array = x[0].numpy()
    flat = array.reshape(-1) if x.ndim == 4 else array.reshape(-1, x.shape[-1])
    if mask is not None:
        flat = flat[mask[0].numpy().reshape(-1) > 0]
    return flat.astype(np.int32)


def _place(symbols: Int32, latent: Latent) -> Tensor:
    """Undo `_select` for symbols [n]: [1, C, h, w] with zeros where there is padding."""
    shape = latent.mean.shape[:-1]
    if latent.mask is None:
        return torch.from_numpy(symbols.astype(np.float32)).reshape(shape)
    z = np.zeros(latent.mask.numel(), dtype=np.float32)
    z[latent.mask.numpy().reshape(-1) > 0] = symbols
    return torch.from_numpy(z).reshape(shape)


def _parameters(latent: Latent) -> tuple[Int32, Int32, Int32 | None]:
    mean, scale = _select(latent.mean, latent.mask), _select(latent.scale, latent.mask)
    return mean, scale, None if latent.weight is None else _select(latent.weight, latent.mask)
