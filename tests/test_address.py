import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.address import Address, parse
from meshnode.errors import ConfigurationError

HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.just("fe80::1%eth0"),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{1,5})?", fullmatch=True),
)


@given(HOSTS, st.integers(0, 65535))
def test_what_is_printed_is_what_is_read(host: str, port: int) -> None:
    address = Address(host, port)

    assert parse(str(address), flag="--peer") == address


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_error_that_names_the_flag(text: str) -> None:
    address, complaint = Address("unread", 0), "--peer"
    try:
        address = parse(text, flag="--peer", default_port=4850)
    except ConfigurationError as error:
        complaint = str(error)

    assert parse(str(address), flag="--peer") == address
    assert 0 <= address.port <= 65535
    assert "--peer" in complaint


def test_a_missing_port_is_the_default_one() -> None:
    assert parse("box", flag="--peer", default_port=4850) == Address("box", 4850)
    assert parse("fe80::1", flag="--peer", default_port=4850) == Address("fe80::1", 4850)
    assert parse("[fe80::1]", flag="--peer", default_port=4850) == Address("fe80::1", 4850)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "host is missing"),
        ("box", "port is missing"),
        ("box:x", "a number"),
        ("box:70000", "a number"),
        ("http://box:1", "not a name"),
        ("box:1:2", "not a name"),
        ("[box]:1", "not a name"),
        ("[::1", "not a name"),
        ("[::1]4850", "not a name"),
        ("[::1]:", "port is missing"),
        ("[::1]:x", "a number"),
        ("two words:1", "not a name"),
        ("box:٤", "a number"),
        (":1", "host is missing"),
        ("box%eth0:1", "not a name"),
    ],
)
def test_a_wrong_address_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        parse(text, flag="--mesh")


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)]
)
def test_loopback_is_known(host: str, loopback: bool) -> None:
    assert Address(host, 1).is_loopback is loopback


@pytest.mark.parametrize(("host", "wildcard"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("box", False)])
def test_every_address_of_a_machine_is_known(host: str, wildcard: bool) -> None:
    assert Address(host, 1).is_wildcard is wildcard
