"""The one address that changes something: a person's answer to a waiting call."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.responses import Response

from toolguard.adapters.dashboard.answers import AnswerForm, NoAnswer, answer_of, read_form
from toolguard.adapters.dashboard.gateway import log_refusal
from toolguard.adapters.dashboard.page_values import PageValues
from toolguard.adapters.dashboard.rendering import Pages

_REFUSALS = {
    "no_agent": "The dashboard was started without --agent, so it cannot answer.",
    "gone": "The agent no longer waits for this answer.",
    "busy": "The agent is at work on another answer. Try again when it has finished.",
    "changed": "The call is not the one that was shown. Look at it again before you answer.",
}


def add_answer_routes(app: FastAPI, pages: Pages, values: PageValues, logger: Any) -> None:
    """Add `POST /answer`, which resumes the agent and goes on to the call's story."""

    @app.post("/answer")
    def answer(request: Request, form: Annotated[AnswerForm, Depends(read_form)]) -> Response:
        if not values.access.admits_form(form.csrf):
            log_refusal(logger, request, "csrf")
            raise HTTPException(403, "This form is not of this session. Load the page again.")
        asked = values.request_of(form.call_id)
        if asked is None:
            raise HTTPException(409, "Nobody waits for an answer about this call any more.")
        call = values.desk.look(asked)
        try:
            said = answer_of(form, call.name)
        except NoAnswer as error:
            return HTMLResponse(_again(pages, values, form, str(error)), 422)
        refusal = values.desk.answer(asked, form.seen, said)
        if refusal:
            raise HTTPException(409, _REFUSALS[refusal])
        logger.info("dashboard_answer", call_id=form.call_id, tool=asked.tool, type=said["type"])
        return RedirectResponse(f"/call?id={quote(form.call_id, safe='')}", 303)


def _again(pages: Pages, values: PageValues, form: AnswerForm, why: str) -> str:
    """Return the call's page with what the person wrote, and what is wrong with it."""
    own = values.call(form.call_id) or {}
    note = {"why": why, "arguments": form.arguments, "message": form.message}
    content = {**values.frame(), **own, "notes": {form.call_id: note}}
    return pages.page("call", **content, poll="")
