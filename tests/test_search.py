"""What a node says when it finds nobody."""

import msgspec
import pytest

from meshnode.search import MAX_LINES, Mdns, OtherMesh, Search, Tried, solitude

ON = Mdns(state="on", interfaces=("eth0 10.0.0.1", "wlan0 10.0.1.1"), heard=1, echo=True)
NOTHING = Search(alone_s=7.0, mdns=ON, advertised=("10.0.0.1:4850",))


def said(search: Search, what: str) -> list[str]:
    """What the lines about `what` say."""
    lines = [line[2:].split("  ", 1) for line in solitude(search)[1:]]
    return [text.strip() for name, text in lines if name.strip() == what]


@pytest.mark.parametrize(
    ("mdns", "text"),
    [
        (ON, "on, at eth0 10.0.0.1, wlan0 10.0.1.1; 1 other machine heard, none of this mesh"),
        (Mdns(state="off", reason="no network interface"), "off: no network interface"),
        (Mdns(state="starting"), "starting"),
        (msgspec.structs.replace(ON, heard=0), "no other machine is heard: multicast may not get through this network"),
        (msgspec.structs.replace(ON, echo=False), "does a firewall here drop UDP port 5353?"),
    ],
)
def test_what_mdns_can_and_cannot_do_is_said_in_words(mdns: Mdns, text: str) -> None:
    (line,) = said(msgspec.structs.replace(NOTHING, mdns=mdns), "mDNS")

    assert line.endswith(text)


def test_every_address_that_was_tried_has_its_reason() -> None:
    tried = (
        Tried(addr="attic:4850", node="", reason="connection refused: nothing listens there", age_s=2.4),
        Tried(addr="10.0.0.2:4850", node="ab12cd34", reason="no route to host", age_s=20.0),
    )

    assert said(msgspec.structs.replace(NOTHING, tried=tried), "tried") == [
        "attic:4850: connection refused: nothing listens there (2 s ago)",
        "10.0.0.2:4850 for node ab12cd34: no route to host (20 s ago)",
    ]


def test_nothing_is_repeated_without_end() -> None:
    tried = tuple(Tried(addr=f"10.0.0.{number}:1", node="", reason="x", age_s=1.0) for number in range(100))
    meshes = tuple(OtherMesh(id=f"{number:016x}", addrs=("10.0.0.9:1",) * 50, age_s=1.0) for number in range(100))
    lines = solitude(msgspec.structs.replace(NOTHING, tried=tried, other_meshes=meshes))

    assert len(lines) <= 2 * MAX_LINES + 4
    assert all(len(line) < 600 for line in lines)


def test_the_next_thing_to_do_depends_on_what_was_found() -> None:
    other = OtherMesh(id="cd34", addrs=("10.0.0.9:4850",), age_s=1.0)

    assert "meshnode join HOST" in said(NOTHING, "next")[0]
    assert "to join that mesh: meshnode join" in said(msgspec.structs.replace(NOTHING, other_meshes=(other,)), "next")[0]
    assert said(msgspec.structs.replace(NOTHING, advertised=()), "reached at") == ["no address: no network interface is up"]
    assert said(msgspec.structs.replace(NOTHING, other_versions=("10.0.0.3:4850 speaks protocol 2 to 3",)), "version") == [
        "10.0.0.3:4850 speaks protocol 2 to 3, which this node does not"
    ]


def test_a_node_that_is_known_and_not_reached_is_not_said_to_be_missing() -> None:
    tried = Tried(addr="10.0.0.2:4850", node="ab12cd34", reason="no answer within 3 s", age_s=1.0)
    search = msgspec.structs.replace(NOTHING, tried=(tried,))

    assert said(search, "mDNS")[0].endswith("1 other machine heard")
    assert "does a firewall, there or here, let its mesh port through?" in said(search, "next")[0]


def test_strangers_words_cannot_write_to_the_terminal() -> None:
    evil = Tried(addr="a\x1b[2Jb", node="", reason="x\ny", age_s=1.0)

    assert not any(
        char in "\n".join(solitude(msgspec.structs.replace(NOTHING, tried=(evil,)))[1:-1]).replace("\n  ", "")
        for char in "\x1b\n"
    )
