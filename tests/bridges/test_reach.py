"""Where a bridge may connect to, and how an address is written."""

import pytest

from meshnode import url
from meshnode.bridges.reach import refusal
from meshnode.errors import ConfigurationError


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fe80::1%eth0", "100.100.100.200",
        "168.63.129.16", "fd00:ec2::254", "224.0.0.251", "ff02::fb", "0.0.0.0", "::", "255.255.255.255",
    ],
)  # fmt: skip
def test_no_link_local_metadata_or_group_address_is_ever_asked(address: str) -> None:
    assert refusal(address, loopback=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_asked_only_where_it_was_registered(address: str) -> None:
    assert refusal(address, loopback=False)
    assert not refusal(address, loopback=True)


@pytest.mark.parametrize("address", ["192.168.1.7", "10.0.0.3", "fd12::7", "8.8.8.8", "2606:4700::1111"])
def test_the_lan_and_the_world_are_allowed(address: str) -> None:
    assert not refusal(address, loopback=False)


@pytest.mark.parametrize(
    ("text", "shown", "authority"),
    [
        ("https://API.example.com:443/", "https://api.example.com", "api.example.com"),
        ("http://10.0.0.3:8090/base/", "http://10.0.0.3:8090/base", "10.0.0.3:8090"),
        ("http://[::1]:8000", "http://[::1]:8000", "[::1]:8000"),
        ("https://h:8443", "https://h:8443", "h:8443"),
    ],
)
def test_an_address_is_read_and_shown_without_its_default_port(text: str, shown: str, authority: str) -> None:
    parsed = url.parse(text, flag="URL")

    assert str(parsed) == shown
    assert parsed.authority == authority
    assert url.parse(shown, flag="URL") == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", "example.com", "ftp://h", "https://", "https://h:0", "https://h:99999", "https://h/?a=b", "https://h/#x",
        "https://h/a b", "https://h\r\nX: y", "file:///etc/passwd", "https://h_ü", "https://[::1", "https://h/\x00",
    ],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        url.parse(text, flag="URL")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        url.parse("https://me:hunter2@example.com", flag="URL")

    assert "hunter2" not in str(caught.value)
