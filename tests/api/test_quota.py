"""The limits of a key: by plain calls, on a clock that is a number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.api.quota import Bucket, Quota
from meshnode.errors import RateLimited
from meshnode.keys import MAX_KEYS, KeyRing, Wanted


@given(st.integers(1, 100), st.lists(st.floats(0, 90), max_size=50))
def test_never_more_than_twice_a_minutes_worth_passes_in_a_minute_and_the_wait_is_true(limit: int, gaps: list[float]) -> None:
    """A full bucket and what flows in meanwhile. Who waits as told is admitted, and a moment sooner is not."""
    ring = KeyRing()
    key, _ = ring.new(Wanted(requests_per_minute=limit), now=0)
    quota, now, admitted = Quota(ring), 0.0, list[float]()
    for gap in [*gaps, *[0.0] * 250]:
        now += gap
        try:
            quota.admit(key, now=now)
        except RateLimited as error:
            wait_s = error.retry_after or 0.0
            now += wait_s * 0.9
            with pytest.raises(RateLimited):
                quota.admit(key, now=now)
            now += wait_s * 0.1 + 1e-6
            quota.admit(key, now=now)
        admitted.append(now)

    assert all(later - at >= 60 for at, later in zip(admitted, admitted[2 * limit :], strict=False))


def test_tokens_are_paid_off_before_the_next_request() -> None:
    ring = KeyRing()
    key, _ = ring.new(Wanted(tokens_per_minute=60), now=0)
    quota = Quota(ring)
    quota.admit(key, now=0.0)
    quota.charge(key, 60 + 240, now=0.0)

    with pytest.raises(RateLimited, match="60 tokens a minute") as caught:
        quota.admit(key, now=1.0)
    assert caught.value.retry_after == pytest.approx(240)
    quota.admit(key, now=241.01)


def test_one_keys_limit_is_not_anothers() -> None:
    ring = KeyRing()
    one, other = (ring.new(Wanted(requests_per_minute=1), now=0)[0] for _ in range(2))
    quota = Quota(ring)
    quota.admit(one, now=0.0)

    quota.admit(other, now=0.0)
    with pytest.raises(RateLimited, match=one.id):
        quota.admit(one, now=0.0)


def test_keys_that_come_and_go_leave_nothing_behind() -> None:
    ring = KeyRing()
    quota = Quota(ring)
    for _ in range(2 * MAX_KEYS + 10):
        key, _ = ring.new(Wanted(requests_per_minute=1), now=0)
        quota.admit(key, now=0.0)
        ring.revoke(key.id)

    assert len(quota._buckets) <= MAX_KEYS + 1


def test_a_bucket_does_not_save_up() -> None:
    bucket = Bucket(60, now=0.0)
    bucket.take(60, now=3600.0)

    assert bucket.wait_s(now=3600.0) == pytest.approx(1.0)
