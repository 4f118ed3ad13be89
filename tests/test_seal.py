"""The seal: what only the key's holder can make, and where the key comes from."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from toolguard.guard.errors import ConfigError
from toolguard.guard.seal import KEY_VARIABLE, Seal, load_key

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def _no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def test_a_digest_names_its_algorithm_and_depends_on_value_and_key() -> None:
    """Equal JSON gives equal digests, in any key order; another value or key another one."""
    seal = Seal(KEY)
    digest = seal.digest({"a": 1, "b": [1.5, None]})
    assert digest.startswith("hmac-sha256:")
    assert len(digest) == len("hmac-sha256:") + 64
    assert digest == seal.digest({"b": [1.5, None], "a": 1})
    assert digest != seal.digest({"a": "1", "b": [1.5, None]})
    assert digest != Seal(bytes(32)).digest({"a": 1, "b": [1.5, None]})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": None}, {}),
        ({"a": "x "}, {"a": "x"}),
        ({"a": "é"}, {"a": "e\u0301"}),
        ({"a": ["b"]}, {"a": "b"}),
        ({"a": "\ud800"}, {"a": "\ud801"}),
    ],
)
def test_values_that_differ_as_json_have_different_digests(one: object, other: object) -> None:
    """Nothing is normalised: what a tool could tell apart, the digest tells apart."""
    assert Seal(KEY).digest(one) != Seal(KEY).digest(other)


def test_a_signature_holds_for_its_value_alone() -> None:
    """A changed value, a changed signature or another key does not hold."""
    seal = Seal(KEY)
    signature = seal.sign({"action": "allow"})
    assert seal.holds({"action": "allow"}, signature)
    assert not seal.holds({"action": "veto"}, signature)
    assert not seal.holds({"action": "allow"}, signature[:-1])
    assert not Seal(bytes(32)).holds({"action": "allow"}, signature)


@pytest.mark.parametrize("signature", [None, 7, b"00", "", "é" * 64, "\ud800", ["x"]])
def test_what_is_no_signature_does_not_hold(signature: object) -> None:
    """Any value may stand where a signature should: none of them raises."""
    assert not Seal(KEY).holds({"a": 1}, signature)


def test_a_value_that_is_no_json_is_not_signed() -> None:
    """A set, mixed keys or endless nesting has no signature that holds."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ({"a": {1}}, {1: "a", "b": "c"}, {"a": deep}):
        assert not Seal(KEY).holds(value, "0" * 64)


def test_a_digest_is_no_signature() -> None:
    """A model chooses what is digested: its arguments cannot be made a signed record that way."""
    seal = Seal(KEY)
    record = {"action": "allow", "tool": "delete"}
    assert not seal.holds(record, seal.digest(record).removeprefix("hmac-sha256:"))


def test_seals_without_a_key_do_not_agree() -> None:
    """A key that nobody gave is random, so nothing sealed outlives the process."""
    assert Seal().digest("x") != Seal().digest("x")


def test_a_short_key_is_refused() -> None:
    """Fifteen bytes can be guessed sooner than sixteen."""
    assert Seal(bytes(16)).key == bytes(16)
    with pytest.raises(ConfigError, match="at least 16 bytes"):
        Seal(bytes(15))


def test_a_seal_does_not_show_its_key() -> None:
    """What is printed or put into an error holds no key."""
    seal = Seal(KEY)
    assert KEY.hex() not in repr(seal)
    assert repr(KEY) not in repr(seal)


def test_the_variable_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TOOLGUARD_KEY is the key where it is set, and the file is not even made."""
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY.hex()}\n")
    assert load_key(tmp_path / "key") == KEY
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("text", ["secret", "00" * 15, "zz" * 32])
def test_a_variable_without_a_key_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped key must not become a random one, and is not shown."""
    monkeypatch.setenv(KEY_VARIABLE, text)
    with pytest.raises(ConfigError) as error:
        load_key()
    assert text not in str(error.value)


def test_a_missing_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """The first process makes the key, later ones read it; nobody else may."""
    path = tmp_path / "key"
    key = load_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path) == key
    assert list(tmp_path.iterdir()) == [path]


def test_without_file_and_variable_the_key_is_random() -> None:
    """Two processes that were told nothing share nothing."""
    assert load_key() != load_key()


def test_all_who_start_together_get_one_key(tmp_path: Path) -> None:
    """Of twenty that find no file one makes the key, and all have it."""
    path, found = tmp_path / "key", []
    together = threading.Barrier(20)

    def start() -> None:
        together.wait()
        found.append(load_key(path))

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert len(set(found)) == 1


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe", b"00" * 8])
def test_a_file_without_a_key_is_an_error(tmp_path: Path, content: bytes) -> None:
    """A damaged key file is said, not replaced: what it sealed would be lost."""
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_key(path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A folder that is not there is told by name."""
    with pytest.raises(ConfigError, match="cannot make the key file"):
        load_key(tmp_path / "nowhere" / "key")
