"""What requests with one menu share: the names' tokens, their trie, and the profile's view."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from toolguard.adapters.decision_token import NameTokens, name_tokens
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire.base import WireFormat
from toolguard.guard.errors import ConfigError
from toolguard.guard.guard import Guard
from toolguard.guard.profile import MenuView, Profile
from toolguard.guard.tools import Menu
from toolguard.guard.trie import NameTrie

MENUS_KEPT = 64
_CONTEXT_SEEN = 16  # last characters of a prompt that can change how a call is tokenised


@dataclass(frozen=True, slots=True, kw_only=True)
class MenuPlan:
    """Everything about a menu that requests share.

    Args:
        menu: the tools on offer.
        names: their tokens.
        trie: the same as a trie.
        view: what the profile knows of them.
        banned: trie node -> child tokens under which every name is denied.
        calibrated_token: whether the decision token is the one that the profile was made at.
        must_call: names of which one must open the turn; empty leaves the model free.
    """

    menu: Menu
    names: NameTokens
    trie: NameTrie
    view: MenuView
    banned: Mapping[int, tuple[int, ...]]
    calibrated_token: bool
    must_call: frozenset[str] = frozenset()

    def calling(self, names: Collection[str]) -> MenuPlan:
        """Return the plan of a turn that must open with a call of one of `names`.

        Raises:
            ConfigError: if a name is not on the menu.
        """
        if strangers := sorted(set(names) - set(self.menu.names)):
            raise ConfigError(
                f"{strangers[0]!r} must be called but is not on the menu",
                hint=f"on the menu are: {', '.join(self.menu.names)}",
                names=strangers,
            )
        return replace(self, must_call=frozenset(names))

    def open_tokens(self, node: int) -> tuple[int, ...]:
        """Return the tokens at a trie node that lead to a name in `must_call`."""
        wanted = frozenset(i for i, name in enumerate(self.trie.names) if name in self.must_call)
        children = self.trie.children(node)
        return tuple(token for token in children if _leads_to(self.trie, node, token) & wanted)


class MenuPlans:
    """Makes plans and keeps the last ones.

    Args:
        loaded: its tokenizer spells the names.
        wire: the format of calls.
        guard: its profile and policy go into the plans.
    """

    def __init__(self, loaded: LoadedModel, wire: WireFormat, guard: Guard) -> None:
        self._loaded, self._wire, self._guard = loaded, wire, guard
        self._kept: OrderedDict[tuple[str, str], MenuPlan] = OrderedDict()

    def get(self, menu: Menu, context: str) -> MenuPlan:
        """Return the plan of a menu after a prompt that ends with `context`.

        Raises:
            ConfigError: if the format or the tokenizer cannot carry a name.
            UnsupportedModel: if the tokenizer cannot tell where names begin.
        """
        key = (menu.content_hash, context[-_CONTEXT_SEEN:])
        plan = self._kept.get(key)
        if plan is None:
            plan = self._kept[key] = self._make(menu, context)
            if len(self._kept) > MENUS_KEPT:
                self._kept.popitem(last=False)
        return plan

    def _make(self, menu: Menu, context: str) -> MenuPlan:
        names = name_tokens(self._loaded.tokenizer, self._wire, menu.names, context)
        trie = NameTrie(names.paths)
        profile = self._guard.profile
        hidden_size = self._loaded.view.hidden_size
        return MenuPlan(
            menu=menu,
            names=names,
            trie=trie,
            view=profile.view(menu) if profile else blank_view(menu, hidden_size),
            banned=banned_children(trie, self._guard.denied(menu.names)),
            calibrated_token=profile is None or _same_token(profile, names),
        )


def banned_children(trie: NameTrie, denied: frozenset[str]) -> dict[int, tuple[int, ...]]:
    """Return, for each node with some ways denied, the child tokens that lead to denied names only.

    Where every way is denied nothing is masked: the name is then vetoed when it is complete.
    """
    if not denied:
        return {}
    refused = frozenset(i for i, name in enumerate(trie.names) if name in denied)
    banned: dict[int, tuple[int, ...]] = {}
    for node in trie.branch_nodes:
        children = trie.children(node)
        closed = tuple(token for token in children if _leads_to(trie, node, token) <= refused)
        if closed and len(closed) < len(children):
            banned[node] = closed
    return banned


def _leads_to(trie: NameTrie, node: int, token: int) -> frozenset[int]:
    child = trie.advance(node, token)
    return frozenset() if child is None else frozenset(trie.names_below(child))


def _same_token(profile: Profile, names: NameTokens) -> bool:
    # A menu whose names fuse with the sign before them moves the decision token.
    return profile.meta.prefix_ids[-1:] == names.prefix_ids[-1:]


def blank_view(menu: Menu, hidden_size: int) -> MenuView:
    """Return the view of no profile at all: every tool unknown."""
    return MenuView(
        names=menu.names,
        statuses=dict.fromkeys(menu.names, "unknown"),
        known=torch.zeros(0, dtype=torch.int64),
        readout=None,
        means=torch.zeros(0, hidden_size),
    )
