"""Chunks of the `idf` model on a device, which does all of it; see `triton_kernels.stills`.

Chunks that are alike go together: packed, all planes of all of them at once; unpacked, where a
frame's bits begin where the last one's end, a frame of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowarchive import planes
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.device import Kernels
from flowarchive.entropy import sigmoid_table
from flowarchive.entropy.cumulative import RECIPROCALS
from flowarchive.errors import MessageExhausted
from flowarchive.exact import IntConv2d, IntGroupNorm
from flowarchive.flows.integer import Conditioner, IntegerFlow, IntMixture, Level, Prior
from flowarchive.lengths import log_table
from flowarchive.models.together import MOST, Together, side_by_side

MOST_WEIGHT = (1 << 15) - 129
"""Magnitude of the largest weight that is two digits of eight bits."""

MOST_BYTES = (1 << 31) - 1
"""Of what the networks of a launch see: kernels count them in 32 bits."""

Part = tuple[Any, ...]
"""Of a frame, what `triton_kernels.session.Part` has: planes, their rows and columns, the support
of their symbols, and whether they are chroma."""


def has_kernels(flow: IntegerFlow) -> bool:
    """Whether kernels cover a frozen flow: no norms, whose sums are a whole plane's."""
    modules = list(flow.modules())
    wide = [m.weight.numpy() for m in modules if isinstance(m, IntConv2d)]
    return not any(isinstance(m, IntGroupNorm) for m in modules) and all(
        int(np.abs(weight.astype(np.int32)).max()) <= MOST_WEIGHT for weight in wide
    )


class Device:
    """A model on a device: chunks that are coded at the same time go together.

    Args:
        kernels: What the device offers.
        flows: Of luma and of chroma, frozen.
    """

    def __init__(self, kernels: Kernels, flows: tuple[IntegerFlow, IntegerFlow]) -> None:
        self._kernels, self._together = kernels, Together()
        self._configs = [flow.config for flow in flows]
        luma, chroma = (
            kernels.integer_flow(
                [_level(level) for level in flow.scales], flow.config.inverse_permutation
            )
            for flow in flows
        )
        self._flows = luma, chroma

    def holds(self, parts: Sequence[Part]) -> bool:
        """Whether kernels can take frames of this size; the CPU has those that they cannot."""
        for _, height, width, *_, chroma in parts:
            config = self._configs[chroma]
            side = config.multiple
            positions = -(-height // side) * -(-width // side) * side * side // 4
            if MOST * positions * config.widest > MOST_BYTES:
                return False
        return True

    def push_frames(
        self,
        message: Message,
        frames: Sequence[planes.Components],
        parts: Sequence[Part],
        bits: int,
    ) -> Account:
        """Push a chunk's frames; see `models.Model`."""
        alike = "push", tuple(parts), len(frames), bits, message.lanes

        def work(items: Sequence[tuple[Message, Sequence[planes.Components]]]) -> list[Account]:
            messages, chunks = zip(*items, strict=True)
            return self.push_chunks(messages, chunks, parts, bits)

        account: Account = self._together.run(alike, (message, frames), work)
        return account

    def pop_frames(
        self, message: Message, count: int, parts: Sequence[Part], bits: int
    ) -> list[planes.Components]:
        """Pop frames; see `models.Model`."""
        alike = "pop", tuple(parts), count, bits, message.lanes
        done: list[planes.Components] = self._together.run(
            alike, message, lambda items: self.pop_chunks(items, count, parts, bits)
        )
        return done

    def push_chunks(
        self,
        messages: Sequence[Message],
        chunks: Sequence[Sequence[planes.Components]],
        parts: Sequence[Part],
        bits: int,
    ) -> list[Account]:
        """Push the frames of chunks that are alike.

        Args:
            messages: Receive the bits, one chunk's each.
            chunks: Their frames, as many of each.
            parts: Of each frame.
            bits: Depth of the samples.
        """
        count = len(chunks[0])
        kind = np.int16 if bits < 15 else np.int32
        by_part = zip(*(frame.parts for frames in chunks for frame in frames), strict=True)
        flat = [np.stack(part).astype(kind).ravel() for part in by_part]
        accounts = [Account(count, message.bits) for message in messages]
        session = self._session(parts, len(chunks), count, bits)
        heads, words, lengths = session.push(np.concatenate(flat), *side_by_side(messages))
        for message, left, live, account, ideal in zip(
            messages, heads, words, accounts, lengths, strict=True
        ):
            message.head[:], message.tail, message.size = left, live.copy(), len(live)
            for frame in reversed(range(count)):
                account.integer(frame, message.bits, float(ideal[frame]))
        return accounts

    def pop_chunks(
        self, messages: Sequence[Message], count: int, parts: Sequence[Part], bits: int
    ) -> list[list[planes.Components]]:
        """Pop the frames of chunks that are alike.

        Args:
            messages: Give the bits back; stay as they are where this raises.
            count: Frames of each.
            parts: Of each frame.
            bits: Depth of the samples.

        Raises:
            MessageExhausted: A message holds too few bits.
        """
        session = self._session(parts, len(messages), count, bits)
        heads, sizes, found = session.pop(*side_by_side(messages))
        if int(sizes.min()) < 0:
            raise MessageExhausted("a chunk needs more bits than its message holds")
        for message, head, size in zip(messages, heads, sizes, strict=True):
            message.commit(head.copy(), int(size))
        has_chroma = any(part[-1] for part in parts)
        return [
            [
                planes.Components.of_parts([p[n, t].astype(np.int32) for p in found], has_chroma)
                for t in range(count)
            ]
            for n in range(len(messages))
        ]

    def answer(
        self, chroma: bool, samples: NDArray[np.int32], context: NDArray[np.int8] | None
    ) -> list[list[NDArray[np.int32]]]:
        """Return the symbols, means and scales of each level of a flow, padding's too.

        Args:
            chroma: Which flow.
            samples: Of 8 bits, int32 [C, h, w].
            context: Activations, int8 [h, w], or None.
        """
        found: list[list[NDArray[np.int32]]]
        found = self._kernels.answer(self._flows[chroma], samples, context)
        return found

    def _session(self, parts: Sequence[Part], chunks: int, count: int, bits: int) -> Any:
        tables = {
            "sigmoid": sigmoid_table(),
            "reciprocals": np.array(RECIPROCALS, dtype=np.int64),
            "lengths": log_table(),
        }
        return self._kernels.still_session(tables, self._flows, parts, chunks, count, bits)


def _level(level: Level) -> tuple[list[Any], Any]:
    """The integers of a level, as `triton_kernels.host.Host.integer_flow` takes them."""
    prior = level.prior
    couplings = [_conditioner(step.conditioner) for step in level.steps]
    if isinstance(prior, IntMixture):
        return couplings, tuple(p.numpy() for p in (prior.mean, prior.scale, prior.weight))
    assert isinstance(prior, Prior)
    return couplings, _conditioner(prior.conditioner)


def _conditioner(network: Conditioner) -> tuple[list[Any], list[Any], list[Any]]:
    heads = [[_layer(one) for one in part.values()] for part in (network.linear, network.dense)]
    layers = [
        [_layer(one) for one in layer.modules() if isinstance(one, IntConv2d)]
        for layer in network.layers
    ]
    return layers, heads[0], heads[1]


def _layer(layer: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return layer.weight.numpy(), layer.bias.numpy(), layer.shift.numpy()
