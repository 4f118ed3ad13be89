"""The spool: observations survive an interruption bit for bit, and nothing foreign is taken up."""

from __future__ import annotations

import dataclasses
import tracemalloc

import pytest
import torch
from test_collect import HERMES, LAYERS, QUERIES, assert_identical, no_skip, record

from toolguard.calibration.reading.collect import Observation, collect
from toolguard.calibration.reading.spool import KEY_FILE, Spool
from toolguard.guard.errors import ConfigError, ShapeError

KEY = {"model": "abc", "data": "def", "layers": [0, 2]}


def observation(index, *, names=("a", "b", "c"), shape=(2, 8), **changes):
    generator = torch.Generator().manual_seed(index)
    made = Observation(
        record_id=f"id-{index}",
        query_hash=2**63 + index,
        menu_names=names,
        menu_hashes=tuple(f"hash of {name}" for name in names),
        label=None if index % 5 == 0 else index % len(names),
        right=frozenset() if index % 5 == 0 else frozenset({index % len(names)}),
        chosen=(index + 1) % len(names),
        scores=torch.randn(len(names), generator=generator),
        hidden=torch.randn(*shape, generator=generator),
    )
    return dataclasses.replace(made, **changes)


def test_round_trip_keeps_order_and_bits(tmp_path):
    """What was appended comes back in order, bit for bit, menus of different size included."""
    names = (("a", "b", "c"), ("straße", "日本.x"), ("one",))
    written = [observation(i, names=names[i % 3]) for i in range(11)]
    with Spool.open(tmp_path / "spool", KEY, shard_rows=4) as spool:
        for item in written:
            spool.append(item)
        assert_identical(list(spool), written)
    again = Spool.open(tmp_path / "spool", KEY)
    assert len(again) == 11
    assert_identical(list(again), written)
    assert again.done_ids == {item.record_id for item in written}
    assert "id-3" in again
    assert "id-99" not in again


def test_nothing_is_lost_by_an_exception(tmp_path):
    """Leaving the context by an interruption writes what was appended."""

    def interrupted():
        with Spool.open(tmp_path, KEY) as spool:
            spool.append(observation(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Spool.open(tmp_path, KEY).done_ids == {"id-1"}


@pytest.mark.parametrize("kept", [1, 5, 9])
def test_interrupted_calibration_goes_on_bit_for_bit(kept, tmp_path, tiny_loaded, tiny_menu):
    """A run stopped anywhere and taken up again leaves what an unbroken run leaves."""
    records = [record(i, tiny_menu, f"{QUERIES[i % 6]} {i}") for i in range(12)]

    def run(folder, *, stop=None):
        spool = Spool.open(folder, KEY)
        options = {"layers": LAYERS, "on_skip": no_skip, "batch_tokens": 70, "done": spool}
        with spool:
            for count, item in enumerate(collect(tiny_loaded, HERMES, records, **options)):
                if count == stop:
                    raise KeyboardInterrupt
                spool.append(item)
        return list(spool)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop=kept)
    assert len(Spool.open(tmp_path / "broken", KEY)) == kept
    assert_identical(run(tmp_path / "broken"), whole)


def test_another_key_starts_anew_and_says_so(tmp_path):
    """Observations of another model, data or option are removed; other files are not."""
    with Spool.open(tmp_path, KEY, shard_rows=4) as spool:
        for index in range(6):
            spool.append(observation(index))
    (tmp_path / "notes.txt").write_text("mine")
    said = []
    fresh = Spool.open(tmp_path, {**KEY, "model": "xyz"}, on_restart=said.append)
    assert len(fresh) == 0
    assert not list(fresh)
    assert said == ["changed since: model"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    said.clear()
    assert len(Spool.open(tmp_path, {**KEY, "model": "xyz"}, on_restart=said.append)) == 0
    assert not said


def test_a_damaged_shard_starts_anew_and_says_so(tmp_path):
    """Half a file, however it came about, is never read as observations."""
    with Spool.open(tmp_path, KEY, shard_rows=4) as spool:
        for index in range(6):
            spool.append(observation(index))
    shard = sorted(tmp_path.glob("shard-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-7])
    said = []
    assert len(Spool.open(tmp_path, KEY, on_restart=said.append)) == 0
    assert said == [f"{shard.name} is damaged"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99, "key": {}}', '{"version": 1}'])
def test_a_damaged_key_starts_anew(text, tmp_path):
    """Without a readable key nobody knows whose observations they are."""
    with Spool.open(tmp_path, KEY) as spool:
        spool.append(observation(1))
    (tmp_path / KEY_FILE).write_text(text)
    said = []
    assert len(Spool.open(tmp_path, KEY, on_restart=said.append)) == 0
    assert said


def test_half_written_shards_are_ignored(tmp_path):
    """A file that never took its final name does not count."""
    with Spool.open(tmp_path, KEY) as spool:
        spool.append(observation(1))
    (tmp_path / ".shard-000001.safetensors.1.part").write_bytes(b"half")
    assert len(Spool.open(tmp_path, KEY)) == 1


def test_an_id_is_observed_once(tmp_path):
    """The same record cannot be counted twice."""
    with Spool.open(tmp_path, KEY) as spool:
        spool.append(observation(1))
        with pytest.raises(ConfigError, match="observed already"):
            spool.append(observation(1))


def test_shapes_must_agree(tmp_path):
    """All observations of a spool have the same layers and width."""
    with Spool.open(tmp_path, KEY) as spool:
        spool.append(observation(1))
        with pytest.raises(ShapeError, match="hidden states"):
            spool.append(observation(2, shape=(2, 9)))


def test_a_file_is_no_folder(tmp_path):
    """A path that cannot be a folder is the user's mistake."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot keep observations"):
        Spool.open(tmp_path / "file", KEY)


def test_memory_is_flat(tmp_path):
    """Writing and reading ten times the observations takes hardly more memory."""
    peaks = []
    for count in (64, 640):
        tracemalloc.start()
        with Spool.open(tmp_path / str(count), KEY, shard_rows=32) as spool:
            for index in range(count):
                spool.append(observation(index))
        assert sum(1 for _ in spool) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000


def test_the_key_may_nest(tmp_path):
    """Key order does not matter, values do."""
    with Spool.open(tmp_path, {"a": {"x": 1, "y": [1, 2]}, "b": None}) as spool:
        spool.append(observation(1))
    assert len(Spool.open(tmp_path, {"b": None, "a": {"y": [1, 2], "x": 1}})) == 1
    assert len(Spool.open(tmp_path, {"b": None, "a": {"y": [2, 1], "x": 1}})) == 0
