"""The walk through one group of planes of one frame, pixel by pixel, in rows from the top.

    pixel    one of up to six guesses?  ->  else its samples, one by one
    guess    what followed these neighbors before, the last frame's pixel, a neighbor
    sample   a difference from the median predictor: zero?  sign, magnitude, lower bits

One walk serves both directions, so that they cannot disagree. A pixel is one number: its samples,
16 bits each, the first lowest. docs/format.md, "Pixels", defines every step.

References:
    Weinberger, Seroussi, Sapiro, "The LOCO-I lossless image compression algorithm", 2000, IEEE
    Trans. Image Processing 9(8), for the predictor.
"""

from __future__ import annotations

import numpy as np

from flowarchive.loops import compiled
from flowarchive.pixelwise.decisions import (
    AT,
    CONTEXTS,
    CONTRADICTED,
    FAILURE,
    LINE,
    OUT_OF_RANGE,
    SLOTS,
    Int32,
    Int64,
    Uint32,
    decide,
)
from flowarchive.pixelwise.groups import ABOVE, LEFT, SAMPLE_BITS

GUESSES = 6
PATIENCE = 2  # guesses where none was right at any neighbor
MOST_FAITH = 7
TABLES = 3

# Most decisions of a pixel: its guesses, and of each sample a zero, a sign, classes, lower bits.
MOST_DECISIONS = GUESSES + 4 * (2 + 15 + 15)

GUESS_INPUTS = 7
SAMPLE_INPUTS = 8

# Where the sets of weights begin.
SAME_SETS = GUESSES * 64
SAMPLE_SETS = SAME_SETS + 64
KINDS = 24
ERROR_SETS = SAMPLE_SETS + 4 * KINDS

_WORD = 1 << 64
# Powers of an odd number without a pattern, modulo 2**64, as signed numbers.
K = tuple((pow(0x9E3779B97F4A7C15, i, _WORD) + _WORD // 2) % _WORD - _WORD // 2 for i in range(15))
_SAMPLE = (1 << SAMPLE_BITS) - 1


@compiled
def walk(
    reading: bool,
    row: int,
    group: int,
    parts: int,
    leads: bool,
    bits: int,
    moving: bool,
    table_bits: int,
    line_bits: int,
    now: Int64,
    last: Int64,
    guide: Int64,
    outcome: Int64,
    errors: Int64,
    seen: Int64,
    faith: Int32,
    memory: Int32,
    board: Int64,
    stream: Uint32,
) -> int:
    """Write or read rows while the stream has room for one, or until it fails.

    Args:
        reading: The direction.
        row: The first row.
        group: Number of the group.
        parts: Its planes, 1..4.
        leads: The first leads the second and third.
        bits: Of a sample.
        moving: There is a frame before.
        table_bits: The tables have 2**table_bits entries.
        line_bits: The memory has 2**line_bits lines.
        now: int64 [ABOVE + h, LEFT + w + RIGHT]: the pixels, given or filled in.
        last: Those of the frame before, or zeros.
        guide: int64 [h, w]: what is known of each pixel from other groups.
        outcome: int64 [2, LEFT + w + RIGHT]: how the pixels of two rows were coded: 0 the first
            guess, 1 another, 2 none.
        errors: int64 [parts, 2, LEFT + w + RIGHT]: how wrong the predictor was.
        seen: int64 [2**table_bits]: the pixels that followed neighborhoods.
        faith: int32 [2**table_bits]: how often in a row they did.
        memory: See `decisions`.
        board: See `decisions`.
        stream: See `decisions`.

    Returns:
        The first row that is not done.
    """
    width = guide.shape[1]
    tried = np.zeros(GUESSES, np.int64)
    guesses = np.zeros(8, np.int64)
    trust = np.zeros(8, np.int64)
    spots = np.zeros(TABLES, np.int64)
    while row < guide.shape[0] and not board[FAILURE]:
        if not reading and stream.size - board[AT] < MOST_DECISIONS * width:
            break
        y = row + ABOVE
        own = y & 1
        old = 1 - own
        now[y, :LEFT] = now[y - 1, LEFT]
        for x in range(LEFT, LEFT + width):
            w, ww, n, nn = now[y, x - 1], now[y, x - 2], now[y - 1, x], now[y - 2, x]
            nw, ne = now[y - 1, x - 1], now[y - 1, x + 1]
            p = last[y, x]
            pair = w * K[1] + n * K[2] + guide[row, x - LEFT] * K[3] + group * K[4]
            small = pair + nw * K[5] + ne * K[6]
            large = small + ww * K[7] + nn * K[8] + now[y, x - 3] * K[9] + now[y - 1, x - 2] * K[10]
            large += now[y - 1, x + 2] * K[11] + now[y - 2, x - 1] * K[12]
            large += now[y - 2, x + 1] * K[13]
            pair, small, large = scramble(pair), scramble(small + 1), scramble(large + 2)
            spots[0] = top_bits(large, table_bits)
            spots[1] = top_bits(small, table_bits)
            spots[2] = top_bits(pair, table_bits)
            guesses[0], guesses[1], guesses[2] = seen[spots[0]], p, seen[spots[1]]
            guesses[3], guesses[4], guesses[5] = w, n, seen[spots[2]]
            guesses[6], guesses[7] = ne, nw
            trust[0], trust[2], trust[5] = faith[spots[0]], faith[spots[1]], faith[spots[2]]
            same = (w == n) + 2 * (n == ne) + 4 * (nw == w)
            same += 8 * (nw == n) + 16 * (ww == w) + 32 * (nn == n)
            past = outcome[own, x - 1] + 3 * outcome[old, x]
            past += 9 * outcome[old, x - 1] + 27 * outcome[old, x + 1]
            most = PATIENCE if past == 80 else GUESSES
            if moving:
                past += 81 * (1 + (last[y, x - 1] == w) + 2 * (last[y - 1, x] == n))
            pixel = now[y, x]
            hit = False
            k = 0
            for source in range(8):
                v = guesses[source]
                stale = source in (0, 2, 5) and trust[source] == 0
                if stale or (source == 1 and not moving):
                    continue
                for m in range(k):
                    stale |= tried[m] == v
                if stale:
                    continue
                if k == most:
                    break
                tried[k] = v
                alike = (v == w) + 2 * (v == n) + 4 * (v == nw)
                alike += 8 * (v == ne) + 16 * (v == ww) + 32 * (v == nn) + 64 * (moving and v == p)
                sort = 8 * source + trust[source]
                base = 16 * group
                board[CONTEXTS] = base + alike * K[1] + sort * K[2]
                board[CONTEXTS + 1] = base + 1 + past * K[1] + source * K[2]
                board[CONTEXTS + 2] = base + 2 + same * K[1] + sort * K[2]
                board[CONTEXTS + 3] = base + 3 + pair * K[1] + v * K[2]
                board[CONTEXTS + 4] = base + 4 + small * K[1] + v * K[2]
                board[CONTEXTS + 5] = base + 5 + large * K[1] + v * K[2]
                board[CONTEXTS + 6] = base + 6 + v * K[1]
                open_lines(GUESS_INPUTS, 0, line_bits, board)
                hit = decide(
                    pixel == v, reading, GUESS_INPUTS, k, 64 * k + sort, SAME_SETS + same,
                    memory, board, stream,
                )  # fmt: skip
                if hit:
                    pixel = v
                    break
                k += 1
            if hit:
                outcome[own, x] = min(k, 1)
                errors[:, own, x] = 0
            else:
                outcome[own, x] = 2
                pixel = walk_samples(
                    reading, pixel, y, x, group, parts, leads, bits, moving, line_bits,
                    pair, small, now, last, errors, memory, board, stream,
                )  # fmt: skip
                for m in range(k):
                    if reading and tried[m] == pixel and not board[FAILURE]:
                        board[FAILURE] = CONTRADICTED
            now[y, x] = pixel
            for spot in spots:
                if seen[spot] != pixel:
                    seen[spot] = pixel
                    faith[spot] = 1
                elif faith[spot] < MOST_FAITH:
                    faith[spot] += 1
        now[y, LEFT + width :] = now[y, LEFT + width - 1]
        row += 1
    return row


@compiled
def walk_samples(
    reading: bool,
    pixel: int,
    y: int,
    x: int,
    group: int,
    parts: int,
    leads: bool,
    bits: int,
    moving: bool,
    line_bits: int,
    pair: int,
    small: int,
    now: Int64,
    last: Int64,
    errors: Int64,
    memory: Int32,
    board: Int64,
    stream: Uint32,
) -> int:
    """Write or read the samples of the pixel `now[y, x]`, about which no guess was right.

    `pixel` is the pixel, or, reading, anything; `pair` and `small` are what is known of two and of
    four neighbors, scrambled; everything else is as in `walk`. Returns the pixel.
    """
    top = (1 << bits) - 1
    own = y & 1
    old = 1 - own
    done = known = before = earlier = 0
    for j in range(parts):
        shift = SAMPLE_BITS * j
        w, n = now[y, x - 1] >> shift & _SAMPLE, now[y - 1, x] >> shift & _SAMPLE
        nw, ne = now[y - 1, x - 1] >> shift & _SAMPLE, now[y - 1, x + 1] >> shift & _SAMPLE
        ww, nn = now[y, x - 2] >> shift & _SAMPLE, now[y - 2, x] >> shift & _SAMPLE
        p = last[y, x] >> shift & _SAMPLE
        plain_w, plain_n, base = w, n, 0
        if leads and 0 < j < 3:
            base = done & _SAMPLE
            w -= now[y, x - 1] & _SAMPLE
            n -= now[y - 1, x] & _SAMPLE
            nw -= now[y - 1, x - 1] & _SAMPLE
            ne -= now[y - 1, x + 1] & _SAMPLE
            ww -= now[y, x - 2] & _SAMPLE
            nn -= now[y - 2, x] & _SAMPLE
            p -= last[y, x] & _SAMPLE
        guess = min(max(median(w, n, nw) + base, 0), top)
        middle = guess - base
        slope = half_octaves(abs(w - nw) + abs(n - nw) + abs(n - ne))
        error = half_octaves(
            2 * errors[j, own, x - 1] + 2 * errors[j, old, x]
            + errors[j, old, x - 1] + errors[j, old, x + 1]
        )  # fmt: skip
        c = CONTEXTS
        start = 16 * group + 64 * j + 7
        board[c] = start + slope * K[1] + error * K[2]
        board[c + 1] = start + 1 + octaves(w - middle) * K[1] + octaves(n - middle) * K[2]
        board[c + 1] += octaves(ne - n) * K[3] + octaves(ww - w) * K[4]
        board[c + 2] = start + 2 + octaves(w + ne - n - middle) * K[1]
        board[c + 2] += octaves(2 * n - nn - middle) * K[2] + octaves(2 * w - ww - middle) * K[3]
        board[c + 3] = start + 3 + clamp(before, 24) * K[1] + clamp(earlier, 24) * K[2]
        board[c + 3] += slope * K[3]
        board[c + 4] = start + 4 + guess * K[1] + plain_w * K[2] + plain_n * K[3]
        board[c + 5] = start + 5 + guess * K[1] + known * K[2]
        board[c + 6] = start + 6 + pair * K[1] + known * K[2]
        if moving:
            board[c + 7] = start + 7 + clamp(p - middle, 64) * K[1] + error * K[2]
        else:
            board[c + 7] = start + 7 + small * K[1] + known * K[2]
        rest = walk_rest(
            reading, (pixel >> shift & _SAMPLE) - guess, bits, line_bits,
            SAMPLE_SETS + KINDS * j, ERROR_SETS + KINDS * error, memory, board, stream,
        )  # fmt: skip
        value = guess + rest
        if value < 0 or value > top:
            value = 0
            # After a failure the rest of the row is noise: the first one is reported.
            if not board[FAILURE]:
                board[FAILURE] = OUT_OF_RANGE
        errors[j, own, x] = abs(rest)
        earlier, before = before, rest
        known = known * K[4] + value + 1
        done |= value << shift
    return done


@compiled
def walk_rest(
    reading: bool,
    rest: int,
    bits: int,
    line_bits: int,
    first: int,
    second: int,
    memory: Int32,
    board: Int64,
    stream: Uint32,
) -> int:
    """Write or read the difference of a sample from its prediction, under the board's contexts.

    `rest` is the difference, or, reading, anything; `first` and `second` are where the two times
    KINDS sets of weights begin; everything else is as in `walk`. Returns the difference.
    """
    open_lines(SAMPLE_INPUTS, 1, line_bits, board)
    if not decide(rest != 0, reading, SAMPLE_INPUTS, 0, first, second, memory, board, stream):
        return 0
    minus = decide(
        rest < 0, reading, SAMPLE_INPUTS, 1, first + 1, second + 1, memory, board, stream
    )
    sign = 1 if minus else 0
    size = abs(rest)
    level = 0
    while level < bits - 1:
        slot = (2 + 2 * level + sign) % LINE
        if slot == sign:
            open_lines(SAMPLE_INPUTS, 2 + level // 4, line_bits, board)
        if not decide(
            size >> (level + 1) != 0, reading, SAMPLE_INPUTS, slot,
            first + 2 + level, second + 2 + level, memory, board, stream,
        ):  # fmt: skip
            break
        level += 1
    got = 1
    if level:
        open_lines(SAMPLE_INPUTS, 6 + 2 * level + sign, line_bits, board)
    for bit in range(level - 1, -1, -1):
        depth = min(level - 1 - bit, 3)
        one = decide(
            size >> bit & 1 != 0, reading, SAMPLE_INPUTS, got if depth < 3 else 0,
            first + 19 + depth, second + 19 + depth, memory, board, stream,
        )  # fmt: skip
        got = 2 * got + (1 if one else 0)
    return -got if minus else got


@compiled
def open_lines(inputs: int, page: int, line_bits: int, board: Int64) -> None:
    """Find one of the lines of each context on the board."""
    for i in range(inputs):
        line = top_bits((board[CONTEXTS + i] + page * K[5]) * K[1], line_bits)
        board[i] = SLOTS + LINE * line


@compiled
def scramble(h: int) -> int:
    """Let every bit of a sum of products depend on all of them."""
    h ^= h >> 32 & 0xFFFFFFFF
    h *= K[1]
    return h ^ (h >> 32 & 0xFFFFFFFF)


@compiled
def top_bits(h: int, bits: int) -> int:
    """Return the highest bits of a number modulo 2**64."""
    return h >> (64 - bits) & ((1 << bits) - 1)


@compiled
def median(a: int, b: int, c: int) -> int:
    """Return the median of a, b and a + b - c."""
    return min(max(a + b - c, min(a, b)), max(a, b))


@compiled
def clamp(x: int, reach: int) -> int:
    """Return the nearest of -reach..reach."""
    return min(max(x, -reach), reach)


@compiled
def length(a: int) -> int:
    """Return the bits of a number in 0..2**32 - 1, without branches to mispredict."""
    n = (a > 0xFFFF) << 4
    a >>= n
    m = (a > 0xFF) << 3
    a >>= m
    n += m
    m = (a > 0xF) << 2
    a >>= m
    n += m
    m = (a > 0x3) << 1
    a >>= m
    return n + m + a - (a >> 1 & a)


@compiled
def octaves(d: int) -> int:
    """Return the class of a difference: the bits of its magnitude, with its sign."""
    n = length(abs(d))
    return n if d >= 0 else -n


@compiled
def half_octaves(a: int) -> int:
    """Return the class of a magnitude: two for each power of two."""
    n = length(a)
    return 2 * n + (a >> (n - 2) & 1) if n > 1 else n
