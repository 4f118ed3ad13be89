"""Records that put the choice of a flagged call to the model once more, in other ways.

They carry no label: what is right must not reach a question.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolguard.calibration.datasets.records import Message, Record
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.guard.tools import Menu, Tool


def between_two(call: JudgedCall) -> Record | None:
    """Return the same request under a menu of the choice and its runner-up alone.

    None on a menu of one tool. The two keep their order, descriptions and schemas.
    """
    if call.runner_up is None:
        return None
    pair = (call.chosen, call.runner_up)
    return _unlabelled(call.record, [tool for tool in call.record.menu if tool.name in pair])


def contrast(call: JudgedCall) -> Record | None:
    """Return `between_two` with the question which of the two fits, in words.

    Source: the contrastive question of ToolVerifier, Mekala et al., arXiv 2402.14158.
    """
    pair = between_two(call)
    if pair is None:
        return None
    told = " ".join(map(_told, pair.menu))
    return _with_words(pair, f"Two tools could serve this. {told} Use the one that fits better.")


def re_ask(call: JudgedCall) -> Record:
    """Return the same request and menu with a note that the choice may be wrong."""
    note = (
        f"The tool {call.chosen} was chosen for this, but it may be the wrong one. "
        "Look at every tool again and use the one that fits best."
    )
    return _with_words(_unlabelled(call.record, call.record.tools), note)


def _unlabelled(record: Record, tools: Sequence[Tool]) -> Record:
    menu = Menu(tuple(tools))
    changed = record.model_copy(
        update={
            "tools": menu.tools,
            "menu_id": None,
            "call": None,
            "calls": (),
            "accept": (),
        }
    )
    return changed.with_menu(menu)


def _with_words(record: Record, words: str) -> Record:
    """Return the record with `words` at the end of what the user said last."""
    messages = list(record.messages or [Message(role="user", content=record.query)])
    if messages[-1].role == "user":
        last = messages.pop()
        words = f"{last.content or ''}\n\n{words}"
    messages.append(Message(role="user", content=words))
    changed = record.model_copy(update={"messages": tuple(messages)})
    return changed.with_menu(record.menu)


def _told(tool: Tool) -> str:
    return f"{tool.name}: {tool.description or 'no description'}"
