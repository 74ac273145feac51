from pathlib import Path
from typing import Any

import pytest

from meshnode.address import Address
from meshnode.config import CONFIG, OPTIONS, Settings, load, unknown_variables
from meshnode.errors import ConfigurationError


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with directories of its own, and nothing else."""
    return {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def file_with(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "meshnode.toml"
    path.write_text(text)
    return {"config": str(path)}


def test_without_any_input_the_api_is_on_loopback_and_the_mesh_port_is_open(home: dict[str, str], tmp_path: Path) -> None:
    settings = load({}, home)

    assert str(settings.api) == "127.0.0.1:4860"
    assert [str(address) for address in settings.mesh] == ["0.0.0.0:4850", "[::]:4850"]
    assert settings.data_dir == tmp_path / "data" / "meshnode"
    assert settings.worker
    assert settings.name


def test_a_flag_wins_over_the_variable_and_that_over_the_file(home: dict[str, str], tmp_path: Path) -> None:
    flags = file_with(tmp_path, 'name = "file"\nslots = 2\nlog_level = "debug"\n')
    settings = load(flags | {"name": "flag"}, home | {"MESHNODE_NAME": "variable", "MESHNODE_SLOTS": "3"})

    assert (settings.name, settings.slots, settings.log_level) == ("flag", 3, "debug")


def test_the_file_in_the_users_configuration_is_read(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config" / "meshnode").mkdir(parents=True)
    (tmp_path / "config" / "meshnode" / "config.toml").write_text('peer = ["box", "[::1]:99"]')

    assert load({}, home).peer == (Address("box", 4850), Address("::1", 99))


def test_lists_in_the_environment_are_separated_by_commas(home: dict[str, str]) -> None:
    assert load({}, home | {"MESHNODE_PEER": "a, b:1"}).peer == (Address("a", 4850), Address("b", 1))


def test_a_switch_in_the_environment_is_a_word(home: dict[str, str]) -> None:
    assert load({}, home | {"MESHNODE_WORKER": "no"}).worker is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('naem = "x"', r"unknown key 'naem'. Did you mean 'name'"),
        ("slots = true", "slots must be a number"),
        ('peer = "box"', "peer must be a list"),
        ("name = ", "is not TOML"),
        ("slots = 900", "--slots 900 is out of range"),
        ('log_level = "loud"', "Use one of: debug, info"),
        ('token_file = "/nonexistent/token"', "--token-file /nonexistent/token: there is no such file"),
        ('model = ["a b=/dev/null"]', "'a b' cannot be a model's name"),
        ('model = ["/nonexistent.gguf"]', "--model /nonexistent.gguf: there is no such file"),
        ('name = "two words"', "cannot be a node's name"),
        ('api = "0.0.0.0:4860"', "--insecure-api"),
        ('mesh = ["0.0.0.0"]', "--mesh .* port is missing"),
    ],
)
def test_a_wrong_file_says_what_and_what_to_do(home: dict[str, str], tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(file_with(tmp_path, text), home)


def test_a_missing_file_is_named(home: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="--config /nonexistent"):
        load({"config": "/nonexistent"}, home)


def test_a_wrong_variable_is_named(home: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="MESHNODE_SLOTS='many' must be a number"):
        load({}, home | {"MESHNODE_SLOTS": "many"})


def test_an_open_api_needs_to_be_asked_for(home: dict[str, str]) -> None:
    assert load({"api": "0.0.0.0:1", "insecure_api": True}, home).api == Address("0.0.0.0", 1)


def test_an_alias_is_told_from_a_path_with_an_equals_sign(home: dict[str, str], tmp_path: Path) -> None:
    odd = tmp_path / "a=b.gguf"
    odd.touch()

    assert load({"model": [f"qwen={odd}", str(odd)]}, home).model == (("qwen", odd), ("a-b", odd))


def test_a_variable_that_nothing_reads_is_reported_with_the_nearest() -> None:
    (line,) = unknown_variables({"MESHNODE_PEERS": "x", "MESHNODE_PEER": "x", "MESHNODE_TOKEN": "x", "PATH": "x"})

    assert "MESHNODE_PEERS" in line
    assert "'MESHNODE_PEER'" in line
    assert unknown_variables({CONFIG.variable: "x"}) == []


def test_every_setting_has_a_row_in_the_table() -> None:
    assert {option.key for option in OPTIONS} == set(Settings.__struct_fields__)
