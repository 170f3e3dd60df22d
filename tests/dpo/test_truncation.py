"""A pair is cut to its limits without losing a side, and what was cut is counted."""

import itertools

import pytest

from alignkit.dpo.truncation import cut_pair

PROMPT, CHOSEN, REJECTED = [1, 2, 3, 4, 5], [11, 12, 13, 14], [21, 22]


def test_without_limits_nothing_is_cut():
    assert cut_pair(PROMPT, CHOSEN, REJECTED) == (PROMPT, CHOSEN, REJECTED, 0, 0, 0)


def test_a_prompt_keeps_its_end_by_default_and_its_start_when_asked():
    assert cut_pair(PROMPT, CHOSEN, REJECTED, max_prompt_length=2) == ([4, 5], CHOSEN, REJECTED, 3, 0, 0)
    kept = cut_pair(PROMPT, CHOSEN, REJECTED, max_prompt_length=2, prompt_truncation="keep_start")
    assert kept == ([1, 2], CHOSEN, REJECTED, 3, 0, 0)


def test_completions_lose_their_end_and_share_the_room_beside_the_cut_prompt():
    cut = cut_pair(PROMPT, CHOSEN, REJECTED, max_length=5, max_prompt_length=2)
    assert cut == ([4, 5], [11, 12, 13], [21, 22], 3, 1, 0)
    cut = cut_pair([1], CHOSEN, REJECTED, max_length=4, max_prompt_length=2)
    assert cut == ([1], [11, 12, 13], [21, 22], 0, 1, 0)


def test_a_prompt_that_fills_max_length_leaves_room_for_one_token_of_each_completion():
    for max_length in (2, 3, 5):
        cut = cut_pair(PROMPT, CHOSEN, REJECTED, max_length=max_length)
        assert cut == (PROMPT[-(max_length - 1) :], [11], [21], 6 - max_length, 3, 1)


def test_a_prompt_without_tokens_stays_as_it_is():
    assert cut_pair([], CHOSEN, REJECTED, max_length=3, max_prompt_length=2) == ([], [11, 12, 13], [21, 22], 0, 1, 0)


def test_every_combination_fits_keeps_a_token_of_each_side_and_accounts_for_every_token():
    lengths, limits = (1, 2, 3, 7), (None, 2, 3, 5, 8, 20)
    for n_prompt, n_chosen, n_rejected in itertools.product((0, *lengths), lengths, lengths):
        for max_length, max_prompt_length, side in itertools.product(limits, limits, ("keep_end", "keep_start")):
            if max_length is not None and max_prompt_length is not None and max_prompt_length >= max_length:
                continue
            rows = list(range(n_prompt)), list(range(100, 100 + n_chosen)), list(range(200, 200 + n_rejected))
            cut = cut_pair(*rows, max_length=max_length, max_prompt_length=max_prompt_length, prompt_truncation=side)
            for completion, whole, n_cut in zip(cut[1:3], rows[1:], cut[4:], strict=True):
                assert completion and completion == whole[: len(completion)]
                assert len(completion) + n_cut == len(whole)
                if max_length is not None:
                    assert len(cut.prompt) + len(completion) <= max_length
                    assert n_cut == 0 or len(cut.prompt) + len(completion) == max_length
            assert len(cut.prompt) + cut.n_cut_prompt == n_prompt
            assert max_prompt_length is None or len(cut.prompt) <= max_prompt_length
            assert bool(cut.prompt) == bool(n_prompt)
            kept = rows[0][cut.n_cut_prompt :] if side == "keep_end" else rows[0][: n_prompt - cut.n_cut_prompt]
            assert cut.prompt == kept


@pytest.mark.parametrize(("chosen", "rejected", "side"), [([], [1], "chosen"), ([1], [], "rejected")])
def test_an_empty_completion_is_refused_with_its_side_and_the_end_of_its_prompt(chosen, rejected, side):
    prompt = list(range(20))
    with pytest.raises(ValueError, match=rf"{side} completion after the prompt of 20 tokens \[12, .* 19\] has no"):
        cut_pair(prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_length": 1}, "max_length is 1; a prompt and a completion need at least 2 tokens"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0; it must be at least 1"),
        ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length is 8; .*below max_length, which is 8"),
        ({"prompt_truncation": "middle"}, "prompt_truncation is 'middle'; choose 'keep_end' or 'keep_start'"),
    ],
)
def test_limits_without_room_for_a_token_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        cut_pair(PROMPT, CHOSEN, REJECTED, **limits)
