"""A person's answer, from the form to the agent's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from fastapi import HTTPException, Request

BODY_LIMIT = 1 << 20  # bytes; arguments of the largest size, escaped twice
_KINDS = ("approve", "edit", "reject", "respond")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What a form says.

    Args:
        csrf: value that only our pages know.
        call_id: the call.
        seen: digest of the call as it was shown.
        kind: `approve`, `edit`, `reject` or `respond`; empty if none of them.
        arguments: for `edit`, text.
        message: for `reject` and `respond`.
    """

    csrf: str
    call_id: str
    seen: str
    kind: str
    arguments: str
    message: str


class NoAnswer(ValueError):
    """A slip of the pen: the form cannot be passed on, and the text says why."""


async def read_form(request: Request) -> AnswerForm:
    """Return the form in the body of a request.

    Raises:
        HTTPException: if it is too large or no form.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise HTTPException(413, "The form is too large.")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=10
        )
    except ValueError:
        raise HTTPException(400, "This is no form of the dashboard.") from None
    fields = dict(pairs)
    kind = fields.get("kind", "")
    return AnswerForm(
        csrf=fields.get("csrf", ""),
        call_id=fields.get("call_id", ""),
        seen=fields.get("seen", ""),
        kind=kind if kind in _KINDS else "",
        arguments=fields.get("arguments", ""),
        message=fields.get("message", "").replace("\r\n", "\n"),
    )


def answer_of(form: AnswerForm, name: str) -> dict[str, Any]:
    """Return the answer in LangChain's per-call schema.

    Args:
        form: as sent.
        name: of the tool, as the agent tells it; an edit cannot change it.

    Raises:
        NoAnswer: if the form has no answer, or the edited arguments are no JSON object.
    """
    if form.kind == "approve":
        return {"type": "approve"}
    if form.kind == "reject":
        return {"type": "reject", "message": form.message}
    if form.kind == "respond":
        if not form.message.strip():
            raise NoAnswer("Write what the agent should take as the tool's answer.")
        return {"type": "respond", "message": form.message}
    if form.kind != "edit":
        raise NoAnswer("The form says neither approve, edit, reject nor respond.")
    action = {"name": name, "args": edited_arguments(form.arguments)}
    return {"type": "edit", "edited_action": action}


def edited_arguments(text: str) -> dict[str, Any]:
    """Return the arguments that a person wrote.

    Raises:
        NoAnswer: if they are no JSON object, or hold a key twice or a number JSON does not have.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise NoAnswer(
            f"The arguments are no JSON: {error.msg} in line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise NoAnswer("The arguments are nested too deeply.") from None
    if not isinstance(value, dict):
        raise NoAnswer('The arguments must be an object: {"name": value, ...}.')
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NoAnswer("The arguments hold a key twice.")
    return found


def _no_constant(name: str) -> None:
    raise NoAnswer(f"The arguments hold {name}, which is no JSON.")
