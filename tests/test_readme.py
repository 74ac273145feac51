from pathlib import Path

import pytest

from meshnode.config import CONFIG, OPTIONS, Option

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("option", [*OPTIONS, CONFIG], ids=lambda option: option.key)
def test_every_setting_is_in_the_readme_in_the_words_of_its_help(option: Option) -> None:
    flag = f"{option.flag} {option.metavar}".strip()

    assert f"| `{flag}` | {option.doc} |" in README
