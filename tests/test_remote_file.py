"""Remotes in the configuration file: their keys from files, variables and commands, and what is refused."""

from pathlib import Path

import pytest

from meshnode import config
from meshnode.errors import ConfigurationError
from meshnode.remote import Cost, Kind, Remote

KEY = "sk-very-secret"


def load(tmp_path: Path, text: str) -> tuple[Remote, ...]:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return config.load({"config": str(path), "data_dir": str(tmp_path / "data")}, {}).remote


def table(*lines: str) -> str:
    return "\n".join(('[[remote]]\nkind = "router"\nname = "far"\nurl = "https://far.example/v1"', *lines))


def test_without_any_there_are_none(tmp_path: Path) -> None:
    assert load(tmp_path, "") == ()


def test_all_of_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "ca.pem").write_text("PEM")
    text = table(
        f'key_file = "{tmp_path}/key"', f'ca_file = "{tmp_path}/ca.pem"', 'cost = "lan"', 'models = ["qwen*"]',
        "spill_over = true", "[remote.alias]", 'fast = "qwen-7b"',
    )  # fmt: skip

    assert load(tmp_path, text) == (
        Remote(
            kind=Kind.ROUTER,
            name="far",
            url="https://far.example",
            key=KEY,
            ca="PEM",
            cost=Cost.LAN,
            models=("qwen*",),
            spill_over=True,
            alias={"fast": "qwen-7b"},
        ),
    )


def test_a_key_may_come_from_a_variable_or_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)

    assert load(tmp_path, table('key_env = "FAR_KEY"'))[0].key == KEY
    assert load(tmp_path, table(f'key_command = ["printf", "%s\\n", "{KEY}"]'))[0].key == KEY


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f'key = "{KEY}"', "keys do not belong here"),
        ('key_env = "NOT_THERE_AT_ALL"', "no variable"),
        ('key_file = "/not/there"', "No such file"),
        ('key_command = ["false"]', "ended with 1"),
        ('key_command = ["/not/there"]', "No such file"),
        ('key_command = "echo x"', "list of words"),
        ('key_env = "A"\nkey_file = "b"', "both given"),
        ('colour = "red"', "colour"),
        ("insecure = 3", "bool"),
        ('access_key = "AK"', "no access key"),
    ],
)
def test_what_is_wrong_is_said_with_the_remotes_name_and_without_its_key(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        load(tmp_path, table(line))

    assert "'far'" in str(caught.value)
    assert KEY not in str(caught.value)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Two remotes are called 'far'"):
        load(tmp_path, f"{table()}\n{table()}")


@pytest.mark.parametrize("text", ["remote = 3", 'remote = ["x"]'])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="tables"):
        load(tmp_path, text)


def test_commands_are_not_run_to_find_the_data_directory(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(table(f'key_command = ["touch", "{tmp_path}/ran"]'))
    config.data_dir({"config": str(path), "data_dir": "x"}, {})

    assert not (tmp_path / "ran").exists()
