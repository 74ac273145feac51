"""W3C trace context: whose trace a request belongs to (pure). Source: w3.org/TR/trace-context, sections 3.2 and 4.

A client that traces sends `traceparent`. Ours has the same trace and a span of this node, travels with the request to whichever
node answers, and comes back as `traceresponse`. Nothing is recorded here: logs show the trace, which is what finds them.
"""

import re

_HEADER = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?"
)
_SAMPLED = 1


def continued(header: str, *, span: bytes) -> str:
    """Our `traceparent` for a request that came with `header`; `span` are 8 random bytes. Empty when the header is none.

    A later version is read as far as version 00 goes, and answered as 00.
    """
    found = _HEADER.fullmatch(header.strip())
    if found is None or found["version"] == "ff" or (found["version"] == "00" and found["rest"]):
        return ""
    if not int(found["trace"], 16) or not int(found["span"], 16):
        return ""
    return f"00-{found['trace']}-{span.hex()}-{int(found['flags'], 16) & _SAMPLED:02x}"


def trace_id(traceparent: str) -> str:
    """What logs show of it; empty without one."""
    return traceparent[3:35]
