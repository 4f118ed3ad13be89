"""The dashboard as a person uses it: the command in a process of its own, and headless Chromium."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import contrast
from dashboard_agent import FOLDER, MARKUP, SCRIPT, profile, waiting_agent
from headless import MISSING, open_browser, show_as
from recorded_agents import say

from toolguard.adapters.audit_store import AuditStore

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="needs Debian's chromium and chromium-driver"),
]
COMMAND = "from toolguard.calibration.commands.dashboard import command; command()"
SECONDS = 60  # for a page to change, on a machine that is busy with something else


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Give a folder in which an agent of this process has left calls that wait."""
    folder = tmp_path_factory.mktemp("dashboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        agent = waiting_agent()
        for words in SCRIPT:
            say(agent, words, f"thread-{words}")
        profile().save(folder / "profile")
        yield folder


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    """Give the address that the command prints."""
    options = [
        *("--audit", str(folder / "audit.db"), "--profile", str(folder / "profile")),
        *("--agent", "dashboard_agent:waiting_agent", "--port", "0", "--json", "-"),
    ]
    tests = Path(__file__).parent
    with subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, *options],
        cwd=tests,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield json.loads("".join(process.stdout.readline() for _ in range(4)))["url"]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory) -> Iterator[Any]:
    """Give a browser that is logged in."""
    with open_browser(tmp_path_factory.mktemp("chromium")) as driver:
        log_in(driver, address)
        yield driver


def log_in(browser: Any, address: str) -> None:
    """Open the printed address; the driver may come back while the redirect is under way."""
    browser.get(address)
    until(browser, lambda: browser.title == "Decisions · toolguard")


def go(browser: Any, path: str) -> None:
    base = "/".join(browser.current_url.split("/")[:3])
    browser.get(base + path)
    ready = "return location.pathname + location.search + document.readyState"
    until(browser, lambda: browser.execute_script(ready) == f"{path}complete")


def find(browser: Any, css: str) -> Any:
    return browser.find_element("css selector", css)


def text_of(browser: Any, css: str = "main") -> str:
    return find(browser, css).text


def until(browser: Any, condition: Any) -> None:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.wait import WebDriverWait

    wait = WebDriverWait(browser, SECONDS, ignored_exceptions=[StaleElementReferenceException])
    wait.until(lambda _: condition())


def panel(browser: Any, call_id: str) -> Any:
    return browser.find_element(
        "xpath", f"//section[.//input[@name='call_id' and @value='{call_id}']]"
    )


def test_the_printed_address_leads_to_the_decisions(browser):
    """The token is gone from the address, and the decisions stand there."""
    assert "token" not in browser.current_url
    assert browser.title == "Decisions · toolguard"
    rows = browser.find_elements("css selector", "tbody tr")
    assert len(rows) == len(SCRIPT)
    assert "would" not in rows[0].text
    assert {row.text.split()[2] for row in rows} == {"run", "ask", "block"}


def test_a_new_decision_appears_by_itself(browser, folder):
    """What happens meanwhile shows without loading the page again; the focus stays where it was."""
    go(browser, "/")
    link = find(browser, "a.row")
    browser.execute_script("arguments[0].focus(); window.kept = true", link)
    place = link.get_attribute("id")
    with AuditStore.open(folder / "audit.db") as store:
        from toolguard.adapters.audit_store import AuditEvent

        store.write(AuditEvent(kind="decision", call_id="new", tool=MARKUP[:60], action="veto"))
    until(browser, lambda: "<script>document.title" in text_of(browser, "tbody"))
    assert browser.execute_script("return window.kept")
    assert browser.switch_to.active_element.get_attribute("id") == place


def test_keys_go_through_the_rows(browser):
    """Keys j and k move between rows, Enter opens a call."""
    from selenium.webdriver.common.keys import Keys

    go(browser, "/")
    body = find(browser, "body")
    body.send_keys("j")
    first = browser.switch_to.active_element
    assert first.get_attribute("class") == "row"
    first.send_keys("j")
    second = browser.switch_to.active_element
    assert second.get_attribute("id") != first.get_attribute("id")
    second.send_keys("k")
    assert browser.switch_to.active_element.get_attribute("id") == first.get_attribute("id")
    second.send_keys(Keys.ENTER)
    until(browser, lambda: "/call?id=" in browser.current_url)
    assert "What happened" in text_of(browser)


def test_a_call_left_by_a_process_that_is_gone_is_approved(browser, folder):
    """One click resumes the agent from its checkpoint, in the dashboard's own process."""
    go(browser, "/waiting")
    waiting = panel(browser, "delete-0")
    assert "a-17" in waiting.text
    waiting.find_element("css selector", "button[value=approve]").click()
    until(browser, lambda: "/call?id=delete-0" in browser.current_url)
    until(browser, lambda: "outcome done" in text_of(browser, ".story"))
    with AuditStore.open(folder / "audit.db") as store:
        assert [e.kind for e in store.events(call_id="delete-0")] == [
            "decision",
            "approval_request",
            "approval",
            "started",
            "outcome",
        ]


def test_a_call_is_edited_and_markup_in_it_stays_text(browser, folder):
    """The arguments in the editor are the agent's; what the person writes is what runs."""
    go(browser, "/waiting")
    waiting = panel(browser, "mail-0")
    assert MARKUP.split(">", 1)[0] in waiting.text
    waiting.find_element("css selector", "summary").click()
    area = waiting.find_element("css selector", "textarea[name=arguments]")
    assert json.loads(area.get_attribute("value"))["body"] == MARKUP
    area.clear()
    area.send_keys('{"to": ')
    waiting.find_element("css selector", "button[value=edit]").click()
    until(browser, lambda: "no JSON" in text_of(browser, "[role=alert]"))
    waiting = panel(browser, "mail-0")
    area = waiting.find_element("css selector", "textarea[name=arguments]")
    assert area.get_attribute("value") == '{"to": '
    area.clear()
    area.send_keys(json.dumps({"to": "bob@example.org", "subject": "Rent", "body": "Paid."}))
    waiting.find_element("css selector", "button[value=edit]").click()
    until(browser, lambda: "outcome done" in text_of(browser, ".story"))
    with AuditStore.open(folder / "audit.db") as store:
        assert store.get("mail-0", "approval").payload["type"] == "edit"


def test_what_somebody_writes_is_not_swept_away(browser, folder):
    """While an answer is being written, a change elsewhere leaves the form alone."""
    go(browser, "/waiting")
    waiting = panel(browser, "refuse-0")
    waiting.find_elements("css selector", "summary")[1].click()
    waiting.find_element("css selector", "textarea[name=message]").send_keys("Not this one")
    with AuditStore.open(folder / "audit.db") as store:
        from toolguard.adapters.audit_store import AuditEvent

        store.write(AuditEvent(kind="approval_request", call_id="late", run_id="r", tool="x"))
    until(browser, lambda: "Something has changed" in text_of(browser, "#pulse"))
    waiting.find_element("css selector", "details button[value=reject]").click()
    until(browser, lambda: "outcome rejected" in text_of(browser, ".story"))


@pytest.mark.parametrize("path", ["/", "/waiting", "/tools", "/distributions", "/call?id=mail-0"])
def test_pages_run_nothing_foreign_and_break_no_rule_of_their_own(browser, path):
    """No script of the data runs, nothing comes from elsewhere, the console stays silent."""
    browser.get_log("browser")
    go(browser, path)
    assert browser.title.endswith("· toolguard")
    base = "/".join(browser.current_url.split("/")[:3])
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((one) => one.name)"
    )
    assert loaded
    assert [name for name in loaded if not name.startswith(base + "/")] == []
    assert browser.get_log("browser") == []


def test_without_the_cookie_there_is_nothing_to_see(browser, address):
    """A browser that never showed the token gets no page; with a wrong one neither."""
    cookies = browser.get_cookies()
    assert [(c["httpOnly"], c["sameSite"]) for c in cookies] == [(True, "Strict")]
    browser.delete_all_cookies()
    for path in ("/", "/login?token=wrong"):
        go(browser, path)
        until(browser, lambda: "needs its token" in text_of(browser, "body"))
    log_in(browser, address)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(browser, theme):
    """Ink and paper differ by at least 4.5 to 1, as WCAG 2.2 asks for text, soft text too."""
    show_as(browser, theme=theme)
    go(browser, "/")
    for css in ("td .row", ".soft", ".verdict.run", ".verdict.ask", ".verdict.block"):
        assert contrast(browser, css) >= 4.5, css
    show_as(browser)
