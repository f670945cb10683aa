"""The workers of this session, which begin with all requests of the tests that were selected."""

import time
from collections.abc import Iterator

import pytest

from tests.together.workers import Workers

_workers = Workers()
_began = 0.0


@pytest.fixture(scope="session")
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Workers that are busy with the requests of all selected tests, in their order."""
    global _began
    _began = time.monotonic()
    _workers.start()
    for item in request.session.items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "sweep" in callspec.params:
            _workers.ask(callspec.params["sweep"])
    yield _workers
    _workers.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    totals = _workers.totals
    if totals.schedules:
        terminalreporter.write_line(
            f"tests/together: {totals.schedules:,} interleavings, {totals.violations:,} violations"
            f" ({totals.waited:,} waited for a lock), {time.monotonic() - _began:.0f} s"
        )
