"""Chunks of the `video` model walked through on a device; the CPU conducts, and codes vectors.

All whole-frame work is the device's, and what it works on stays there (`triton_kernels.session`).
Here is what is serial and small: which frames go together, which are cuts, and motion vectors,
whose adaptive binary decisions depend on each other one by one. Every chunk says what comes next;
chunks for which the same comes next go together in one step:

    _Chunk  ->  Intra(first, count)  ->  _Chunk  ->  Inter(frame)  ->  ...

An order of decoding serves both directions, as in `codec`: known kinds and fields are kept to be
pushed, unknown ones are popped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowarchive import motion, planes
from flowarchive.account import Account
from flowarchive.adaptive import predictor
from flowarchive.adaptive.correction import log_table
from flowarchive.ans import Message
from flowarchive.codec import find_intervals
from flowarchive.device import Kernels, Session
from flowarchive.entropy import Table, sigmoid_table
from flowarchive.entropy.cumulative import RECIPROCALS
from flowarchive.errors import MessageExhausted
from flowarchive.features import log_table as channel_logs
from flowarchive.flows.phases import PhaseNet
from flowarchive.lengths import log_table as length_table
from flowarchive.models.form import Form, Front, Step, code_front, steps
from flowarchive.models.light import Light, code_light
from flowarchive.models.mixtures import weight_table
from flowarchive.models.plan import CUT, FAR, LEFT, Choice, choose
from flowarchive.models.together import Together, side_by_side

Int32 = NDArray[np.int32]


def tables() -> dict[str, NDArray[Any]]:
    """Return the tables of the format that a device looks things up in."""
    rates, bits, magnitudes = motion.prices()
    constants = predictor.DECAY, predictor.GLOBAL_RIDGE, predictor.CLASS_RIDGE
    return {
        "sigmoid": sigmoid_table(),
        "reciprocals": np.array(RECIPROCALS, dtype=np.int64),
        "logs": channel_logs(),
        "weights": weight_table(),
        "costs": log_table(),
        "moves": motion.FILTERS,
        "lengths": length_table(),
        "rates": rates,
        "bits": bits,
        "magnitudes": magnitudes,
        "constants": np.array(constants),
        "cuts": np.array([CUT, LEFT, FAR], dtype=np.int64),
    }


class _Known:
    """The encoder's: keeps intervals of what was planned; `frame` is the first not coded yet."""

    def __init__(
        self,
        session: Session,
        chunk: int,
        choice: Choice,
        fields: NDArray[np.int16],
        cuts: Sequence[bool],
    ) -> None:
        self._session, self._chunk, self._choice = session, chunk, choice
        self._fields, self._cuts = fields, cuts
        self.frame = 0

    def front(self, bits: int) -> Front:
        return code_front(self._keep, self._choice.front, bits)

    def kind(self, t: int, kinds: Table) -> int:
        return self._keep(kinds, self._choice.kind(t, self._cuts[t]))

    def light(self, t: int, shape: tuple[int, int], bits: int) -> None:
        code_light(self._keep_all, self._choice.lights[t], shape, bits)

    def _keep(self, table: Table, symbol: int) -> int:
        self._keep_all(table, np.array([symbol], dtype=np.int32))
        return symbol

    def _keep_all(self, table: Table, symbols: Int32) -> Int32:
        self._session.keep(self._chunk, self.frame, *find_intervals(table, symbols))
        return symbols

    def field(
        self, t: int, reference: int, hints: motion.Field, model: motion.VectorModel
    ) -> motion.Field:
        field: motion.Field = self._fields[t, reference]
        coded = motion.encode_field(field, hints, model)
        self._session.keep(self._chunk, self.frame, *coded, motion.PRECISION)
        return field


class _Unknown:
    """The decoder's: pops what was kept; `fields` and `lit` are what the device has not seen."""

    def __init__(self, message: Message, luma: tuple[int, int]) -> None:
        self._message, self._luma = message, luma
        self.fields: list[motion.Field] = []
        self.lit: Light | None = None

    def front(self, bits: int) -> Front:
        return code_front(lambda table, _: self._pop(table), Front(), bits)

    def kind(self, t: int, kinds: Table) -> int:
        return self._pop(kinds)

    def light(self, t: int, shape: tuple[int, int], bits: int) -> None:
        def code(table: Table, symbols: Int32) -> Int32:
            return table.pop(self._message, symbols.size)

        self.lit = code_light(code, None, shape, bits)

    def _pop(self, table: Table) -> int:
        return int(table.pop(self._message, 1)[0])

    def field(
        self, t: int, reference: int, hints: motion.Field, model: motion.VectorModel
    ) -> motion.Field:
        field = motion.pop_field(self._message, self._luma, hints, model)
        self.fields.append(field)
        return field


MOST_FRAMES = (1 << 12) - 1
"""Of a chunk: planes of eight chunks, two of chroma a frame, lie side by side in a launch's grid,
which has room for 65535."""

MOST_SAMPLES = 1 << 26
"""Of a frame's luma: kernels count the bytes of a state, at most 20 for each, in 32 bits."""


class Device:
    """A model on a device: chunks that are coded at the same time go together.

    Args:
        kernels: The device's.
        nets: The model's, which have been sent there.
        filters: Where its predictors begin, of luma and of chroma.
        flows: Of its phases, which have been sent there.

    Attributes:
        least_gain: Bits that a flow has to save to be taken.
    """

    def __init__(
        self,
        kernels: Kernels,
        nets: Mapping[str, Sequence[PhaseNet]],
        filters: Sequence[Int32],
        flows: Any = None,
        least_gain: float = 0.0,
    ) -> None:
        self.least_gain = least_gain
        self._kernels, self._filters, self._flows = kernels, filters, flows
        self._nets = {name: [net.network for net in group] for name, group in nets.items()}
        self._together = Together()

    @staticmethod
    def holds(frame: planes.Components, count: int) -> bool:
        """Whether kernels can take so many such frames; the CPU has those that they cannot."""
        return frame.luma.size <= MOST_SAMPLES and count <= MOST_FRAMES

    def push_frames(
        self, message: Message, frames: Sequence[planes.Components], letters: str, bits: int
    ) -> Account:
        """Push a chunk's frames; see `models.Model`."""
        form = Form(letters, bits)
        alike = "push", form, len(frames), tuple(parts_of(frames[0], form)), message.lanes

        def work(items: Sequence[tuple[Message, Sequence[planes.Components]]]) -> list[Account]:
            messages, chunks = zip(*items, strict=True)
            return self.push_chunks(messages, chunks, form)

        account: Account = self._together.run(alike, (message, frames), work)
        return account

    def pop_frames(
        self, message: Message, unknown: Sequence[planes.Components], letters: str, bits: int
    ) -> list[planes.Components]:
        """Pop as many frames as there are unknown ones; see `models.Model`."""
        form = Form(letters, bits)
        alike = "pop", form, len(unknown), tuple(parts_of(unknown[0], form)), message.lanes
        done: list[planes.Components] = self._together.run(
            alike, message, lambda items: self.pop_chunks(items, unknown, form)
        )
        return done

    def push_chunks(
        self,
        messages: Sequence[Message],
        chunks: Sequence[Sequence[planes.Components]],
        form: Form,
    ) -> list[Account]:
        """Push the frames of chunks of one form, all with as many frames and lanes.

        Args:
            messages: Receive the bits, one chunk's each.
            chunks: Their frames.
            form: Of all of them.
        """
        session = self._session(chunks[0], len(chunks), form)
        return _push_chunks(session, messages, chunks, form, self.least_gain)

    def pop_chunks(
        self,
        messages: Sequence[Message],
        unknown: Sequence[planes.Components],
        form: Form,
    ) -> list[list[planes.Components]]:
        """Pop the frames of chunks of one form.

        Args:
            messages: Give the bits back; stay as they are where this raises.
            unknown: What the frames of each chunk are like.
            form: Of all of them.

        Raises:
            MessageExhausted: A message holds too few bits.
            FormatError: The bits say what no encoder would.
        """
        session = self._session(unknown, len(messages), form)
        copies = [message.copy() for message in messages]
        done = _pop_chunks(session, copies, unknown, form)
        for message, left in zip(messages, copies, strict=True):
            message.head[:], message.tail, message.size = left.head, left.tail, left.size
        return done

    def _session(self, frames: Sequence[planes.Components], chunks: int, form: Form) -> Session:
        """Begin a walk through chunks of such frames."""
        parts = parts_of(frames[0], form)
        return self._kernels.session(
            tables(), self._nets, self._filters, parts, chunks, len(frames), form.bits, self._flows
        )


def _push_chunks(
    session: Session,
    messages: Sequence[Message],
    chunks: Sequence[Sequence[planes.Components]],
    form: Form,
    least_gain: float,
) -> list[Account]:
    count, blank = len(chunks[0]), chunks[0][0]
    choices = [choose(frames, form.bits) for frames in chunks]
    lights = [
        (n, t, light)
        for n, choice in enumerate(choices)
        for t, light in enumerate(choice.lights)
        if light is not None
    ]
    kind = np.int16 if form.bits < 15 else np.int32
    by_part = zip(*(frame.parts for frames in chunks for frame in frames), strict=True)
    flat = [np.stack(part).astype(kind).ravel() for part in by_part]
    session.give(np.concatenate(flat), lights)
    cuts = np.ones((len(chunks), count), dtype=np.int8)
    fields = np.zeros(
        (len(chunks), count, 2, *motion.zero_field(blank.luma.shape).shape), dtype=np.int16
    )
    if blank.fits_luma and count > 1:
        fields, cuts = session.plan()
    ends = [_Known(session, n, choice, fields[n], cuts[n]) for n, choice in enumerate(choices)]
    walks = [steps(end, form.bits, count, blank) for end in ends]
    while any(coming := [next(walk, None) for walk in walks]):
        _code(session, coming)
        for end, step in zip(ends, coming, strict=True):
            end.frame += step.together if step else 0
    accounts = [Account(count, message.bits) for message in messages]
    heads, words, entries = session.push(*side_by_side(messages), least_gain)
    for message, left, live in zip(messages, heads, words, strict=True):
        message.head[:], message.tail, message.size = left, live.copy(), len(live)
    for chunk, frame, height, ideal, popped, lowest in entries:
        if popped is None:
            accounts[chunk].integer(frame, height, ideal)
        else:
            accounts[chunk].bits_back(frame, height, ideal, popped, lowest)
    return accounts


def _pop_chunks(
    session: Session,
    messages: Sequence[Message],
    unknown: Sequence[planes.Components],
    form: Form,
) -> list[list[planes.Components]]:
    count, blank = len(unknown), unknown[0]
    session.take(side_by_side(messages)[2], messages[0].lanes)
    ends = [_Unknown(message, blank.luma.shape) for message in messages]
    walks = [steps(end, form.bits, count, blank) for end in ends]
    is_first = True
    while True:
        if not is_first:
            _commit(messages, *session.messages())
        is_first = False
        coming = [next(walk, None) for walk in walks]
        if not any(coming):
            break
        inter = [
            (n, step.first, end)
            for n, (step, end) in enumerate(zip(coming, ends, strict=True))
            if step is not None and step.inter
        ]
        fields = [(n, first, np.stack(end.fields)) for n, first, end in inter]
        lights = [(n, first, end.lit) for n, first, end in inter if end.lit is not None]
        for end in ends:
            end.fields.clear()
        heads, sizes, _ = side_by_side(messages)
        session.set_messages(heads, sizes, fields, lights)
        _code(session, coming)
    found = session.planes()
    has_chroma = unknown[0].chroma is not None
    return [
        [
            planes.Components.of_parts([part[n, t].astype(np.int32) for part in found], has_chroma)
            for t in range(count)
        ]
        for n in range(len(messages))
    ]


def _commit(
    messages: Sequence[Message],
    heads: NDArray[np.uint64],
    sizes: Int32,
    words: Sequence[tuple[int, NDArray[np.uint32]]],
) -> None:
    """Take over what the device has popped, and what its flows have pushed."""
    if int(sizes.min()) < 0:
        raise MessageExhausted("a chunk needs more bits than its message holds")
    for message, head, size, (begin, fresh) in zip(messages, heads, sizes, words, strict=True):
        message.size = min(message.size, begin)
        message.reserve(len(fresh))
        message.tail[begin : begin + len(fresh)] = fresh
        message.commit(head.copy(), int(size))


def _code(session: Session, coming: Sequence[Step | None]) -> None:
    """Code what comes next; chunks for which the same comes next go together."""
    jobs = [(step._replace(first=0), n, step.first) for n, step in enumerate(coming) if step]
    for step, group in groupby(sorted(jobs), key=lambda job: job[0]):
        chunks, frames = zip(*((chunk, first) for _, chunk, first in group), strict=True)
        if step.inter:
            session.code_inter(chunks, frames, step.both, step.shift)
        else:
            session.code_intra(chunks, frames, step.together, step.shift)


def parts_of(frame: planes.Components, form: Form) -> list[tuple[Any, ...]]:
    """Return what a session asks of each of a frame's parts."""
    found: list[tuple[Any, ...]] = []
    for index, part in enumerate(frame.parts):
        chroma = index == 1 and frame.chroma is not None
        coder = form.samples(chroma).coder
        found.append((*part.shape, coder.low, coder.high, coder.precision, chroma))
    return found
