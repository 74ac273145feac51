import json
from pathlib import Path

import pytest
from api.serving import SECRET, FakeNode, served
from trio import to_thread

from meshnode import credentials
from meshnode.api.app import App
from meshnode.cli.main import main
from meshnode.datadir import DataDir
from meshnode.testing import FakeWorker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_without_a_node_the_command_works_on_the_data_directory(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--data-dir", str(path)]

    assert main(["key", "list", *place]) == 0
    assert main(["key", "new", "--admin", "--tokens-per-minute", "5000", *place]) == 0
    empty, text = capsys.readouterr().out.splitlines()
    key = credentials.api_keys(DataDir.open(path)).find(text)
    assert empty == "There is no key."
    assert key is not None
    assert main(["key", "list", *place]) == 0
    assert f"{key.id}  admin" in (listed := capsys.readouterr().out)
    assert "5000 tokens/min" in listed
    assert text not in listed
    assert main(["key", "revoke", key.id, *place]) == 0
    assert main(["key", "revoke", key.id, *place]) == 2
    assert "meshnode key list" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["revoke"], ["new", "aaaaaaaa"], ["new", "--requests-per-minute", "0"]])
def test_wrong_usage_is_told_and_makes_no_key(path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["key", *arguments, "--data-dir", str(path)]) == 2
    assert capsys.readouterr().err.startswith("meshnode: ")
    assert not (path / "keys.json").exists()


async def test_with_a_node_the_node_does_it_and_knows_at_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = DataDir.open(path)
    data_dir.lock()
    keys = credentials.api_keys(data_dir)
    app = App(FakeNode({"holder": FakeWorker()}), admin_secret=SECRET, hosts=frozenset(), keys=keys)
    async with served(app) as serving:
        data_dir.write_run({"pid": 1, "api": f"127.0.0.1:{serving.port}", "secret": SECRET})

        async def run(*arguments: str) -> int:
            return await to_thread.run_sync(main, ["key", *arguments, "--data-dir", str(path)])

        assert await run("new", "--json") == 0
        made = json.loads(capsys.readouterr().out)
        found = keys.find(made["key"])
        assert await run("list", "--json") == 0
        listed = json.loads(capsys.readouterr().out)["keys"]
        assert await run("revoke", made["id"]) == 0

    assert found is not None
    assert [key["id"] for key in listed] == [found.id]
    assert not keys
