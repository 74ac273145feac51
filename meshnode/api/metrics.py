"""What this node counts, for Prometheus. The only module that knows prometheus_client.

Names are those that dashboards know already: OpenTelemetry's for generative AI, vLLM's for the workers. No label holds a prompt,
a key or anything that a client typed. Labels that peers choose (names of models) have at most `MAX_MODELS` values, then `other`;
all others come from tables of ours.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import (
    GC_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from meshnode.gossip.member import Member, State
from meshnode.inference import Usage
from meshnode.names import is_name
from meshnode.wire.messages import ModelState

MAX_MODELS = 200
"""A mesh has at most 64 nodes, and few have more than some models; but names come and go as long as a node lives."""
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OTHER = "other"
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_PER_TOKEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
"""Bounds of the histograms: OpenTelemetry's, those of them that a LAN's machines reach."""


class Observed(Protocol):
    """What is read of the node when somebody asks."""

    def members(self) -> tuple[Member, ...]: ...

    def load(self) -> tuple[ModelState, ...]:
        """Of this node's own models."""
        ...


class Metrics:
    """Of one node, in a registry of its own."""

    def __init__(self, node: Observed) -> None:
        self.registry = CollectorRegistry()
        self._models: set[str] = set()
        make = self.registry
        self._http = Counter("meshnode_http_requests", "Answered, by path and status.", ["path", "status"], registry=make)
        self._errors = Counter("meshnode_errors", "Failures told to clients, in streams too.", ["code"], registry=make)
        self._running = Gauge("meshnode_requests_in_flight", "Clients' requests being answered.", registry=make)
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds", "Whole answers.", ["gen_ai_response_model"], registry=make, buckets=_SECONDS
        )
        self._first = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the request to its first token, queueing and retries included.",
            ["gen_ai_response_model"],
            registry=make,
            buckets=_SECONDS,
        )
        self._per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between two tokens, on average over an answer.",
            ["gen_ai_response_model"],
            registry=make,
            buckets=_PER_TOKEN,
        )
        self._usage = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request.",
            ["gen_ai_response_model", "gen_ai_token_type"],
            registry=make,
            buckets=_TOKENS,
        )
        self._decisions = Counter("mesh_route_decisions", "Who answered, by why.", ["reason"], registry=make)
        self._cached = Counter("mesh_prefix_hit_tokens", "Tokens of prompts that a worker had read before.", registry=make)
        self._resumed = Counter("mesh_midstream_resumes", "Answers that went on at another node.", registry=make)
        make.register(_Now(node))
        ProcessCollector(registry=make)
        PlatformCollector(registry=make)
        make.register(GC_COLLECTOR)

    def begun(self) -> None:
        self._running.inc()

    def ended(self, path: str, status: int) -> None:
        """`path` is a route's, `{id}` unfilled; empty for a request that has none."""
        self._running.dec()
        self._http.labels(path or _OTHER, str(status)).inc()

    def failed(self, code: str) -> None:
        """`code` is one of `meshnode.errors`."""
        self._errors.labels(code).inc()

    def answered(self, model: str, reason: str, *, resumed: int, usage: Usage, duration_s: float) -> None:
        """An answer is over, whole or not; `reason` is the router's."""
        name = self._model(model)
        self._duration.labels(name).observe(duration_s)
        self._usage.labels(name, "input").observe(usage.prompt_tokens)
        self._usage.labels(name, "output").observe(usage.completion_tokens)
        self._decisions.labels(reason.partition(";")[0]).inc()
        self._cached.inc(usage.cached_tokens)
        self._resumed.inc(resumed)

    def timed(self, model: str, *, first_s: float, per_token_s: float | None) -> None:
        """`per_token_s` is None where there were not two tokens."""
        name = self._model(model)
        self._first.labels(name).observe(first_s)
        if per_token_s is not None:
            self._per_token.labels(name).observe(per_token_s)

    def text(self) -> bytes:
        """In Prometheus's text format, of type `MEDIA_TYPE`."""
        return generate_latest(self.registry)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= MAX_MODELS or not is_name(name):
                return _OTHER
            self._models.add(name)
        return name


class _Now(Collector):
    """What is not counted but looked at."""

    def __init__(self, node: Observed) -> None:
        self._node = node

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: else the registry collects once to learn the names, before there is anything to look at."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        members = self._node.members()
        states = GaugeMetricFamily("meshnode_members", "Nodes of the mesh, by what it thinks of them.", labels=["state"])
        for state in State:
            states.add_metric([state.value], sum(member.state is state for member in members))
        yield states
        routable = sum(member.routable for member in members)
        yield GaugeMetricFamily("meshnode_members_routable", "Nodes that this one can send a request to.", value=routable)
        yield from self._workers()

    def _workers(self) -> Iterator[GaugeMetricFamily]:
        """Of this node's own models, whose number the operator's files bound."""
        load = self._node.load()
        figures: tuple[tuple[str, str, Callable[[ModelState], float]], ...] = (
            ("vllm:num_requests_running", "Requests that a model works at.", lambda model: model.active),
            ("vllm:num_requests_waiting", "Requests that wait for a slot.", lambda model: model.queued),
            ("meshnode_worker_slots", "Requests that a model can work at.", lambda model: model.slots),
            ("meshnode_worker_kv_free_tokens", "Room in the KV cache.", lambda model: model.kv_free_tokens),
            ("meshnode_worker_ready", "Whether a model is loaded.", lambda model: model.state == "ready"),
        )
        for name, doc, figure in figures:
            family = GaugeMetricFamily(name, doc, labels=["model_name"])
            for model in load:
                family.add_metric([model.name], figure(model))
            yield family
