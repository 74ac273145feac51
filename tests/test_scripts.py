"""The set-up scripts, as far as they can be tried without setting anything up: pins, the key of the wheel, what is missing."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import bootstrap
import llama_wheel
import pytest
import setup_steps
from llama_wheel import Build

ROOT = Path(__file__).parent.parent
PINS = sorted((ROOT / "scripts/requirements").glob("*.txt"))
BUILD = Build(base="0", cmake_args="", cuda=False)


def tool(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_wheel, "CUDA_DEVICES", ())


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.name)
def test_pins_have_hashes_and_name_no_index_or_folder(path: Path) -> None:
    text = path.read_text()
    requirements = re.findall(r"^[a-z].*?(?<!\\)$", text, re.MULTILINE | re.DOTALL)

    assert requirements
    assert all(re.match(r"[a-z0-9.-]+==[^ ]+ \\\n    --hash=sha256:[0-9a-f]{64}", requirement) for requirement in requirements)
    assert not re.search(r"://|^\s*--(?!hash)|(^|[\s=])/", text, re.MULTILINE)


def test_what_the_package_declares_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["llama"]
    pinned = {
        pin
        for path in PINS
        if path.name in {"run.txt", "llama.txt"}
        for pin in re.findall(r"^[a-z0-9-]+", path.read_text(), re.M)
    }

    assert {re.split(r"[<>=!~]", name)[0] for name in declared} <= pinned


@pytest.mark.parametrize(
    "other",
    [
        Build(base="1", cmake_args="", cuda=False),
        Build(base="0", cmake_args="-DX=1", cuda=False),
        Build(base="0", cmake_args="", cuda=True),
    ],
    ids=["base", "options", "cuda"],
)
def test_each_difference_of_a_build_has_a_wheel_of_its_own(other: Build) -> None:
    assert other.key({}) != BUILD.key({})
    assert BUILD.key({}) == BUILD.key({"PATH": "elsewhere"})
    assert BUILD.key({"CXXFLAGS": "-O1"}) != BUILD.key({})


@pytest.mark.usefixtures("no_device")
def test_options_once_given_are_kept_until_others_are_given() -> None:
    first = llama_wheel.wanted({"CMAKE_ARGS": "-DX=1", "MESHNODE_CUDA": "1"}, None)

    assert llama_wheel.wanted({}, first) == first
    assert llama_wheel.wanted({"CMAKE_ARGS": "", "MESHNODE_CUDA": "0"}, first) == llama_wheel.wanted({"MESHNODE_CUDA": "0"}, None)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac uses Metal")
def test_cuda_is_chosen_where_there_is_nvcc_and_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "nvcc")
    found: list[bool] = []
    for device in (False, True):
        monkeypatch.setattr(llama_wheel, "has_cuda_device", lambda device=device: device)
        found += [llama_wheel.wanted({"PATH": path}, None).cuda for path in ("", str(tmp_path))]

    assert found == [False, False, False, True]


def test_an_nvidia_device_is_seen_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert not llama_wheel.has_cuda_device(tmp_path)

    (tmp_path / "dev/nvidia3").touch()
    assert llama_wheel.has_cuda_device(tmp_path)


def test_all_that_is_missing_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(llama_wheel, "has_compiler", lambda environment: False)
    environment = {"XDG_CACHE_HOME": str(tmp_path)}

    with pytest.raises(SystemExit) as caught:
        bootstrap.require_tools(environment, bootstrap.layers(environment, {}, with_tests=False))

    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "a C++ compiler" in said
    assert "venv" in said
    assert "MESHNODE_NO_LLAMA=1" in said


def test_no_compiler_is_needed_for_a_wheel_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llama_wheel, "has_compiler", lambda environment: False)
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    layers = bootstrap.layers(environment, {}, with_tests=False)
    wheel = tmp_path / "meshnode/wheels" / llama_wheel.wanted(environment, None).key(environment) / "llama.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()

    bootstrap.require_tools(environment, layers)  # raises nothing


def test_a_node_that_only_asks_is_set_up_without_llama() -> None:
    names = [layer.name for layer in bootstrap.layers({"MESHNODE_NO_LLAMA": "1"}, {}, with_tests=True)]

    assert names == ["venv", "libraries", "package", "tests"]


def test_a_step_that_fails_shows_the_end_of_its_log_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_steps, "LOGS", tmp_path / "logs")

    with pytest.raises(SystemExit) as caught:
        setup_steps.run_step("Try it", [sys.executable, "-c", "print('why it failed'); raise SystemExit(3)"])

    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "    why it failed" in said
    assert str(tmp_path / "logs/try-it.log") in said


def test_the_account_of_a_failed_build_ends_where_pips_own_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_steps, "LOGS", tmp_path)
    script = "print('no such header'); print('error: subprocess-exited-with-error\\nnoise'); raise SystemExit(1)"

    with pytest.raises(SystemExit):
        setup_steps.run_step("Build", [sys.executable, "-c", script])

    said = capsys.readouterr().err
    assert "no such header" in said
    assert "noise" not in said


def test_without_a_python_the_wrapper_says_what_to_install(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("meshnode", "python.sh"):
        (scripts / name).write_bytes((ROOT / "scripts" / name).read_bytes())
    for name in ("dirname", "readlink"):
        (tmp_path / name).symlink_to(next(p for folder in os.get_exec_path() if (p := Path(folder, name)).exists()))

    result = subprocess.run(
        ["/bin/sh", scripts / "meshnode"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert "sudo apt install python3" in result.stderr
