"""Model files: equal models are equal bytes, and no malformed or hostile file gets through."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import RUNGS, TINY, make_config, make_model, write_model
from safetensors.torch import load, save

from flowarchive import store
from flowarchive.errors import (
    FingerprintMismatch,
    ModelError,
    ModelNotFound,
    NotReproducible,
)
from flowarchive.flows.integer import FlowConfig
from flowarchive.models.idf import IdfModel

Header = dict[str, Any]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.safetensors", group_norm=True)


@pytest.fixture(scope="module")
def good(model_file: Path) -> bytes:
    return model_file.read_bytes()


def take_apart(data: bytes) -> tuple[Header, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def put_together(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_metadata(data: bytes, **fields: Any) -> bytes:
    header, body = take_apart(data)
    header["__metadata__"] |= fields
    return put_together(header, body)


def without_metadata(data: bytes, field: str) -> bytes:
    header, body = take_apart(data)
    del header["__metadata__"][field]
    return put_together(header, body)


def with_config(data: bytes, flow: str = "luma", **fields: Any) -> bytes:
    config = make_config(group_norm=True)
    config[flow] |= fields
    return with_metadata(data, config=json.dumps(config))


def with_tensors(data: bytes, change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    """The file with other tensors, and the known answer it had."""
    tensors = load(data)
    change(tensors)
    return save(tensors, take_apart(data)[0]["__metadata__"])


def refuse(data: bytes, kind: type[ModelError] = ModelError) -> str:
    with pytest.raises(ModelError) as caught:
        store.parse_model(data, "hostile")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_saved_model_comes_back(rung, tmp_path):
    path = write_model(tmp_path / "m.safetensors", seed=2, **RUNGS[rung])
    network, saved = store.load_model(str(path)).network, make_model(2, **RUNGS[rung])
    ours, theirs = network.state_dict(), saved.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert network.known_answer() == saved.known_answer()
    assert not network.training


def test_a_stored_model_knows_its_name_bytes_and_fingerprint(model_file, good):
    stored = store.load_model(str(model_file))
    assert (stored.name, stored.data) == ("small", good)
    assert stored.fingerprint == hashlib.sha256(good).digest()


def test_equal_models_are_equal_bytes_in_every_process(model_file, good, root, tmp_path):
    again = write_model(tmp_path / "again.safetensors", group_norm=True)
    assert again.read_bytes() == good
    # Hash seeds differ between processes, and must not show.
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from pathlib import Path; from models import write_model\n"
        "write_model(Path(sys.argv[3]), group_norm=True)"
    )
    other = tmp_path / "other.safetensors"
    subprocess.run(
        [sys.executable, "-c", script, str(root), str(root / "tests"), str(other)], check=True
    )
    assert other.read_bytes() == good
    assert write_model(tmp_path / "b.safetensors", seed=1).read_bytes() != good


def test_the_file_is_a_plain_safetensors_file(good):
    header, body = take_apart(good)
    assert json.dumps(header, sort_keys=True, separators=(",", ":")).encode() in good
    assert int.from_bytes(good[:8], "little") % 8 == 0
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    assert max(ends) == len(body)
    assert load(good).keys() == make_model(group_norm=True).state_dict().keys()


def test_a_model_is_found_by_name_by_file_and_by_fingerprint(good, model_file, monkeypatch):
    monkeypatch.setattr(store, "_packaged", lambda: {"other": b"x", "house": good})
    fingerprint = hashlib.sha256(good).digest()
    assert store.load_model("house").name == "house"
    assert store.load_model(str(model_file)).name == "small"
    assert store.find_model(fingerprint, None, "as called").name == "house"
    assert store.find_model(fingerprint, good, "as called").name == "as called"


RELEASED = {
    "idf": "e56a3be4a8c2af3ba9f24d3cabbaac1cb423f609d70782f3efc21d15b7511f81",
    "video-1": "d6b59b3abe50eabc4d41ba3c755bbad12178bf5bc30e9b21fecd94f11b45e4ca",
    "chain-1": "b9e3023052b77fe5798ad046428f931113a5f983baed4be5f93000c6167922fc",
}
"""Every model that an archive may name without holding it."""


@pytest.mark.parametrize("name", RELEASED)
def test_models_of_every_release_are_in_the_package(name):
    fingerprint = bytes.fromhex(RELEASED[name])
    assert store.is_packaged(fingerprint)
    assert store.find_model(fingerprint, None, "as called").name == name


def test_models_of_earlier_releases_have_no_name():
    assert set(store.packaged_models()) == {"idf", "video", "chain"}
    with pytest.raises(ModelNotFound):
        store.load_packaged("video-1")


@pytest.mark.parametrize(
    "name", ["no such model", "/no/such/file.safetensors", ".", "", "x" * 5000, "nul\0byte"]
)
def test_a_model_that_is_not_there_is_not_found(name):
    with pytest.raises(ModelNotFound) as caught:
        store.load_model(name)
    assert "\n" not in str(caught.value)


def test_another_model_than_the_named_one_is_refused(good, monkeypatch):
    monkeypatch.setattr(store, "_packaged", lambda: {"house": good})
    wrong = bytes(32)
    with pytest.raises(FingerprintMismatch):
        store.find_model(wrong, good, "small")
    with pytest.raises(ModelNotFound, match="00000000"):
        store.find_model(wrong, None, "small")


def test_the_listing_describes_every_model(good, monkeypatch):
    monkeypatch.setattr(store, "_packaged", lambda: {"house": good})
    (facts,) = store.packaged_models().values()
    assert facts["bytes"] == len(good)
    assert facts["sha256"] == hashlib.sha256(good).hexdigest()
    assert facts["kind"] == "idf"


def test_truncated_files_are_refused(good):
    header_end = len(good) - len(take_apart(good)[1])
    cuts = {*range(0, 64), *range(header_end - 8, header_end + 8), *range(0, len(good), 997)}
    for cut in sorted(cuts | {len(good) - 1}):
        refuse(good[:cut])


def test_bytes_after_the_model_are_refused(good):
    refuse(good + b"\0")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"__metadata__":' + b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"__metadata__":null}',
        b'{"__metadata__":[]}',
        b'{"__metadata__":{"kind":"idf","config":7}}',
        b'{"__metadata__":{"kind":["idf"],"config":"{}"}}',
        b'{"__metadata__":{"kind":"idf","config":null}}',
    ],
    ids=lambda header: repr(header[:24]),
)
def test_headers_that_are_no_header_are_refused(header, good):
    refuse(put_together(header, take_apart(good)[1]))


@pytest.mark.parametrize("length", [0, (1 << 64) - 1, 1 << 63, 1 << 40])
def test_lengths_that_lie_are_refused(length, good):
    refuse(length.to_bytes(8, "little") + good[8:])


@pytest.mark.parametrize("field", ["kind", "config"])
def test_missing_metadata_are_refused(field, good):
    assert field in refuse(without_metadata(good, field))


def test_an_unknown_kind_is_refused(good):
    refuse(with_metadata(good, kind="vae"))


@pytest.mark.parametrize(
    "config",
    ["", "{", "7", "[]", "null", "{}", '{"luma": {}}', '{"luma": 1, "chroma": {}}', "[" * 100_000],
    ids=lambda config: repr(config[:20]),
)
def test_configs_that_are_no_config_are_refused(config, good):
    refuse(with_metadata(good, config=config))


@pytest.mark.parametrize("flow", ["luma", "chroma"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("levels", 0),
        ("levels", -1),
        ("levels", 9),
        ("levels", 7),
        ("levels", 1e9),
        ("levels", 2.0),
        ("levels", True),
        ("levels", "2"),
        ("levels", None),
        ("levels", 10**400),
        ("couplings", 65),
        ("couplings", 13),
        ("depth", 33),
        ("width", 1025),
        ("width", 6),
        ("width", float("nan")),
        ("mixtures", 17),
        ("mixtures", 0),
        ("groups", 0),
        ("groups", 3),
        ("groups", 65),
        ("rezero", 1),
        ("group_norm", "yes"),
        ("inverse_permutation", None),
        ("channels", 1),
        ("context", 1),
        ("colour", 1),
    ],
)
def test_config_fields_out_of_range_are_refused(flow, field, value, good):
    assert "config is malformed" in refuse(with_config(good, flow, **{field: value}))


@pytest.mark.parametrize(
    "fields",
    [
        {"levels": 6, "couplings": 4},
        {"levels": 1, "couplings": 24},
        {"levels": 3, "couplings": 8},
    ],
)
def test_the_farthest_reach_has_a_coder_at_every_depth(fields):
    from flowarchive.models.idf import _coder

    for bits in range(8, 17):
        assert _coder(FlowConfig(channels=2, context=1, **fields), bits).high >= 1 << bits


def test_a_hostile_config_costs_no_memory(good):
    largest = {"levels": 6, "couplings": 4, "depth": 32, "width": 1024, "mixtures": 16}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "tensors" in refuse(with_config(good, "chroma", **largest))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10, f"{grown} kB"


def test_files_above_the_limit_are_refused_unread(tmp_path, good):
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(good)
        file.truncate(1 << 40)  # sparse
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="malformed"):
        store.load_model(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


def test_a_model_too_large_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAX_MODEL_BYTES", 1000)
    with pytest.raises(ModelError, match="1000"):
        write_model(tmp_path / "m.safetensors")
    assert not any(tmp_path.iterdir())


CONVOLUTION = "luma.levels.0.couplings.0.conditioner.linear.translation"
TOP = "luma.levels.1.prior"
NORM = "luma.levels.0.couplings.0.conditioner.layers.0.1"


def test_tensors_missing_added_renamed_or_of_another_shape_or_type_are_refused(good):
    weight = f"{CONVOLUTION}.weight"
    changes: list[Callable[[dict[str, torch.Tensor]], object]] = [
        lambda t: t.pop(weight),
        lambda t: t.clear(),
        lambda t: t.update(more=torch.zeros(1, dtype=torch.int8)),
        lambda t: t.update({"luma.extra": t.pop(weight)}),
        lambda t: t.update({weight: t[weight].to(torch.int8)}),
        lambda t: t.update({weight: t[weight].float()}),
        lambda t: t.update({weight: t[weight][:, :-1].contiguous()}),
        lambda t: t.update({weight: t[weight].reshape(-1)}),
        lambda t: t.update({weight: torch.zeros(0, dtype=torch.int16)}),
    ]
    for change in changes:
        assert "tensors" in refuse(with_tensors(good, change))


@pytest.mark.parametrize(
    ("tensor", "value", "kind"),
    [
        (f"{CONVOLUTION}.bias", 1 << 24, NotReproducible),
        (f"{CONVOLUTION}.bias", -(1 << 31), NotReproducible),
        (f"{CONVOLUTION}.weight", 32767, NotReproducible),
        (f"{CONVOLUTION}.shift", 127, ModelError),
        (f"{CONVOLUTION}.shift", -128, ModelError),
        (f"{NORM}.gain", (1 << 31) - 1, ModelError),
        (f"{NORM}.offset", -(1 << 31), ModelError),
        (f"{TOP}.mean", 1 << 23, ModelError),
        (f"{TOP}.mean", -(1 << 31), ModelError),
        (f"{TOP}.weight", 4096, ModelError),
        (f"{TOP}.weight", 0, ModelError),
        (f"{TOP}.weight", -1, ModelError),
        (f"{TOP}.weight", (1 << 31) - 1, ModelError),
    ],
)
def test_integers_out_of_range_are_refused(tensor, value, kind, good):
    refuse(with_tensors(good, lambda t: t[tensor].fill_(value)), kind)


def test_negative_weights_with_the_right_sum_are_refused(good):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{TOP}.weight"][0] = torch.tensor([4097, -1])

    assert "weights" in refuse(with_tensors(good, change))


def test_scale_indices_are_brought_into_the_table(tmp_path):
    # Format, "Coding of a latent": the nearest of 0..191, so any index is good.
    model = make_model()
    for scale in (-(1 << 31), -1, 191, (1 << 31) - 1):
        model.luma.levels[-1].prior.scale.fill_(scale)
        tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        store.save_model(tmp_path / "m.safetensors", "idf", make_config(), tensors)
        network = store.load_model(str(tmp_path / "m.safetensors")).network
        for shift in (0, 8):
            latent = network.luma(torch.zeros(1, 1, 8, 8), shift=shift)[-1]
            assert latent.scale.unique().tolist() == [min(max(scale + 8 * shift, 0), 191)]


def test_a_wrong_known_answer_is_not_reproducible(good):
    refuse(with_metadata(good, known_answer="0" * 32), NotReproducible)
    refuse(without_metadata(good, "known_answer"), NotReproducible)


@pytest.mark.parametrize(
    "tensor", [f"{CONVOLUTION}.weight", f"{CONVOLUTION}.bias", f"{TOP}.mean", f"{TOP}.scale"]
)
def test_the_known_answer_notices_any_layer(tensor, good):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        values = tensors[tensor].reshape(-1)
        values += 9 if values.dtype == torch.int16 else 1 << 17

    assert "known answer" in refuse(with_tensors(good, change), NotReproducible)


def test_a_machine_that_computes_otherwise_is_refused(good, monkeypatch):
    from torch.nn import functional

    right = functional.conv2d
    monkeypatch.setattr(functional, "conv2d", lambda *a, **k: right(*a, **k) * (1 + 2**-6))
    assert "known answer" in refuse(good, NotReproducible)


def test_loading_leaves_the_callers_random_numbers_alone(model_file):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    store.load_model(str(model_file))
    assert torch.equal(torch.rand(3), expected)


def test_the_model_itself_refuses_a_malformed_config():
    with pytest.raises(ModelError):
        IdfModel({"luma": TINY, "chroma": {**TINY, "levels": 99}})
