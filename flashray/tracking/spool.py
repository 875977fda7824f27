"""The events of a run that MLflow should get, kept in the run's folder: anyone who has it can send them, or send again.

They lie in the run's folder, not on the driver's machine, because another machine may make the next start. Each event
is a file of its own (`tracking/000001.json`, …), so that none is ever half-written, on a disk as in an object store.
There are few: a run has its start, its results and its end. `tracking/sent.json` says which of them MLflow has.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from flashray import storage

# kind (start, resume, metrics, text, file, child or end), time in ms since the epoch, and what `Sender` needs of it
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Sent:
    """Which events are in MLflow, and where."""

    tracking_uri: str  # the server or database, without secrets
    experiment_id: str
    run_id: str
    numbers: tuple[int, ...] = ()  # of the events that it has


class Spool:
    """The events of a run, in their order; `folder` is the URI of the run's folder, which holds run.json.

    OSError, ValueError, TypeError or KeyError when a file cannot be read or is damaged.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._events: dict[int, Event] = {}
        for entry in storage.list_files(storage.join(folder, "tracking")):
            if re.fullmatch(r"\d{6}\.json", entry.key):
                self._events[int(entry.key[:6])] = self._read(entry.key)
        try:
            values = self._read("sent.json")
            self.sent: Sent | None = Sent(**values | {"numbers": tuple(values["numbers"])})
        except FileNotFoundError:
            self.sent = None  # MLflow has nothing of the run

    def keep_sent(self, sent: Sent) -> None:
        """Keep what MLflow has, and where."""
        self.sent = sent
        self._write("sent.json", asdict(sent))

    def mark_sent(self, number: int) -> None:
        """MLflow has this event."""
        assert self.sent is not None
        self.keep_sent(replace(self.sent, numbers=(*self.sent.numbers, number)))

    def pending(self) -> list[tuple[int, Event]]:
        """(number, event) of what MLflow does not have yet."""
        done = set(self.sent.numbers) if self.sent is not None else set()
        return [(number, event) for number, event in list(self._events.items()) if number not in done]

    def of(self, *kinds: str) -> Iterator[Event]:
        """The events of these kinds."""
        return (event for event in list(self._events.values()) if event["kind"] in kinds)

    @property
    def status(self) -> str:
        """RUNNING until the end is recorded, then FINISHED, FAILED or KILLED; empty where nothing is recorded."""
        if not self._events:
            return ""
        last = self._events[max(self._events)]
        return str(last["status"]) if last["kind"] == "end" else "RUNNING"

    def append(self, kind: str, **values: Any) -> None:
        """Keep an event; in this process even where the folder cannot be written to, which is an OSError."""
        number = max(self._events, default=0) + 1
        self._events[number] = {"kind": kind, "time": int(time.time() * 1000), **values}
        self._write(f"{number:06d}.json", self._events[number])

    def _read(self, name: str) -> dict[str, Any]:
        return dict(json.loads(storage.read_bytes(storage.join(self.folder, "tracking", name))))

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        storage.put_bytes(storage.join(self.folder, "tracking", name), json.dumps(values, ensure_ascii=False).encode())
