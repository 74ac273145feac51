"""What mDNS told of nodes that are not for us."""

from meshnode.mesh.announcement import Found
from meshnode.mesh.sightings import MAX_SEEN, Sightings
from meshnode.names import MeshId, NodeId

OURS, OTHER = MeshId(b"mesh-one"), MeshId(b"mesh-two")


def found(number: int, *, mesh: MeshId = OTHER, protocol: int = 1) -> Found:
    node = NodeId(number.to_bytes(16, "big"))
    return Found(node=node, mesh=mesh, protocol_min=protocol, protocol_max=protocol, addrs=(f"10.0.0.{number % 250}:4850",))


def test_a_node_of_our_mesh_is_to_be_dialled_and_not_noted() -> None:
    sightings = Sightings(OURS, (1, 1))

    assert sightings.saw(found(1, mesh=OURS), 0.0)
    assert sightings.other_meshes() == ()


def test_other_meshes_are_noted_with_their_nodes_until_these_say_goodbye() -> None:
    sightings = Sightings(OURS, (1, 1))
    assert not any(sightings.saw(found(number), float(number)) for number in (1, 2))

    (other,) = sightings.other_meshes()
    assert (other.mesh, other.addrs, other.at) == (OTHER, ("10.0.0.1:4850", "10.0.0.2:4850"), 2.0)
    sightings.gone(found(1).node)
    sightings.gone(found(2).node)
    assert sightings.other_meshes() == ()


def test_a_node_that_changed_its_mesh_is_in_one_of_them() -> None:
    sightings = Sightings(OURS, (1, 1))
    sightings.saw(found(1), 0.0)
    assert sightings.saw(found(1, mesh=OURS), 1.0)

    assert sightings.other_meshes() == ()


def test_another_protocol_version_is_noted_and_dialled_all_the_same() -> None:
    """Only the handshake proves that it is a member, and tells its name."""
    sightings = Sightings(OURS, (1, 1))

    assert sightings.saw(found(1, mesh=OURS, protocol=2), 0.0)
    assert [each.node for each in sightings.other_versions()] == [found(1).node]


def test_a_flood_costs_bounded_memory() -> None:
    sightings = Sightings(OURS, (1, 1))
    for number in range(3 * MAX_SEEN):
        sightings.saw(found(number), 0.0)

    assert sum(len(other.addrs) for other in sightings.other_meshes()) == MAX_SEEN
