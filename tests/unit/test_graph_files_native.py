"""Graph files of our own format: what they become, and what is refused, where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmcache.blocks import get_block
from shmcache.errors import GraphFileError, SettingsError
from shmcache.frozen import FrozenDict
from shmcache.graphs import example_path, load_graph_file
from tests.unit.test_graph_files_interpreter import interpret

GRAPHS = Path(__file__).parents[1] / "graphs"


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Any], tuple[str, str]]:
    """Load a document (or bytes) and return the place and the problem of the error that it must give."""

    def load(content: Any) -> tuple[str, str]:
        path = tmp_path / "graph.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises(GraphFileError) as caught:
            load_graph_file(path)
        assert caught.value.path == str(path)
        assert len(str(caught.value).splitlines()) == 1
        return caught.value.place, caught.value.problem

    return load


def countdown(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GRAPHS / "countdown.json").read_text())
    return {**document, **changes}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the countdown with the value at a dotted path replaced."""
    document: Any = countdown()
    *parents, last = path.split(".")
    inner = document
    for part in parents:
        inner = inner[int(part) if part.isdigit() else part]
    inner[int(last) if last.isdigit() else last] = value
    return document  # type: ignore[no-any-return]


def test_a_loop_with_a_static_link_runs_to_its_end() -> None:
    loaded = load_graph_file(GRAPHS / "countdown.json")
    runs = interpret(loaded)
    assert [run.outputs for run in runs if run.node == "end"] == [[("value", 0)]]
    assert sum(run.node == "subtract" for run in runs) == 5


def test_nodes_without_input_links_start_and_no_others() -> None:
    loaded = load_graph_file(GRAPHS / "countdown.json")
    names = {node.id: node.name for node in loaded.nodes}
    assert {names[node_id]: inputs for node_id, inputs in loaded.graph.starts.items()} == {
        "from": {"value": 5},
        "step": {},
    }


def test_both_ends_of_a_link_know_it() -> None:
    loaded = load_graph_file(GRAPHS / "countdown.json")
    entering = {link for node in loaded.nodes for link in node.input_links}
    leaving = {link for node in loaded.nodes for link in node.output_links}
    assert entering == leaving
    assert len(entering) == 5
    assert [link.source_name for link in entering if link.is_static] == ["value"]
    assert all(node.graph_id == loaded.graph.id for node in loaded.nodes)
    assert [node.id for node in loaded.nodes] == list(loaded.graph.node_ids)


def test_what_is_loaded_cannot_be_changed() -> None:
    node = load_graph_file(GRAPHS / "countdown.json").nodes[0]
    assert isinstance(node.constants, FrozenDict)
    assert isinstance(node.input_default, FrozenDict)


def test_the_same_content_has_the_same_identifiers(tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(countdown(), indent=7, sort_keys=True))
    assert load_graph_file(copy) == load_graph_file(GRAPHS / "countdown.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [("name", "x"), ("input.from", 6), ("nodes.2.constants.expression", "number - 1"), ("links.1.is_static", False)],
)
def test_other_content_has_other_identifiers(tmp_path: Path, path: str, value: Any) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed(path, value)))
    original = load_graph_file(GRAPHS / "countdown.json")
    loaded = load_graph_file(other)
    assert loaded.graph.id != original.graph.id
    assert not set(loaded.graph.node_ids) & set(original.graph.node_ids)


def test_another_time_scale_has_other_identifiers() -> None:
    path = GRAPHS / "countdown.json"
    assert load_graph_file(path, time_scale=0.5).graph.id != load_graph_file(path).graph.id
    assert load_graph_file(path, time_scale=0).graph.id == load_graph_file(path, time_scale=0.0).graph.id


@pytest.mark.parametrize("time_scale", [-1, float("nan"), float("inf")])
def test_a_time_scale_must_be_finite_and_not_negative(time_scale: float) -> None:
    with pytest.raises(SettingsError):
        load_graph_file(GRAPHS / "countdown.json", time_scale=time_scale)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(countdown()).encode())
    assert load_graph_file(path) == load_graph_file(str(GRAPHS / "countdown.json"))


@pytest.mark.parametrize(
    ("path", "value", "place", "problem"),
    [
        ("name", 3, "name", "expected text, got 3"),
        ("name", "", "name", "empty"),
        ("nodes", {}, "nodes", "expected a list"),
        ("nodes", [], "nodes", "at least one node"),
        ("nodes.1", 7, "nodes[1]", "expected an object, got 7"),
        ("nodes.1", {"block": "shmcache.merge"}, "nodes[1]", '"id" is missing'),
        ("nodes.1.id", 3, "nodes[1].id", "expected text"),
        ("nodes.1.id", "from", "nodes[1].id", "the id of nodes[0] too"),
        ("nodes.3.block", "no.such", "nodes[3].block", "no block 'no.such'"),
        ("nodes.3.block", "no_such_module:Block", "nodes[3].block", "ModuleNotFoundError"),
        ("nodes.3.block", None, "nodes[3].block", "expected text, got null"),
        ("nodes.3.blok", "x", "nodes[3]", "'blok' is not known here"),
        ("nodes.3.constants", [], "nodes[3].constants", "expected an object"),
        ("nodes.1.input_default", {"valeu": 1}, "nodes[1].input_default", "no input 'valeu': it has name, value"),
        ("nodes.2.constants.deep", [{"x": float("nan")}], "nodes[2].constants.deep[0].x", "nan cannot be stored"),
        ("nodes.2.constants.deep", 2**64, "nodes[2].constants.deep", "64 bits"),
        ("nodes.2.constants.deep", -(2**63) - 1, "nodes[2].constants.deep", "64 bits"),
        ("nodes.2.constants.deep", "a\0b", "nodes[2].constants.deep", "NUL"),
        ("nodes.2.constants.deep", "a\ud800", "nodes[2].constants.deep", "surrogate"),
        ("nodes.2.constants.deep", {"a\0": 1}, "nodes[2].constants.deep", "NUL"),
        ("nodes.2.constants.a b", {"c": "\0"}, "nodes[2].constants['a b'].c", "NUL"),
        ("links", 3, "links", "expected a list"),
        ("links.0", [], "links[0]", "expected an object"),
        ("links.0.source", "nobody", "links[0].source", "there is no node 'nobody'"),
        ("links.0.sink", "nobody", "links[0].sink", "there is no node 'nobody'"),
        ("links.0.output", "vlaue", "links[0].output", "has no output 'vlaue': it has value"),
        ("links.2.input", ["value"], "links[2].input", "expected text"),
        ("links.4.input", "valeu", "links[4].input", "has no input 'valeu': it has name, value"),
        ("links.2.input", "expression", "links[2].input", "has a constant 'expression'"),
        ("links.1.is_static", 1, "links[1].is_static", "expected true or false, got 1"),
        ("links.0.static", True, "links[0]", "'static' is not known here"),
        ("input", [], "input", "expected an object"),
        ("input", {}, "nodes[0]", "no 'from' and the node no default"),
        ("input", {"from": 1, "form": 2}, "input", "takes 'form'"),
        ("input.from", float("inf"), "input.from", "inf cannot be stored"),
        ("nodes.0.constants", {"name": 3}, "nodes[0]", "must be text, got 3"),
        ("nodes.0.constants", {"name": "from", "value": 1}, "nodes[0]", "has a constant"),
        ("outputs", 3, "", "'outputs' is not known here"),
        ("description", 3, "description", "expected text"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    refused: Callable[[Any], tuple[str, str]], path: str, value: Any, place: str, problem: str
) -> None:
    found_place, found_problem = refused(changed(path, value))
    assert found_place == place
    assert problem in found_problem


@pytest.mark.parametrize("value", [2**64 - 1, -(2**63), 1e308, "\U0001f600", {"": [None, True]}])
def test_the_largest_storable_values_are_taken(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(changed("nodes.2.constants.deep", value)))
    assert load_graph_file(path).nodes[2].constants["deep"] == value


@pytest.mark.parametrize("is_static", [False, True])
def test_a_link_twice_is_refused(refused: Callable[[Any], tuple[str, str]], is_static: bool) -> None:
    document = countdown()
    document["links"].append({**document["links"][0], "is_static": is_static})
    assert refused(document) == ("links[5]", "the same link as links[0]")


def test_a_missing_input_takes_the_default(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(countdown(input={"from": 4, "step": 2})))
    assert sum(run.node == "subtract" for run in interpret(load_graph_file(path))) == 2


def node(name: str, block: str = "shmcache.merge") -> dict[str, Any]:
    return {"id": name, "block": block}


def link(source: str, sink: str, pin: str, output: str = "merged") -> dict[str, Any]:
    return {"source": source, "output": output, "sink": sink, "input": pin}


def test_a_cycle_that_nothing_enters_is_refused(refused: Callable[[Any], tuple[str, str]]) -> None:
    nodes = [node("start"), node("a"), node("b"), node("end")]
    links = [link("a", "b", "x"), link("b", "a", "x"), link("b", "end", "x"), link("start", "end", "y")]
    place, problem = refused({"name": "g", "nodes": nodes, "links": links})
    assert place == "nodes[1]"
    assert "no link enters the cycle" in problem


def test_a_cycle_that_nothing_leaves_is_refused(refused: Callable[[Any], tuple[str, str]]) -> None:
    nodes = [node("start"), node("a"), node("b")]
    links = [link("start", "a", "x"), link("a", "b", "x"), link("b", "a", "x")]
    place, problem = refused({"name": "g", "nodes": nodes, "links": links})
    assert place == "nodes[1]"
    assert "no link leaves the cycle" in problem


def test_a_node_that_leads_to_itself_is_a_cycle(refused: Callable[[Any], tuple[str, str]]) -> None:
    assert refused({"name": "g", "nodes": [node("a")], "links": [link("a", "a", "x")]})[0] == "nodes[0]"


def test_a_cycle_entered_on_another_input_than_its_own_is_refused(refused: Callable[[Any], tuple[str, str]]) -> None:
    nodes = [node("start"), node("a"), node("end")]
    links = [link("start", "a", "x"), link("a", "a", "y"), link("a", "end", "x")]
    place, problem = refused({"name": "g", "nodes": nodes, "links": links})
    assert place == "nodes[1]"
    assert "can never run: what is linked to its input 'y'" in problem


def test_a_long_chain_is_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    nodes = [node(str(number)) for number in range(3000)]
    links = [link(str(number), str(number + 1), "x") for number in range(2999)]
    path.write_text(json.dumps({"name": "g", "nodes": nodes, "links": links}))
    assert len(load_graph_file(path).nodes) == 3000


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        (b"", "", "empty"),
        (b" \n", "", "empty"),
        (b"\xff\xfe{}", "byte 0", "not UTF-8"),
        (b'{"name": "a",\n  "nodes": [}', "line 2 column 13", "not JSON"),
        (b'{"name": "a", "no', "line 1 column 15", "is the file truncated?"),
        (b'{"name": "a", "nodes": [', "line 1 column 25", "is the file truncated?"),
        (b'{"name": tr', "line 1 column 10", "is the file truncated?"),
        (b'{"nodes": []} x', "line 1 column 15", "Extra data"),
        (b"[1]", "", "expected an object, got a list"),
        (b"null", "", "expected an object, got null"),
        (b"{}", "", "neither WfFormat"),
        (b'{"nodes": [], "nodes": []}', "", "'nodes' is there twice"),
        (b'{"nodes": ' + b"[" * 200 + b"]" * 200 + b"}", "", "nested deeper than 100"),
        (b'{"nodes": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "", "nested deeper than 100"),
        (b'{"nodes": ' + b'{"a":' * 200_000, "", "nested deeper than 100"),
        (b'{"nodes": ' + b"9" * 10_000 + b"}", "", "10,000 digits"),
    ],
)
def test_what_is_no_json_object_is_refused(
    refused: Callable[[Any], tuple[str, str]], content: bytes, place: str, problem: str
) -> None:
    found_place, found_problem = refused(content)
    assert found_place == place
    assert problem in found_problem


@pytest.mark.parametrize("name", ["missing.json", ".", "countdown.json/x", "a\0b", "x" * 5000])
def test_what_cannot_be_read_is_refused(name: str) -> None:
    with pytest.raises(GraphFileError, match=r"cannot be read|not a regular file"):
        load_graph_file(GRAPHS / name)


def test_a_device_is_refused() -> None:
    with pytest.raises(GraphFileError, match="not a regular file"):
        load_graph_file("/dev/zero")


def test_the_example_has_what_it_is_to_show() -> None:
    loaded = load_graph_file(example_path())
    links = [link for node in loaded.nodes for link in node.output_links]
    assert len(loaded.nodes) >= 10
    assert any(link.is_static for link in links)
    assert "shmcache.condition" in {node.block_id for node in loaded.nodes}
    assert all(get_block(node.block_id) for node in loaded.nodes)
    assert "shmcache.http_request" not in {node.block_id for node in loaded.nodes}


@pytest.mark.parametrize("seed", range(5))
def test_the_example_gives_the_same_result_in_every_order(seed: int) -> None:
    runs = interpret(load_graph_file(example_path()), seed)
    results = [run.outputs[0][1] for run in runs if run.node == "result"]
    letters = [run.outputs[0][1] for run in runs if run.node == "letters"]
    assert results == [
        "After 4 rounds 3748.36 are collected; 2 invoices stay open: 2024-034 (Hotel Miramar), 2024-040 (Studio Vega)."
    ]
    assert len(letters) == len(set(letters)) == 14
    assert sum("FINAL DEMAND" in letter for letter in letters) == 8
    assert sum(run.node == "next round" for run in runs) == 4
