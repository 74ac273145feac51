from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from meshnode.names import is_name
from meshnode.worker.naming import name_of

LABELS = st.lists(st.text(min_size=1, max_size=90).filter(lambda text: "/" not in text), min_size=1, max_size=4).map("/".join)


def test_a_model_is_called_like_its_file_and_by_its_path_too() -> None:
    assert name_of(Path("/m/qwen3-8b.gguf"), "qwen3-8b", ()) == ("qwen3-8b", ())
    assert name_of(Path("/m/hub/qwen3 8b.gguf"), "hub/qwen3 8b", ()) == ("qwen3-8b", ("hub/qwen3-8b",))


def test_of_two_with_one_name_the_second_is_called_by_its_path() -> None:
    assert name_of(Path("/m/hub/q.gguf"), "hub/q", {"q"}) == ("hub/q", ())


def test_should_that_be_taken_too_some_digits_tell_them_apart() -> None:
    name, aliases = name_of(Path("/m/q.gguf"), "q", {"q"})

    assert name.startswith("q-")
    assert len(name) == len("q-12345678")
    assert aliases == ()
    assert name_of(Path("/m/q.gguf"), "q", {"q"})[0] == name != name_of(Path("/n/q.gguf"), "q", {"q"})[0]


@given(st.lists(LABELS, max_size=12))
def test_names_are_fit_short_and_unique_whatever_files_are_called(labels: list[str]) -> None:
    taken: set[str] = set()
    for label in labels * 2:
        name, aliases = name_of(Path("/m") / f"{label}.gguf".replace("\0", ""), label, taken)

        assert all(is_name(each) and len(each) <= 96 and each not in taken for each in (name, *aliases))
        taken |= {name, *aliases}
