"""The published vectors of Backend.AI's signature, clocks and versions."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.bridges import signing
from meshnode.bridges.signing import KeyPair
from meshnode.errors import ConfigurationError

PAIR = KeyPair(access_key="AKIAIOSFODNN7EXAMPLE", secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


VECTORS = {
    "GET https://api.example.com/services v7.20230615": "c552920769b400b888049e6929253ebf16daf430c478a5a30b7fcba8c6ba9409",
    "GET https://api.example.com/services?name=qwen-svc v7.20230615": (
        "55d61ce05ecb9a86a2e0ad09d2c3f66777173af248f47004bb66423b4a158000"
    ),
    "POST https://api.example.com:8443/admin/gql v9.20250722": "3f69b418b57649662d0365536f75646ceeb826b180e5ee96327cd0a424c49103",
}
"""Made by the official client 26.9.6; the first also by 23.9.10."""


@pytest.mark.parametrize("what", VECTORS)
def test_a_signature_is_the_one_of_the_official_client(what: str) -> None:
    method, url, version = what.split()
    host, slash, path = url.removeprefix("https://").partition("/")
    headers = dict(signing.headers(PAIR, method=method, target=slash + path, host=host, version=version, now=NOW))

    assert headers["Authorization"].rpartition(":")[2] == VECTORS[what]


def test_the_headers_name_what_was_signed_and_the_access_key_only() -> None:
    headers = dict(signing.headers(PAIR, method="GET", target="/", host="h", version="v7.20230615", now=NOW))

    assert headers["Date"] == "2026-01-02T03:04:05+00:00"
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"].startswith("BackendAI signMethod=HMAC-SHA256, credential=AKIAIOSFODNN7EXAMPLE:")
    assert PAIR.secret_key not in str(headers)
    assert PAIR.secret_key not in repr(PAIR)


@pytest.mark.parametrize(
    ("server", "spoken"),
    [
        ("v4.20181215", "v4.20181215"),
        ("v7.20230615", "v7.20230615"),
        ("v8.20240915", "v8.20240915"),
        ("v9.20250722", "v9.20250722"),
        ("v9.20260101", "v9.20250722"),
        ("v10.20270101", "v9.20250722"),
    ],
)
def test_the_version_spoken_is_the_managers_or_the_newest_that_we_know(server: str, spoken: str) -> None:
    assert signing.spoken_version(server) == spoken


@pytest.mark.parametrize("server", ["v3.20170615", "v4.20181214", "", "7", "v7", "v7.20230615\nx"])
def test_a_manager_of_no_or_of_an_ancient_version_is_refused(server: str) -> None:
    with pytest.raises(ConfigurationError):
        signing.spoken_version(server)


@given(st.integers(min_value=-200_000, max_value=200_000))
def test_the_offset_is_what_the_servers_clock_is_ahead_to_the_second(ahead: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=ahead), usegmt=True)
    offset = signing.clock_offset(date, NOW)

    assert offset is not None
    assert abs(offset - ahead) <= 1.0


@given(st.text(max_size=40))
def test_a_date_that_is_none_gives_no_offset_and_no_failure(date: str) -> None:
    offset = signing.clock_offset(date, NOW)

    assert offset is None or isinstance(offset, float)
