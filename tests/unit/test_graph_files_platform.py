"""Graph files of the AutoGPT Platform: what they become, and what is refused, where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shmcache.blocks import get_block
from shmcache.blocks.replaying import REPLAY
from shmcache.errors import GraphFileError
from shmcache.frozen import thaw
from shmcache.graphs import load_graph_file, load_graph_files

GRAPHS = Path(__file__).parents[1] / "graphs" / "platform"
NESTED = GRAPHS / "agent_nested_and_static.json"


def test_a_graph_and_its_sub_graphs_are_graphs_and_what_is_not_installed_is_stood_in_for() -> None:
    main, inner = load_graph_files(NESTED, replay_seed=1)
    assert main.graph.name == "letters to customers (5f0f9c1e-0c5b-4f2e-9d39-0d6f6f0a1001 v3)"
    assert (len(main.nodes), len(inner.nodes)) == (4, 2)
    by_name = {node.name[-1]: node for node in main.nodes}
    assert set(main.graph.starts) == {by_name["1"].id, by_name["2"].id}
    assert {node.block_id for node in main.nodes} == {"shmcache.replay_block"}
    assert by_name["2"].input_default == {"table": "customers"}
    assert [link.is_static for link in by_name["1"].output_links] == [True]


def test_what_is_replayed_is_the_same_each_time_and_another_for_another_seed() -> None:
    def values(seed: int) -> list[Any]:
        return [
            list(get_block(node.block_id).run(thaw(node.constants)))
            for loaded in load_graph_files(NESTED, replay_seed=seed)
            for node in loaded.nodes
        ]

    assert values(1) == values(1)
    assert len({repr(values(seed)) for seed in range(20)}) == 20
    ((name, row),) = values(1)[1]
    assert (name, set(row), len(row["orders"])) == ("row", {"name", "orders"}, 1)


def test_blocks_that_are_installed_run_themselves(tmp_path: Path) -> None:
    document = json.loads((GRAPHS / "agent_loop.json").read_text())
    document["nodes"][3]["block_id"] = "shmcache.output"
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(document))
    (loaded,) = load_graph_files(path, replay_seed=1)
    assert loaded.nodes[3].block_id == "shmcache.output"
    assert REPLAY not in loaded.nodes[3].constants


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        (lambda d: d.pop("id"), "", '"id" is missing'),
        (lambda d: d["nodes"][1].pop("block_id"), "nodes[1]", '"block_id" is missing'),
        (lambda d: d["nodes"][1].update(id=d["nodes"][0]["id"]), "nodes[1].id", "is the id of nodes[0] too"),
        (lambda d: d["links"][0].update(sink_id="nobody"), "links[0].sink_id", "there is no node 'nobody'"),
        (lambda d: d["links"][0].update(source_name=""), "links[0].source_name", "empty text"),
        (lambda d: d["links"][0].update(is_static=1), "links[0].is_static", "true or false"),
        (lambda d: d.update(sub_graphs=[{"id": "x"}]), "sub_graphs[0]", '"nodes" is missing'),
        (lambda d: d["nodes"][0].update(input_default=[]), "nodes[0].input_default", "expected an object"),
        (lambda d: d.update(version="a"), "version", "expected a number"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, change: Any, place: str, problem: str) -> None:
    document = json.loads((GRAPHS / "agent_loop.json").read_text())
    change(document)
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(document))
    with pytest.raises(GraphFileError) as refused:
        load_graph_files(path, replay_seed=1)
    assert refused.value.place == place
    assert problem in refused.value.problem


def test_without_replay_a_block_that_is_not_installed_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(GraphFileError, match="--blocks replay stands in"):
        load_graph_file(GRAPHS / "agent_loop.json")
