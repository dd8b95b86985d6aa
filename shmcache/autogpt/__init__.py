"""For executors of the AutoGPT Platform: its own calls, over shmcache.

    from shmcache.autogpt import get_db_client

    client = get_db_client()
    client.get_node_executions(graph_exec_id, statuses=[ExecutionStatus.RUNNING], include_exec_data=False)

With SHMCACHE_SCHEMA=autogpt the rows are those of the platform's own tables. `client.py` has the calls,
`asynchronous.py` the same as coroutines, `results.py` what they return, `costs.py` what a run costs.
"""

from __future__ import annotations

from shmcache.autogpt.asynchronous import AsyncPlatformClient as AsyncPlatformClient
from shmcache.autogpt.asynchronous import get_db_async_client as get_db_async_client
from shmcache.autogpt.client import PlatformClient as PlatformClient
from shmcache.autogpt.client import get_db_client as get_db_client
from shmcache.autogpt.costs import block_usage_cost as block_usage_cost
from shmcache.autogpt.costs import execution_usage_cost as execution_usage_cost
from shmcache.autogpt.results import GraphExecutionResult as GraphExecutionResult
from shmcache.autogpt.results import Node as Node
from shmcache.autogpt.results import NodeExecutionResult as NodeExecutionResult

__all__ = [
    "AsyncPlatformClient", "GraphExecutionResult", "Node", "NodeExecutionResult", "PlatformClient", "block_usage_cost",
    "execution_usage_cost", "get_db_async_client", "get_db_client",
]  # fmt: skip
