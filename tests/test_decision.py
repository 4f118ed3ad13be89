"""Decisions: what executes, who competes, and what the user is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toolguard.guard.decision import Action, Decision, Reading

READING = Reading(
    menu=("a", "b", "c"),
    chosen="a",
    scores={"logprob": (-0.5, -3.0, -1.0), "activation": (0.1, 0.3, 0.2)},
)


def decided(action: Action, *, reading: Reading = READING, target: str | None = None) -> Decision:
    return Decision(
        action=action,
        proposed=action,
        tool=reading.chosen,
        reason="doubtful",
        detail="",
        reading=reading,
        target=target,
    )


@pytest.mark.parametrize(
    ("action", "executed"),
    [
        ("allow", "a"),
        ("steer", "a"),
        ("redirect", "b"),
        ("veto", None),
        ("confirm", None),
        ("clarify", None),
    ],
)
def test_only_one_name_may_execute(action: Action, executed: str | None) -> None:
    """Allow and steer run the chosen tool, redirect its target, everything else nothing."""
    decision = decided(action, target="b")
    assert decision.executed_tool == executed
    assert decision.executes is (executed is not None)


def test_ranking_goes_from_best_to_worst() -> None:
    """Scores order the menu; a signal that was not read ranks nothing."""
    assert READING.ranking("logprob") == ("a", "c", "b")
    assert READING.ranking("activation") == ("b", "c", "a")
    assert READING.ranking("attention") == ()


def test_equal_scores_keep_the_menus_order() -> None:
    """Ties are broken the same way every time."""
    reading = Reading(menu=("x", "y"), chosen="y", scores={"logprob": (0.0, 0.0)})
    assert reading.ranking("logprob") == ("x", "y")


def test_the_question_names_the_chosen_tool_and_its_best_rival() -> None:
    """The user is asked between two tools, the chosen one first."""
    assert decided("clarify").question == "Should I use a or c for this?"


def test_the_question_without_evidence_takes_the_menus_order() -> None:
    """With no scores the first other tool competes."""
    reading = Reading(menu=("a", "b"), chosen="b")
    assert decided("clarify", reading=reading).question == "Should I use b or a for this?"


def test_the_question_on_a_menu_of_one_names_it() -> None:
    """With no rival there is one tool to confirm."""
    reading = Reading(menu=("a",), chosen="a")
    assert decided("clarify", reading=reading).question == "Should I use a for this?"


def test_the_question_names_the_arguments_that_are_missing() -> None:
    """With fields the user is asked for these, for the tool that would run."""
    asked = replace(decided("clarify"), fields=("start_date", "city"))
    assert asked.question == "What should I use as start date and city for a?"
    assert replace(asked, target="b").question == "What should I use as start date and city for b?"
