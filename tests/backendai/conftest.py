"""A real Backend.AI cluster for these tests, which run only where one is wanted: MESHNODE_BACKENDAI=26, or =all.

Setting it up takes minutes and some GB, so nobody gets it by accident. It is kept, and left running, in .build/backendai-lab, or
where MESHNODE_BACKENDAI_DIR says; its ports begin at MESHNODE_BACKENDAI_PORT.
"""

import os
from pathlib import Path

import pytest
from backendai.cluster import Cluster
from backendai_lab.lab import Lab, Unavailable

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def lab() -> Lab:
    wanted = os.environ.get("MESHNODE_BACKENDAI", "")
    if wanted not in {"26", "all"}:
        pytest.skip("a real Backend.AI cluster is set up only for MESHNODE_BACKENDAI=26 (or =all, with a manager 23.09 as well)")
    directory = Path(os.environ.get("MESHNODE_BACKENDAI_DIR") or ROOT / ".build" / "backendai-lab")
    made = Lab(directory.absolute(), int(os.environ.get("MESHNODE_BACKENDAI_PORT", "18500")))
    try:
        made.start(old=wanted == "all")
    except Unavailable as error:
        pytest.skip(f"no Backend.AI cluster can be had here: {error}")
    return made


@pytest.fixture(params=["26", "23"])
def cluster(request: pytest.FixtureRequest, lab: Lab) -> Cluster:
    """The lab by each of its managers, with every service as it was at first."""
    release = str(request.param)
    if release not in lab.facts()["managers"]:
        pytest.skip("the manager 23.09 runs only for MESHNODE_BACKENDAI=all")
    lab.seed(old="23" in lab.facts()["managers"])
    return Cluster(lab, release)
