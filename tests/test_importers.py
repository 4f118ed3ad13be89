"""Importers: hand-written files in the upstream shapes become records that load."""

from __future__ import annotations

import json

import pytest

from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.importers.bfcl import import_bfcl, json_schema
from toolguard.calibration.importers.clinc150 import import_clinc150
from toolguard.calibration.importers.snips import import_snips
from toolguard.calibration.importers.upstream import UpstreamError, phrase_of
from toolguard.guard.errors import ConfigError, DatasetError


def load(folder):
    dataset = open_dataset(folder)
    records = {record.id: record for record in dataset}
    assert dataset.problems == ()
    return records


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path, *values):
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def user(text):
    return [[{"role": "user", "content": text}]]


BOIL = {
    "name": "kettle.boil",
    "description": "Boil water.",
    "parameters": {
        "type": "dict",
        "properties": {
            "litres": {"type": "float", "description": "How much."},
            "cups": {"type": "integer", "default": 1},
            "span": {"type": "tuple", "items": {"type": "float"}},
            "note": {"type": "any"},
            "how": {
                "type": "dict",
                "properties": {"speed": {"type": "string"}, "lid": {"type": "boolean"}},
                "required": ["speed"],
            },
        },
        "required": ["litres"],
    },
}
LAMP = {"name": "lamp_on", "description": "", "parameters": {"type": "dict", "properties": {}}}


@pytest.fixture
def bfcl(tmp_path):
    """A folder of three BFCL question files, two of them with answers."""
    folder = tmp_path / "bfcl"
    write_lines(
        folder / "BFCL_v4_simple_python.json",
        {"id": "simple_python_0", "question": user("tea for two"), "function": [BOIL]},
        {"id": "simple_python_1", "question": user("more tea"), "function": [BOIL]},
        {
            "id": "simple_python_2",
            "question": [[{"role": "system", "content": "s"}, *user("water")[0]]],
            "function": [BOIL],
        },
    )
    write_lines(
        folder / "possible_answer" / "BFCL_v4_simple_python.json",
        {
            "id": "simple_python_0",
            "ground_truth": [
                {
                    "kettle.boil": {
                        "litres": ["", 0.5],
                        "cups": [2, ""],
                        "span": [[1.0, 2.0]],
                        "how": [{"speed": ["fast", "quick"], "lid": ["", True]}],
                    }
                }
            ],
        },
        {"id": "simple_python_1", "ground_truth": [{"kettle.boil": {"litres": ["much"]}}]},
        {"id": "simple_python_2", "ground_truth": [{"kettle.boil": {"litres": [1.5]}}]},
    )
    write_lines(
        folder / "BFCL_v4_live_parallel_multiple.json",
        {"id": "lpm_0", "question": user("tea and light"), "function": [BOIL, LAMP]},
    )
    write_lines(
        folder / "possible_answer" / "BFCL_v4_live_parallel_multiple.json",
        {"id": "lpm_0", "ground_truth": [{"lamp_on": {}}, {"kettle.boil": {"litres": [1.0]}}]},
    )
    write_lines(
        folder / "BFCL_v4_irrelevance.json",
        {"id": "irrelevance_0", "question": user("feed the cat"), "function": [LAMP]},
    )
    write_lines(folder / "BFCL_v4_multi_turn_base.json", {"id": "multi_turn_base_0"})
    return folder


def test_bfcl_labels_come_from_the_accepted_values(bfcl, tmp_path):
    """The call takes the first accepted value, leaves out what may be left out, keeps all."""
    report = import_bfcl([bfcl], tmp_path / "out")
    records = load(tmp_path / "out")
    assert (report.records, report.calls, report.menus, report.problems) == (5, 4, 3, ())
    assert [path.name for path in report.skipped] == ["BFCL_v4_multi_turn_base.json"]
    call = records["bfcl/simple_python_0"].call
    assert call.arguments == {"litres": 0.5, "span": [1.0, 2.0], "how": {"speed": "fast"}}
    (accept,) = records["bfcl/simple_python_0"].accept
    assert accept["kettle.boil"]["cups"] == [2, ""]
    assert "args_invalid" not in records["bfcl/simple_python_0"].tags


def test_bfcl_arguments_that_do_not_fit_are_tagged(bfcl, tmp_path):
    """Upstream arguments that the upstream schema refuses are kept and marked, with the reason."""
    import_bfcl([bfcl], tmp_path / "out")
    odd = load(tmp_path / "out")["bfcl/simple_python_1"]
    assert "args_invalid" in odd.tags
    assert "number" in odd.meta["args_error"]


def test_bfcl_parallel_calls_are_right_in_any_order(bfcl, tmp_path):
    """Each of several upstream calls may come first."""
    import_bfcl([bfcl], tmp_path / "out")
    both = load(tmp_path / "out")["bfcl/lpm_0"]
    assert both.call == both.calls[0]
    assert both.right_names == {"lamp_on", "kettle.boil"}
    assert {"live", "multi_call", "unordered_calls"} <= set(both.tags)


def test_bfcl_irrelevance_has_no_call(bfcl, tmp_path):
    """In an irrelevance category no tool should be called."""
    import_bfcl([bfcl], tmp_path / "out")
    none = load(tmp_path / "out")["bfcl/irrelevance_0"]
    assert none.call is None
    assert "abstain" in none.tags


def test_bfcl_keeps_messages_and_shares_menus(bfcl, tmp_path):
    """A system message is kept; a single user message is just the query."""
    import_bfcl([bfcl], tmp_path / "out")
    records = load(tmp_path / "out")
    assert [m["role"] for m in records["bfcl/simple_python_2"].conversation] == ["system", "user"]
    assert records["bfcl/simple_python_0"].messages is None
    assert records["bfcl/simple_python_0"].menu is records["bfcl/simple_python_1"].menu


def test_bfcl_bad_items_are_noted_by_file_and_line(tmp_path):
    """Items that cannot become records are left out and named; the others are written."""
    path = write_lines(
        tmp_path / "BFCL_v4_multiple.json",
        {"id": "m0", "question": user("tea"), "function": [BOIL]},
        "{broken",
        {"id": "m2", "question": user("tea"), "function": [BOIL]},
        {"id": "m3", "question": [], "function": [BOIL]},
        {"id": "m4", "question": user("tea"), "function": []},
        {"id": "m5", "question": user("tea"), "function": [{**BOIL, "parameters": {"type": "x"}}]},
        {"id": "m6", "question": user("tea"), "function": [LAMP]},
        {"id": "m0", "question": user("tea"), "function": [BOIL]},
        {"id": "m8", "question": user("tea"), "function": [BOIL, BOIL]},
        {"id": "m9", "question": user("tea"), "function": [BOIL]},
        {"question": user("tea")},
    )
    truth = [{"kettle.boil": {"litres": [1]}}]
    ids = ("m0", "m3", "m4", "m5", "m6", "m8")
    write_lines(
        tmp_path / "possible_answer" / path.name,
        *({"id": identity, "ground_truth": truth} for identity in ids),
        {"id": "m9", "ground_truth": [{"kettle.boil": {"litres": []}}]},
        "7",
    )
    report = import_bfcl([path], tmp_path / "out")
    assert list(load(tmp_path / "out")) == ["bfcl/m0"]
    assert [(p.path == path, p.line, p.field) for p in report.problems] == [
        (False, 8, "id"),
        (True, 2, ""),
        (True, 3, "id"),
        (True, 4, "question"),
        (True, 5, "function"),
        (True, 6, "function.parameters"),
        (True, 7, "ground_truth"),
        (True, 8, "id"),
        (True, 9, "function"),
        (True, 10, "ground_truth"),
        (True, 11, "id"),
    ]


def test_bfcl_categories_without_labels_are_refused(bfcl, tmp_path):
    """A file whose labels are of another kind cannot be imported by name."""
    with pytest.raises(DatasetError, match="multi_turn_base"):
        import_bfcl([bfcl / "BFCL_v4_multi_turn_base.json"], tmp_path / "out")
    with pytest.raises(DatasetError, match="no labelled"):
        import_bfcl([tmp_path], tmp_path / "out")


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        ({"type": "dict", "properties": {}}, {"type": "object", "properties": {}}),
        ({"type": "HashMap"}, {"type": "object"}),
        ({"type": "float", "description": "d"}, {"type": "number", "description": "d"}),
        ({"type": "any", "description": "d"}, {"description": "d"}),
        ({"type": ["str", "None"]}, {"type": ["string", "null"]}),
        ({"type": "ArrayList", "items": {"type": "long"}}, {"items": {"type": "integer"}}),
        ({"type": "tuple", "items": [{"type": "int"}]}, {"prefixItems": [{"type": "integer"}]}),
        ({"type": "string", "required": True}, {"type": "string"}),
        (
            {"type": "dict", "properties": {"type": {"type": "String"}}},
            {"type": "object", "properties": {"type": {"type": "string"}}},
        ),
    ],
)
def test_types_become_those_of_json_schema(upstream, expected):
    """Python and Java types get their JSON names at every depth; `any` gets none."""
    made = json_schema(upstream)
    assert made == ({"type": "array"} if "rray" in made.get("type", "") else {}) | expected


@pytest.mark.parametrize("schema", [{"type": "quark"}, {"type": 3}, 3, {"items": 3}])
def test_unknown_types_are_refused(schema):
    """A type that no table knows is not guessed."""
    with pytest.raises(UpstreamError):
        json_schema(schema)


SNIPS_TEA = {
    "BrewTea": [
        {"data": [{"text": "brew "}, {"text": "mint", "entity": "kind"}, {"text": " tea "}]},
        {
            "data": [
                {"text": "th\u00e9 "},
                {"text": "vert", "entity": "kind"},
                {"text": " ou "},
                {"text": "noir", "entity": "kind"},
            ]
        },
        {"data": [{"text": "just tea"}]},
    ]
}


@pytest.fixture
def snips(tmp_path):
    """A folder in the SNIPS layout, one file of it in Latin-1."""
    folder = tmp_path / "engines"
    tea = folder / "BrewTea" / "train_BrewTea_full.json"
    tea.parent.mkdir(parents=True)
    tea.write_bytes(json.dumps(SNIPS_TEA, ensure_ascii=False).encode("latin-1"))
    write_json(tea.with_name("train_BrewTea.json"), {"BrewTea": [{"data": [{"text": "no"}]}]})
    walk = {"WalkDog": [{"data": [{"text": "walk "}, {"text": "Rex", "entity": "dogName"}]}]}
    write_json(folder / "WalkDog" / "validate_WalkDog.json", walk)
    return folder


def test_snips_slots_become_arguments(snips, tmp_path):
    """Pieces join to the query; a slot met twice is a list; the Latin-1 file is read."""
    report = import_snips([snips], tmp_path / "out")
    records = load(tmp_path / "out")
    assert (report.records, report.calls, report.menus) == (4, 4, 1)
    assert records["snips/train/BrewTea/1"].query == "brew mint tea"
    assert records["snips/train/BrewTea/1"].call.arguments == {"kind": "mint"}
    assert records["snips/train/BrewTea/2"].query == "th\u00e9 vert ou noir"
    assert records["snips/train/BrewTea/2"].call.arguments == {"kind": ["vert", "noir"]}
    assert records["snips/validate/WalkDog/1"].split == "validate"


def test_snips_tools_describe_their_slots(snips, tmp_path):
    """Every intent is in the one menu, with the slots met in it."""
    import_snips([snips], tmp_path / "out")
    menu = load(tmp_path / "out")["snips/train/BrewTea/3"].menu
    assert menu.names == ("BrewTea", "WalkDog")
    tea, dog = (tool.parameters["properties"] for tool in menu)
    assert [kind["type"] for kind in tea["kind"]["anyOf"]] == ["string", "array"]
    assert dog["dogName"] == {"type": "string", "description": "dog name"}


def test_snips_bad_items_are_noted(tmp_path):
    """Items of another shape are left out and named by their number."""
    items = [{"data": [{"text": "sit"}]}, {"data": []}, {"data": [{"entity": "x"}]}, 7]
    items.append({"data": [{"text": "x", "entity": 1}]})
    path = write_json(tmp_path / "train_Sit_full.json", {"Sit": items})
    report = import_snips([path], tmp_path / "out")
    assert [(p.line, p.field) for p in report.problems] == [
        (2, "Sit.data"),
        (3, "Sit.data.text"),
        (4, "Sit.data"),
        (5, "Sit.data.entity"),
    ]


@pytest.mark.parametrize("value", [[], {"Sit": 3}, {"Sit": []}])
def test_snips_files_of_another_shape_are_refused(tmp_path, value):
    """A file that holds no intents, or nothing in them, is an error."""
    path = write_json(tmp_path / "train_Sit_full.json", value)
    with pytest.raises(DatasetError):
        import_snips([path], tmp_path / "out")
    assert not (tmp_path / "out" / "records.jsonl").exists()


CLINC = {
    "train": [["boil some water", "kettle_boil"], ["make light", "lamp_on"]],
    "test": [["walk the dog now", "dog_walk"]],
    "oos_train": [["how tall is the moon", "oos"]],
}


@pytest.mark.parametrize("domains", [True, False])
def test_clinc_intents_become_tools(tmp_path, domains):
    """With domains.json an intent has its domain's menu, without it one menu has all."""
    folder = tmp_path / "clinc"
    write_json(folder / "data_full.json", CLINC)
    if domains:
        write_json(folder / "domains.json", {"home": ["lamp_on", "kettle_boil", "never_met"]})
    report = import_clinc150([folder], tmp_path / "out")
    records = load(tmp_path / "out")
    assert (report.records, report.calls, report.problems) == (4, 3, ())
    boil = records["clinc150/train/1"]
    assert boil.right_names == {"kettle_boil"}
    expected = ("lamp_on", "kettle_boil") if domains else ("dog_walk", "kettle_boil", "lamp_on")
    assert boil.menu.names == expected
    assert "dog_walk" in records["clinc150/test/1"].menu.names


def test_clinc_out_of_scope_has_no_call(tmp_path):
    """An out-of-scope query has a menu and no right tool in it."""
    write_json(tmp_path / "data_full.json", CLINC)
    import_clinc150([tmp_path / "data_full.json"], tmp_path / "out")
    none = load(tmp_path / "out")["clinc150/oos_train/1"]
    assert none.call is None
    assert none.tags[:2] == ("abstain", "out_of_scope")
    assert "oos" not in none.menu.names


def test_clinc_bad_items_are_noted(tmp_path):
    """Items that are not a text and an intent are left out and named."""
    data = {"train": [["boil", "kettle_boil"], ["alone"], [1, "lamp_on"]]}
    report = import_clinc150([write_json(tmp_path / "data.json", data)], tmp_path / "out")
    assert [(p.line, p.field) for p in report.problems] == [(2, "train.2"), (3, "train.3")]


@pytest.mark.parametrize(
    ("name", "value"),
    [("data_full.json", {"train": 1}), ("data_full.json", []), ("domains.json", {"home": 1})],
)
def test_clinc_files_of_another_shape_are_refused(tmp_path, name, value):
    """A file that is not the upstream one is an error, and nothing is left behind."""
    write_json(tmp_path / "data_full.json", CLINC)
    write_json(tmp_path / name, value)
    with pytest.raises(DatasetError):
        import_clinc150([tmp_path], tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_records_are_never_overwritten(tmp_path):
    """A folder that holds records or menus already is left alone."""
    write_json(tmp_path / "data_full.json", CLINC)
    import_clinc150([tmp_path], tmp_path / "out")
    before = (tmp_path / "out" / "records.jsonl").read_text()
    with pytest.raises(ConfigError, match="exists already"):
        import_clinc150([tmp_path], tmp_path / "out")
    assert (tmp_path / "out" / "records.jsonl").read_text() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_corrupt_upstream_files_are_refused(tmp_path, content):
    """Empty, cut-off or misencoded files give our error with the path."""
    path = tmp_path / "data_full.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="data_full"):
        import_clinc150([tmp_path], tmp_path / "out")
    with pytest.raises(DatasetError, match="cannot read"):
        import_clinc150([tmp_path / "absent.json"], tmp_path / "out2")


@pytest.mark.parametrize(
    ("name", "words"),
    [("BrewTea", "brew tea"), ("brew_tea", "brew tea"), ("dogName", "dog name")],
)
def test_names_are_read_as_words(name, words):
    """Identifiers of either style give the words they are made of."""
    assert phrase_of(name) == words
