"""Profiles: what a folder round-trips, what it refuses, and how it looks from a menu."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from toolguard.guard.errors import ArtifactMismatch, ConfigError, ReadoutError, ShapeError
from toolguard.guard.profile import ModelFacts, Profile
from toolguard.guard.profile_files import META_FILE, TENSORS_FILE
from toolguard.guard.profile_meta import ProfileMeta
from toolguard.guard.readout import build_readout
from toolguard.guard.tools import Menu, Tool

TOOLS = (Tool(name="search"), Tool(name="send.é", description="Send it."), Tool(name="pay"))
DIM = 4


def meta(**changes):
    values = {
        "toolguard_version": "0.1.0",
        "model": {
            "name": "tiny",
            "fingerprint": "f1",
            "dtype": "float32",
            "family": "qwen3",
            "blocks": 3,
            "hidden_size": DIM,
            "template_hash": "t1",
            "tokenizer_hash": "k1",
        },
        "wire_format": "hermes",
        "prefix_text": '{"name": "',
        "prefix_ids": [5, 6],
        "layer": 1,
        "readout": "centred_cosine",
        "tools": [
            {
                "name": tool.name,
                "content_hashes": [tool.content_hash],
                "n": 0 if tool.name == "pay" else 7,
                "status": "uncalibrated" if tool.name == "pay" else "calibrated",
            }
            for tool in TOOLS
        ],
        "calibrator": {
            "features": ["logprob"],
            "weights": [-1.0],
            "intercept": 0.0,
            "centres": [0.0],
            "scales": [1.0],
            "clip": 6.0,
        },
        "signals": ["logprob"],
        "risk": [
            {
                "target": target,
                "confidence": 0.95,
                "threshold": threshold,
                "n": 100,
                "coverage": 0.5,
                "realised": 0.0,
                "upper_bound": target,
            }
            for target, threshold in ((0.01, None), (0.05, 0.1), (0.2, 0.4))
        ],
        "requested_risk": {"target": 0.05, "confidence": 0.95},
        "gap_low_quartile": 0.25,
        "dataset_hash": "d",
        "seed": 3,
        "splits": {"fit": 50, "select": 25, "test": 25},
        "metrics": {"accuracy": {"value": None}},
    }
    return ProfileMeta.model_validate(values | changes)


def profile(kind="centred_cosine", **changes):
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(len(TOOLS), DIM, generator=generator, dtype=torch.float64)
    centre = means.mean(0)
    covariance = torch.eye(DIM, dtype=torch.float64) if kind == "lda" else None
    return Profile(
        meta=meta(readout=kind, **changes),
        readout=build_readout(kind, means, centre, covariance),
        means=means.float(),
        centre=centre.float(),
        covariance=covariance,
        seen=torch.tensor([1, -1], dtype=torch.int64),
    )


def facts(**changes):
    values = {
        "fingerprint": "f1",
        "template_hash": "t1",
        "tokenizer_hash": "k1",
        "wire_format": "hermes",
        "hidden_size": DIM,
        "blocks": 3,
    }
    return ModelFacts(**(values | changes))


@pytest.mark.parametrize("kind", ["cosine", "centred_cosine", "lda"])
def test_a_saved_profile_loads_bit_for_bit(tmp_path, kind):
    """What was written comes back: facts, scores and fingerprints."""
    before = profile(kind)
    before.save(tmp_path / "new" / "folder")
    after = Profile.load(tmp_path / "new" / "folder")
    hidden = torch.randn(DIM, generator=torch.Generator().manual_seed(2))
    assert after.meta.model_copy(update={"tensors_sha256": ""}) == before.meta
    assert torch.equal(after.readout.scores(hidden), before.readout.scores(hidden))
    assert torch.equal(after.means, before.means)
    assert after.seen_queries == {1, 2**64 - 1}
    assert (after.covariance is None) == (kind != "lda")


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    """A profile's bytes depend on its content alone, and saving over one replaces it."""
    profile().save(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    Profile.load(tmp_path).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert set(first) == {META_FILE, TENSORS_FILE, "seen.safetensors"}


def test_a_missing_profile_is_the_users_mistake(tmp_path):
    """A folder without a profile is refused with what to pass instead."""
    with pytest.raises(ConfigError, match="there is no profile") as caught:
        Profile.load(tmp_path)
    assert "calibrate --out" in str(caught.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def as_text(path):
    path.write_text("{")


def with_unknown_key(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": 1}))


def of_another_version(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))


def outside_the_folder(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seen": "../seen"}))


def broken_calibrator(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibrator": {"features": 1}}))


def not_utf8(path):
    path.write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (TENSORS_FILE, cut),
        ("seen.safetensors", as_text),
        (META_FILE, as_text),
        (META_FILE, with_unknown_key),
        (META_FILE, of_another_version),
        (META_FILE, outside_the_folder),
        (META_FILE, broken_calibrator),
        (META_FILE, not_utf8),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, name, damage):
    """Each damaged file gives one typed error that names it and says to calibrate again."""
    profile().save(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ArtifactMismatch, match="cannot be used") as caught:
        Profile.load(tmp_path)
    assert name in str(caught.value)
    assert "calibrate again" in str(caught.value)


@pytest.mark.parametrize("content", ["means", "weights"])
def test_tensors_that_are_nan_or_missing_are_refused(tmp_path, content):
    """A file with the right hash is still refused if a value is NaN or a tensor is absent."""
    import hashlib

    profile().save(tmp_path)
    good = profile()
    tensors = {"bias": good.readout.bias, "means": good.means, "centre": good.centre}
    if content == "means":
        tensors |= {"weights": good.readout.weights, "means": good.means * torch.nan}
    save_file(tensors, tmp_path / TENSORS_FILE)
    digest = hashlib.sha256((tmp_path / TENSORS_FILE).read_bytes()).hexdigest()
    value = json.loads((tmp_path / META_FILE).read_text()) | {"tensors_sha256": digest}
    (tmp_path / META_FILE).write_text(json.dumps(value))
    with pytest.raises(ArtifactMismatch, match="do not fit"):
        Profile.load(tmp_path)


def test_files_of_two_calibrations_do_not_mix(tmp_path):
    """Writing that was cut off between two files is noticed when reading."""
    profile("lda").save(tmp_path / "other")
    profile().save(tmp_path / "own")
    (tmp_path / "other" / TENSORS_FILE).replace(tmp_path / "own" / TENSORS_FILE)
    with pytest.raises(ArtifactMismatch, match="not the one"):
        Profile.load(tmp_path / "own")


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("fingerprint", "f2"),
        ("template_hash", ""),
        ("tokenizer_hash", "k2"),
        ("wire_format", "mistral"),
        ("hidden_size", 8),
        ("blocks", 4),
    ],
)
def test_another_model_is_refused(field, found):
    """A mismatch says which field, what was expected and found, and what to do."""
    own = profile()
    own.verify(facts())
    with pytest.raises(ArtifactMismatch) as caught:
        own.verify(facts(**{field: found}))
    assert caught.value.fields["field"] == field
    assert caught.value.fields["found"] == found
    assert str(found) in caught.value.message
    assert caught.value.hint


def test_a_view_tells_known_changed_and_unknown_tools_apart():
    """Statuses follow name and content hash, exactly; unknown tools score -inf."""
    menu = Menu.of(
        [
            Tool(name="Search"),
            TOOLS[2],
            Tool(name="search", description="Now with words."),
            TOOLS[1],
        ]
    )
    own = profile()
    view = own.view(menu)
    assert dict(view.statuses) == {
        "Search": "unknown",
        "pay": "uncalibrated",
        "search": "changed",
        "send.é": "calibrated",
    }
    hidden = torch.randn(2, DIM, generator=torch.Generator().manual_seed(3))
    scores = view.scores(hidden)
    assert scores.dtype == torch.float32
    assert scores[:, 0].tolist() == [-torch.inf] * 2
    assert torch.allclose(scores[:, [2, 3, 1]], own.readout.scores(hidden), atol=1e-6)
    assert torch.equal(view.scores(hidden[0]), view.to("cpu").scores(hidden[0]))


def test_a_menu_without_a_known_tool_scores_minus_infinity():
    """Nothing known means no score, not an error."""
    view = profile().view(Menu.of([Tool(name="other")]))
    assert view.scores(torch.ones(DIM)).tolist() == [-torch.inf]


def test_direction_is_the_difference_of_means():
    """Steering vectors come from the means; a tool without one is refused."""
    own = profile()
    view = own.view(Menu.of([Tool(name="new"), *TOOLS]))
    assert torch.equal(view.direction("pay", "search"), own.means[0] - own.means[2])
    with pytest.raises(ReadoutError, match="no mean"):
        view.direction("pay", "new")


def test_threshold_falls_back_to_the_next_stricter_target():
    """A target that was not stored uses the largest smaller one, and none is no threshold."""
    own = profile()
    wanted = {None: 0.1, 0.05: 0.1, 0.1: 0.1, 0.3: 0.4, 0.01: None, 0.001: None}
    assert {target: own.threshold(target) for target in wanted} == wanted


def test_parts_that_do_not_fit_are_refused():
    """A profile cannot be built from tensors of another width or number of tools."""
    own = profile()
    with pytest.raises(ShapeError, match="means"):
        Profile(
            meta=own.meta,
            readout=own.readout,
            means=own.means[:2],
            centre=own.centre,
            covariance=None,
            seen=own.seen,
        )


@pytest.mark.parametrize(
    "change",
    [
        {"layer": 3},
        {"signals": ["activation"]},
        {"gap_low_quartile": float("nan")},
        {"requested_risk": {"target": 0.3, "confidence": 0.95}},
        {"tools": []},
    ],
)
def test_facts_that_contradict_each_other_are_refused(change):
    """Facts are validated as a whole, wherever they come from."""
    with pytest.raises(ValueError, match="validation error"):
        meta(**change)
