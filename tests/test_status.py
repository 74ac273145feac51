import json
import re

import msgspec
import pytest

from meshnode.gossip.member import Member, State
from meshnode.search import Mdns, OtherMesh, Search, Tried
from meshnode.status import Node, Refusal, Report, Worker, build, is_degraded, render
from meshnode.testing import fake_member
from meshnode.wire.messages import ModelState

NODE = Node(
    id=fake_member("alpha").id.hex(),
    name="alpha",
    version="0.1.0",
    api="127.0.0.1:4860",
    mesh=("0.0.0.0:4850",),
    pid=7,
    uptime_s=75.0,
)


FOUND = Search(
    alone_s=None, mdns=Mdns(state="on", interfaces=("eth0 192.168.1.8",), heard=2, echo=True), advertised=("192.168.1.8:4850",)
)


def report(
    *members: Member, workers: tuple[Worker, ...] = (), refusals: tuple[Refusal, ...] = (), search: Search = FOUND
) -> Report:
    everyone = (fake_member("alpha", "demo"), *members)
    return build(
        node=NODE,
        mesh_id="ab12",
        me=everyone[0].id,
        members=everyone,
        search=search,
        workers=workers,
        refusals=refusals,
        now=100.0,
    )


LOST = msgspec.structs.replace(
    fake_member("beta", "qwen", routable=False, reason="link lost 3.4 s ago: connection reset"),
    last_seen=96.6, addr="192.168.1.7:4850", rtt_ms=0.8123, version="0.1.0",
)  # fmt: skip


def test_the_table_for_people() -> None:
    assert render(report(LOST)) == (
        "alpha (616c7068)  mesh ab12  API http://127.0.0.1:4860  up 1 m\n"
        "\n"
        "NODE    STATE                ADDR              RTT     VERSION  MODELS  ACTIVE/SLOTS  QUEUE  TOK/S  MEM  SEEN\n"
        "alpha*  alive                -                 -       -        demo    0/4           0      0      -    now\n"
        "beta    alive, not routable  192.168.1.7:4850  0.8 ms  0.1.0    qwen    0/4           0      0      -    3.4 s\n"
        "\n"
        "Health: beta is not routable: link lost 3.4 s ago: connection reset. "
        "Check that it runs and that 192.168.1.7:4850 can be reached from here."
    )


def test_the_table_of_a_busy_mesh() -> None:
    loaded = msgspec.structs.replace(
        LOST,
        name="gamma",
        routable=True,
        reason="",
        last_seen=99.9,
        load=(ModelState("qwen", LOST.models[0].digest, "ready", active=3, slots=4, queued=2, tokens_per_s=41.6),),
    )

    assert render(report(loaded)).splitlines()[2:] == [
        "NODE    STATE  ADDR              RTT     VERSION  MODELS  ACTIVE/SLOTS  QUEUE  TOK/S  MEM  SEEN",
        "alpha*  alive  -                 -       -        demo    0/4           0      0      -    now",
        "gamma   alive  192.168.1.7:4850  0.8 ms  0.1.0    qwen    3/4           2      42     -    0.1 s",
        "",
        "Health: good",
    ]


def test_this_node_comes_first_and_who_left_comes_last() -> None:
    left = msgspec.structs.replace(fake_member("aaron"), state=State.LEFT)

    assert [line.name for line in report(left, fake_member("zoe"), fake_member("bob")).members] == [
        "alpha",
        "bob",
        "zoe",
        "aaron",
    ]


def test_the_json_for_programs() -> None:
    decoded = json.loads(msgspec.json.encode(report(LOST)))

    assert list(decoded) == ["schema", "mesh", "node", "members", "search", "health"]
    assert decoded["schema"] == 1
    assert decoded["mesh"] == {"id": "ab12", "nodes": 2}
    assert [line.partition(": ")[0] for line in decoded["health"]] == ["beta is not routable"]
    assert decoded["members"][1] == {
        "id": LOST.id.hex(),
        "name": "beta",
        "state": "alive",
        "since_s": None,
        "routable": False,
        "draining": False,
        "reason": "link lost 3.4 s ago: connection reset",
        "last_seen_s": 3.4,
        "addr": "192.168.1.7:4850",
        "addrs": [],
        "rtt_ms": 0.81,
        "version": "0.1.0",
        "epoch": 0,
        "memory_total": 0,
        "memory_available": 0,
        "models": [
            {
                "name": "qwen",
                "digest": LOST.models[0].digest.hex(),
                "state": "ready",
                "aliases": [],
                "size": 1000,
                "context_length": 1024,
                "origin": "",
                "cost": "",
            }
        ],
        "load": {"active": 0, "slots": 4, "queued": 0, "tokens_per_s": 0.0},
        "remotes": [],
    }


def test_a_node_alone_is_healthy() -> None:
    alone = report()

    assert not is_degraded(alone)
    assert render(alone).endswith("Health: good")


def test_a_member_that_left_is_shown_and_is_no_fault() -> None:
    left = report(msgspec.structs.replace(LOST, state=State.LEFT))

    assert not is_degraded(left)
    assert left.mesh.nodes == 1
    assert "left" in render(left)


def test_a_failed_worker_is_a_fault_even_before_its_model_is_known() -> None:
    failed = report(workers=(Worker(name="qwen", state="failed", reason="the file is truncated"),))

    assert is_degraded(failed)
    assert failed.health == (
        "the worker for qwen failed: the file is truncated. "
        "It starts again by itself, or when its file changes; the log says more.",
    )


def test_a_file_that_cannot_be_used_is_a_fault() -> None:
    bad = report(workers=(Worker(name="x", state="unusable", reason="/m/x.gguf is truncated."),))

    assert bad.health == ("/m/x.gguf is truncated. It is looked at again when it changes.",)


def test_a_worker_that_loads_is_no_fault() -> None:
    assert not is_degraded(report(workers=(Worker(name="qwen", state="loading", reason="loading, 3 %"),)))


def test_a_member_of_another_version_is_a_fault_with_a_name() -> None:
    newer = msgspec.structs.replace(fake_member("beta"), version="0.2.0")
    unknown = msgspec.structs.replace(fake_member("gamma"), version="")

    assert report(newer, unknown).health == ("beta runs meshnode 0.2.0, this node 0.1.0. Update the older one.",)


def test_a_refusal_at_the_address_of_a_member_is_told_once_by_the_member() -> None:
    refused = Refusal(addr=LOST.addr, reason="connection refused", age_s=1.0, count=3)

    assert report(LOST, refusals=(refused,)).health == report(LOST).health


def test_a_recent_refusal_is_a_fault_and_an_old_one_is_not() -> None:
    recent = Refusal(addr="10.0.0.9:1", reason="another mesh", age_s=61.0, count=3)

    assert report(refusals=(recent,)).health == (
        "10.0.0.9:1: another mesh (3 times, last 1 m ago). "
        "Check that address, and that both ends have one token (meshnode token).",
    )
    assert not is_degraded(report(refusals=(msgspec.structs.replace(recent, age_s=4000.0),)))


def test_a_model_that_is_still_loading_is_shown_as_such() -> None:
    loading = msgspec.structs.replace(fake_member("beta"), load=(ModelState("big", b"", "loading"),))  # type: ignore[arg-type]  # no digest yet

    assert "big(loading)" in render(report(loading))


def test_a_hostile_name_cannot_write_to_the_terminal() -> None:
    evil = msgspec.structs.replace(
        LOST,
        name="\x1b[2J",
        reason="\x1b]0;title\x07\nHealth: good",
        models=(msgspec.structs.replace(LOST.models[0], name="a\nb\u202e"),),
        load=(ModelState("\x9b2J", b"", "x\ny"),),  # type: ignore[arg-type]  # no digest yet
    )

    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", render(report(evil)))
    assert render(report(evil)).count("\n") == render(report(LOST)).count("\n")


def test_another_program_is_not_measured_by_our_version() -> None:
    stranger = msgspec.structs.replace(fake_member("beta"), version="othernode/7")

    assert report(stranger).health == ()


def test_a_report_of_another_process_cannot_write_to_the_terminal_either() -> None:
    forged = msgspec.structs.replace(report(), health=("all is\x1b[2J\nwell",))

    assert render(forged).endswith("Health: all is [2J well")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.99, "1 m"),
        (119, "1 m"),
        (3599, "59 m"),
        (3600, "1 h"),
        (86399, "23 h"),
        (90000, "1 d"),
    ],
)
def test_an_age_never_says_more_than_has_passed(seconds: float, text: str) -> None:
    seen = msgspec.structs.replace(fake_member("beta"), last_seen=-seconds)
    everyone = (fake_member("alpha"), seen)
    made = build(node=NODE, mesh_id="ab12", me=everyone[0].id, members=everyone, search=FOUND, workers=(), refusals=(), now=0.0)

    assert render(made).splitlines()[4].endswith(f"  {text}")


ALONE = msgspec.structs.replace(
    FOUND,
    alone_s=12.3,
    tried=(Tried(addr="attic:4850", node="", reason="unknown host", age_s=2.1),),
    other_meshes=(OtherMesh(id="cd34", addrs=("192.168.1.9:4850",), age_s=1.0),),
)


def test_a_node_that_is_alone_shows_what_it_tried_and_is_healthy() -> None:
    made = report(search=ALONE)

    assert render(made).splitlines()[4:] == [
        "",
        "Alone: no other node has been linked for 12 s. What was tried:",
        "  mDNS        on, at eth0 192.168.1.8; 2 other machines heard, none of this mesh",
        "  reached at  192.168.1.8:4850",
        "  tried       attic:4850: unknown host (2 s ago)",
        "  other mesh  cd34, 1 node: 192.168.1.9:4850",
        "  next        to join that mesh: meshnode join, with the token that `meshnode token` prints on one of its nodes",
        "",
        "Health: good",
    ]
    assert not is_degraded(made)


def test_a_node_that_has_just_started_is_not_called_alone() -> None:
    assert "Alone" not in render(report(search=msgspec.structs.replace(ALONE, alone_s=3.0)))


def test_other_meshes_are_named_to_a_node_that_is_not_alone_too() -> None:
    text = render(report(search=msgspec.structs.replace(ALONE, alone_s=None)))

    assert "\nOther mesh on this network: cd34, 1 node: 192.168.1.9:4850\n\nHealth: good" in text


def test_memory_is_shown_as_free_of_all() -> None:
    member = msgspec.structs.replace(fake_member("beta"), memory=(33_000_000_000, 9_600_000_000))
    small = msgspec.structs.replace(fake_member("pi"), memory=(8_000_000_000, 2_200_000_000))

    assert "  10/33 GB  " in render(report(member))
    assert "  2.2/8.0 GB  " in render(report(small))


def test_a_node_that_took_a_new_identity_says_so() -> None:
    node = msgspec.structs.replace(NODE, rekeyed="beta has the identity 616c7068 of this node")
    me = fake_member("alpha")
    made = build(node=node, mesh_id="ab12", me=me.id, members=(me,), search=FOUND, workers=(), refusals=(), now=0.0)

    assert made.health == (
        "this node took a new identity: beta has the identity 616c7068 of this node. "
        "Whoever pinned requests to its old id must use the new one.",
    )


def test_a_member_that_is_down_is_listed_after_those_that_are_there_and_red_for_an_hour() -> None:
    down = msgspec.structs.replace(
        LOST, name="aaa", state=State.DOWN, since=40.0, reason="no frame for 9.3 s; 3 of 3 probes silent"
    )
    there = msgspec.structs.replace(LOST, name="zzz", id=fake_member("zzz").id, routable=True, reason="")
    made = report(down, there)

    assert [(line.name, line.state, line.since_s) for line in made.members[1:]] == [("zzz", "alive", None), ("aaa", "down", 60.0)]
    assert made.mesh.nodes == 2
    assert made.health == (
        "aaa is down since 1 m: no frame for 9.3 s; 3 of 3 probes silent. Start it again, if it should be here.",
    )
    assert not is_degraded(report(msgspec.structs.replace(down, since=-3600.0)))


def test_a_suspect_is_called_one() -> None:
    suspect = msgspec.structs.replace(LOST, state=State.SUSPECT, reason="no frame for 4.2 s; 3 of 3 probes silent")

    assert "beta    suspect  192" in render(report(suspect))
    assert report(suspect).health[0].startswith("beta is suspect: no frame for 4.2 s; 3 of 3 probes silent.")


def test_a_member_that_drains_is_no_trouble() -> None:
    draining = msgspec.structs.replace(LOST, draining=True, reason="draining: it finishes what it has, and takes nothing new")

    assert "beta    alive, draining  192" in render(report(draining))
    assert not is_degraded(report(draining))
