"""How much and how long a client may take; each number is a place where a client could otherwise hold memory or a socket."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    header_bytes: int = 16 * 1024
    """Request line and headers: what the common servers allow."""
    body_bytes: int = 8 * 1024 * 1024
    """A long conversation is below 1 MiB; design section 4 has the same bound between nodes."""
    body_chunks: int = 16 * 1024
    """Of a body with Transfer-Encoding: a chunk costs the same to parse with one byte in it as with 64 KiB."""
    ahead_bytes: int = 64 * 1024
    """Of pipelined requests, kept while an answer runs. A client that sends more is read no further until the answer is out."""
    connections: int = 512
    header_s: float = 10.0
    """From the first byte (on a new connection: from its opening) to the end of the headers."""
    body_s: float = 30.0
    idle_s: float = 75.0
    """Between two requests. Above the 60 s that the usual proxies keep a connection, so that they close first."""
    write_s: float = 20.0
    """Without one piece of at most 64 KiB taken by the client."""
    refuse_s: float = 2.0
    """To bring a refusal to a client that is still sending."""
    grace_s: float = 5.0
    """For running answers when the server stops."""
