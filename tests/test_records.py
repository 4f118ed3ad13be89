"""Records: what is refused, and what the derived values are."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from toolguard.calibration.datasets.records import Call, MenuEntry, Message, Record
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu, Tool

TOOLS = (Tool(name="lamp.on"), Tool(name="lamp.off"), Tool(name="kettle.boil"))


def record(**fields):
    given = {
        "id": "own/1",
        "source": "own",
        "split": "all",
        "query": "make it bright in here",
        "tools": TOOLS,
        "call": {"name": "lamp.on", "arguments": {"room": "hall"}},
    }
    return Record.model_validate(given | fields)


def faults(**fields):
    with pytest.raises(ValidationError) as caught:
        record(**fields)
    return [".".join(map(str, error["loc"])) for error in caught.value.errors()]


def test_a_record_without_messages_is_one_user_message():
    """The conversation of a bare query is that query, said by the user."""
    assert record().conversation == [{"role": "user", "content": "make it bright in here"}]


def test_messages_become_plain_chat_messages():
    """Chat messages keep calls, results and null arguments, and drop what was not given."""
    call = {"type": "function", "function": {"name": "lamp.on", "arguments": {"room": None}}}
    messages = [
        {"role": "user", "content": "light"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "lamp.on", "content": "done"},
    ]
    assert record(messages=messages).conversation == [
        {"role": "user", "content": "light"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done", "name": "lamp.on"},
    ]


def test_the_menus_system_text_comes_first():
    """The policy that goes with a menu opens the conversation where it is asked for."""
    chat = record(system="Be brief.").conversation_with_system()
    assert [message["role"] for message in chat] == ["system", "user"]
    assert chat[0]["content"] == "Be brief."


def test_a_records_own_system_message_is_kept_behind_the_menus():
    """Two system texts become one message, since most templates take only one."""
    messages = [{"role": "system", "content": "Own."}, {"role": "user", "content": "light"}]
    chat = record(messages=messages, system="Menu.").conversation_with_system()
    assert chat[0] == {"role": "system", "content": "Menu.\n\nOwn."}
    assert len(chat) == 2


def test_without_system_text_nothing_is_put_first():
    """A menu without a policy leaves the conversation as it is."""
    assert record().conversation_with_system() == record().conversation


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, {"lamp.on"}),
        ({"call": None}, set()),
        ({"accept": [{"lamp.on": {"room": ["hall"]}}, {"kettle.boil": {}}]}, None),
        ({"calls": [{"name": "lamp.on", "arguments": {"room": "hall"}}]}, {"lamp.on"}),
    ],
)
def test_right_names_are_the_call_and_what_upstream_accepts(fields, names):
    """The call's name and every accepted name are right; without a call, none is."""
    expected = {"lamp.on", "kettle.boil"} if names is None else names
    assert record(**fields).right_names == expected


@pytest.mark.parametrize(
    ("tags", "names"),
    [((), {"lamp.on"}), (("unordered_calls",), {"lamp.on", "kettle.boil"})],
)
def test_later_calls_are_right_only_if_unordered(tags, names):
    """A later call counts as right now only where the calls have no order."""
    calls = [{"name": "lamp.on", "arguments": {"room": "hall"}}, {"name": "kettle.boil"}]
    assert record(calls=calls, tags=tags).right_names == names


def test_records_share_the_menu_they_are_given():
    """The menu a record was read with is the object it gives back."""
    menu = Menu(TOOLS)
    assert record().with_menu(menu).menu is menu
    assert record(id="own/2").with_menu(menu).menu is menu


def test_a_menu_of_other_tools_is_refused():
    """A record cannot be given a menu that is not its own."""
    with pytest.raises(ConfigError, match="own/1"):
        record().with_menu(Menu(TOOLS[:2]))


def test_the_menu_is_built_once():
    """Without a menu given, the record makes one and keeps it."""
    one = record()
    assert one.menu is one.menu
    assert one.menu.names == ("lamp.on", "lamp.off", "kettle.boil")


def test_a_record_without_tools_has_no_menu():
    """No tools and no call is a valid record, but there is no menu to ask about."""
    empty = record(tools=[], call=None)
    assert not empty.is_call
    with pytest.raises(ConfigError, match="offers no tools"):
        _ = empty.menu


def test_tools_may_be_written_as_objects():
    """Tool objects of a file become runtime tools."""
    made = record(tools=[{"name": "lamp.on", "description": "Switch it on."}])
    assert made.tools == (Tool(name="lamp.on", description="Switch it on."),)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"surprise": 1}, ["surprise"]),
        ({"id": ""}, ["id"]),
        ({"query": 3}, ["query"]),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "oracle", "content": "x"}]}, ["messages.0.role"]),
        ({"call": {"name": "lamp.on", "arguments": []}}, ["call.arguments"]),
        ({"call": {"name": "door.open"}}, ["call"]),
        ({"calls": [{"name": "lamp.off"}]}, ["calls"]),
        ({"calls": [{"name": "door.open"}]}, ["calls"]),
        ({"accept": [{"door.open": {}}]}, ["accept"]),
        ({"tools": [TOOLS[0], TOOLS[0]]}, ["tools"]),
        ({"tools": [{"name": "lamp.on", "kind": "x"}]}, ["tools.0.kind"]),
        ({"tools": [7]}, ["tools.0"]),
    ],
)
def test_what_is_wrong_is_named_by_its_field(fields, where):
    """Each fault is reported under the field it lies in, and only there."""
    assert faults(**fields) == where


def test_a_record_must_say_whether_there_is_a_call():
    """A missing call is not taken for `no call`."""
    fields = {"id": "1", "source": "s", "split": "a", "query": "q", "tools": TOOLS}
    with pytest.raises(ValidationError, match="Field required"):
        Record.model_validate(fields)


def test_records_are_frozen():
    """A record cannot be changed after reading."""
    with pytest.raises(ValidationError):
        record().query = "another"


def test_a_call_becomes_the_runtimes_call():
    """The value that the guard compares carries the same name and arguments."""
    call = Call(name="lamp.on", arguments={"room": "hall"}).to_tool_call()
    assert (call.name, call.arguments) == ("lamp.on", {"room": "hall"})


def test_a_menu_entry_gives_a_menu():
    """A menu of a file becomes the runtime's menu, unique names required."""
    entry = MenuEntry.model_validate({"tools": [{"name": "lamp.on"}, {"name": "lamp.on"}]})
    with pytest.raises(ConfigError, match="unique"):
        entry.to_menu()


def test_ids_of_tool_calls_are_kept():
    """The ids that tie a result to its call survive."""
    call = {"type": "function", "id": "c1", "function": {"name": "lamp.on", "arguments": {}}}
    chat = Message.model_validate({"role": "assistant", "tool_calls": [call]}).to_chat()
    result = Message(role="tool", content="ok", tool_call_id="c1").to_chat()
    assert chat["tool_calls"][0]["id"] == result["tool_call_id"] == "c1"
