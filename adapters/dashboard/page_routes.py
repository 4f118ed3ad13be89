"""The pages that are read: each whole as HTML, and its living part as JSON for the next look."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.responses import Response

from toolguard.adapters.dashboard.page_values import ROWS, PageValues, Values
from toolguard.adapters.dashboard.rendering import Pages, part_key

Text = Annotated[str, Query(max_length=4096)]
Count = Annotated[int, Query(ge=1, le=1000)]
JSON = ".json"


def add_page_routes(app: FastAPI, pages: Pages, values: PageValues) -> None:
    """Add every page at its address and, with `.json` after it, the part of it that lives."""

    def shown(request: Request, name: str, own: Values) -> Response:
        content = {**values.frame(), **own}
        if not request.url.path.endswith(JSON):
            return HTMLResponse(pages.page(name, **content, poll=_poll(request)))
        html = pages.part(name, **content)
        bar = pages.part("bar", **content, page=name)
        return JSONResponse({"key": part_key(html), "html": html, "bar": bar})

    @app.get("/")
    @app.get("/decisions.json")
    def decisions(
        request: Request, tool: Text = "", run: Text = "", verdict: Text = "", rows: Count = ROWS
    ) -> Response:
        own = values.decisions(tool=tool, run=run, verdict=verdict, rows=rows)
        return shown(request, "decisions", own)

    @app.get("/call")
    @app.get("/call.json")
    def call(request: Request, id: Text) -> Response:  # noqa: A002 - the name in the address
        own = values.call(id)
        if own is None:
            raise HTTPException(404, "Nothing is on record about this call.")
        return shown(request, "call", own)

    @app.get("/waiting")
    @app.get("/waiting.json")
    def waiting(request: Request) -> Response:
        return shown(request, "waiting", values.waiting())

    @app.get("/tools")
    @app.get("/tools.json")
    def tools(request: Request, span: Text = "day") -> Response:
        return shown(request, "tools", values.tools(span))

    @app.get("/distributions")
    @app.get("/distributions.json")
    def distributions(request: Request) -> Response:
        return shown(request, "distributions", values.distributions())


def _poll(request: Request) -> str:
    """Return where the living part of this page is asked for again."""
    path = "/decisions" if request.url.path == "/" else request.url.path
    query = f"?{request.url.query}" if request.url.query else ""
    return f"{path}{JSON}{query}"
