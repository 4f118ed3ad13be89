"""Whether there should be a call: odds of an opening, the gate's reading, and what follows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fakes import fake_profile, gated, quiet_guard

from toolguard.adapters.loading import LoadedModel
from toolguard.guard.answer_gate import (
    AnswerGate,
    OpeningEvidence,
    opening_log_odds,
    opening_tokens,
    threshold_at,
)
from toolguard.guard.audit import decision_record
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ArtifactMismatch, ReadoutError, ShapeError
from toolguard.guard.guard import Evidence
from toolguard.guard.profile import Profile
from toolguard.guard.readout import build_readout
from toolguard.guard.tools import Menu
from toolguard.guard.trie import NameTrie

TOOL = "get_time"


@pytest.fixture(scope="module")
def plain(tiny_loaded: LoadedModel, tiny_menu: Menu) -> Profile:
    """Give a profile without a gate that lets every call pass."""
    return fake_profile(tiny_loaded, tiny_menu)


def decide(
    profile: Profile, menu: Menu, opening: OpeningEvidence | None, **policy: Any
) -> Decision:
    """Return the verdict on a call that nothing but its opening speaks against."""
    guard = quiet_guard(profile, **{"mode": "enforce", **policy})
    evidence = Evidence(
        chosen=TOOL,
        hidden=profile.means[menu.names.index(TOOL)],
        logprob=torch.tensor([-0.1 if name == TOOL else -9.0 for name in menu.names]),
        opening=opening,
    )
    return guard.check(evidence, profile.view(menu))


def read(profile: Profile) -> OpeningEvidence:
    return OpeningEvidence(hidden=torch.ones(profile.meta.model.hidden_size), log_odds=1.0)


def test_log_odds_are_those_of_the_two_masses() -> None:
    """Two of four equally likely tokens have even odds, one of four has odds of one to three."""
    assert opening_log_odds(torch.zeros(4), [1, 3]) == pytest.approx(0)
    assert opening_log_odds(torch.full((4,), 7.0), [2]) == pytest.approx(math.log(1 / 3))


def test_a_token_that_is_certain_has_infinite_odds() -> None:
    """Logits of -inf are lawful: what leaves nothing else possible has odds without end."""
    logits = torch.tensor([0.0, -torch.inf])
    assert opening_log_odds(logits, [0]) == math.inf
    assert opening_log_odds(logits, [1]) == -math.inf


def test_logits_that_say_nothing_are_refused() -> None:
    """NaN and a wrong shape are errors, never odds."""
    with pytest.raises(ReadoutError):
        opening_log_odds(torch.tensor([0.0, torch.nan]), [0])
    with pytest.raises(ShapeError):
        opening_log_odds(torch.zeros(1, 4), [0])


def test_a_call_opens_with_its_mark_or_with_a_name() -> None:
    """The first token of the opening counts; where there is none, every first token of a name."""
    trie = NameTrie({"a": (5, 9), "b": (6, 9), "c": (5, 8)})
    assert opening_tokens((3, 4), trie) == (3,)
    assert set(opening_tokens((), trie)) == {5, 6}


def test_one_reading_equals_the_same_among_many(plain: Profile) -> None:
    """`read` and `probabilities` give the same number for the same state and odds."""
    gate = gated(plain, weight=-1.0).gate
    assert gate is not None
    states = torch.randn(4, plain.meta.model.hidden_size)
    margins = gate.margins(states).double().numpy()
    odds = [0.5, -1.0, math.inf, 2.0]
    for column, kind in enumerate(gate.kinds):
        many = gate.probabilities(kind, odds, margins[:, column])
        for row, value in enumerate(many):
            one = gate.read(OpeningEvidence(hidden=states[row], log_odds=odds[row]))
            assert one[kind] == pytest.approx(value, rel=1e-5)


def test_what_was_not_read_gives_no_probability(plain: Profile) -> None:
    """A fault, a missing state, NaN odds and a state of another width raise."""
    gate = gated(plain).gate
    assert gate is not None
    for opening in (
        OpeningEvidence(fault="padding"),
        OpeningEvidence(log_odds=1.0),
        OpeningEvidence(hidden=torch.ones(plain.meta.model.hidden_size)),
    ):
        with pytest.raises(ReadoutError):
            gate.read(opening)
    with pytest.raises(ShapeError):
        gate.read(OpeningEvidence(hidden=torch.ones(3), log_odds=0.0))


def test_a_gate_has_a_mean_for_a_call_and_for_each_kind(plain: Profile) -> None:
    """A readout of two rows cannot serve two kinds."""
    section = gated(plain).meta.call_or_answer
    assert section is not None
    dim = plain.meta.model.hidden_size
    two = build_readout("lda", torch.eye(2, dim).double(), torch.zeros(dim), torch.eye(dim))
    with pytest.raises(ShapeError, match="2 means do not fit"):
        AnswerGate(section=section, readout=two)


def test_the_next_stricter_stored_target_counts(plain: Profile) -> None:
    """Between stored targets the stricter one's threshold holds; below all of them none does."""
    entry = plain.meta.risk[0].model_copy(update={"target": 0.05, "threshold": 0.3})
    looser = entry.model_copy(update={"target": 0.2, "threshold": 0.9})
    assert threshold_at((entry, looser), 0.1) == 0.3
    assert threshold_at((entry, looser), 0.2) == 0.9
    assert threshold_at((entry, looser), 0.01) is None


@pytest.mark.parametrize(
    ("doubtful", "action"),
    [
        ("veto", "veto"),
        ("confirm", "confirm"),
        ("clarify", "clarify"),
        ("redirect", "veto"),
        ("correct", "veto"),
        ("allow", "allow"),
    ],
)
def test_a_needless_call_is_doubtful(
    plain: Profile, tiny_menu: Menu, doubtful: str, action: str
) -> None:
    """The policy's action for doubt is taken; another tool in its place would be no better."""
    profile = gated(plain, answer=0.9)
    rules = {TOOL: {"tier": "write", "doubtful": doubtful}}
    decision = decide(profile, tiny_menu, read(profile), tools=rules)
    assert (decision.action, decision.reason) == (action, "should_answer")
    assert decision.target is None


def test_what_is_missing_is_asked_for(plain: Profile, tiny_menu: Menu) -> None:
    """Where a question should stand in place of the call, the user is asked instead of a person."""
    profile = gated(plain, answer=0.6, ask=0.9)
    rules = {TOOL: {"tier": "write", "doubtful": "confirm"}}
    decision = decide(profile, tiny_menu, read(profile), tools=rules)
    assert (decision.action, decision.reason) == ("clarify", "should_ask")
    assert TOOL in decision.question


def test_a_call_that_may_be_is_judged_by_its_tool_alone(plain: Profile, tiny_menu: Menu) -> None:
    """Below its limits the gate changes nothing; what it read stands in the record."""
    profile = gated(plain, answer=0.4, ask=0.2)
    decision = decide(profile, tiny_menu, read(profile))
    assert (decision.action, decision.reason) == ("allow", "confident")
    assert decision.reading.no_call == pytest.approx({"answer": 0.4, "ask": 0.2})
    assert decision_record(decision)["no_call"] == pytest.approx({"answer": 0.4, "ask": 0.2})


def test_the_gate_never_opens_what_the_tool_closes(
    tiny_loaded: LoadedModel, tiny_menu: Menu
) -> None:
    """A call that is doubtful by its margins stays closed by that, however right a call is."""
    profile = gated(fake_profile(tiny_loaded, tiny_menu, threshold=None))
    rules = {TOOL: {"tier": "write", "doubtful": "veto"}}
    decision = decide(profile, tiny_menu, read(profile), tools=rules)
    assert (decision.action, decision.reason) == ("veto", "doubtful")


def test_a_limit_that_could_not_be_shown_closes(plain: Profile, tiny_menu: Menu) -> None:
    """Without a threshold for the target no call goes on, as with P(wrong)."""
    profile = gated(plain, answer=0.01, ask=0.01, limit=None)
    assert decide(profile, tiny_menu, read(profile)).action == "veto"


def test_an_opening_that_was_not_read_closes(plain: Profile, tiny_menu: Menu) -> None:
    """The guard fails closed: a call whose opening is at fault is vetoed, with the reason."""
    profile = gated(plain)
    broken = OpeningEvidence(hidden=torch.full((plain.meta.model.hidden_size,), torch.nan))
    for opening in (OpeningEvidence(fault="padding stands there"), broken):
        decision = decide(profile, tiny_menu, opening)
        assert (decision.action, decision.reason) == ("veto", "fault")
        assert decision.detail


def test_the_policy_may_only_note_it(plain: Profile, tiny_menu: Menu) -> None:
    """`record` keeps the probabilities in the reading and closes nothing, faults included."""
    profile = gated(plain, answer=0.9)
    noted = decide(profile, tiny_menu, read(profile), call_or_answer="record")
    assert noted.action == "allow"
    assert noted.reading.no_call["answer"] == pytest.approx(0.9)
    faulty = OpeningEvidence(fault="padding")
    assert decide(profile, tiny_menu, faulty, call_or_answer="record").action == "allow"


def test_monitoring_lets_it_go_and_says_so(plain: Profile, tiny_menu: Menu) -> None:
    """In monitor mode the call runs, and the record holds what enforcing would have done."""
    profile = gated(plain, answer=0.9)
    decision = decide(profile, tiny_menu, read(profile), mode="monitor")
    assert (decision.action, decision.proposed) == ("allow", "veto")
    assert decision.reason == "should_answer"


def test_a_static_rule_goes_before_it(plain: Profile, tiny_menu: Menu) -> None:
    """A tool that the policy always allows runs, whatever the opening says."""
    profile = gated(plain, answer=0.9)
    rules = {TOOL: {"tier": "read", "rule": "allow"}}
    decision = decide(profile, tiny_menu, read(profile), tools=rules)
    assert decision.reason == "rule_allow"


def test_a_later_call_is_judged_by_its_tool(plain: Profile, tiny_menu: Menu) -> None:
    """Without an opening there is nothing to judge it by, and that is no fault."""
    assert decide(gated(plain, answer=0.9), tiny_menu, None).reason == "confident"


def test_a_gate_survives_the_folder(plain: Profile, tmp_path: Any) -> None:
    """Saving and loading gives the same gate, and a profile without one stays without."""
    profile = gated(plain, answer=0.7, weight=-0.5)
    profile.save(tmp_path / "gated")
    again = Profile.load(tmp_path / "gated")
    assert again.gate is not None
    assert profile.gate is not None
    assert again.meta.call_or_answer == profile.meta.call_or_answer
    assert again.gate.read(read(profile)) == profile.gate.read(read(profile))
    plain.save(tmp_path / "plain")
    assert Profile.load(tmp_path / "plain").gate is None


def test_a_profile_from_before_loads(plain: Profile, tmp_path: Any) -> None:
    """A folder whose facts do not name the gate at all is read as one that has none."""
    plain.save(tmp_path)
    path = tmp_path / "profile.json"
    text = path.read_text()
    assert '  "call_or_answer": null' in text
    path.write_text(text.replace(',\n  "call_or_answer": null', ""))
    assert Profile.load(tmp_path).meta.call_or_answer is None


def test_facts_without_their_tensors_are_refused(plain: Profile, tmp_path: Any) -> None:
    """A gate that the tensors lack, of an unknown signal, or beyond the model, is damage."""
    plain.save(tmp_path)
    section = gated(plain).meta.call_or_answer
    assert section is not None
    path = tmp_path / "profile.json"
    told = path.read_text()
    path.write_text(
        told.replace('"call_or_answer": null', f'"call_or_answer": {section.model_dump_json()}')
    )
    with pytest.raises(ArtifactMismatch, match="opening_weights"):
        Profile.load(tmp_path)
    strange = section.model_dump_json().replace('"activation"', '"entropy"')
    path.write_text(told.replace('"call_or_answer": null', f'"call_or_answer": {strange}'))
    with pytest.raises(ArtifactMismatch, match="no such signal"):
        Profile.load(tmp_path)
    beyond = section.model_copy(update={"layer": 99}).model_dump_json()
    path.write_text(told.replace('"call_or_answer": null', f'"call_or_answer": {beyond}'))
    with pytest.raises(ArtifactMismatch, match="layer 99"):
        Profile.load(tmp_path)


def test_facts_and_gate_belong_together(plain: Profile) -> None:
    """A profile whose facts tell of another gate than it holds is refused."""
    with pytest.raises(ShapeError, match="gate"):
        Profile(
            meta=plain.meta,
            readout=plain.readout,
            means=plain.means,
            centre=plain.centre,
            covariance=None,
            seen=plain.seen,
            gate=gated(plain).gate,
        )
