"""TLS towards a service outside of the mesh: what is trusted, and what went wrong in words for people."""

import ssl

from meshnode.names import printable


def context(*, ca: str = "", insecure: bool = False) -> ssl.SSLContext:
    """Trusts what the system does, or only what `ca` (PEM text) holds. Raises ValueError for text that is no certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if insecure:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    elif ca:
        try:
            made.load_verify_locations(cadata=ca)
        except ssl.SSLError as error:
            raise ValueError("it holds no certificate in PEM form") from error
    else:
        made.load_default_certs()
    return made


def words(error: BaseException | None) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate cannot be trusted: {printable(error.verify_message, 200)}"
        case ssl.SSLError() if error.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}:
            return "it does not speak TLS: is it http:// instead?"
        case ssl.SSLError():
            return f"TLS failed: {printable(error.reason or 'for no reason given', 100).replace('_', ' ').lower()}"
        case _:
            return "it ended the connection during the TLS handshake"
