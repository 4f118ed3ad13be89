"""The dashboard: who may look, what is shown, and how a person's answer reaches a waiting agent."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from dashboard_agent import POLICY
from fakes import fake_profile, quiet_guard
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from recorded_agents import ScriptedCall, guarded_agent, menu_of, say
from starlette.websockets import WebSocketDisconnect

from toolguard.adapters.audit_store import AuditEvent, AuditStore
from toolguard.adapters.dashboard import Access, ApprovalDesk, Dashboard, create_app
from toolguard.adapters.dashboard.access import new_token
from toolguard.adapters.dashboard.live_readings import read_live
from toolguard.adapters.shown_text import shown, shown_json
from toolguard.guard.distribution import Distribution
from toolguard.guard.errors import ConfigError
from toolguard.guard.guard import Guard
from toolguard.guard.rate import wilson
from toolguard.guard.seal import Seal

ADDRESS = "http://127.0.0.1:8765"
MAIL = {"to": "ann@example.org", "subject": "Rent", "body": "It is paid."}
SCRIPT: dict[str, list[ScriptedCall]] = {
    "weather": [("get_weather", {"city": "Rome"}, 1.0)],
    "time": [("get_time", {"city": "Rome"}, 0.0)],
    "mail": [("send_email", MAIL, 0.1)],
    "two": [("send_email", MAIL, 0.1), ("delete_account", {"account": "a-17"}, 1.0)],
    "bad": [("send_email", {**MAIL, "body": "<script>alert(1)</script>\u202eevil"}, 0.1)],
}
PAGES = ("/", "/waiting", "/tools", "/distributions")


class Heard:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **facts: self.lines.append((event, facts))

    def told(self, event: str) -> list[dict[str, Any]]:
        return [facts for name, facts in self.lines if name == event]


@pytest.fixture(scope="module")
def guard(tiny_loaded) -> Guard:
    """Give a guard that lets P(wrong) up to 0.3 pass."""
    return quiet_guard(fake_profile(tiny_loaded, menu_of(), threshold=0.3), **POLICY)


@pytest.fixture
def store(tmp_path) -> Iterator[AuditStore]:
    """Give an empty audit store."""
    with AuditStore.open(tmp_path / "audit.db") as opened:
        yield opened


@pytest.fixture
def heard() -> Heard:
    """Give a logger that keeps what it is told."""
    return Heard()


@pytest.fixture
def agent(guard, store) -> Any:
    """Give an agent that keeps account in the store."""
    return guarded_agent(guard, Seal(), store, InMemorySaver(), SCRIPT)


@pytest.fixture
def visit(store, heard, guard) -> Iterator[Callable[..., TestClient]]:
    """Give a function that opens a dashboard, by default logged in."""
    opened: list[TestClient] = []

    def visit(agent=None, *, login=True, profile=None) -> TestClient:
        access = Access(token=new_token())
        desk = ApprovalDesk(agent, heard)
        app = create_app(
            Dashboard(store=store, access=access, desk=desk, profile=profile, logger=heard)
        )
        client = TestClient(app, base_url=ADDRESS, follow_redirects=False)
        client.__enter__()
        opened.append(client)
        client.access = access
        if login:
            client.get("/login", params={"token": access.token})
        return client

    yield visit
    for client in opened:
        client.__exit__(None, None, None)


def post(client: TestClient, *, origin: str | None = ADDRESS, **fields: str) -> Any:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    if origin is not None:
        headers["origin"] = origin
    content = {"csrf": client.access.csrf, **fields}
    return client.post("/answer", content=urlencode(content), headers=headers)


def answer(client: TestClient, call_id: str, kind: str, **fields: str) -> Any:
    """Send the form of a call as its page shows it."""
    page = client.get("/call", params={"id": call_id}).text
    seen = re.search(r'name="seen" value="(\w+)"', page)
    given = {"seen": seen.group(1) if seen else "", **fields}
    return post(client, call_id=call_id, kind=kind, **given)


def outcome_of(store: AuditStore, call_id: str, kind: str = "outcome") -> Any:
    """Return an event of a call, as soon as it is there."""
    for _ in range(500):
        if found := store.get(call_id, kind):
            return found
        time.sleep(0.02)
    return None


def hears(agent: Any, words: str) -> bool:
    """Return whether the words reach the agent of thread t, soon after the outcome is written."""
    for _ in range(500):
        messages = agent.get_state({"configurable": {"thread_id": "t"}}).values["messages"]
        if any(words in str(message.content) for message in messages):
            return True
        time.sleep(0.02)
    return False


def assert_all(text: str, *words: str) -> None:
    assert [word for word in words if word not in text] == []


# Who may look


def test_the_token_gives_a_cookie_that_scripts_and_other_sites_do_not_get(visit):
    """The right token leads on to the page without it in the address; the cookie is strict."""
    client = visit(login=False)
    found = client.get("/login", params={"token": client.access.token})
    assert (found.status_code, found.headers["location"]) == (303, "/")
    cookie = found.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.access.token not in cookie
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", "é", "\udcff"])
def test_a_wrong_token_is_refused_and_recorded(visit, heard, token):
    """No token but the right one opens, and the log says who tried without what they tried."""
    client = visit(login=False)
    query = "/login?token=" + ("%ED%B3%BF" if token == "\udcff" else token)
    found = client.get(query)
    assert found.status_code == 401
    assert "set-cookie" not in found.headers
    (told,) = heard.told("dashboard_refused")
    assert told == {"why": "token", "method": "GET", "path": "/login", "client": "testclient"}


@pytest.mark.parametrize(
    "path", [*PAGES, "/call?id=x", "/decisions.json", "/waiting.json", "/docs", "/openapi.json"]
)
def test_nothing_is_shown_without_a_session(visit, heard, path):
    """Every page and every part wants the cookie; a made-up one does not do."""
    client = visit(login=False)
    assert client.get(path).status_code == 401
    client.cookies.set(client.access.cookie, "f" * 64)
    assert client.get(path).status_code == 401
    assert [told["why"] for told in heard.told("dashboard_refused")] == ["session", "session"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "[", "a:b"]
)
def test_a_foreign_name_for_this_address_is_refused(visit, heard, host):
    """A domain made to point here is not the dashboard, whatever cookie comes with it."""
    client = visit()
    found = client.get("/", headers={"host": host})
    assert found.status_code == 400
    assert heard.told("dashboard_refused")[-1]["why"] == "host"


def test_two_names_at_once_are_refused(visit):
    """Of two Host headers a proxy may believe one and we the other."""
    hosts = [("host", "127.0.0.1:8765"), ("host", "evil.example")]
    assert visit().get("/", headers=hosts).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:9999", "[::1]:8765", "LOCALHOST"])
def test_the_names_of_this_machine_are_served(visit, host):
    """Loopback names count, with any port: a forwarded port has another number."""
    assert visit().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1234", ""]
)
def test_a_form_from_elsewhere_changes_nothing(visit, agent, store, heard, origin):
    """A POST from another origin, or from none, is refused and recorded."""
    say(agent, "mail", "t")
    found = post(visit(agent), origin=origin, call_id="mail-0", kind="approve")
    assert found.status_code == 403
    assert heard.told("dashboard_refused")[-1]["why"] == "origin"
    assert store.get("mail-0", "approval") is None


@pytest.mark.parametrize("csrf", ["", "0" * 64])
def test_a_form_that_is_not_of_this_session_changes_nothing(visit, agent, store, heard, csrf):
    """Without the page's own value a form is refused and recorded."""
    say(agent, "mail", "t")
    found = answer(visit(agent), "mail-0", "approve", csrf=csrf)
    assert found.status_code == 403
    assert heard.told("dashboard_refused")[-1]["why"] == "csrf"
    assert store.get("mail-0", "approval") is None


def test_a_form_without_a_session_changes_nothing(visit, agent, store):
    """The csrf value alone does not do."""
    say(agent, "mail", "t")
    client = visit(agent, login=False)
    assert post(client, call_id="mail-0", kind="approve").status_code == 401
    assert store.get("mail-0", "approval") is None


@pytest.mark.parametrize(
    "path", ["/", "/login?token=x", "/static/dashboard.css", "/nowhere", "/call?id=x"]
)
def test_every_answer_forbids_what_a_page_does_not_need(visit, path):
    """Refusals and files carry the policy too: no inline script, nothing foreign, no frame."""
    headers = visit().get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/static/../access.py", "/static/%2e%2e/access.py", "/static/..%2faccess.py"]
)
def test_only_the_static_files_are_served(visit, path):
    """No path leads out of their folder."""
    assert visit(login=False).get(path).status_code in {401, 404}


def test_a_web_socket_is_closed(visit):
    """There is nothing here to open a socket to."""
    client = visit()
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass  # pragma: no cover - never entered


# What is shown


def test_decisions_show_what_came_of_them(visit, agent):
    """Each call's row has its verdict, its evidence and how it ended."""
    for words in ("weather", "time", "mail"):
        say(agent, words, words)
    page = visit(agent).get("/").text
    rows = re.findall(r"<tr>\n.*?</tr>", page, re.DOTALL)
    texts = [re.sub(r"<[^>]+>|\s+", " ", row) for row in rows]
    mail, clock, weather = (
        next(t for t in texts if name in t) for name in ("send_email", "get_time", "get_weather")
    )
    assert_all(mail, "ask", "doubtful", "0.3000", "waiting for a person")
    assert_all(clock, "block", "doubtful", "blocked")
    assert_all(weather, "run", "confident", "done")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("tool=send_email", {"mail-0"}),
        ("run=weather", {"weather-0"}),
        ("verdict=block", {"time-0"}),
        ("verdict=run&tool=send_email", set()),
        ("rows=1", {"mail-0"}),
        ("tool=%27%20or%201%3D1--", set()),
    ],
)
def test_filters_pick_decisions(visit, agent, query, found):
    """Tool, run and verdict filter; so does the number of rows."""
    for words in ("weather", "time", "mail"):
        say(agent, words, words)
    page = visit(agent).get(f"/?{query}").text
    assert set(re.findall(r'href="/call\?id=([\w-]+)"', page)) == found


def test_monitor_mode_shows_what_would_have_happened(visit, store, tiny_loaded):
    """A call that only ran because nobody enforces says what enforcing would do."""
    watching = quiet_guard(
        fake_profile(tiny_loaded, menu_of(), threshold=0.3), **{**POLICY, "mode": "monitor"}
    )
    say(guarded_agent(watching, Seal(), store, InMemorySaver(), SCRIPT), "time", "t")
    page = visit().get("/").text
    assert "would block" in page
    assert "done" in page


def test_a_call_tells_its_story(visit, agent, store):
    """Every event of a call stands on its page in order, with its place in the chain."""
    say(agent, "weather", "thread-1")
    page = visit(agent).get("/call", params={"id": "weather-0"}).text
    places = [page.index(f'<li class="{kind}">') for kind in ("decision", "started", "outcome")]
    assert places == sorted(places)
    for event in store.events():
        assert event.hash[:16] in page
    assert store.get("weather-0", "decision").payload["arguments"] in page


def test_a_paused_tool_is_one_story(visit, store):
    """Attempts and repetitions of a call stand on the page of the call."""
    for kind, call_id, status in (
        ("decision", "c", "allow"),
        ("started", "c", "started"),
        ("outcome", "c", "paused"),
        ("started", "c#2", "started"),
        ("outcome", "c#2", "done"),
        ("outcome", "c#2~2", "blocked"),
    ):
        store.write(AuditEvent(kind=kind, call_id=call_id, tool="x", action=status))
    client = visit()
    page = client.get("/call", params={"id": "c#2"}).text
    assert page.count("<li class=") == 6
    assert "c#2~2" in page
    assert len(re.findall(r'class="row"', client.get("/").text)) == 1


def test_an_unknown_call_is_not_found(visit):
    """There is no page about a call that nothing is known of."""
    assert visit().get("/call", params={"id": "none"}).status_code == 404


def test_tool_rates_come_with_their_intervals(visit, agent, guard):
    """Each tool's rates have Wilson's interval and n, and what the profile knows of it."""
    for number in range(4):
        say(agent, "weather", f"w{number}")  # one call id, so one decision is kept
    say(agent, "time", "t")
    page = visit(agent, profile=guard.profile.meta).get("/tools").text
    text = re.sub(r"<[^>]+>|\s+", " ", page)
    assert re.search(
        r"get_time +1 +0.0% +0.0–79.3 +0.0% +0.0–79.3 +100.0% +20.7–100.0", " ".join(text.split())
    )
    assert "calibrated, 5 calls" in text


def test_a_share_of_nothing_is_no_number():
    """Without a decision there is no rate."""
    assert wilson(0, 0).value is None


@pytest.mark.parametrize("path", PAGES)
def test_an_empty_store_is_shown_as_such(visit, path):
    """Before the first decision every page is there and says so."""
    assert visit().get(path).status_code == 200


@pytest.mark.parametrize(
    ("path", "part"), [("/", "/decisions.json"), *((p, f"{p}.json") for p in PAGES[1:])]
)
def test_the_living_part_changes_when_something_happened(visit, agent, path, part):
    """The part asked for again has the key of the page until there is something new."""
    client = visit(agent)
    key = re.search(r'data-key="(\w+)"', client.get(path).text).group(1)
    assert client.get(part).json()["key"] == key
    say(agent, "mail", "t")
    found = client.get(part).json()
    assert found["key"] != key
    assert "send_email" in found["html"] or path == "/distributions"
    assert '<span class="count">1</span>' in found["bar"]


def hostile_events() -> list[AuditEvent]:
    text = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}\u202e"
    facts = {
        "reason": text,
        "detail": text,
        "action": text,
        "proposed": text,
        "fields": [text],
        "mode": text,
        "policy": text,
        "arguments": text,
        "arguments_plain": {text: [text, 1, None]},
        "recorded": {"action": text, "reason": text},
        "evidence": {
            "p_wrong": text,
            "threshold": [text],
            "margins": {text: 1.0, "logprob": text},
            "gaps": text,
            "candidates": {"logprob": [{"tool": text, "score": text}, text], text: 5},
            "status": text,
            "fault": text,
            "latency_us": text,
        },
        "message": text,
        "status": text,
        text: text,
    }
    kinds = ("decision", "approval_request", "approval", "started", "outcome")
    return [
        AuditEvent(
            kind=kind, call_id=f"{text}{n}", run_id=text, tool=text, action=text, payload=facts
        )
        for n in range(2)
        for kind in kinds
        if n or kind != "approval"
    ]


def test_nothing_foreign_becomes_markup(visit, store, guard):
    """Names, reasons, ids and payloads from anywhere stand there as text, on every page."""
    for event in hostile_events():
        store.write(event)
    client = visit(profile=guard.profile.meta)
    ids = [f"/call?{urlencode({'id': event.call_id})}" for event in store.events(kind="decision")]
    paths = [*PAGES, *ids, f"/?{urlencode({'tool': '<script>x', 'run': chr(34) + '><script>'})}"]
    for path in paths:
        page = client.get(path).text
        assert "<script>" not in page.replace(
            '<script src="/static/dashboard.js" defer></script>', ""
        )
        assert "<img" not in page
        assert "49" not in re.findall(r"alert\(2\)&gt;(\d+)", page)
        assert "\u202e" not in page


def test_pages_ask_nobody_else_for_anything(visit, agent, guard):
    """No inline script, no inline style, no handler, and no address but our own."""
    say(agent, "mail", "t")
    client = visit(agent, profile=guard.profile.meta)
    for path in [*PAGES, "/call?id=mail-0", "/nowhere?"]:
        page = client.get(path).text
        assert re.findall(r"<script(?! src=\"/static/)", page) == []
        assert re.findall(r"\s(?:style|on\w+)=", page) == []
        assert re.findall(r"(?:src|href|action)=\"(?!/|#)", page) == []
        assert "//" not in re.sub(r"<!.*?>", "", page).replace("</", "")


def test_what_cannot_be_seen_is_spelled_out(visit, agent):
    """Arguments with markup or text that turns around show letter by letter what would run."""
    say(agent, "bad", "t")
    page = visit(agent).get("/waiting").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202eevil" in page
    assert "\u202e" not in page


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_shown_arguments_mean_what_they_meant(value):
    """Whatever is spelled out, the JSON in the editor is the same value."""
    assert json.loads(shown_json(value)) == value


@pytest.mark.parametrize(
    "letter",
    ["\u202e", "\u200b", "\u00a0", "\u3164", "\ufe0f", "\x1b", "\U000e0041", "\n", "\u2028"],
)
def test_blank_letters_are_not_blank(letter):
    """Nothing that has no shape of its own passes as nothing."""
    assert shown(f"a{letter}b").startswith("a\\u")
    assert shown("é ß 日本 🙂") == "é ß 日本 🙂"


def test_a_damaged_row_is_told_and_not_hidden(visit, store, tmp_path):
    """What cannot be read is said, with what to do."""
    import sqlite3

    store.write(AuditEvent(kind="decision", call_id="c", tool="x"))
    with sqlite3.connect(tmp_path / "audit.db") as raw:
        raw.execute("drop trigger if exists toolguard_no_update")
        for (name,) in raw.execute(
            "select name from sqlite_master where type='trigger'"
        ).fetchall():
            raw.execute(f"drop trigger {name}")
        table = raw.execute(
            "select name from sqlite_master where type='table' and name like '%event%'"
        ).fetchone()[0]
        raw.execute(f"update {table} set payload='nonsense'")  # noqa: S608 - the name is the schema's
    raw.close()
    found = visit().get("/")
    assert found.status_code == 503
    assert "toolguard audit verify" in found.text


# A person's answer


def test_an_approved_call_runs_exactly_as_shown(visit, agent, store, heard):
    """Approving resumes the agent, which runs the call once, and the story goes on."""
    say(agent, "mail", "t")
    client = visit(agent)
    assert "ann@example.org" in client.get("/waiting").text
    found = answer(client, "mail-0", "approve")
    assert (found.status_code, found.headers["location"]) == (303, "/call?id=mail-0")
    assert outcome_of(store, "mail-0").payload["status"] == "done"
    assert store.get("mail-0", "approval").payload["type"] == "approve"
    assert heard.told("dashboard_answer") == [
        {"call_id": "mail-0", "tool": "send_email", "type": "approve"}
    ]
    assert hears(agent, "sent to ann@example.org")


def test_an_edited_call_runs_as_edited(visit, agent, store):
    """The person's arguments run in place of the model's."""
    say(agent, "mail", "t")
    text = json.dumps({**MAIL, "to": "bob@example.org"})
    assert answer(visit(agent), "mail-0", "edit", arguments=text).status_code == 303
    assert outcome_of(store, "mail-0").payload["status"] == "done"
    assert hears(agent, "sent to bob@example.org")


@pytest.mark.parametrize(("kind", "status"), [("reject", "rejected"), ("respond", "answered")])
def test_a_refused_call_does_not_run_and_the_agent_hears_why(visit, agent, store, kind, status):
    """Rejecting, or answering in the tool's place, gives the agent the person's words."""
    say(agent, "mail", "t")
    assert answer(visit(agent), "mail-0", kind, message="not on <b>Sunday</b>").status_code == 303
    assert outcome_of(store, "mail-0").payload["status"] == status
    assert store.get("mail-0", "started") is None
    assert hears(agent, "not on <b>Sunday</b>")


def test_an_edit_is_judged_like_any_call(visit, agent, store):
    """Arguments that the tool does not take are not run because a person wrote them."""
    say(agent, "mail", "t")
    assert answer(visit(agent), "mail-0", "edit", arguments='{"to": 5}').status_code == 303
    assert outcome_of(store, "mail-0").payload["status"] == "blocked"
    assert store.get("mail-0", "started") is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "edit", "arguments": "{"}, "no JSON"),
        ({"kind": "edit", "arguments": "[1]"}, "must be an object"),
        ({"kind": "edit", "arguments": '{"to": NaN}'}, "NaN"),
        ({"kind": "edit", "arguments": '{"to": "a", "to": "b"}'}, "twice"),
        ({"kind": "edit", "arguments": "[" * 100_000}, "too deeply"),
        ({"kind": "respond", "message": " "}, "Write what"),
        ({"kind": "nonsense"}, "neither approve"),
    ],
)
def test_a_slip_of_the_pen_is_told_and_nothing_is_lost(visit, agent, store, fields, words):
    """A form that cannot be passed on comes back with what was written, and the call waits on."""
    say(agent, "mail", "t")
    client = visit(agent)
    found = answer(client, "mail-0", **fields)
    assert found.status_code == 422
    assert words in found.text
    if len(fields.get("arguments", "")) > 1:
        assert fields["arguments"][:20].replace('"', "&#34;") in found.text
    assert store.get("mail-0", "approval") is None
    assert answer(client, "mail-0", "approve").status_code == 303


def test_only_the_first_answer_counts(visit, agent, store):
    """Once answered, a call cannot be answered again."""
    say(agent, "mail", "t")
    client = visit(agent)
    answer(client, "mail-0", "reject")
    assert outcome_of(store, "mail-0").payload["status"] == "rejected"
    found = answer(client, "mail-0", "approve")
    assert found.status_code == 409
    assert "Nobody waits" in found.text
    assert store.get("mail-0", "started") is None


def test_an_answer_to_another_call_than_was_shown_is_refused(visit, agent, store):
    """The form names what the person saw; anything else is shown again first."""
    say(agent, "mail", "t")
    found = answer(visit(agent), "mail-0", "approve", seen="0" * 64)
    assert found.status_code == 409
    assert "not the one that was shown" in found.text
    assert store.get("mail-0", "approval") is None


def test_two_calls_of_one_turn_are_answered_one_by_one(visit, agent, store):
    """Each waiting call of a message has its own answer."""
    say(agent, "two", "t")
    client = visit(agent)
    assert client.get("/waiting").text.count("Approve as shown") == 2
    assert answer(client, "two-1", "reject").status_code == 303
    assert outcome_of(store, "two-1").payload["status"] == "rejected"
    for _ in range(200):  # until the agent has come to rest again
        if answer(client, "two-0", "approve").status_code == 303:
            break
        time.sleep(0.02)
    assert outcome_of(store, "two-0").payload["status"] == "done"


def test_without_an_agent_the_page_says_how_to_answer(visit, agent, store):
    """The dashboard cannot resume what it does not have, and shows the call that does."""
    say(agent, "mail", "thread-9")
    client = visit()
    page = client.get("/waiting").text
    assert "--agent MODULE:FUNCTION" in page
    assert "thread-9" in page
    assert "Approve as shown" not in page
    found = answer(client, "mail-0", "approve")
    assert found.status_code == 409
    assert store.get("mail-0", "approval") is None


class StandIn:
    """An agent of which the test says what it waits for and how it goes on."""

    def __init__(self, **interrupt: Any) -> None:
        value = {
            "type": "tool_approval",
            "tool_call_id": "c",
            "name": "x",
            "args": {},
            "description": "<script>why</script>",
            **interrupt,
        }
        self.interrupts = (
            SimpleNamespace(id="other", value="a plain text"),
            SimpleNamespace(id="i", value=value),
        )
        self.go = threading.Event()
        self.error: Exception | None = None
        self.unreadable: Exception | None = None
        self.got: list[Any] = []

    def get_state(self, config: Any) -> Any:
        if self.unreadable:
            raise self.unreadable
        return SimpleNamespace(interrupts=self.interrupts)

    def invoke(self, command: Any, config: Any) -> None:
        self.got.append((command.resume, config))
        self.go.wait(10)
        if self.error:
            raise self.error


@pytest.fixture
def asked(store) -> None:
    """Write that a person is asked about the call c of the run r."""
    store.write(AuditEvent(kind="approval_request", call_id="c", run_id="r", tool="x"))


def test_a_busy_agent_is_not_resumed_twice(visit, asked):
    """While an answer is worked on, no other reaches the same thread."""
    agent = StandIn()
    client = visit(agent)
    page = client.get("/call?id=c").text
    assert "&lt;script&gt;why" in page
    seen = re.search(r'name="seen" value="(\w+)"', page).group(1)
    assert post(client, call_id="c", kind="approve", seen=seen).status_code == 303
    assert "Answered. The agent is at work." in client.get("/call?id=c").text
    assert post(client, call_id="c", kind="approve", seen=seen).status_code == 409
    agent.go.set()
    assert agent.got == [({"i": {"type": "approve"}}, {"configurable": {"thread_id": "r"}})]


def test_an_agent_that_fails_is_told_and_can_be_asked_again(visit, asked, heard):
    """The error's kind stands on the page and in the log, its text in neither."""
    agent = StandIn()
    agent.error = RuntimeError("secret")
    agent.go.set()
    client = visit(agent)
    assert answer(client, "c", "approve").status_code == 303
    for _ in range(200):
        if heard.told("dashboard_agent_failed"):
            break
        time.sleep(0.01)
    (told,) = heard.told("dashboard_agent_failed")
    assert told["error"] == "RuntimeError"
    page = client.get("/call?id=c").text
    assert "RuntimeError" in page
    assert "secret" not in page + str(heard.lines)
    assert answer(client, "c", "approve").status_code == 303


def test_an_agent_that_cannot_be_read_is_told(visit, asked, heard):
    """A checkpoint that fails to load leaves the rest of the page as it is."""
    agent = StandIn()
    agent.unreadable = RuntimeError("secret")
    client = visit(agent)
    page = client.get("/waiting").text
    assert "cannot be read (RuntimeError)" in page
    assert "secret" not in page
    assert answer(client, "c", "approve").status_code == 409
    assert agent.got == []


@pytest.mark.parametrize("interrupt", [{"type": "other"}, {"tool_call_id": "d"}])
def test_a_call_that_the_agent_does_not_wait_for_cannot_be_answered(visit, asked, interrupt):
    """What the store says is no ground for resuming anything."""
    agent = StandIn(**interrupt)
    client = visit(agent)
    assert "does not wait for this call" in client.get("/waiting").text
    assert answer(client, "c", "approve").status_code == 409
    assert agent.got == []


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"x" * 1_100_000, 413), (b"\xff\xfe", 400), (b"a=%ff", 400), (b"&".join([b"a=1"] * 50), 400)],
)
def test_a_body_that_is_no_form_is_refused(visit, body, status):
    """Too large, not text, or too many fields: nothing is read from it."""
    client = visit(StandIn())
    found = client.post("/answer", content=body, headers={"origin": ADDRESS})
    assert found.status_code == status


# Readings and drift on the pages


def test_live_readings_are_those_the_profile_vouches_for(store, agent):
    """Decisions without a whole reading of a calibrated tool are counted and left out."""
    for words in ("weather", "time"):
        say(agent, words, words)
    store.write(AuditEvent(kind="decision", call_id="x", tool=None, action="veto"))
    found = read_live(store)
    assert (found.decisions, found.left_out) == (3, 1)
    assert {name: len(values) for name, values in found.values.items()} == {
        "p_wrong": 2,
        "logprob": 2,
        "activation": 2,
    }


def with_distributions(meta: Any, data: Any) -> Any:
    return meta.model_copy(update={"metrics": {"test": {"distributions": data}}})


def drifted(store: AuditStore, guard: Guard) -> Any:
    """Write sixty decisions and return a profile whose own margins were far larger."""
    script = {f"w{n}": [("get_weather", {"city": "Rome"}, n / 60)] for n in range(60)}
    agent = guarded_agent(guard, Seal(), store, InMemorySaver(), script)
    for words in script:
        say(agent, words, words)
    rng = np.random.default_rng(4)
    kept = {
        name: Distribution.of(rng.normal(9, 1, 200)).to_dict() for name in ("logprob", "activation")
    }
    kept["p_wrong"] = Distribution.of(rng.uniform(0, 0.1, 200)).to_dict()
    return with_distributions(guard.profile.meta, kept)


def test_drift_is_told_on_every_page_with_n_and_p(visit, store, guard):
    """The alarm stands in the bar; the page of distributions names the test and its numbers."""
    client = visit(profile=drifted(store, guard))
    for path in PAGES:
        assert re.search(r"⚠ Drift: [\w-]+ margin, p = \de-\d+, n = 60", client.get(path).text)
    page = client.get("/distributions").text
    assert "Two-sample Kolmogorov-Smirnov test" in page
    assert page.count('class="chart"') == 3
    assert page.count('<path class="outline" d="M0 150V') == 3
    assert "n = 200" in page


def test_a_profile_without_margins_says_so(visit, agent, guard):
    """What the profile keeps is drawn; what it lacks is named."""
    say(agent, "weather", "t")
    page = visit(profile=guard.profile.meta).get("/distributions").text
    assert "keeps no distribution" in page
    assert "Calls within the thresholds" in page
    assert page.count('class="chart"') == 3


def test_a_profile_with_nonsense_for_margins_is_refused(visit, guard):
    """A damaged profile is no reference."""
    with pytest.raises(ConfigError, match=r"metrics\.test\.distributions"):
        visit(profile=with_distributions(guard.profile.meta, {"logprob": {"n": 3}}))
