"""A manager and an app proxy as plain data: the shapes are those that managers 23.09.10 and 26.9.6 were seen to send."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import formatdate
from time import time

from bridges.serving import Asked, Server, scripted

from meshnode.remote import Kind, Remote, checked

ACCESS = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


@dataclass
class Service:
    """One model service; `token` is the only one that it takes, empty for a public one."""

    id: str
    name: str
    model: str
    token: str = ""
    status: str = "HEALTHY"
    url: str = ""
    answers: int = 200
    problem: str = ""
    words: tuple[str, ...] = ("Hello", " there")
    breaks_off: bool = False
    asked: list[Asked] = field(default_factory=list)

    async def serve(self, asked: Asked) -> None:
        self.asked.append(asked)
        if self.token and asked.headers.get("authorization") != f"BackendAI {self.token}":
            await asked.answer(401, problem("invalid-credentials", "E20008: Invalid authorization token (Signature has expired)"))
        elif self.answers != 200:
            await asked.answer(self.answers, problem("appproxy", self.problem))
        elif asked.method == "GET":
            await asked.answer(200, json.dumps({"object": "list", "data": [{"id": self.model, "max_model_len": 4096}]}).encode())
        else:
            said = [json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}) for word in self.words]
            done = [] if self.breaks_off else ["[DONE]"]
            await asked.events(*(f"data: {each}\n\n".encode() for each in [*said, *done]))


@dataclass
class Manager:
    """`lists` says which of its three lists work. `headers` go with every answer."""

    services: list[Service]
    version: str = "v9.20250722"
    lists: tuple[str, ...] = ("graphql", "v2", "services")
    clock: float = 0.0
    """Seconds that its clock is ahead."""
    ignores_clock: bool = False
    refuses: tuple[int, bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    is_away: bool = False

    async def serve(self, asked: Asked) -> None:
        if self.is_away:
            await asked.stream.aclose()
            return
        self.asked.append(asked)
        status, body = self._answer(asked)
        await asked.answer(status, body, ("Date", formatdate(time() + self.clock, usegmt=True)), *self.headers.items())

    def _answer(self, asked: Asked) -> tuple[int, bytes]:
        if asked.path == "/":
            return 200, json.dumps({"version": self.version, "manager": "26.9.6"}).encode()
        if self.refuses:
            return self.refuses
        if abs(_seconds(asked.headers["date"]) - time() - self.clock) > 900 or self.ignores_clock:
            return 400, problem("invalid-auth-params", "Date/time sync error")
        if asked.path == "/auth":
            return 200, b'{"authorized": "yes", "echo": "meshnode"}'
        for service in self.services:
            if asked.path == f"/services/{service.id}/token":
                return 200, json.dumps({"token": service.token}).encode()
        return self._list(asked)

    def _list(self, asked: Asked) -> tuple[int, bytes]:
        body = json.loads(asked.body or b"{}")
        if asked.path == "/admin/gql" and "graphql" not in self.lists:
            return 200, b'{"data": null, "errors": [{"message": "Cannot query field \'endpoint_list\' on type \'Query\'."}]}'
        if asked.path == "/admin/gql":
            asked_for = body["variables"]
            page = self.services[asked_for["offset"] :][: asked_for["limit"]]
            items = [
                {"endpoint_id": s.id, "name": s.name, "status": s.status, "url": s.url or None, "open_to_public": not s.token}
                for s in page
            ]
            return 200, json.dumps({"data": {"endpoint_list": {"total_count": len(self.services), "items": items}}}).encode()
        if asked.path == "/v2/deployments/my/search" and "v2" in self.lists:
            found = [
                {
                    "id": s.id,
                    "metadata": {"name": s.name, "status": "READY", "project_id": "p"},
                    "network_access": {"endpoint_url": s.url, "open_to_public": not s.token},
                }
                for s in self.services
            ]
            return 200, json.dumps({"items": found, "total_count": len(found), "has_next_page": False}).encode()
        if asked.path == "/services" and "services" in self.lists:
            old = [
                {"id": s.id, "name": s.name, "active_route_count": 1, "service_endpoint": s.url, "is_public": not s.token}
                for s in self.services
            ]
            return 200, json.dumps(old).encode()
        return 404, json.dumps({"type": "https://api.backend.ai/probs/url-not-found", "title": "Unknown URL path."}).encode()


def problem(slug: str, message: str) -> bytes:
    said = {"type": f"https://api.backend.ai/probs/{slug}", "title": "No.", "error_code": "x", "msg": message}
    return json.dumps(said).encode()


def _seconds(date: str) -> float:
    return datetime.fromisoformat(date).timestamp()


@asynccontextmanager
async def cluster_of(*services: Service, **fields: object) -> AsyncIterator[tuple[Manager, Remote]]:
    """A cluster that has these services, each behind an address of its own unless it names one; and how to register it."""
    manager = Manager(list(services), **fields)  # type: ignore[arg-type]  # as given
    async with _served(list(services)), scripted(manager.serve) as server:
        yield manager, remote_at(server)


def remote_at(server: Server) -> Remote:
    return checked(Remote(kind=Kind.CLUSTER, name="lab", url=str(server.url), access_key=ACCESS, key=SECRET))


@asynccontextmanager
async def _served(services: list[Service]) -> AsyncIterator[None]:
    if not services:
        yield
        return
    first, *others = services
    async with scripted(first.serve) as server, _served(others):
        first.url = first.url or f"{server.url}/"
        yield
