"""Why a remote cannot be used, in one word and in words, for whoever registers it (pure)."""

from enum import StrEnum

from meshnode.bridges.failure import Cause, Failure
from meshnode.errors import RequestError


class Verdict(StrEnum):
    UNREACHABLE = "unreachable"
    TLS = "tls"
    FORBIDDEN_ADDRESS = "forbidden address"
    WRONG_KEY = "wrong key"
    WRONG_SECRET = "wrong secret key"  # noqa: S105 - words for people
    CLOCK = "clock"
    ADDRESS_NOT_ALLOWED = "address not allowed"
    """The remote does not take requests from where this node is."""
    RATE_LIMITED = "rate-limited"
    FAILING = "failing"
    """It answers, with errors of its own."""
    NOT_ONE = "not such a service"


_HINTS = {
    Verdict.UNREACHABLE: "Check the address, and that it can be reached from this machine.",
    Verdict.TLS: "For a certificate of your own: --ca-file. To trust any: --insecure.",
    Verdict.FORBIDDEN_ADDRESS: "Bridges do not connect there.",
    Verdict.WRONG_KEY: "Check the key.",
    Verdict.WRONG_SECRET: "The access key is known there; check the secret key.",
    Verdict.CLOCK: "Set this machine's clock, or the manager's.",
    Verdict.ADDRESS_NOT_ALLOWED: "Have this machine's address allowed for the key's user.",
    Verdict.RATE_LIMITED: "Try again later, or have the key's limit raised.",
    Verdict.FAILING: "See its log.",
    Verdict.NOT_ONE: "Check the address: for a router the one before /v1, for a cluster the manager's.",
}
_CAUSES = {
    Cause.TLS: Verdict.TLS,
    Cause.FORBIDDEN: Verdict.FORBIDDEN_ADDRESS,
    Cause.NOT_HTTP: Verdict.NOT_ONE,
    Cause.TOO_LARGE: Verdict.NOT_ONE,
}


class Unusable(RequestError):
    """The remote as registered cannot be used; `verdict` says of what kind that is."""

    code = "remote_unusable"

    def __init__(self, verdict: Verdict, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, hint=_HINTS[verdict], param=verdict.value, retry_after=retry_after)
        self.verdict = verdict


def of_failure(failure: Failure) -> Unusable:
    verdict = _CAUSES.get(failure.cause, Verdict.UNREACHABLE)
    return Unusable(verdict, f"{_first_up(str(failure))}.")


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]
