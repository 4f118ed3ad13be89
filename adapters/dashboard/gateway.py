"""What every request passes before any page sees it, and the headers every answer carries."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolguard.adapters.dashboard.access import Access

LOGIN = "/login"
STATIC = "/static/"  # style and icon of the page that says no; nothing in it is secret

HEADERS = {
    # No inline script or style, nothing from elsewhere, in nobody's frame.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: with it browsers send "Origin: null" with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Gateway:
    """ASGI middleware: asks for the right host, the session, and our own origin on every change.

    Args:
        app: what is behind it.
        access: what is asked for.
        logger: is told of every refusal, without token and query.
    """

    def __init__(self, app: ASGIApp, *, access: Access, logger: Any) -> None:
        self.app, self.access, self.logger = app, access, logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request here or hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is nothing here to open a socket to
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        headers, path = request.headers, request.url.path
        if len(headers.getlist("host")) != 1 or not self.access.admits_host(headers["host"]):
            return self._refused(request, "host", 400, "This address is not the dashboard's.\n")
        reads = request.method in {"GET", "HEAD"}
        if path.startswith(STATIC) and reads:
            return None
        if path == LOGIN and reads:
            return self._login_refusal(request)
        if not self.access.admits_session(request.cookies.get(self.access.cookie, "")):
            return self._refused(request, "session", 401, _HOW)
        if not reads and not self.access.admits_origin(_origin(headers), headers["host"]):
            return self._refused(request, "origin", 403, "This form is not the dashboard's own.\n")
        return None

    def _login_refusal(self, request: Request) -> Response | None:
        if self.access.admits_token(request.query_params.get("token", "")):
            return None
        return self._refused(request, "token", 401, _HOW)

    def _refused(self, request: Request, why: str, status: int, text: str) -> Response:
        log_refusal(self.logger, request, why)
        return PlainTextResponse(text, status)


_HOW = (
    "The dashboard needs its token.\n"
    "Open the address that `toolguard dashboard` printed when it started.\n"
)


def log_refusal(logger: Any, request: Request, why: str) -> None:
    """Write that a request was refused: `host`, `token`, `session`, `origin` or `csrf`."""
    logger.warning(
        "dashboard_refused",
        why=why,
        method=request.method,
        path=request.url.path[:200],
        client=request.client.host if request.client else None,
    )


def _origin(headers: Headers) -> str:
    origins = headers.getlist("origin")
    return origins[0] if len(origins) == 1 else ""
