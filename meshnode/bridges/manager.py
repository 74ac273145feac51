"""A Backend.AI manager as its client sees it: signed calls in a version that both speak, on the manager's own clock (trio)."""

import time
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

from meshnode.bridges import refusals, signing, verdict
from meshnode.bridges.client import Ask, Client, Head
from meshnode.bridges.failure import Failure
from meshnode.bridges.rate import Rate
from meshnode.bridges.signing import KeyPair
from meshnode.bridges.verdict import Unusable, Verdict
from meshnode.errors import ConfigurationError

CALL_S = 10.0
"""A manager needs some 100 ms."""
MAX_ANSWER = 4 * 1024 * 1024
SKEW_SHOWN_S = 60.0
"""A clock that is further off is worth a word to the operator, though it is corrected for."""


Shape = TypeVar("Shape")


class _Root(msgspec.Struct, frozen=True):
    version: str
    manager: str = ""


class _Echo(msgspec.Struct, frozen=True):
    authorized: str


class Manager:
    """Calls of one key pair. Every method raises Unusable, with the verdict that fits."""

    def __init__(self, client: Client, pair: KeyPair) -> None:
        self.client = client
        self.rate = Rate()
        self.release = ""
        """Of the manager, as it says itself."""
        self.clock_offset = 0.0
        """Seconds that the manager's clock is ahead of ours."""
        self.calls = 0
        self._pair = pair
        self._version = ""

    async def verify(self) -> None:
        """One cheap signed call, which shows whether key and clock are right."""
        answer = await self.call("POST", "/auth", msgspec.json.encode({"echo": "meshnode"}))
        if _decoded(answer, _Echo).authorized != "yes":
            raise Unusable(Verdict.WRONG_KEY, "It does not authorize this key pair.")

    async def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of the answer to a signed request."""
        if not self._version:
            await self._hello()
        head, answer = await self._signed(method, path, body)
        if _is_clock_trouble(head, answer):
            self._set_clock(head)
            head, answer = await self._signed(method, path, body)
        if head.status in (200, 201):
            self.rate.answered(head.headers)
            return answer
        raise self._refusal(path, head, answer)

    def now(self) -> float:
        """Unix time on the manager's clock."""
        return time.time() + self.clock_offset

    async def _hello(self) -> None:
        head, answer = await self._fetch(Ask("GET", "/", (("Accept", "application/json"),)))
        if head.status == 429:
            raise self._refusal("/", head, answer)
        if head.status != 200:
            words = refusals.words(head.status, answer, self._secrets)
            raise Unusable(Verdict.NOT_ONE, f"It is no manager of Backend.AI: {words}.")
        root = _decoded(answer, _Root)
        try:
            self._version = signing.spoken_version(root.version)
        except ConfigurationError as error:
            raise Unusable(Verdict.NOT_ONE, error.message) from None
        self.release = refusals.scrubbed(root.manager, ())[:32]
        self._set_clock(head)

    def _set_clock(self, head: Head) -> None:
        offset = signing.clock_offset(head.headers.get("date", ""), datetime.now(UTC))
        # Small differences are those of the network; correcting for them would only make noise.
        self.clock_offset = offset if offset is not None and abs(offset) > 2.0 else 0.0

    async def _signed(self, method: str, path: str, body: bytes | None) -> tuple[Head, bytes]:
        headers = signing.headers(
            self._pair,
            method=method,
            target=self.client.url.below(path),
            host=self.client.url.authority,
            version=self._version,
            now=datetime.now(UTC) + timedelta(seconds=self.clock_offset),
        )
        return await self._fetch(Ask(method, path, (*headers, ("Accept", "application/json")), body or b""))

    async def _fetch(self, ask: Ask) -> tuple[Head, bytes]:
        self.calls += 1
        try:
            return await self.client.fetch(ask, limit=MAX_ANSWER, seconds=CALL_S)
        except Failure as failure:
            raise verdict.of_failure(failure) from failure

    def _refusal(self, path: str, head: Head, answer: bytes) -> Unusable:
        words = refusals.words(head.status, answer, self._secrets)
        match head.status:
            case 401 if "access key not found" in _message(answer):
                return Unusable(Verdict.WRONG_KEY, f"It does not know the access key: {words}.")
            case 401:
                self._version = ""  # a manager that was replaced may speak another one
                return Unusable(Verdict.WRONG_SECRET, f"It refuses the signature: {words}.")
            case 400 if _is_clock_trouble(head, answer):
                minutes = round(abs(self.clock_offset) / 60)
                return Unusable(Verdict.CLOCK, f"Its clock and this machine's are {minutes} minutes apart: {words}.")
            case 403:
                return Unusable(Verdict.ADDRESS_NOT_ALLOWED, f"It does not allow this: {words}.")
            case 429:
                self.rate.refused()
                return Unusable(Verdict.RATE_LIMITED, f"It takes no more calls of this key pair for now: {words}.")
            case 400 if "version" in _message(answer):
                self._version = ""
                return Unusable(Verdict.NOT_ONE, f"It does not speak our version of its API: {words}.")
            case status if status >= 500:
                return Unusable(Verdict.FAILING, f"The manager fails: {words}.")
            case _:
                return Unusable(Verdict.NOT_ONE, f"It has no {path.partition('?')[0]}: {words}.")

    @property
    def _secrets(self) -> tuple[str, ...]:
        return (self._pair.secret_key,)


def _message(answer: bytes) -> str:
    return answer[:2000].decode(errors="replace").lower()


def _is_clock_trouble(head: Head, answer: bytes) -> bool:
    return head.status == 400 and "date/time sync error" in _message(answer)


def _decoded(answer: bytes, kind: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (ValueError, RecursionError):
        raise Unusable(Verdict.NOT_ONE, "Its answer is none of a Backend.AI manager's.") from None
