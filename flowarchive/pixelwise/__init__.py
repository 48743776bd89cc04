"""Pixels that repeat: a coder for screens, drawings and renderings that needs no model.

Drawn pictures repeat themselves exactly: the neighbor, the last frame, what followed the same
neighbors before. Here a pixel, all its samples at once, is compared with a few such guesses, and
only where all of them fail are its samples coded, one by one. Every decision is binary, and its
probability is mixed from what many contexts have shown so far in the chunk:

    groups      planes as pixels, and a quick look at how much these repeat
    decisions   one binary decision: contexts -> probability -> the stack, and what is learned
    walk        the decisions that spell a pixel, and their contexts
    frames      a chunk's frames to a message and back

This package knows planes of samples and the message. It must not know models or files. What it
exports is free of compiled loops, so that a clip that is not drawn does not pay for them.
"""

from flowarchive.pixelwise.groups import LANES, repetition

__all__ = ["LANES", "repetition"]
