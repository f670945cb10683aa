"""Processes that run schedules side by side, asked from a test session."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).parents[2]
Request = Mapping[str, Any]
Answer = dict[str, Any]


@dataclass(slots=True)
class Totals:
    """What all answers so far add up to."""

    schedules: int = 0
    waited: int = 0
    violations: int = 0

    def count(self, answer: Answer) -> None:
        self.schedules += answer["schedules"]
        self.waited += answer["waited"]
        self.violations += sum(count for _, count, _ in answer["wrong"])


@dataclass(slots=True)
class Workers:
    """One worker for each processor that this process may use, each with a world of its own."""

    totals: Totals = field(default_factory=Totals)
    _queue: "SimpleQueue[tuple[Request, Future[Answer]] | None]" = field(
        default_factory=SimpleQueue
    )
    _answers: dict[str, "Future[Answer]"] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for _ in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(2):
            thread = threading.Thread(target=self._serve, daemon=True)
            thread.start()
            self._threads.append(thread)

    def ask(self, request: Request) -> None:
        """Put a request in the queue, once."""
        key = json.dumps(request, sort_keys=True)
        if key not in self._answers:
            self._answers[key] = Future()
            self._queue.put((request, self._answers[key]))

    def answer(self, request: Request) -> Answer:
        """The answer to a request, when it has come."""
        self.ask(request)
        found = self._answers[json.dumps(request, sort_keys=True)].result()
        self.totals.count(found)
        return found

    def stop(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(30)

    def _serve(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.together.sweep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        while (asked := self._queue.get()) is not None:
            request, future = asked
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                future.set_result(json.loads(process.stdout.readline()))
            except (OSError, ValueError) as error:
                future.set_exception(RuntimeError(f"the worker died of {request}: {error}"))
        process.stdin.close()
        process.stdout.close()
        process.wait(30)


def describe(answer: Answer) -> str:
    """What a sweep found wrong, for people: each fault, how often, and one schedule."""
    lines = [f"{len(answer['wrong'])} kinds of violation in {answer['schedules']} schedules:"]
    for text, count, example in answer["wrong"]:
        lines += [f"  {count} x {text}", f"      {example}"]
    return "\n".join(lines)
