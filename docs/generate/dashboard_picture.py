"""The picture of the dashboard: an agent on the bundled model at work, and what the page shows.

`make pictures` runs it. Every figure comes from decisions that the guard made in this run.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from headless import open_browser, show_as
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver

from toolguard.adapters.agent_middleware.middleware import ToolguardMiddleware
from toolguard.adapters.audit_store import AuditStore
from toolguard.adapters.chat.chat_model import GuardedChatModel
from toolguard.adapters.dashboard import Access, ApprovalDesk, Dashboard, create_app
from toolguard.adapters.dashboard.access import new_token
from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.guard.audit import default_logger
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.tools import Menu

POLICY = {
    "mode": "enforce",
    "unlisted": "deny",
    "risk_target": 0.1,
    "tools": {
        "create_reminder": {"tier": "write", "doubtful": "confirm"},
        "run_code": {"tier": "irreversible", "doubtful": "veto"},
        "send_email": {"tier": "irreversible", "doubtful": "confirm"},
        "write_file": {"tier": "irreversible", "rule": "confirm"},
        "get_*": {"tier": "read", "doubtful": "clarify"},
        "search_*": {"tier": "read", "doubtful": "veto"},
        "read_file": {"tier": "read"},
        "translate_text": {"tier": "read"},
    },
}
WORDS = 48  # most tokens of a turn
PAGES = {"": "/", "-distributions": "/distributions", "-waiting": "/waiting", "-tools": "/tools"}


def main() -> None:
    """Write the picture, and with --all one of each page beside it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default="reference", help="folder, hub id, or reference")
    parser.add_argument("--profile", type=Path, default=Path("out/demo/profile"))
    parser.add_argument("--data", type=Path, default=Path("out/demo/data"))
    parser.add_argument("--calls", type=int, default=70, help="queries to run")
    parser.add_argument("--out", type=Path, default=Path("docs/dashboard.png"))
    parser.add_argument("--all", action="store_true", help="pictures of all pages, in both themes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, AuditStore.open(Path(folder) / "a.db") as store:
        agent = work(options.model, options.profile, options.data, options.calls, store)
        with served(store, agent, options.profile) as address:
            photograph(address, options.out, every=options.all)


def work(model: str, profile: Path, data: Path, calls: int, store: AuditStore) -> Any:
    """Return an agent that has answered queries which its profile has never seen."""
    policy = Policy.load(POLICY)
    chat = GuardedChatModel.load(model, profile, policy, max_tokens=WORDS, temperature=0)
    known = Profile.load(profile)
    fresh = [r for r in open_dataset(data) if query_fingerprint(r.query) not in known.seen_queries]
    random.Random(0).shuffle(fresh)
    agent = create_agent(
        chat,
        tools(Menu.of(known.meta.menu)),
        middleware=[ToolguardMiddleware(policy, chat.seal, audit=store)],
        checkpointer=InMemorySaver(),
    )
    for number, record in enumerate(fresh[:calls]):
        config = {"configurable": {"thread_id": f"run-{number + 1:03}"}, "recursion_limit": 30}
        first_turn(agent, record.query, config)
    return agent


def first_turn(agent: Any, query: str, config: Any) -> None:
    """Let the agent answer a query up to the end of its first tools."""
    for step in agent.stream({"messages": [HumanMessage(query)]}, config, stream_mode="updates"):
        if "tools" in step or "__interrupt__" in step:
            return


def tools(menu: Menu) -> list[BaseTool]:
    """Return a tool that says it is done for each definition of the menu."""

    def done(name: str) -> Callable[..., str]:
        return lambda **_arguments: f"{name} is done"

    return [
        StructuredTool(
            name=tool.name,
            description=tool.description,
            args_schema=dict(tool.parameters),
            func=done(tool.name),
        )
        for tool in menu
    ]


@contextmanager
def served(store: AuditStore, agent: Any, profile: Path) -> Iterator[str]:
    """Give the address at which the dashboard lets a browser in."""
    access = Access(token=new_token())
    logger = default_logger()
    app = create_app(
        Dashboard(
            store=store,
            access=access,
            desk=ApprovalDesk(agent, logger),
            profile=Profile.load(profile).meta,
            logger=logger,
        )
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/login?token={access.token}"
    finally:
        server.should_exit = True
        thread.join()


def photograph(address: str, out: Path, *, every: bool) -> None:
    """Write pictures of the pages, taken by headless Chromium."""
    flags = ("--hide-scrollbars", "--window-size=1320,900")
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder), *flags) as browser:
        browser.get(address)
        base = address.partition("/login")[0]
        for theme in ("light", "dark") if every else ("light",):
            show_as(browser, theme=theme)
            for suffix, path in PAGES.items() if every else [("", "/")]:
                browser.get(base + path)
                name = f"{out.stem}{suffix}{'' if theme == 'light' else '-dark'}.png"
                browser.save_screenshot(str(out.with_name(name)))
        if every:
            browser.get(f"{base}/?verdict=ask")
            browser.find_element("css selector", "a.row").click()
            browser.save_screenshot(str(out.with_name(f"{out.stem}-call.png")))


if __name__ == "__main__":
    main()
