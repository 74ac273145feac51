"""Every test of this folder is slow, and skipped where no LAN of network namespaces can be made."""

from collections.abc import Iterator
from pathlib import Path

import netlan
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):  # the hook is handed the items of the whole run
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _possible() -> None:
    if why := netlan.available():
        pytest.skip(f"no LAN: {why}")


@pytest.fixture
def lan(_possible: None) -> Iterator[netlan.Lan]:
    with netlan.lan() as made:
        yield made
