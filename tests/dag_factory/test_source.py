"""Values and their places, from any bytes."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from dag_factory import yaml_composer
from dag_factory.errors import Fault, InvalidWorkflow
from dag_factory.source import read_source

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=15,
)


def test_values_know_their_places() -> None:
    source = read_source(b"name: w\nsteps:\n  - id: a\n    retry: {count: 3}\n", "w.yaml")
    assert source.value == {"name": "w", "steps": [{"id": "a", "retry": {"count": 3}}]}
    places = {
        ("steps", 0, "retry", "count"): "w.yaml:4:20",
        ("steps", 0, "id"): "w.yaml:3:9",
        ("steps", 0): "w.yaml:3:5",
        ("steps", 0, "missing"): "w.yaml:3:5",
        ("steps", 7): "w.yaml:3:3",
        # One value where a list may stand is a list of one.
        ("steps", 0, "retry", 0, "count"): "w.yaml:4:20",
        ("steps", 0, "retry", 1, "count"): "w.yaml:4:12",
        ("name", 0): "w.yaml:1:7",
        (): "w.yaml:1:1",
    }
    for path, place in places.items():
        assert str(source.locate(Fault(path, "x"))) == f"{place}: x"
    assert str(source.locate(Fault(("steps", 0, "retry"), "x", at_key=True))) == "w.yaml:4:5: x"
    count = Fault(("steps", 0, "retry", 0, "count"), "x", at_key=True)
    assert str(source.locate(count)) == "w.yaml:4:13: x"


def test_columns_count_characters_not_bytes() -> None:
    source = read_source("über: [é, ß]\n".encode(), "w.yaml")
    assert str(source.locate(Fault(("über", 1), "x"))) == "w.yaml:1:11: x"


def test_a_byte_order_mark_is_no_column() -> None:
    source = read_source(b"\xef\xbb\xbfname: w\n", "w.yaml")
    assert str(source.locate(Fault(("name",), "x", at_key=True))) == "w.yaml:1:1: x"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("none", "none"),
        ("12:30", "12:30"),
        ("2026-11-23", "2026-11-23"),
        ("1_000", "1_000"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("1.5e3", 1500.0),
        ("1.", 1.0),
        ("１２", "１２"),
        ("~", None),
        ("'3'", "3"),
        ("'true'", "true"),
        ("true", True),
        ("| \n  a\n  b\n", "a\nb\n"),
    ],
)
def test_plain_values_are_of_the_core_schema(text: str, value: object) -> None:
    source = read_source(f"k: {text}\n".encode(), "w.yaml")
    assert source.value == {"k": value}
    assert type(source.value["k"]) is type(value)
    assert not source.problems


def test_aliases_repeat_values_and_keep_the_places_of_what_is_inside() -> None:
    source = read_source(b"a: &x {k: 1}\nb: *x\n&key c: *key\n", "w.yaml")
    assert source.value == {"a": {"k": 1}, "b": {"k": 1}, "c": "c"}
    assert str(source.locate(Fault(("b", "k"), "x"))) == "w.yaml:1:11: x"
    assert str(source.locate(Fault(("b",), "x"))) == "w.yaml:2:4: x"


def test_json_with_tabs_and_surrogate_pairs() -> None:
    source = read_source(b'{\n\t"a": "\\ud83d\\ude00",\n\t"b": [1, -2.5, null]\n}', "w", json=True)
    assert source.value == {"a": "😀", "b": [1, -2.5, None]}
    assert str(source.locate(Fault(("b", 1), "x"))) == "w:3:11: x"


@given(VALUES)
def test_reads_what_json_writes(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, indent="\t", ensure_ascii=False)):
        source = read_source(text.encode(), "w.json", json=True)
        assert source.value == value
        assert not source.problems


class Writer(yaml.SafeDumper):
    """PyYAML's, which knows YAML 1.1; texts that are numbers since YAML 1.2 it leaves plain."""


def write_text(writer: Writer, text: str) -> yaml.Node:
    number = re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?|0[ox][0-9a-fA-F]+", text)
    style = "'" if number else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style)


Writer.add_representer(str, write_text)


@given(VALUES)
@example("0E0")
@example("0o7")
def test_reads_what_yaml_writes(value: object) -> None:
    # Escaped, since PyYAML writes some characters plainly that it reads as line breaks.
    text = yaml.dump({"k": value}, Dumper=Writer, sort_keys=False)
    source = read_source(text.encode(), "w.yaml")
    assert json.dumps(source.value["k"]) == json.dumps(value)


YAML_PARTS = st.sampled_from(
    ["a", "b: ", "- ", "\n", "  ", "\t", "[", "]", "{", "}", ",", "&x ", "*x", "!!int ", "<<: "]
) | st.sampled_from(
    ['"', "'", "|\n", "? ", "# c", "---\n", "...\n", "%YAML 1.2\n", "1", ".inf", "~", "\\u12"]
)


def test_without_libyaml_the_same_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"a: [1, {b: c}]\nd: &x e\nf: *x\na: 2\ng: |\n  h\n"
    fast = read_source(text, "w.yaml")
    monkeypatch.setattr(yaml_composer, "_Loader", yaml.SafeLoader)
    assert read_source(text, "w.yaml") == fast

    for broken, said in (
        (b"a:\n\t- b\n", "w.yaml:2:1: a tab; indent with spaces"),
        (b"a: \x07\n", "w.yaml:1:4: U+0007 is not allowed in YAML; leave it out"),
        (b"a: [b\n", "w.yaml:2:1: a list in brackets is not closed; add ',' or ']'"),
    ):
        with pytest.raises(InvalidWorkflow) as raised:
            read_source(broken, "w.yaml")
        assert str(raised.value) == said


@pytest.mark.parametrize(
    "text", ["[" * 10**6, "- " * 500_000, "? " * 500_000, "[a," * 300_000, "{a: " * 250_000]
)
def test_a_file_made_to_exhaust_the_parser_is_a_located_error(text: str) -> None:
    with pytest.raises(InvalidWorkflow, match=r"nested too deeply; at most 40 levels"):
        read_source(text.encode(), "w.yaml")
    if text.startswith("["):
        with pytest.raises(InvalidWorkflow, match=r"nested too deeply; at most 40 levels"):
            read_source(text.replace("a", "1").encode(), "w.json", json=True)


@given(st.binary(max_size=60) | st.lists(YAML_PARTS, max_size=25).map("".join).map(str.encode))
def test_no_bytes_make_anything_but_values_or_located_errors(content: bytes) -> None:
    lines = content.count(b"\n") + content.count(b"\r") + 8
    for as_json in (False, True):
        try:
            problems = read_source(content, "w", json=as_json).problems
        except InvalidWorkflow as error:
            problems = error.problems
            assert problems
        for problem in problems:
            assert 1 <= problem.line <= lines
            assert problem.column >= 1
            assert problem.text
            assert "\n" not in problem.text
