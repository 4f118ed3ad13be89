"""The dashboard as an ASGI application: which address shows what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from toolguard.adapters.audit_store.store import AuditStore
from toolguard.adapters.dashboard.access import Access
from toolguard.adapters.dashboard.answer_routes import add_answer_routes
from toolguard.adapters.dashboard.approval_desk import ApprovalDesk
from toolguard.adapters.dashboard.gateway import LOGIN, Gateway
from toolguard.adapters.dashboard.page_routes import add_page_routes
from toolguard.adapters.dashboard.page_values import PageValues
from toolguard.adapters.dashboard.rendering import FOLDER, Pages
from toolguard.guard.audit import default_logger
from toolguard.guard.errors import ToolguardError
from toolguard.guard.profile_meta import ProfileMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """What a dashboard shows and may do.

    Args:
        store: the audit store; only read.
        access: who may look.
        desk: where waiting agents are answered.
        profile: what live readings are compared with.
        logger: told of refusals and answers.
    """

    store: AuditStore
    access: Access
    desk: ApprovalDesk
    profile: ProfileMeta | None = None
    logger: Any = field(default_factory=default_logger)


def create_app(dashboard: Dashboard) -> FastAPI:
    """Return the application; it closes the desk, not the store, when it shuts down.

    Raises:
        ConfigError: if what the profile keeps of its margins cannot be read.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(dashboard.desk.close)

    # FastAPI's own pages load their scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    pages = Pages()
    values = PageValues(dashboard.store, dashboard.desk, dashboard.access, dashboard.profile)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    _add_login(app, dashboard.access)
    add_page_routes(app, pages, values)
    add_answer_routes(app, pages, values, dashboard.logger)
    _add_errors(app, pages)
    app.add_middleware(Gateway, access=dashboard.access, logger=dashboard.logger)
    return app


def _add_login(app: FastAPI, access: Access) -> None:
    @app.get(LOGIN)
    def login() -> Response:
        """Give the session's cookie; the gateway has seen the token."""
        # 303 to an address without the token, so that it stays out of the history.
        answer = RedirectResponse("/", 303)
        answer.set_cookie(access.cookie, access.session, httponly=True, samesite="strict", path="/")
        return answer


def _add_errors(app: FastAPI, pages: Pages) -> None:
    @app.exception_handler(ToolguardError)
    def failed(_request: Request, error: ToolguardError) -> Response:
        text = f"{error.message}. {error.hint}" if error.hint else error.message
        return HTMLResponse(pages.note("The dashboard cannot show this", text), 503)

    @app.exception_handler(HTTPException)
    def refused(_request: Request, error: HTTPException) -> Response:
        return HTMLResponse(pages.note("Not done", str(error.detail)), error.status_code)
