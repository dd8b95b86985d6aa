"""The part of pytest's controlling process: it starts what the executors need as soon as one has collected a test of
theirs, tells the workers where that is, and judges at the end."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.stress.executors.ground import Ground, Served
    from tests.stress.executors.judging import Judgement

CONTROLLER = "executors of tests"
"""What the plugin is named."""
_INPUT = "executors_directory"
_OURS = Path(__file__).parent.relative_to(Path(__file__).parents[3]).as_posix() + "/"


class Controller:
    """A plugin of the process that the user has started; with `-n 0` that is the one worker, too."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self.directory = state_dir / "executors"
        self._served: Served | None = None
        self._judgement: Judgement | None = None
        self._wrong: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker, or the one that comes in the place of a crashed one, where to look."""
        node.workerinput[_INPUT] = str(self.directory)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """A worker knows its tests; none of them is begun before all know theirs."""
        del node
        self._start_for(ids)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """The same without workers."""
        if not session.config.getoption("collectonly"):
            self._start_for([item.nodeid for item in session.items])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Judge. The workers have ended by now: xdist is asked first, as it was registered later."""
        if self._served is None:
            return
        from tests.stress.executors.judging import judge

        try:
            self._judgement = judge(self._served.ground)
            self._wrong += self._judgement.wrong
        except BaseException:
            self._wrong.append(f"it could not be judged:\n{traceback.format_exc()}")
        finally:
            self._wrong += self._served.close()
        if self._wrong:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was compared, and what is wrong."""
        if self._served is None:
            return
        terminalreporter.section("executors on one arena")
        if self._judgement is not None:
            found, counters = self._judgement.found, self._judgement.counters
            terminalreporter.line(
                f"{self._judgement.journals} journals, {found.acknowledged} acknowledged writes, {found.undecided} "
                f"undecided calls; {counters['commits']} commits, {counters['conflicts']} conflicts, "
                f"{counters['evicted']} evicted, {counters['charges_settled']} charges settled"
            )
        for each in self._wrong:
            terminalreporter.line(f"wrong: {each}", red=True)
        if not self._wrong:
            terminalreporter.line("nothing lost, doubled, reordered, overdrawn, unbalanced or left behind", green=True)

    def _start_for(self, ids: Sequence[str]) -> None:
        if self._served is None and any(each.startswith(_OURS) for each in ids):
            from tests.stress.executors.ground import Served

            self.directory.mkdir()
            self._served = Served(self._state_dir, self.directory)


def ground_of(config: pytest.Config) -> Ground:
    """Return what the controller has started, in a worker."""
    from tests.stress.executors.ground import Ground

    here: Controller | None = config.pluginmanager.get_plugin(CONTROLLER)
    return Ground.load(Path(config.workerinput[_INPUT]) if here is None else here.directory)  # type: ignore[attr-defined]
