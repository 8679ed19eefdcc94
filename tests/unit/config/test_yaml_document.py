"""A document knows the place of every node, and names mistakes in plain words."""

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, with_config
from typing_extensions import TypedDict

from agent.config import yaml_document
from agent.config.yaml_document import Source, nearest, read
from agent.errors import ConfigError, Problem, Severity

TEXT = "a: 1\nlist:\n  - x\n  - {k: v}\nünï: [yes, ~, 1.5, 'no', no-body, 2027-01-01]\n"


def _document(content: str | bytes = TEXT) -> yaml_document.Document:
    data = content.encode() if isinstance(content, str) else content
    return read(Source(name="f.yaml", content=data))


def _problems(content: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        _document(content)
    return [str(each) for each in refusal.value.problems]


def test_numbers_truth_values_and_null_have_types_and_the_rest_is_text() -> None:
    assert _document().data == {
        "a": 1,
        "list": ["x", {"k": "v"}],
        "ünï": [True, None, 1.5, "no", "no-body", "2027-01-01"],
    }


@pytest.mark.parametrize(
    ("loc", "at_key", "place"),
    [
        ((), False, (1, 1)),
        (("a",), False, (1, 4)),
        (("a",), True, (1, 1)),
        (("list", 1), False, (4, 5)),
        (("list", 1), True, (4, 5)),
        (("list", 1, "k"), True, (4, 6)),
        (("list", 1, "k"), False, (4, 9)),
        (("ünï", 2), False, (5, 15)),
        # A missing node has the place of the node around it.
        (("list", 7), False, (2 + 1, 3)),
        (("nothing",), False, (1, 1)),
        (("a", "deeper"), False, (1, 4)),
        # pydantic adds names of union members to the path.
        (("list", "SomeModel", 1, "k"), False, (4, 9)),
    ],
)
def test_node_has_a_place(
    loc: yaml_document.Loc,
    at_key: bool,  # noqa: FBT001
    place: tuple[int, int],
) -> None:
    problem = _document().problem(loc, "m", at_key=at_key, severity=Severity.WARNING)
    assert problem == Problem("f.yaml", *place, "m", Severity.WARNING)


def test_first_node_may_begin_on_any_line() -> None:
    assert _document("# remark\n\n  b: 1").problem((), "m") == Problem("f.yaml", 3, 3, "m")


def test_items_of_a_list_have_lines() -> None:
    assert _document("a:\n- x\n\n- y: 1\n  z: 2\n").lines(("a",)) == [2, 4]
    assert _document("a: []").lines(("a",)) == []


def test_byte_order_mark_moves_no_place() -> None:
    document = _document(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert document.data == {"a": 1, "b": 2}
    assert document.problem(("b",), "m") == Problem("f.yaml", 2, 4, "m")


@pytest.mark.parametrize("content", ["", "\n\n", "# only this\n", "---\n", "~"])
def test_data_of_an_empty_file_is_none(content: str) -> None:
    assert _document(content).data is None


def test_alias_gives_the_same_data_and_places_inside_the_anchor() -> None:
    document = _document("base: &b [x, y]\nuse: *b\nagain: *b\n")
    assert document.data["use"] == ["x", "y"]
    assert document.problem(("use",), "m") == Problem("f.yaml", 2, 6, "m")
    assert document.lines(("use",)) == [1, 1]
    assert document.problem(("use", 1), "m") == Problem("f.yaml", 1, 14, "m")


def test_alias_may_stand_for_one_word() -> None:
    document = _document("name: &n joe\nuser: *n\n")
    assert document.data == {"name": "joe", "user": "joe"}
    assert document.problem(("user",), "m") == Problem("f.yaml", 2, 7, "m")


def test_duplicate_key_is_a_problem_and_the_first_value_counts() -> None:
    document = _document("a: 1\nb: 2\nb: 3\nb: 4\n")
    assert document.data == {"a": 1, "b": 2}
    assert [str(each) for each in document.problems] == [
        "f.yaml:3:1: key 'b' is already given on line 2: remove one of the two",
        "f.yaml:4:1: key 'b' is already given on line 2: remove one of the two",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: \xff", "f.yaml:1:4: this byte is not UTF-8 text"),
        (b"\xef\xbb\xbfb: x\n\xc3\xa9\xc3", "f.yaml:2:2: this byte is not UTF-8 text"),
        ("a: 1".encode("utf-16"), "f.yaml:1:1: this byte is not UTF-8 text"),
        (b"a: b\0", "f.yaml:1:5: control character '\\x00' is not allowed here"),
        ("a\n: b", "f.yaml:2:1: this is not valid YAML: did not find expected"),
        ("a: [", "f.yaml:1:5: a value is missing here"),
        ("? *a\n: b", "f.yaml:1:3: a key must be plain text"),
        ("&a k: b", "f.yaml:1:1: a key must be plain text"),
        ("a: 1\n... x", "f.yaml:2:5: this is not valid YAML: did not find expected"),
        ("%YAML 3.0\n--- a", "f.yaml:1:1: this is not valid YAML: found incompatible"),
        (f"a: {'9' * 5000}", "f.yaml:1:4: this number cannot be read"),
    ],
)
def test_unreadable_file_is_refused_with_the_place(content: str | bytes, problem: str) -> None:
    (found,) = _problems(content)
    assert found.startswith(problem)


def test_siblings_do_not_count_as_depth() -> None:
    assert len(_document("[" + "[x], {y: z}, " * 40 + "]").data) == 80


def test_aliases_cannot_blow_up_a_small_file() -> None:
    lines = ["a0: &a0 [" + ",".join("x" * 9) + "]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (found,) = _problems("\n".join(lines))
    assert "stand for more nodes" in found


def test_result_is_the_same_without_libyaml() -> None:
    document = read(Source(name="f.yaml", content=TEXT.encode()), yaml.SafeLoader)
    assert document.data == _document().data
    assert document.problem(("list", 1, "k"), "m") == Problem("f.yaml", 4, 9, "m")
    with pytest.raises(ConfigError, match=r"f\.yaml:"):
        read(Source(name="f.yaml", content=b"a: [1\n"), yaml.SafeLoader)


# --- models ------------------------------------------------------------------------------------
@with_config(extra="forbid")
class Typed(TypedDict):
    height: int


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: str = "red"


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = ""
    flag: bool = False
    number: int = 0
    ratio: float = 0.0
    names: list[str] = []
    table: dict[str, int] = {}
    inner: Inner | None = None
    inners: list[Inner] = []
    typed: Typed = {"height": 1}
    either: int | list[int] = 0


def _judged(content: str) -> list[str]:
    document = _document(content)
    with pytest.raises(ConfigError) as refusal:
        document.validate(Model, document.data)
    return [str(each).removeprefix("f.yaml:1:") for each in refusal.value.problems]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text: 1", '7: text must be text, not a number: put it in quotes, "1"'),
        ("text: ~", "7: text has no value: give it one, or remove the line"),
        ("text: [a]", "7: text must be text, not a list"),
        ("flag: perhaps", "7: flag must be true or false, not text"),
        ("flag: ~", "7: flag has no value: give it one, or remove the line"),
        ("number: many", "9: number must be a whole number, not text"),
        ("number: [1]", "9: number must be a whole number, not a list"),
        ("ratio: half", "8: ratio must be a number, not text"),
        ("names: joe", "8: names must be a list: write [joe]"),
        ("names: {joe: 1}", "8: names must be a list, not a mapping"),
        ("names: [joe, 2]", '14: names must be text, not a number: put it in quotes, "2"'),
        ("table: 1", "8: table must be a mapping of 'key: value' lines, not a number"),
        ("inner: yes", "8: inner must be a mapping of 'key: value' lines, not true or false"),
        ("inner: {color: x}", "9: unknown key 'color'; did you mean 'colour'?"),
        ("inners: [{size: x}]", "11: unknown key 'size'; known: colour"),
        ("typed: {height: 1, hight: 2}", "20: unknown key 'hight'"),
        ("[]", "1: the file must be a mapping of 'key: value' lines, not a list"),
        ("number: 1.5", "9: number must be a valid integer, got a number with a fractional part"),
    ],
)
def test_mistake_found_by_a_model_is_reported_in_plain_words(content: str, problem: str) -> None:
    assert _judged(content) == [problem]


def test_mistakes_of_a_union_are_at_the_value() -> None:
    assert [each.partition(":")[0] for each in _judged("either: x")] == ["9", "9"]


def test_advice_names_the_nearest_word_or_else_all_words() -> None:
    assert nearest("unxi", {"unix", "docker"}) == "did you mean 'unix'?"
    assert nearest("zzz", {"unix", "docker"}) == "known: docker, unix"
    assert nearest("zzz", ()) == "known: none"
