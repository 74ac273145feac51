"""Two real nodes on loopback for all tests here: one serves the demo model, the other has none and only forwards."""

from collections.abc import Iterator

import anthropic
import ollama
import openai
import pytest
from processes import NodeProcess, mesh_of

SERVES, FORWARDS = "serves", "forwards"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real processes: `scripts/test --quick` leaves them out."""
    for item in items:
        if "clients" in item.path.parts:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, NodeProcess]]:
    with mesh_of(tmp_path_factory.mktemp("clients")) as start:
        holder = start("holder")
        asker = start("asker", "--no-worker", peer=holder)
        for node in (holder, asker):
            node.wait_for_model("demo")
        yield {SERVES: holder, FORWARDS: asker}


@pytest.fixture(params=[SERVES, FORWARDS])
def node(request: pytest.FixtureRequest, nodes: dict[str, NodeProcess]) -> NodeProcess:
    return nodes[request.param]


@pytest.fixture
def openai_client(node: NodeProcess) -> Iterator[openai.OpenAI]:
    with node.client() as client:
        yield client


@pytest.fixture
def anthropic_client(node: NodeProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"http://{node.api_address}", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def ollama_client(node: NodeProcess) -> Iterator[ollama.Client]:
    with ollama.Client(host=node.api_address) as client:
        yield client
