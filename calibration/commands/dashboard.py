"""`toolguard dashboard`: the audit store as a local web page that also answers waiting agents."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import click
import uvicorn

from toolguard.adapters.audit_store.store import AuditStore
from toolguard.adapters.dashboard.access import (
    LOOPBACK_NAMES,
    Access,
    is_loopback,
    load_token,
    new_token,
)
from toolguard.adapters.dashboard.agent_source import load_agent
from toolguard.adapters.dashboard.app import Dashboard, create_app
from toolguard.adapters.dashboard.approval_desk import ApprovalDesk
from toolguard.calibration.command_options import json_option
from toolguard.calibration.command_output import show_result
from toolguard.guard.audit import default_logger
from toolguard.guard.errors import ConfigError
from toolguard.guard.profile import Profile


@click.command("dashboard")
@click.option(
    "--audit", required=True, metavar="URL", help="Audit store: a path of SQLite, or a URL."
)
@click.option(
    "--profile", type=click.Path(path_type=Path), help="Profile that live readings are compared to."
)
@click.option(
    "--agent",
    metavar="MODULE:FUNCTION",
    help="Function that returns the LangGraph agent whose waiting calls are answered here.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8765,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token, made if missing; default: a random one, printed.",
)
@click.option(
    "--allow-remote",
    "names",
    multiple=True,
    metavar="NAME",
    help="Host name that others reach it by; allows a --host beyond this machine.",
)
@json_option
def command(
    audit: str,
    profile: Path | None,
    agent: str | None,
    host: str,
    port: int,
    token_file: Path | None,
    names: tuple[str, ...],
    json_path: str | None,
) -> None:
    """Show decisions as they are made, and answer the calls that wait for a person.

    Only this machine can reach it, and only with the token in the address it prints. Ctrl-C ends
    it, after the agents it resumed have come to rest.
    """
    if not names and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines",
            hint="name the host they use with --allow-remote, and put TLS in front",
        )
    access = Access(
        token=load_token(token_file) if token_file else new_token(),
        hosts=LOOPBACK_NAMES | {host.lower(), *(name.lower() for name in names)},
    )
    meta = Profile.load(profile).meta if profile else None
    logger = default_logger()
    desk = ApprovalDesk(load_agent(agent) if agent else None, logger)
    with AuditStore.open(audit, create=False) as store:
        app = create_app(
            Dashboard(store=store, access=access, desk=desk, profile=meta, logger=logger)
        )
        # An access log would hold the token.
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        )
        with _listening(host, port) as listening:
            _tell(_address(listening, host), None if token_file else access.token, json_path)
            with suppress(KeyboardInterrupt):  # raised once more when all is closed
                server.run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            hint="pass another --port, or 0 for a free one",
        ) from error


def _address(listening: socket.socket, host: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def _tell(address: str, token: str | None, json_path: str | None) -> None:
    """Print where to look; with a token file the token stays in it."""
    url = f"{address}/login?token={token or ''}"
    told = url if token else f"{url}<the token in the token file>"
    found = {"address": address, "url": url if token else None}
    show_result(found, f"The dashboard is at {told}", json_path)
