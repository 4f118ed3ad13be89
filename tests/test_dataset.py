"""Reading files of records: what is reported, what goes on, what stops."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from toolguard.calibration.datasets.dataset import RecordProblem, build_record, open_dataset
from toolguard.guard.errors import DatasetError
from toolguard.guard.tools import Menu

MENUS = {
    "home": {
        "source": "own",
        "tools": [{"name": "lamp.on"}, {"name": "kettle.boil"}],
        "system": "Ask before boiling.",
    }
}


def line(number=1, **fields):
    given = {
        "id": f"own/{number}",
        "source": "own",
        "split": "all",
        "query": f"light number {number}",
        "menu": "home",
        "call": {"name": "lamp.on", "arguments": {}},
    } | fields
    return {key: value for key, value in given.items() if value is not ...}


def write(folder, *lines, menus=MENUS):
    folder.mkdir(exist_ok=True)
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
    (folder / "records.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    if menus is not None:
        (folder / "menus.json").write_text(json.dumps(menus), encoding="utf-8")
    return folder


def faults(dataset):
    list(dataset)
    return [(problem.line, problem.field) for problem in dataset.problems]


def test_a_folder_and_a_file_read_the_same(tmp_path):
    """A folder stands for its records.jsonl, and menus.json is found beside either."""
    folder = write(tmp_path / "a", line(1), line(2))
    ids = [record.id for record in open_dataset(folder)]
    assert ids == [record.id for record in open_dataset([folder / "records.jsonl"])]
    assert ids == ["own/1", "own/2"]


def test_records_of_one_menu_share_it(tmp_path):
    """Records that name one menu have one Menu object, with its system text."""
    one, two = open_dataset(write(tmp_path / "a", line(1), line(2)))
    assert one.menu is two.menu
    assert (one.menu_id, one.system) == ("home", "Ask before boiling.")


def test_equal_inline_menus_are_shared_but_not_across_key_order(tmp_path):
    """Inline menus are one object if their text is, since key order shows in the prompt."""
    plain = [{"name": "lamp.on", "parameters": {"type": "object", "properties": {}}}]
    turned = [{"name": "lamp.on", "parameters": {"properties": {}, "type": "object"}}]
    lines = [line(n, menu=..., tools=t) for n, t in enumerate((plain, plain, turned))]
    one, two, three = open_dataset(write(tmp_path / "a", *lines))
    assert one.menu is two.menu
    assert list(three.menu.tools[0].parameters) == ["properties", "type"]


def test_every_bad_record_is_reported_and_reading_goes_on(tmp_path):
    """Bad lines of every kind are named by line and field; the good ones all arrive."""
    bad = [
        "{broken",
        line(2, surprise=1),
        line(3, call={"name": "door.open", "arguments": {}}),
        line(4, menu="garden"),
        line(5, tools=[]),
        line(6, menu=...),
        "[1, 2]",
        line(8, query=...),
        line(9, meta={"score": 1}).__repr__(),
        line(10, system="x"),
        '{"id": NaN}',
        '{"id": "\\ud800"}',
        "[" * 100_000,
    ]
    dataset = open_dataset(write(tmp_path / "a", line(0), *bad, line(99)))
    assert [record.id for record in dataset] == ["own/0", "own/99"]
    assert [(p.line - 1, p.field) for p in dataset.problems] == [
        (1, ""),
        (2, "surprise"),
        (3, "call"),
        (4, "menu"),
        (5, "menu"),
        (6, "menu"),
        (7, ""),
        (8, "query"),
        (9, ""),
        (10, "system"),
        (11, ""),
        (12, ""),
        (13, ""),
    ]


def test_problems_never_show_the_records_text(tmp_path):
    """What a report says of a bad record does not repeat its query."""
    text = "my secret sentence"
    dataset = open_dataset(write(tmp_path / "a", line(1), line(2, query=[text], messages=text)))
    assert len(faults(dataset)) == 2
    assert not any(text in str(problem) for problem in dataset.problems)


def test_a_line_that_is_not_utf8_is_one_bad_record(tmp_path):
    """One line in another encoding costs that line, not the file."""
    folder = write(tmp_path / "a", line(1))
    with (folder / "records.jsonl").open("ab") as stream:
        stream.write(json.dumps(line(2), ensure_ascii=False).encode()[:-1] + b'\xe9"}\n')
        stream.write(json.dumps(line(3)).encode())
    dataset = open_dataset(folder)
    assert [record.id for record in dataset] == ["own/1", "own/3"]
    assert [(p.line, p.message) for p in dataset.problems] == [(2, "not UTF-8")]


def test_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path):
    """Blank lines are passed over but counted; a mark at the start is no text."""
    folder = write(tmp_path / "a", line(1), "", "   ", line(2, menu="garden"))
    path = folder / "records.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert faults(open_dataset(folder)) == [(4, "menu")]


def test_an_id_used_twice_is_reported_across_files(tmp_path):
    """The later record of two with one id is reported, and where the first stands."""
    one = write(tmp_path / "one", line(1))
    two = write(tmp_path / "two", line(1), line(2))
    dataset = open_dataset([one, two])
    assert [record.id for record in dataset] == ["own/1", "own/2"]
    (problem,) = dataset.problems
    assert (problem.path, problem.line, problem.field) == (two / "records.jsonl", 1, "id")
    assert str(one / "records.jsonl") in problem.message


def test_the_callback_hears_each_problem_and_the_list_keeps_it_once(tmp_path):
    """Reading twice tells the callback twice, but `problems` does not grow."""
    heard = []
    folder = write(tmp_path / "a", line(1), line(2, menu="garden"))
    dataset = open_dataset(folder, on_problem=heard.append)
    list(dataset)
    list(dataset)
    assert len(heard) == 2
    assert dataset.problems == (heard[0],)


def test_a_bad_menu_costs_only_its_records(tmp_path):
    """A menu that cannot be used is reported, as is each record that needs it."""
    twice = {"tools": [{"name": "x"}, {"name": "x"}]}
    menus = MENUS | {"twice": twice, "odd": {"tools": [{"nome": "x"}]}, "none": {"tools": []}}
    folder = write(tmp_path / "a", line(1), line(2, menu="twice"), menus=menus)
    dataset = open_dataset(folder)
    assert [record.id for record in dataset] == ["own/1"]
    assert [(p.path.name, p.line, p.field) for p in dataset.problems] == [
        ("menus.json", 0, "twice.tools"),
        ("menus.json", 0, "odd.tools.0.name"),
        ("menus.json", 0, "odd.tools.0.nome"),
        ("menus.json", 0, "none.tools"),
        ("records.jsonl", 2, "menu"),
    ]


def test_menus_may_be_named_apart(tmp_path):
    """A menus file given by name is used instead of the one beside the records."""
    menus = tmp_path / "other.json"
    menus.write_text(json.dumps({"home": {"tools": [{"name": "lamp.on"}]}}))
    (record,) = open_dataset(write(tmp_path / "a", line(1)), menus=menus)
    assert record.menu.names == ("lamp.on",)


def test_a_missing_menus_file_is_said(tmp_path):
    """A record that names a menu where there is no menus.json says so."""
    dataset = open_dataset(write(tmp_path / "a", line(1), menus=None))
    assert faults(dataset) == [(1, "menu")]
    assert "there is no menus.json" in dataset.problems[0].message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"name,query\nlamp,light\n", "not hold JSON lines"),
        ('{"id": 1}'.encode("utf-16"), "not UTF-8"),
        (b'[\n{"id": 1}\n]', "not hold JSON lines"),
        (b"\x80\x81\x82", "not UTF-8"),
    ],
)
def test_a_file_that_is_not_json_lines_is_refused(tmp_path, content, words):
    """A file none of whose lines can be a record is an error with a hint, not bad records."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    if content.startswith(b"[\n{"):
        # The second line alone is an object, so this one is read and reported line by line.
        assert faults(open_dataset(path)) == [(1, ""), (2, "menu"), (3, "")]
        return
    with pytest.raises(DatasetError, match=words) as caught:
        open_dataset(path)
    assert caught.value.hint


def test_missing_files_say_what_to_name(tmp_path):
    """A folder above the data folders points at them; a missing file says what is wanted."""
    write(tmp_path / "inner", line(1))
    with pytest.raises(DatasetError, match="inner"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no file"):
        open_dataset(tmp_path / "absent.jsonl")
    with pytest.raises(DatasetError, match="no data"):
        open_dataset([])
    with pytest.raises(DatasetError, match="no file"):
        open_dataset(tmp_path / "inner", menus=tmp_path / "absent.json")


def test_a_file_given_twice_is_refused(tmp_path):
    """Naming a folder and its file is naming it twice."""
    folder = write(tmp_path / "a", line(1))
    with pytest.raises(DatasetError, match="twice"):
        open_dataset([folder, folder / "records.jsonl"])


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_corrupt_menus_file_is_refused(tmp_path, text):
    """Menus that are no JSON object stop the reading: no record could be trusted."""
    folder = write(tmp_path / "a", line(1))
    (folder / "menus.json").write_text(text)
    with pytest.raises(DatasetError, match=r"menus\.json"):
        list(open_dataset(folder))


def test_a_file_that_vanishes_is_an_error(tmp_path):
    """A file removed after opening gives our error, not the system's."""
    dataset = open_dataset(write(tmp_path / "a", line(1)))
    dataset.files[0].records.unlink()
    with pytest.raises(DatasetError, match="cannot read"):
        list(dataset)


def test_the_content_hash_follows_content_and_not_place(tmp_path):
    """Equal bytes elsewhere hash alike; another record or another menu does not."""
    one = open_dataset(write(tmp_path / "one", line(1)))
    same = open_dataset(write(tmp_path / "same", line(1)))
    more = open_dataset(write(tmp_path / "more", line(1), line(2)))
    menu = open_dataset(write(tmp_path / "menu", line(1), menus={**MENUS, "b": MENUS["home"]}))
    hashes = [dataset.content_hash for dataset in (one, same, more, menu)]
    assert len(hashes[0]) == 64
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_located_records_know_their_line(tmp_path):
    """Each record can be traced to its file and line."""
    folder = write(tmp_path / "a", line(1), "", line(2))
    assert [(x.record.id, x.line) for x in open_dataset(folder).located()] == [
        ("own/1", 1),
        ("own/2", 3),
    ]


def test_memory_does_not_grow_with_the_records(tmp_path):
    """Twenty times the records take little more than eight bytes an id."""

    def peak(name, count):
        padding = "word " * 200
        folder = write(tmp_path / name, *(line(n, query=f"{n} {padding}") for n in range(count)))
        dataset = open_dataset(folder)
        tracemalloc.start()
        for _ in dataset:
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak("many", 2_000) - peak("few", 100) < 400_000


def test_build_record_names_all_faults():
    """A record built from a value raises with the pairs of field and message."""
    with pytest.raises(DatasetError) as caught:
        build_record(line(1, query=1, split=2), {"home": Menu.of([{"name": "lamp.on"}])})
    assert [where for where, _ in caught.value.fields["faults"]] == ["split", "query"]


def test_a_problem_reads_as_a_place_and_a_reason(tmp_path):
    """A problem prints as file, line, field and message, without what is not known."""
    path = tmp_path / "a.jsonl"
    problem = RecordProblem(path=path, line=3, field="call", message="is odd")
    whole = RecordProblem(path=path, line=0, field="", message="is odd")
    assert str(problem) == f"{path}:3: call: is odd"
    assert str(whole) == f"{path}: is odd"
