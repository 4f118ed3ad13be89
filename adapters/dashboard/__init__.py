"""The dashboard: a local web page over the audit store that also answers waiting agents.

Importing this package imports FastAPI, Jinja2 and SQLAlchemy; importing `toolguard.adapters` does
not.
"""

if __name__ != "toolguard.adapters.dashboard":
    raise ImportError(f"import toolguard.adapters.dashboard, not {__name__}")

from toolguard.adapters.dashboard.access import Access
from toolguard.adapters.dashboard.app import Dashboard, create_app
from toolguard.adapters.dashboard.approval_desk import ApprovalDesk, ResumableAgent

__all__ = ["Access", "ApprovalDesk", "Dashboard", "ResumableAgent", "create_app"]
