"""Chunks go through kernels on one side and through the CPU on the other, and nobody can tell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chains import RICH_CHAIN, TINY_CHAIN, make_chain_model
from interpreted import Runs
from models import make_video_model

from flowarchive import device, motion, planes, store
from flowarchive.adaptive.solve import fade_and_solve, no_sums
from flowarchive.ans import Message
from flowarchive.archive import chunks
from flowarchive.codec import find_intervals
from flowarchive.errors import DeviceError, MessageExhausted, NotReproducible
from flowarchive.models import form, light, offload, plan
from flowarchive.models.answer import rehearse
from flowarchive.models.form import Form
from flowarchive.models.video import VideoModel
from triton_kernels import (
    convolution,
    dequantize,
    filters,
    host,
    layers,
    maps,
    picture,
    rans,
    search,
    stack,
)
from triton_kernels.link import Traffic

SHAPES = [(4, 5), (2, 3), (2, 3)]
LANES = 4


def frames(count: int, cut: int, seed: int) -> list[planes.Components]:
    """A texture that moves by a sample a frame, with noise; at a cut it is another."""
    random = np.random.default_rng(seed)
    done = []
    for t in range(count):
        if t in (0, cut):
            texture = random.integers(-90, 90, (30, 40)).astype(np.int32)
            texture = (texture + np.roll(texture, 1, 0) + np.roll(texture, 1, 1)) // 3
        luma, u, v = (
            texture[t : t + h, t : t + w] + random.integers(0, 3, (h, w)).astype(np.int32)
            for h, w in SHAPES
        )
        done.append(planes.Components(luma, np.stack([u, v])))
    return done


def still(seed: int) -> list[planes.Components]:
    """Frames of which the last almost repeats the one before."""
    first, second, last = frames(3, 0, seed)
    luma = second.luma.copy()
    luma[0, :3] += 1
    return [first, second, planes.Components(luma, last.chroma)]


def dimmed(monkeypatch: Any) -> list[planes.Components]:
    """Frames of which the second has less light, which an encoder finds from now on."""
    first, second, last = frames(3, 0, seed=8)
    second = planes.Components(second.luma // 2 + 50, second.chroma // 2 + 9)
    same, darker, brighter = (light.ONE, 0), (light.ONE // 2, 200), (2 * light.ONE, -400)
    told = [[darker] * 3] * 2, [[brighter, brighter, same], [same, same, darker]]
    lights = [None, *(np.array(one, dtype=np.int32) for one in told)]

    def find(given: Any, bits: int) -> Any:
        return lights if given[1] is second else [None] * len(given)

    monkeypatch.setattr(plan, "find_lights", find)
    return [first, second, last]


@pytest.fixture
def alone(monkeypatch) -> Any:
    """All of it the interpreter's, in few and large programs."""
    monkeypatch.setattr(picture, "TILE", 1 << 13)
    monkeypatch.setattr(filters, "SYSTEMS", 16)
    return device.select("cuda")


@pytest.fixture
def kernels(alone, monkeypatch) -> Any:
    """The search and the solution for filters, which take the interpreter long, are the CPU's."""

    def on_cpu(one, n, shape):
        parts = {name: tensor[n].numpy() for name, tensor in one._asdict().items()}
        return SimpleNamespace(shape=shape, **parts)

    def search_on_cpu(current, last, hints, prices, older):
        found = []
        for n, hint in enumerate(hints.numpy()):
            # All that is asked of the shape is how many blocks there are.
            shape = tuple(motion.BLOCK * side for side in hint.shape[:2])
            own, past = on_cpu(current, n, shape), on_cpu(last, n, shape)
            fields = [motion.search(own, past, hint)]
            if older is not None:
                doubled, known = motion.doubled(fields[0]), (past, fields[0])
                fields.append(motion.search(own, on_cpu(older, n, shape), doubled, beside=known))
            found.append(fields)
        return torch.from_numpy(np.array(found).swapaxes(0, 1))

    def solve_on_cpu(learned, defaults, constants, which):
        start = (defaults.numpy() * (1 << 14)).astype(np.int32)
        for chunk, plane, group in product(which.tolist(), range(learned.sums.shape[1]), range(3)):
            weights, sums, _, faded = (
                x if x.dim() == 1 else x[chunk, plane, group].numpy() for x in learned
            )
            older = no_sums(3, faded.shape[-1])
            blocks, _, lanes = older.shape
            older[:] = faded.reshape(blocks, lanes, -1).swapaxes(1, 2)
            fade_and_solve(older, sums, start[group], weights, *constants.tolist())
            faded[:] = older.swapaxes(1, 2).reshape(faded.shape)
        learned.age.index_add_(0, which, torch.ones_like(which))

    monkeypatch.setattr(search, "search", search_on_cpu)
    monkeypatch.setattr(filters, "end_frame", solve_on_cpu)
    return alone


def pack_on(
    model: Any, places: Iterable[Any], given: list[planes.Components], letters: str, bits: int
) -> list[bytes]:
    """What frames are packed to on each of some devices, None for the CPU."""
    packed = []
    for place in places:
        model.use(place)
        message = Message(LANES)
        model.push_frames(message, given, letters, bits)
        packed.append(message.to_bytes())
    return packed


def kinds_of(given: list[planes.Components]) -> list[int]:
    """The kinds of a chunk's frames, as the encoder plans them."""
    planned = plan.Plan(given, 8)
    fields = [planned.fields(t) for t in range(len(given))]
    return [planned.choice.kind(t, field is None) for t, field in enumerate(fields)]


def pack(model: VideoModel, given: list[planes.Components]) -> bytes:
    message = Message(LANES)
    model.push_frames(message, given, "YUV", 8)
    return message.to_bytes()


def unpack(model: VideoModel, data: bytes, count: int) -> list[planes.Components]:
    message = Message.from_bytes(data, LANES)
    done = list(model.pop_frames(message, count, SHAPES, "YUV", 8))
    assert message.is_drained
    return done


def assert_same(ours: list[planes.Components], theirs: list[planes.Components]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert all(map(np.array_equal, one.parts, other.parts))


def test_chunks_cross_over_both_ways(kernels, monkeypatch):
    """Chunks side by side, out of step: two references, one, a cut, a near frame, other light.

    What one path packs the other unpacks, to equal bytes. Frames travel once each way; between,
    a decoder sends and fetches heads, and motion, once a step.
    """
    pushes = Runs(monkeypatch, rans, "push_kernel")
    pops = Runs(monkeypatch, rans, "pop_symbols_kernel")
    looks = Runs(monkeypatch, picture, "interpolate_kernel")
    model = make_video_model(seed=3)
    given = [dimmed(monkeypatch), frames(3, 0, seed=1), still(seed=8)]
    kinds = Counter(kind for chunk in given for kind in kinds_of(chunk))
    assert kinds == {form.INTRA: 4, form.INTER: 4, form.NEAR: 1}
    on_cpu = [pack(model, chunk) for chunk in given]
    assert not pushes.grids
    model.use(kernels)
    messages = [Message(LANES) for _ in given]
    accounts = model._device.push_chunks(messages, given, Form("YUV", 8))
    assert [message.to_bytes() for message in messages] == on_cpu
    assert pushes.grids == [(3,)]
    # Three frames are looked at, and three pasts in other light, of all chunks at once.
    assert [grid[2] for grid in looks.grids] == [3] * 6
    for account, message in zip(accounts, messages, strict=True):
        assert account.ideal_bits == pytest.approx(message.bits, rel=0.1)
    traffic = kernels.link.traffic
    assert (traffic.uploads, traffic.downloads) == (2, 3)
    samples = sum(h * w for h, w in SHAPES) * 3 * 3
    assert traffic.sent < 2 * samples + 4096  # and vectors, kinds, tables of segments

    kernels.link.traffic = traffic = Traffic()
    messages = [Message.from_bytes(data, LANES) for data in on_cpu]
    unknown = [planes.blank(SHAPES, "YUV")] * 3
    from_kernels = model._device.pop_chunks(messages, unknown, Form("YUV", 8))
    assert all(message.is_drained for message in messages)
    # Intra, inter, inter or near; a cut makes one group of two frames, and a step less.
    steps = 3
    assert (traffic.uploads, traffic.downloads) == (1 + steps, steps + 1)
    assert len(set(pops.grids)) == 1
    model.use(None)
    launches = len(pops.grids)
    for chunk, ours, data in zip(given, from_kernels, on_cpu, strict=True):
        assert_same(ours, chunk)
        assert_same(unpack(model, data, 3), chunk)
    assert len(pops.grids) == launches


def test_a_chunk_is_packed_by_kernels_alone(alone, monkeypatch):
    """The search and the solution for filters too, of one small plane: bytes are the CPU's."""
    searches = Runs(monkeypatch, search, "search_kernel")
    solutions = Runs(monkeypatch, filters, "class_kernel")
    model = make_video_model(seed=3)
    given = [planes.Components(frame.luma) for frame in frames(3, 0, seed=8)]
    assert kinds_of(given) == [form.INTRA, form.INTER, form.INTER]
    packed = pack_on(model, (None, alone), given, "Y", 8)
    assert packed[0] == packed[1]
    # One field, then two; of what two frames leave, the last one predicts with the first's.
    assert [grid[1:] for grid in searches.grids] == [(1, 1)] + [(1, 2)] * (1 + search.LAG)
    assert len(solutions.grids) == 2


def test_flows_cross_over(kernels, monkeypatch):
    """Chunks of a `chain` model, by flow and without; each goes its own way at a phase.

    Bytes and accounts are equal, whoever packed; and who unpacks them does not matter either. All
    phases are decided about on the device: it is asked nothing until all is pushed.
    """
    names = "dequantize_kernel", "quantize_kernel"
    forth, back = (Runs(monkeypatch, dequantize, name) for name in names)
    ways, pop = [], rans.pop

    def spy(messages: rans.Messages, start: torch.Tensor, *rest: Any) -> rans.Messages:
        ways.append(tuple(start.flatten().tolist()))
        return pop(messages, start, *rest)

    monkeypatch.setattr(rans, "pop", spy)
    model = make_chain_model(seed=2)
    random = np.random.default_rng(1)
    texture = random.integers(-90, 90, (40, 40)).astype(np.int32)
    texture = (texture + np.roll(texture, 1, 0) + np.roll(texture, 1, 1)) // 3
    noise = random.integers(0, 3, (2, 2, 12, 12)).astype(np.int32)
    given = [
        [planes.Components(texture[t : t + 12, t : t + 12] + noise[n, t - begin]) for t in times]
        for n, begin in enumerate((0, 25))
        for times in [range(begin, begin + 2)]
    ]
    messages = [Message(LANES) for _ in given]
    on_cpu = [
        model.push_frames(message, chunk, "Y", 8)
        for message, chunk in zip(messages, given, strict=True)
    ]
    assert any(frame.popped for account in on_cpu for frame in account.statement().frames)
    model.use(kernels)
    ours = [Message(LANES) for _ in given]
    accounts = model._device.push_chunks(ours, given, Form("Y", 8))
    assert [message.to_bytes() for message in ours] == [m.to_bytes() for m in messages]
    assert [account.statement() for account in accounts] == [a.statement() for a in on_cpu]
    assert len(set(forth.grids)) == 1
    traffic = kernels.link.traffic
    assert (traffic.uploads, traffic.downloads) == (2, 3)

    unknown = [planes.blank([(12, 12)], "Y")] * 2
    popped = model._device.pop_chunks(ours, unknown, Form("Y", 8))
    for done, chunk, message in zip(popped, given, ours, strict=True):
        assert_same(done, chunk)
        assert message.is_drained
    assert set(back.grids) == {(2,)}
    assert set(ways) > {(0, 0), (1, 1)}


LAYER_KERNELS = [
    (layers, "row_kernel"),
    (layers, "mixture_kernel"),
    (layers, "move_kernel"),
    (maps, "affine_kernel"),
]


@pytest.mark.slow
def test_flows_of_all_layers_cross_over(kernels, monkeypatch):
    """Mixes, norms, couplings by mixtures, and places that lean: bytes, account and frames."""
    runs = [Runs(monkeypatch, *kernel) for kernel in LAYER_KERNELS]
    model = make_chain_model(seed=2, config=RICH_CHAIN).for_rehearsal()
    chunk = [planes.Components(frame.luma) for frame in frames(2, 0, seed=6)]
    message = Message(LANES)
    account = model.push_frames(message, chunk, "Y", 8)
    assert all(frame.popped for frame in account.statement().frames)
    model.use(kernels)
    ours = Message(LANES)
    (on_device,) = model.for_rehearsal()._device.push_chunks([ours], [chunk], Form("Y", 8))
    assert ours.to_bytes() == message.to_bytes()
    assert on_device.statement() == account.statement()
    assert all(run.grids for run in runs)
    for run in runs:
        run.grids.clear()
    unknown = [planes.blank([SHAPES[0]], "Y")] * 2
    popped = model._device.pop_chunks([ours], unknown, Form("Y", 8))
    assert_same(popped[0], chunk)
    assert ours.is_drained
    assert all(run.grids for run in runs)


STRETCHED: dict[str, Any] = {
    **TINY_CHAIN,
    "flow": {**TINY_CHAIN["flow"], "layers": [{"kind": "coupling", "moved": [0, 1, 2, 3]}] * 16},
}
"""As many couplings as there may be, of all parts: with a high gain, going back gives bits."""


def hostile() -> Message:
    """Noise, with a chunk's front on top, from which STRETCHED unpacks more than it takes."""
    random = np.random.default_rng(44)
    heads = random.integers(1 << 31, 1 << 63, LANES, dtype=np.uint64).astype("<u8").tobytes()
    message = Message.from_bytes(heads + random.bytes(4 * 150), LANES)
    message.push(*find_intervals(form.SHIFTS, np.zeros(1, dtype=np.int32)))
    return message


@pytest.mark.parametrize("has_room", [True, False])
def test_a_hostile_chunk_grows(kernels, monkeypatch, has_room):
    """A message that becomes longer, step by step, is the CPU's; without room it is an error."""
    model = make_chain_model(seed=2, config=STRETCHED, gain=60)
    message = hostile()
    words = [message.size]
    expected = []
    for frame in model.pop_frames(message, 2, [(12, 12)], "Y", 8):
        expected.append(frame)
        words.append(message.size)
    assert words[0] < words[1] < words[2]
    rooms = []
    reserve = stack.Popper.reserve

    def spy(popper: stack.Popper, words: int) -> None:
        if has_room:
            reserve(popper, words)
        rooms.append(popper.messages.tail.shape[1])

    monkeypatch.setattr(stack.Popper, "reserve", spy)
    model.use(kernels)
    ours, unknown = hostile(), [planes.blank([(12, 12)], "Y")] * 2
    if has_room:
        popped = model._device.pop_chunks([ours], unknown, Form("Y", 8))
        assert_same(popped[0], expected)
        assert ours.to_bytes() == message.to_bytes()
        assert rooms[0] < rooms[1]
    else:
        with pytest.raises(MessageExhausted):
            model._device.pop_chunks([ours], unknown, Form("Y", 8))
        assert ours.to_bytes() == hostile().to_bytes()


def test_one_frame_crosses_over(kernels):
    """Deep samples, of which networks do not see the lowest; alpha; planes too flat to split."""
    model = make_video_model(seed=3)
    random = np.random.default_rng(5)
    shapes = [(1, 3), (1, 2), (1, 2), (1, 3)]
    luma, u, v, alpha = (random.integers(-2000, 2000, s).astype(np.int32) for s in shapes)
    given = [planes.Components(luma, np.stack([u, v]), (alpha,))]
    packed = pack_on(model, (None, kernels), given, "YUVA", 12)
    assert packed[0] == packed[1]
    message = Message.from_bytes(packed[0], LANES)
    assert_same(list(model.pop_frames(message, 1, shapes, "YUVA", 12)), given)
    message = Message.from_bytes(packed[0][: 8 * LANES], LANES)
    with pytest.raises(MessageExhausted):
        list(model.pop_frames(message, 1, shapes, "YUVA", 12))


def test_frames_that_are_too_large_are_the_cpus(kernels, monkeypatch):
    monkeypatch.setattr(offload, "MOST_SAMPLES", 19)
    pushes = Runs(monkeypatch, rans, "push_kernel")
    pops = Runs(monkeypatch, rans, "pop_symbols_kernel")
    model, given = make_video_model(seed=3), frames(2, 0, seed=1)
    packed = pack_on(model, (None, kernels), given, "YUV", 8)
    assert packed[0] == packed[1]
    assert_same(unpack(model, packed[1], 2), given)
    assert not pushes.grids
    assert not pops.grids


@pytest.fixture
def placed(kernels, monkeypatch) -> Any:
    """A stored model whose answers on a device a test decides: the interpreter takes long."""
    model = make_video_model(seed=3)
    monkeypatch.setattr(store, "rehearse", lambda network: b"")
    return stored(model, kernels, monkeypatch)


def stored(model: VideoModel, kernels: Any, monkeypatch: Any) -> store.StoredModel:
    """A model as out of a file, and nothing but the interpreter to place it on."""
    answer = {"known_answer": model.known_answer()}
    monkeypatch.setattr(store, "_metadata", lambda data: answer)
    monkeypatch.setattr(store, "select", lambda name: kernels)
    return store.StoredModel("tiny", b"", model)


def test_a_model_is_placed_once_it_has_given_its_answer(placed, kernels, monkeypatch, caplog):
    """One that answers otherwise there is refused, or stays on the CPU, which is told."""
    model, asked = placed.network, []
    answers = ["another", "another", model.known_answer()]

    def known_answer() -> str:
        asked.append(model._device)
        return answers.pop()

    monkeypatch.setattr(model, "known_answer", known_answer)
    assert store.place(placed, "auto") == kernels.name
    assert not caplog.messages
    assert store.place(placed, "auto") == "cpu"
    assert len(caplog.messages) == 1
    assert "its known answer on Triton's interpreter; it runs on the CPU" in caplog.text
    with pytest.raises(NotReproducible, match="known answer on Triton's interpreter"):
        store.place(placed, "cuda")
    assert None not in asked
    assert model._device is None
    model.has_kernels = False
    assert store.place(placed, "auto") == "cpu"
    with pytest.raises(DeviceError, match="has no kernels"):
        store.place(placed, "cuda")


def test_a_model_that_codes_other_bits_is_not_placed(placed, monkeypatch):
    """Its networks may be right where something else is not."""
    model = placed.network
    answer = model.known_answer()
    monkeypatch.setattr(model, "known_answer", lambda: answer)
    monkeypatch.setattr(store, "rehearse", lambda network: str(network._device is None).encode())
    with pytest.raises(NotReproducible, match="other bits on Triton's interpreter"):
        store.place(placed, "cuda")
    assert model._device is None


class Broken:
    """A kernel, or a rehearsal, that cannot be launched."""

    def __getitem__(self, grid: object) -> None:
        raise RuntimeError("Triton Error [CUDA]: invalid device context\nand a second line")


@pytest.mark.parametrize("where", ["networks", "chunk"])
def test_a_first_launch_may_fail(placed, monkeypatch, caplog, where):
    """Whatever a compiler or a driver says: one line, and the CPU for `auto`."""
    model = placed.network
    if where == "networks":
        monkeypatch.setattr(convolution, "convolution_kernel", Broken())
    else:
        answer = model.known_answer()
        monkeypatch.setattr(model, "known_answer", lambda: answer)
        monkeypatch.setattr(
            store, "rehearse", lambda _: b"" if model._device is None else Broken()[0]
        )
    reason = "'tiny' cannot run on Triton's interpreter: RuntimeError: Triton Error [CUDA]: invalid"
    assert store.place(placed, "auto") == "cpu"
    (message,) = caplog.messages
    assert reason in message
    assert "\n" not in message
    assert message.endswith("; it runs on the CPU")
    assert placed.network._device is None
    with pytest.raises(DeviceError) as error:
        store.place(placed, "cuda")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rehearsal_is_a_chunk_that_comes_back(monkeypatch):
    """On the CPU here: all kinds of steps are taken, and frames that differ are seen."""
    model = make_video_model(seed=3)
    code_inter, both = model._code_inter, []

    def spy(walk: Any, frame: Any, moved: list[Any], *rest: Any) -> Any:
        both.append(len(moved[0]) > 1)
        return code_inter(walk, frame, moved, *rest)

    monkeypatch.setattr(model, "_code_inter", spy)
    data = rehearse(model)
    assert data is not None
    assert len(data) > 64 * 8
    assert both == 2 * [False, True]  # an intra frame is followed by these; pushed, and popped
    popped = model.pop_frames
    monkeypatch.setattr(model, "pop_frames", lambda *args: reversed(list(popped(*args))))
    assert rehearse(model) is None


FLOW_KERNELS = [
    *((maps, f"{name}_kernel") for name in ("shrinks", "push_base", "pop_base", "seen", "affine")),
    *((dequantize, f"{way}quantize_kernel") for way in ("de", "")),
]


@pytest.mark.slow
def test_flows_are_rehearsed(kernels, monkeypatch):
    """All that packing and unpacking by a flow launch is launched before a user's archive is."""
    runs = [Runs(monkeypatch, *kernel) for kernel in FLOW_KERNELS]
    model = make_chain_model(seed=2)
    answer = model.known_answer()
    monkeypatch.setattr(model, "known_answer", lambda: answer)
    assert store.place(stored(model, kernels, monkeypatch), "cuda") == kernels.name
    assert all(run.grids for run in runs)
    # Phases of the two levels, of luma and chroma, of three frames, but those without samples.
    assert len(runs[1].grids) == len(runs[2].grids) == 36


@pytest.mark.slow
@pytest.mark.parametrize("kernel", FLOW_KERNELS, ids=lambda kernel: kernel[1])
def test_a_flow_that_cannot_be_launched_is_found_out(kernels, monkeypatch, caplog, kernel):
    """One line, and the CPU for `auto`, before anything is packed or unpacked."""
    model = make_chain_model(seed=2)
    answer = model.known_answer()
    monkeypatch.setattr(model, "known_answer", lambda: answer)
    monkeypatch.setattr(*kernel, Broken())
    one = stored(model, kernels, monkeypatch)
    assert store.place(one, "auto") == "cpu"
    (message,) = caplog.messages
    assert message.endswith("invalid device context; it runs on the CPU")
    with pytest.raises(DeviceError, match="'tiny' cannot run on Triton's interpreter: RuntimeErr"):
        store.place(one, "cuda")
    assert model._device is None


def test_a_driver_may_be_broken(monkeypatch):
    def find() -> str:
        raise RuntimeError("CUDA driver initialization failed\nand a second line")

    monkeypatch.setattr(host, "find", find)
    assert device.select("auto") is None
    with pytest.raises(DeviceError, match=r"be used: CUDA driver initialization failed$"):
        device.select("cuda")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("HIP error: out of memory"),
    ],
)
def test_memory_of_a_gpu_runs_out_like_memory(error):
    with pytest.raises(MemoryError, match="do not fit into memory"), chunks._memory_errors():
        raise error


def test_one_network_answers_alike(kernels):
    """What the known answer is made of, of one network, by the kernels."""
    model = make_video_model(seed=1)
    model.nets = {"inter_chroma": model.nets["inter_chroma"][:1]}
    expected = model.known_answer()
    model.use(kernels)
    assert model.known_answer() == expected
    traffic = kernels.link.traffic
    assert (traffic.uploads, traffic.downloads) == (3, 3)


def test_choices(monkeypatch):
    assert device.select("cpu") is None
    assert device.select("auto") is None  # the interpreter is for who asks for it
    with pytest.raises(ValueError, match="device is 'tpu'"):
        device.select("tpu")
    monkeypatch.setitem(sys.modules, "triton_kernels", None)
    assert device.select("auto") is None
    with pytest.raises(DeviceError, match="flowarchive\\[gpu\\]"):
        device.select("cuda")


def test_without_a_gpu_the_command_line_says_so(run_cli, root, tmp_path):
    """One line and its exit code for `cuda`, the CPU for `auto`, and the example tells."""
    clip = tmp_path / "clip.npy"
    np.save(clip, np.arange(16 * 16, dtype=np.uint8).reshape(1, 16, 16))
    nothing = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    run = run_cli("pack", clip, "-o", "a.flow", "--device", "cuda", **nothing)
    assert run.returncode == 13
    assert run.stderr == "flowarchive: no GPU can be used: PyTorch finds none on this machine\n"
    assert not (tmp_path / "a.flow").exists()
    assert run_cli("pack", clip, "-o", "a.flow", "--device", "auto", **nothing).returncode == 0
    example = subprocess.run(
        [sys.executable, root / "examples" / "gpu.py", clip, tmp_path / "b.flow"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root), **nothing},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert example.returncode == 0, example.stderr
    assert "finds none on this machine; packing on the CPU" in example.stderr
    assert (tmp_path / "a.flow").read_bytes() == (tmp_path / "b.flow").read_bytes()
