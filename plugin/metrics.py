"""What happens, for Prometheus: read from the show when somebody asks, kept nowhere else."""

import time
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from plugin import __version__
from plugin.run import Show

if TYPE_CHECKING:
    from plugin.sessions import Sessions

#: Figures are read no more often than this.
AGE_SECONDS = 0.05
_COUNTS = {
    "frames": "Frames given out.",
    "frames_undrawn": "Frames given out without a picture, because they were late.",
    "frames_late": "Frames that were ready after their time.",
    "frames_lost": "Finished frames that nobody took in time.",
    "resyncs": "Times that the clock was given up after a pause of the machine.",
    "interrupts": "Times that speaking was interrupted.",
}
_LEVELS = {
    "backlog_seconds": "Seconds of voice that wait in the head.",
    "problems": "Sources and sinks that do not work now.",
}
_QUANTILES = {
    "latency_seconds": "From voice coming in to its frame going out, lately.",
    "work_seconds": "Computing time of one step, lately.",
}


class ShowCollector:
    """The figures of a show, and `more`: gauges by name, called when somebody asks."""

    def __init__(self, show: Show, more: Callable[[], Mapping[str, float]]) -> None:
        self._show, self._more = show, more

    def collect(self) -> Iterator[Metric]:
        figures = self._show.figures()
        for name, told in _COUNTS.items():
            yield CounterMetricFamily(f"ifmdm_{name}", told, figures[name])
        for name, told in _LEVELS.items():
            yield GaugeMetricFamily(f"ifmdm_{name}", told, figures[name])
        for name, told in _QUANTILES.items():
            family = GaugeMetricFamily(f"ifmdm_{name}", told, labels=["quantile"])
            family.add_metric(["0.5"], figures[f"{name}_median"])
            family.add_metric(["0.95"], figures[f"{name}_p95"])
            yield family
        problems = GaugeMetricFamily("ifmdm_problem", "Whether a source or sink does not work now.", labels=["name"])
        for name, problem in self._show.problems.items():
            problems.add_metric([name], bool(problem))
        yield problems
        version = GaugeMetricFamily("ifmdm_info", "What runs.", labels=["version"])
        version.add_metric([__version__], 1)
        yield version
        for name, value in self._more().items():
            yield GaugeMetricFamily(f"ifmdm_{name}", f"{name.replace('_', ' ').capitalize()}.", value)


class SessionsCollector:
    """The sums of all sessions, so that what is kept does not grow with those that come and go."""

    def __init__(self, sessions: "Sessions") -> None:
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        sessions = self._sessions
        yield GaugeMetricFamily("ifmdm_sessions", "Sessions that run.", sessions.count)
        if sessions.limit is not None:
            yield GaugeMetricFamily("ifmdm_sessions_limit", "Sessions that there may be.", sessions.limit)
        yield CounterMetricFamily("ifmdm_sessions_created", "Sessions that began.", sessions.created)
        ended = CounterMetricFamily("ifmdm_sessions_ended", "Sessions that ended, and why.", labels=["why"])
        for why, count in sessions.ended.items():
            ended.add_metric([why], count)
        yield ended
        counts = sessions.counts()
        for name, figure in (("frames", "made"), *((f"frames_{each}", each) for each in ("undrawn", "late", "lost"))):
            told = f"{_COUNTS[name].removesuffix('.')}, by all sessions."
            yield CounterMetricFamily(f"ifmdm_session_{name}", told, counts[figure])
        rooms = sessions.rooms
        for name, values in (
            ("viewers", [room.broadcast.viewers for room in rooms]),
            ("speakers", [room.speakers.count for room in rooms]),
            ("sockets", [room.sockets.count for room in rooms]),
        ):
            yield GaugeMetricFamily(f"ifmdm_session_{name}", f"{name.capitalize()} of all sessions.", sum(values))


class Metrics:
    """A registry of its own, so that heads in one process keep apart."""

    def __init__(
        self, show: Show, more: Callable[[], Mapping[str, float]] = dict, sessions: "Sessions | None" = None
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(ShowCollector(show, more))
        if sessions is not None:
            self.registry.register(SessionsCollector(sessions))
        ProcessCollector(registry=self.registry)
        self._made, self._text = -inf, b""
        self._requests = Counter(
            "ifmdm_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )

    def page(self) -> web.Response:
        """The answer to GET /metrics; the same for some milliseconds, since it takes more than any other."""
        if (now := time.monotonic()) - self._made >= AGE_SECONDS:
            self._made, self._text = now, generate_latest(self.registry)
        return web.Response(body=self._text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def count(self, request: web.Request, response: web.StreamResponse) -> None:
        """For on_response_prepare. A path of nobody's is one of "other", so that nobody fills the memory with names."""
        resource = request.match_info.route.resource
        method = request.method if request.method in _METHODS else "other"
        self._requests.labels(method, resource.canonical if resource else "other", str(response.status)).inc()


_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
