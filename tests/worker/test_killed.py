"""An answer whose worker is killed, with real processes; `scripts/kill_sweep.py` does so at every token."""

from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from kill_sweep import GREEDY, SEEDED, TOKENS, killed_at, ready_worker, said_by

pytestmark = pytest.mark.slow


async def test_whenever_its_worker_is_killed_an_answer_is_the_same_to_the_last_word(tmp_path: Path) -> None:
    async with ready_worker(tmp_path) as other:
        whole = await said_by(other, other, GREEDY)
        found = {after: await killed_at(after, other, GREEDY, tmp_path) for after in (0, 1, 31, TOKENS - 1)}

    assert len(whole.tokens) == TOKENS
    for after, said in found.items():
        assert said[:3] == whole[:3], f"killed after {after} tokens"
        assert said.resumed == int(after > 0)


async def test_a_seeded_answer_goes_on_with_the_draws_that_it_would_have_had(tmp_path: Path) -> None:
    """Of two tokens that are as good as equally likely the other one may come; in this answer there are none."""
    async with ready_worker(tmp_path) as other:
        whole = await said_by(other, other, SEEDED)
        said = await killed_at(20, other, SEEDED, tmp_path)

    assert said[:3] == whole[:3]
