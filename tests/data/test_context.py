"""What a context holds, at its very end."""

from __future__ import annotations

import pytest

from densepath.data.context import check_context, room_for_prompts
from densepath.errors import ConfigError, DataError


def test_a_row_may_fill_the_context_and_no_more():
    check_context(8, 8)
    check_context(5, 8, max_completion_length=3)
    with pytest.raises(DataError, match=r"^9 tokens, but the models' context holds 8; shorten or leave it out$"):
        check_context(9, 8)
    with pytest.raises(
        DataError, match=r"^a.csv, row 2: 6 tokens beside max_completion_length=3, but .* holds 8; .*lower"
    ):
        check_context(6, 8, "a.csv, row 2", max_completion_length=3)


def test_a_completion_leaves_room_for_a_prompt():
    assert room_for_prompts(8, 7) == 1
    with pytest.raises(ConfigError, match="max_completion_length=8 fills the models' context of 8 tokens"):
        room_for_prompts(8, 8)
