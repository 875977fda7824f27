"""What tracking was told, kept in the run directory: whoever has it can bring it to MLflow, or bring it again.

In the run directory wherever that is, not in a folder of the driver's machine: another machine may make the next start.
An event is a file of its own (`tracking/000001.json`, …), so that none is ever half-written, on a disk as in an object
store; there are few, since a run tells its start, its results and its end. `tracking/sent.json` says how much of it
which MLflow run has.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flashray import storage

log = logging.getLogger(__name__)

Event = Mapping[
    str, Any
]  # kind (start, metrics, text, file, child, end), time in ms since the epoch, and what was told


@dataclass(frozen=True)
class Sent:
    """How much of a spool is in MLflow.

    Attributes:
        tracking_uri: of the server or database, without a password.
        last: the number of the last event that was sent.
        behind: numbers before it that could not be sent: artifacts, whose store may fail where the server does not.
    """

    tracking_uri: str
    experiment_id: str
    run_id: str
    last: int = 0
    behind: tuple[int, ...] = ()

    def has(self, number: int) -> bool:
        return number <= self.last and number not in self.behind

    def plus(self, number: int) -> Sent:
        """With this event sent."""
        behind = tuple(one for one in self.behind if one != number)
        return Sent(self.tracking_uri, self.experiment_id, self.run_id, max(self.last, number), behind)

    def without(self, number: int) -> Sent:
        """With this event left behind."""
        behind = tuple(sorted({*self.behind, number}))
        return Sent(self.tracking_uri, self.experiment_id, self.run_id, max(self.last, number), behind)


class Spool:
    """The events of a run directory, in the order in which they were told.

    Args:
        output: the run directory's URI.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self._events: dict[int, Event] = {}
        for entry in storage.list_files(storage.join(output, "tracking")):
            if re.fullmatch(r"\d{6}\.json", entry.key):
                self._events[int(entry.key[:6])] = json.loads(storage.read_bytes(self._place(entry.key)))
        self._sent = self._read_sent()

    @property
    def sent(self) -> Sent | None:
        """None where nothing of it is in MLflow."""
        return self._sent

    @sent.setter
    def sent(self, sent: Sent | None) -> None:
        self._sent = sent
        if sent is not None:
            storage.put_bytes(self._place("sent.json"), json.dumps(asdict(sent)).encode())

    def pending(self) -> list[tuple[int, Event]]:
        """(number, event) of what is not in MLflow yet."""
        events, sent = list(self._events.items()), self._sent
        return [(number, event) for number, event in events if sent is None or not sent.has(number)]

    def of(self, kind: str) -> Iterator[Event]:
        """The events of a kind."""
        return (event for event in list(self._events.values()) if event["kind"] == kind)

    @property
    def last(self) -> Event | None:
        """The event that was told last."""
        return self._events[max(self._events)] if self._events else None

    def append(self, kind: str, **told: Any) -> None:
        """Keep an event. It is told in this process even where the run directory cannot be written to (OSError)."""
        number = max(self._events, default=0) + 1
        event = {"kind": kind, "time": int(time.time() * 1000), **told}
        self._events[number] = event
        storage.put_bytes(self._place(f"{number:06d}.json"), json.dumps(event, ensure_ascii=False).encode())

    def _read_sent(self) -> Sent | None:
        try:
            values = json.loads(storage.read_bytes(self._place("sent.json")))
        except FileNotFoundError:
            return None
        return Sent(**values | {"behind": tuple(values["behind"])})

    def _place(self, name: str) -> str:
        return storage.join(self.output, "tracking", name)
