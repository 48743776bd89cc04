"""Speed and tightness of the coder: `python tests/bench/coder.py`.

Symbols of 8-bit video's kind, [-384, 383], every one with its own mean and scale, drawn from the
very mixture that codes them. Prints millions of symbols a second, median of several runs, on one
core; and bits a symbol: coded, ideal for the integer model, and of the exact real distribution.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from flowarchive.ans import Message
from flowarchive.entropy import SCALE_MIN_LOG2, WEIGHT_BITS, LogisticMixture

COUNT = 1 << 19
RUNS = 7
LOW, HIGH, PRECISION = -384, 383, 24


def draw(components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return symbols [n] and mean, scale, weight [n, K]."""
    rng = np.random.default_rng(components)
    center = rng.normal(0, 40, (COUNT, 1))
    mean = np.rint(256 * (center + rng.normal(0, 1.5, (COUNT, components)))).astype(np.int32)
    scale = rng.integers(36, 64, (COUNT, components)).astype(np.int32)
    weight = np.floor(rng.dirichlet(np.ones(components), COUNT) * (1 << WEIGHT_BITS))
    weight = weight.astype(np.int32)
    weight[:, 0] += (1 << WEIGHT_BITS) - weight.sum(axis=1, dtype=np.int32)
    chosen = (rng.integers(0, 1 << WEIGHT_BITS, (COUNT, 1)) >= weight.cumsum(axis=1)).sum(axis=1)
    rows = np.arange(COUNT)
    noise = rng.logistic(0, 2.0 ** (scale[rows, chosen] / 8 + SCALE_MIN_LOG2))
    symbols = np.rint(mean[rows, chosen] / 256 + noise).clip(LOW, HIGH).astype(np.int32)
    return symbols, mean, scale, weight


def real_bits(
    symbols: np.ndarray, mean: np.ndarray, scale: np.ndarray, weight: np.ndarray
) -> float:
    """Return the code length under the mixture in floats, without any floor."""

    def below(edge: np.ndarray) -> np.ndarray:
        argument = (edge[:, None] - mean / 256) / 2.0 ** (scale / 8 + SCALE_MIN_LOG2)
        return (weight / (1 << WEIGHT_BITS) / (1 + np.exp(-np.clip(argument, -700, 700)))).sum(1)

    left = np.where(symbols == LOW, 0, below(symbols - 0.5))
    right = np.where(symbols == HIGH, 1, below(symbols + 0.5))
    return float(-np.log2(np.maximum(right - left, 2.0**-52)).sum())


def speed(run: Callable[[], object]) -> float:
    """Return millions of symbols a second of processor time, the median of several runs."""
    times = []
    for _ in range(RUNS + 1):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return COUNT / statistics.median(times[1:]) / 1e6


def main() -> None:
    """Print one line for each number of components and lanes."""
    model = LogisticMixture(LOW, HIGH, PRECISION)
    print(f"{COUNT} symbols in [{LOW}, {HIGH}], precision {PRECISION}")
    print(" K  lanes   push M/s   pop M/s   coded   ideal    real  (bits/symbol)")
    for components in (1, 2, 6):
        symbols, mean, scale, weight = draw(components)
        parameters = (mean, scale) if components == 1 else (mean, scale, weight)
        ideal = model.bits(symbols, *parameters) / COUNT
        real = real_bits(symbols, mean, scale, weight) / COUNT
        for lanes in (1, 8, 64, 1024):
            full = Message(lanes)
            model.push(full, symbols, *parameters)
            coded = 8 * len(full.to_bytes()) / COUNT
            found = model.pop(full.copy(), *parameters)
            if not np.array_equal(found, symbols):
                raise AssertionError("pop did not give back what was pushed")
            push = speed(lambda: model.push(Message(lanes), symbols, *parameters))  # noqa: B023
            pop = speed(lambda: model.pop(full.copy(), *parameters))  # noqa: B023
            print(
                f"{components:2} {lanes:6} {push:10.1f} {pop:9.1f}"
                f" {coded:7.4f} {ideal:7.4f} {real:7.4f}"
            )


if __name__ == "__main__":
    main()
