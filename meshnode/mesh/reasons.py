"""Why a link could not be made or was lost, in words for the person who has to mend it.

OpenSSL's names for what went wrong say little to anyone; the reason behind trio's BrokenResourceError is its `__cause__`.
"""

import errno
import ssl

import trio

OTHER_MESH = "it belongs to another mesh (is the token the same on both nodes?)"
NOT_A_MESH_PORT = "that is not the mesh port of a node (no TLS 1.3 there)"

_ALERTS_ABOUT_US = ("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN", "CERTIFICATE_REQUIRED", "DECRYPT_ERROR")
_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "UNEXPECTED_EOF",
    "RECORD_LAYER_FAILURE",
    "PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
)
_SYSTEM = {
    errno.ECONNREFUSED: "connection refused: no node listens there",
    errno.EHOSTUNREACH: "no route to that host",
    errno.ENETUNREACH: "no route to that network",
    errno.ETIMEDOUT: "no answer (a firewall?)",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
}


def explain(error: BaseException | None) -> str:
    """The reason in words; falls back to the error's own text."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
    match cause:
        case ssl.SSLCertVerificationError():
            return OTHER_MESH
        case ssl.SSLError():
            return _tls(cause)
        case trio.TooSlowError():
            return "no answer in time (a firewall, or not a node?)"
        case OSError():
            return _system(cause)
        case None:
            return "connection lost"
        case _:
            return str(cause) or type(cause).__name__


def _tls(error: ssl.SSLError) -> str:
    name = error.reason or ""
    if any(alert in name for alert in _ALERTS_ABOUT_US):
        return f"it refused our token: {OTHER_MESH}"
    if any(sign in name for sign in _NO_TLS) or isinstance(error, ssl.SSLEOFError):
        return NOT_A_MESH_PORT
    if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in name:
        return "it showed no certificate: not a node of any mesh"
    return f"TLS failed ({name.replace('_', ' ').lower() or 'no reason given'})"


def _system(error: OSError) -> str:
    """A failed connect to a name of several addresses carries the reasons in a group behind it."""
    behind = error.__cause__
    first = behind.exceptions[0] if isinstance(behind, BaseExceptionGroup) else behind
    for cause in (error, first):
        if isinstance(cause, OSError) and cause.errno in _SYSTEM:
            return _SYSTEM[cause.errno]
    return error.strerror or str(error) or type(error).__name__
