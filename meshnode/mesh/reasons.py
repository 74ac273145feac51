"""Why a connection failed, in words for people: what the errors of sockets and TLS mean on a mesh link (pure).

The two ends see different errors for one cause. With a wrong token the dialler finds that it does not trust the acceptor and says
so in a TLS alert; in the other order, the acceptor finds it, after the dialler already took the handshake for done.
"""

import ssl
from collections.abc import Iterator
from socket import gaierror

import trio

from meshnode.errors import MeshnodeError

WRONG_TOKEN_THERE = "the peer belongs to another mesh (wrong token?)"  # noqa: S105 - words for people
WRONG_TOKEN_HERE = "a node with another token"  # noqa: S105 - words for people
NOT_TLS_THERE = "no meshnode listens there: the service at this address does not speak TLS"
HTTP_HERE = "plain HTTP, which the mesh port does not speak; is the API's port meant?"
CLOSED = "it closed the connection"
NO_WEBSOCKET = "it speaks TLS but not our WebSocket protocol"

_REFUSALS = ("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_DECRYPT_ERROR", "ALERT_CERTIFICATE", "ALERT_ACCESS_DENIED")
"""Alerts by which an end says that it does not accept the other's certificate; prefixes, as OpenSSL's versions name them."""


def explain(failure: BaseException | None, *, dialled: bool) -> str:
    """Why the connection ended; None stands for an end without an error. `dialled`: we dialled it."""
    for error in _causes(failure):
        match error:
            case MeshnodeError():
                return error.message
            case ssl.SSLError():
                return _explain_tls(error, dialled=dialled)
            case gaierror():
                return "unknown host"
            case ConnectionRefusedError():
                return "connection refused: nothing listens there"
            case OSError() if error.strerror:
                return error.strerror.lower()
            case trio.TooSlowError():
                return "no answer in time"
            case _:
                pass
    return CLOSED


def is_refusal(failure: BaseException | None) -> bool:
    """Whether a host answered that nothing listens there."""
    return any(isinstance(error, ConnectionRefusedError) for error in _causes(failure))


def _causes(failure: BaseException | None) -> Iterator[BaseException]:
    """From the failure to its roots; of several attempts (one for each address of a host), the first."""
    while failure is not None:
        yield failure
        cause = failure if isinstance(failure, BaseExceptionGroup) else failure.__cause__
        failure = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause


def _explain_tls(error: ssl.SSLError, *, dialled: bool) -> str:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return WRONG_TOKEN_THERE if dialled else WRONG_TOKEN_HERE
    if any(refusal in reason for refusal in _REFUSALS):
        return f"refused our token: {WRONG_TOKEN_THERE}" if dialled else WRONG_TOKEN_HERE
    if isinstance(error, ssl.SSLEOFError) or "EOF" in reason:
        return CLOSED
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it speaks TLS but has no certificate of a mesh"
    if reason == "HTTP_REQUEST":
        return HTTP_HERE
    if "PROTOCOL_VERSION" in reason or reason == "UNSUPPORTED_PROTOCOL":
        return "it speaks an older TLS than 1.3"
    if reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG"}:
        return NOT_TLS_THERE if dialled else "something that is not TLS"
    return f"TLS failed: {reason.lower().replace('_', ' ') or 'unknown reason'}"
