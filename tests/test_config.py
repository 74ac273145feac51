import ast
import inspect
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meshnode.address import Address
from meshnode.config import CONFIG, OPTIONS, REMOTES, Settings, data_dir, load, take_token, unknown_variables
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
        ('token_file = "/"', "--token-file / is a directory"),
        ('model = ["a b=/dev/null"]', "'a b' cannot be a model's name"),
        ('model = ["a/x.gguf=/dev/null", "a/x.gguf=/dev/zero"]', "two models are called 'a/x.gguf'"),
        ('token = "mn1-secret"', "unknown key 'token'. Did you mean 'token_file'"),
        ("log-level = 'info'", "unknown key 'log-level'. Did you mean 'log_level'"),
        ("zzz = 1", "unknown key 'zzz'. Known are: advertise, api"),
        ("context_length = 3", "--context-length 3 is out of range. Use 256 to"),
        ("[mesh]\nport = 1", "mesh must be a list"),
        ('peer = ["a:b"]', "--peer 'a:b' is no address"),
        ('log_format = "xml"', "Use one of: text, json"),
        ('model = ["/nonexistent.gguf"]', "--model /nonexistent.gguf: there is no such file"),
        ('name = "two words"', "cannot be a node's name"),
        ('mesh = ["0.0.0.0"]', "--mesh .* port is missing"),
    ],
)
def test_a_wrong_file_says_what_and_what_to_do(home: dict[str, str], tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(file_with(tmp_path, text), home)


def test_a_config_file_that_is_not_text_is_named(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigurationError, match=f"{tmp_path / 'binary'} is not TOML"):
        load({"config": str(tmp_path / "binary")}, home)


def test_the_data_directory_of_the_config_file_is_found_by_every_command(home: dict[str, str], tmp_path: Path) -> None:
    flags = file_with(tmp_path, f'data_dir = "{tmp_path}/elsewhere"')

    assert data_dir(flags, home) == load(flags, home).data_dir == tmp_path / "elsewhere"
    assert data_dir({}, home | {"MESHNODE_CONFIG": flags["config"]}) == tmp_path / "elsewhere"
    assert data_dir(flags | {"data_dir": "/flag"}, home | {"MESHNODE_DATA_DIR": "/variable"}) == Path("/flag")


def test_a_user_without_a_home_is_asked_for_a_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)

    with pytest.raises(ConfigurationError, match="--data-dir"):
        load({}, {})
    assert load({"data_dir": "/given"}, {}).data_dir == Path("/given")


def test_the_data_directory_of_a_mac_is_where_a_mac_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", "/Users/ann")

    assert load({}, {}).data_dir == Path("/Users/ann/Library/Application Support/meshnode")


def test_a_missing_file_is_named(home: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="--config /nonexistent"):
        load({"config": "/nonexistent"}, home)


def test_a_wrong_variable_is_named(home: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="MESHNODE_SLOTS='many' must be a number"):
        load({}, home | {"MESHNODE_SLOTS": "many"})


def test_models_to_serve_and_no_worker_to_serve_them_contradict(home: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="--no-worker"):
        load({"model": ["/dev/null"], "worker": False}, home)


def test_an_alias_is_told_from_a_path_with_an_equals_sign(home: dict[str, str], tmp_path: Path) -> None:
    odd = tmp_path / "a=b.gguf"
    odd.touch()

    assert load({"model": [f"qwen={odd}", str(odd)]}, home).model == (("qwen", odd), ("a-b", odd))


def test_a_variable_that_nothing_reads_is_reported_with_the_nearest() -> None:
    (line,) = unknown_variables({"MESHNODE_PEERS": "x", "MESHNODE_PEER": "x", "MESHNODE_TOKEN": "x", "PATH": "x"})

    assert "MESHNODE_PEERS" in line
    assert "'MESHNODE_PEER'" in line
    assert unknown_variables({CONFIG.variable: "x"}) == []


def test_the_name_of_the_host_is_made_fit(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Ann's Mac.local")
    assert load({}, home).name == "Ann-s-Mac.local"

    monkeypatch.setattr("socket.gethostname", lambda: "機械")
    assert load({}, home).name == "node"


def test_the_token_leaves_the_environment_when_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_TOKEN", "secret")

    assert take_token() == "secret"
    assert "MESHNODE_TOKEN" not in os.environ
    assert take_token() is None


def test_every_setting_says_why_it_is_as_it_is() -> None:
    """A line under each field, by which a newcomer can tell whether to change it."""
    (body,) = (node.body for node in ast.walk(ast.parse(inspect.getsource(Settings))) if isinstance(node, ast.ClassDef))
    explained = {
        field.target.id
        for field, line in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(line, ast.Expr)
    }

    assert explained == set(Settings.__struct_fields__)


def test_every_setting_has_a_row_in_the_table() -> None:
    assert {option.key for option in OPTIONS} | {REMOTES} == set(Settings.__struct_fields__)


def test_folders_of_models_must_be_there(home: dict[str, str], tmp_path: Path) -> None:
    given = load({"models_dir": [str(tmp_path)]}, home)

    assert (given.models_dir, given.keep_alive) == ((tmp_path,), 300)
    with pytest.raises(ConfigurationError, match=r"--models-dir .*nowhere: there is no such folder"):
        load({"models_dir": [str(tmp_path / "nowhere")]}, home)


def test_how_to_compute_is_checked(home: dict[str, str]) -> None:
    given = load({"kv_type": "q8_0", "flash_attention": "on", "gpu_layers": 0}, home)

    assert (given.kv_type, given.flash_attention, given.gpu_layers) == ("q8_0", "on", 0)
    with pytest.raises(ConfigurationError, match=r"--kv-type 'f8' is unknown.*f16, q8_0, q4_0"):
        load({"kv_type": "f8"}, home)
    with pytest.raises(ConfigurationError, match="--kv-type q4_0 needs flash attention"):
        load({"kv_type": "q4_0", "flash_attention": "off"}, home)
