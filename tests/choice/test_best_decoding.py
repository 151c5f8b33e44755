"""An arm at its best: which decoding, which tuned values."""

from __future__ import annotations

from densepath.choice.arms import best_decoding, best_variant


def test_the_best_decoding_is_by_the_mean_over_seeds_and_the_first_of_equal_ones():
    validation = {"temperature 1": [[1.0, 0.0], [0.0, 0.0]], "greedy": [[1.0, 1.0], [0.0, 0.0]]}
    assert best_decoding(validation) == ("greedy", 0.5)
    assert best_decoding({**validation, "temperature 0.5": [[1.0, 1.0], [0.0, 0.0]]}) == ("greedy", 0.5)
    assert best_decoding({}) is None


def test_a_variant_is_judged_at_its_own_best_decoding():
    cautious = {"temperature 1": [[0.5, 0.5]], "greedy": [[0.5, 0.5]]}
    sharp = {"temperature 1": [[0.0, 0.0]], "greedy": [[1.0, 1.0]]}
    assert best_variant({"cautious": cautious, "sharp": sharp}) == "sharp"
    assert best_variant({"cautious": cautious, "without a result": {}}) == "cautious"
    assert best_variant({"without a result": {}}) is None
