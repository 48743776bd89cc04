"""A level's network on a device: a state that stays there, from phase to phase."""

from __future__ import annotations

import torch
from torch import Tensor

from triton_kernels import convolution

MOST = 127
SHORT_MOST = (1 << 15) - 1


class Network:
    """The layers of a level's network.

    Args:
        layers: "begin" (one), "blocks", "updates" and "heads": of each layer its weight, int8
            or int16 [O, I, k, k], its bias, int32 [O], and its shift, int8 [O].
        device: Where it is to work.

    Attributes:
        width: Channels of the state.

    Raises:
        ValueError: A layer has a shape that no kernel covers.
    """

    def __init__(
        self, layers: dict[str, list[tuple[Tensor, Tensor, Tensor]]], device: torch.device
    ) -> None:
        self._layers = {
            name: [
                convolution.pack(
                    *layer,
                    (0, MOST) if name != "heads" else (-SHORT_MOST - 1, SHORT_MOST),
                    device,
                )
                for layer in group
            ]
            for name, group in layers.items()
        }
        self.width = self._layers["begin"][0].weight.shape[1]

    def advance(self, phase: int, both: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take a phase's channels in.

        Args:
            phase: 0, 1, 2; they have to come in this order.
            both: int8 [N, h, w, width + C]: room for the state and, behind it, the channels.
            state: What the phase before gave; None for the first.

        Returns:
            The new state, int8 [N, h, w, width], and the head's integers, int16 [N, h, w, O].
        """
        shape = both.shape[:3]
        inner, channels = both[..., : self.width], both[..., self.width :]
        if state is None:
            state = convolution.convolve(
                channels, self._layers["begin"][0], both.new_empty((*shape, self.width))
            )
            for block in self._layers.get("blocks", []):
                state = _grow(state, block, state)
        else:
            inner.copy_(state)
            state = _grow(both, self._layers["updates"][phase - 1], state)
        inner.copy_(state)
        head = self._layers["heads"][phase]
        out = both.new_empty((*shape, head.weight.shape[1]), dtype=torch.int16)
        return state, convolution.convolve(both, head, out)


def _grow(x: Tensor, layer: convolution.Layer, state: Tensor) -> Tensor:
    new = torch.empty_like(state)
    return convolution.convolve(x, layer, new, residual=state, limits=(0, MOST))
