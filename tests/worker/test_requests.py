"""The open requests of one model, without a child."""

import pytest
from worker.asking import ask

from meshnode.errors import Overloaded
from meshnode.worker import requests
from meshnode.worker.requests import LONGEST_RETRY_S, Requests


@pytest.mark.parametrize(("remaining_s", "retry_after"), [(0.0, 1.0), (40.0, 10.0), (1e6, LONGEST_RETRY_S)])
async def test_who_is_refused_is_told_when_one_of_those_before_him_may_have_ended(
    monkeypatch: pytest.MonkeyPatch, remaining_s: float, retry_after: float
) -> None:
    monkeypatch.setattr(requests, "MAX_WAITING", 2)
    full = Requests("demo", slots=2)
    for _ in range(4):
        full.open(ask(), None)
    with pytest.raises(Overloaded) as caught:
        full.open(ask(), None, remaining_s=remaining_s)

    assert caught.value.retry_after == retry_after
