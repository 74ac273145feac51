"""The model services of a Backend.AI cluster, from the three lists that its managers have (pure).

GraphQL's `endpoint_list` says the same from 23.09 to 26.9 and is asked first; `/v2/deployments/my/search` came with 26.4;
`/services` is the oldest, and blind on managers from 25.14 on, which never write the stage that it looks for. Shapes as seen on
managers 23.09.10 and 26.9.6.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from meshnode.names import printable

PAGE = 100
MAX_SERVICES = 64
"""Of one cluster that are looked at."""
_GOOD = frozenset({"HEALTHY", "DEGRADED", "READY"})
_QUERY = """query($limit: Int!, $offset: Int!) {
  endpoint_list(limit: $limit, offset: $offset) { total_count items { endpoint_id name status url open_to_public } }
}"""


class Service(msgspec.Struct, frozen=True):
    """`url` is empty where the manager knows none; `status` is the manager's word, in capitals."""

    id: str
    name: str
    url: str
    status: str
    is_public: bool

    @property
    def why_not(self) -> str:
        """Why it need not even be asked; empty when it should be."""
        if not self.url:
            return "the manager knows no address of it"
        return "" if self.status in _GOOD else f"the manager calls it {self.status.lower()}"


class Page(msgspec.Struct, frozen=True):
    services: tuple[Service, ...]
    has_more: bool = False


class Listing(NamedTuple):
    """One way to ask a manager for its services. `read` raises ValueError when the answer is no list."""

    name: str
    method: str
    path: str
    body: Callable[[int], bytes | None]
    """For the page that begins at this offset."""
    read: Callable[[bytes, int], Page]


class _Endpoint(msgspec.Struct, frozen=True):
    endpoint_id: str
    name: str
    status: str | None = None
    url: str | None = None
    open_to_public: bool | None = None


class _Endpoints(msgspec.Struct, frozen=True):
    total_count: int
    items: list[_Endpoint]


class _Data(msgspec.Struct, frozen=True):
    endpoint_list: _Endpoints


class _Error(msgspec.Struct, frozen=True):
    message: str = ""


class _Graph(msgspec.Struct, frozen=True):
    data: _Data | None = None
    errors: list[_Error] | None = None


def _graph(answer: bytes, offset: int) -> Page:
    said: _Graph = _decoded(answer, _Graph)
    if said.errors or said.data is None:
        raise ValueError(printable((said.errors or [_Error("no data")])[0].message, 200))
    found = said.data.endpoint_list
    services = [
        _service(each.endpoint_id, each.name, each.url, each.status or "", is_public=bool(each.open_to_public))
        for each in found.items
    ]
    return Page(tuple(services), bool(services) and offset + len(services) < found.total_count)


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    status: str = ""


class _Access(msgspec.Struct, frozen=True):
    endpoint_url: str | None = None
    open_to_public: bool | None = None


class _Deployment(msgspec.Struct, frozen=True):
    id: str
    metadata: _Metadata
    network_access: _Access


class _Deployments(msgspec.Struct, frozen=True):
    items: list[_Deployment]
    has_next_page: bool = False


def _deployments(answer: bytes, _offset: int) -> Page:
    said: _Deployments = _decoded(answer, _Deployments)
    services = [
        _service(
            each.id,
            each.metadata.name,
            each.network_access.endpoint_url,
            each.metadata.status,
            is_public=bool(each.network_access.open_to_public),
        )
        for each in said.items
    ]
    return Page(tuple(services), said.has_next_page and bool(services))


class _Old(msgspec.Struct, frozen=True):
    id: str
    name: str
    active_route_count: int = 0
    service_endpoint: str | None = None
    is_public: bool = False


def _old(answer: bytes, _offset: int) -> Page:
    said: list[_Old] = _decoded(answer, list[_Old])
    return Page(
        tuple(
            _service(
                each.id,
                each.name,
                each.service_endpoint,
                "HEALTHY" if each.active_route_count else "UNHEALTHY",
                is_public=each.is_public,
            )
            for each in said
        )
    )


LISTINGS = (
    Listing(
        "GraphQL endpoint_list",
        "POST",
        "/admin/gql",
        lambda offset: msgspec.json.encode({"query": _QUERY, "variables": {"limit": PAGE, "offset": offset}}),
        _graph,
    ),
    Listing(
        "/v2/deployments/my/search",
        "POST",
        "/v2/deployments/my/search",
        lambda offset: msgspec.json.encode({"limit": PAGE, "offset": offset}),
        _deployments,
    ),
    Listing("/services", "GET", "/services", lambda _: None, _old),
)
"""In the order in which they are tried."""


def _service(identity: str, name: str, url: str | None, status: str, *, is_public: bool) -> Service:
    return Service(printable(identity, 64), printable(name, 64), url or "", printable(status, 32).upper(), is_public)


def _decoded(answer: bytes, kind: object) -> Any:
    try:
        return msgspec.json.decode(answer, type=kind)
    except RecursionError:
        raise ValueError("nested too deeply") from None
