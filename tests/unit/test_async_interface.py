"""The two interfaces are one: what is a call of the one is a coroutine of the other."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, assert_type

import pytest

from shmcache.asynchronous.execution_data_client import AsyncExecutionDataClient
from shmcache.autogpt import AsyncPlatformClient, PlatformClient
from shmcache.execution_data_client import ExecutionDataClient, Work
from shmcache.records import NodeDefinition, NodeExecution
from tools.async_interface import SOURCE, TARGET, generate


def test_the_asynchronous_interface_is_written_from_the_synchronous_one() -> None:
    written = TARGET.read_text(encoding="utf-8")
    assert written == generate(SOURCE.read_text(encoding="utf-8")), "run python -m tools.async_interface"


def _calls(interface: type) -> dict[str, Any]:
    return {name: each for name, each in vars(interface).items() if not name.startswith("_")}


def test_it_has_the_same_names() -> None:
    # `inside` is for what the asynchronous one cannot do itself: calls within a transaction.
    assert set(_calls(AsyncExecutionDataClient)) == set(_calls(ExecutionDataClient))
    assert not hasattr(ExecutionDataClient, "inside")


@pytest.mark.parametrize("name", sorted(_calls(ExecutionDataClient)))
def test_each_call_has_the_same_parameters_defaults_and_docstring(name: str) -> None:
    synchronous, asynchronous = getattr(ExecutionDataClient, name), getattr(AsyncExecutionDataClient, name)
    assert asynchronous.__doc__ == synchronous.__doc__
    if isinstance(synchronous, property):
        assert isinstance(asynchronous, property)
        return
    one, other = inspect.signature(synchronous), inspect.signature(asynchronous)
    assert list(other.parameters.values()) == list(one.parameters.values())
    assert other.return_annotation == f"Coroutine[Any, Any, {one.return_annotation}]"


@pytest.mark.parametrize("name", sorted(_calls(PlatformClient)))
def test_each_call_of_the_platform_has_them_too(name: str) -> None:
    synchronous, asynchronous = getattr(PlatformClient, name), getattr(AsyncPlatformClient, name)
    assert inspect.iscoroutinefunction(asynchronous)
    assert asynchronous.__doc__ == synchronous.__doc__
    assert inspect.signature(asynchronous) == inspect.signature(synchronous)


async def _typed(client: AsyncExecutionDataClient) -> None:
    """Run by nobody: mypy looks whether each answer has its exact type."""
    assert_type(await client.get_node("id"), NodeDefinition)
    assert_type(await client.get_latest_node_execution("id", "run"), NodeExecution | None)
    assert_type(await client.upsert_execution_input("id", "run", "pin"), tuple[str, Mapping[str, Any]])
    assert_type(await client.upsert_execution_output("id", {"pin": 1}, durable=True), NodeExecution)
    assert_type(await client.upsert_execution_output("id", "pin", 1), NodeExecution)
    assert_type(await client.atomically(lambda: client.inside.get_credits("user"), durable=True), int)
    assert_type(await client.take_work(1.0), Work | None)
    assert_type(client.last_sequence, int)
    async with client as same:
        assert_type(same, AsyncExecutionDataClient)
