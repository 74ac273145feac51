"""What each key may still ask for in this minute (pure).

A bucket fills evenly up to what a minute may bring, and starts full. What an answer costs is known only when it is over, so the
tokens are taken then: a bucket may be in debt, and takes no request until the debt is paid off. Requests that run at the same
time can overdraw it together, once. A restart fills all buckets.
"""

from dataclasses import dataclass

from meshnode.errors import RateLimited
from meshnode.keys import MAX_KEYS, Key, KeyRing

_MINUTE_S = 60.0


class Bucket:
    """Holds at most `per_minute`; `now` is in seconds and never runs back."""

    def __init__(self, per_minute: int, *, now: float) -> None:
        self._most = float(per_minute)
        self._level = self._most
        self._at = now

    def take(self, amount: float, *, now: float) -> None:
        self._fill(now)
        self._level -= amount

    def wait_s(self, *, now: float) -> float:
        """Seconds until it holds one; 0 when it does."""
        self._fill(now)
        return max(0.0, (1.0 - self._level) * _MINUTE_S / self._most)

    def _fill(self, now: float) -> None:
        self._level = min(self._most, self._level + (now - self._at) * self._most / _MINUTE_S)
        self._at = now


@dataclass(frozen=True)
class _Buckets:
    requests: Bucket | None
    tokens: Bucket | None


class Quota:
    """The buckets of the keys that were used."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._buckets: dict[str, _Buckets] = {}

    def admit(self, key: Key, *, now: float) -> None:
        """Count one request of `key`. Raises RateLimited, which tells when it may ask again; then nothing is counted."""
        buckets = self._of(key, now)
        waits = {
            f"{key.requests_per_minute} requests": buckets.requests.wait_s(now=now) if buckets.requests else 0.0,
            f"{key.tokens_per_minute} tokens": buckets.tokens.wait_s(now=now) if buckets.tokens else 0.0,
        }
        limit, wait_s = max(waits.items(), key=lambda item: item[1])
        if wait_s > 0:
            raise RateLimited(f"The key {key.id} may use {limit} a minute, and has.", retry_after=wait_s)
        if buckets.requests:
            buckets.requests.take(1, now=now)

    def charge(self, key: Key, tokens: int, *, now: float) -> None:
        """`tokens` were read and written for `key`."""
        if bucket := self._of(key, now).tokens:
            bucket.take(tokens, now=now)

    def _of(self, key: Key, now: float) -> _Buckets:
        if len(self._buckets) > MAX_KEYS:  # those of keys since revoked
            live = {each.id for each in self._keys}
            self._buckets = {id: buckets for id, buckets in self._buckets.items() if id in live}
        if key.id not in self._buckets:
            requests, tokens = (
                Bucket(limit, now=now) if limit else None for limit in (key.requests_per_minute, key.tokens_per_minute)
            )
            self._buckets[key.id] = _Buckets(requests, tokens)
        return self._buckets[key.id]
