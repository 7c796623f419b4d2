"""A clock that tests set: what a gallery and an audit log take for the time."""

from datetime import UTC, datetime, timedelta

from deploy.store import clock


class SetClock:
    """Stands in for the computer's clock until the test ends."""

    def __init__(self, monkeypatch, start="2026-03-01T12:00:00+00:00"):
        self.time = datetime.fromisoformat(start)
        monkeypatch.setattr(clock, "now", lambda: int(self.time.timestamp() * 1e6))

    def set(self, text):
        self.time = datetime.fromisoformat(text).replace(tzinfo=UTC)

    def move(self, days):
        self.time += timedelta(days=days)

    def ago(self, days):
        return (self.time - timedelta(days=days)).isoformat(timespec="seconds")
