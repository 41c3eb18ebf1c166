"""Order, mixture and draws: pure functions, exact and complete."""

from collections import Counter

import numpy as np
import pytest
import torch

from training.data.orders import Draws, Mixture, Order, draw

# Five row groups, of 3, 1, 5, 2 and 3 rows; of the fourth none is trained.
GROUP_FIRST = np.array([0, 3, 4, 9, 11, 14])
ROWS = np.array([0, 1, 2, 3, 4, 6, 7, 8, 12, 13])


def order(seed: int = 0, dataset: str = "a", window: int = 2) -> Order:
    return Order(seed, dataset, ROWS, GROUP_FIRST, window)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_every_row_comes_once_per_epoch(window: int) -> None:
    one = order(window=window)
    for epoch in range(3):
        seen = [one.at(epoch * one.size + n) for n in range(one.size)]
        assert {e for e, _ in seen} == {epoch}
        assert Counter(row for _, row in seen) == Counter(ROWS.tolist())


def test_the_order_is_a_function_of_seed_dataset_and_epoch() -> None:
    def epochs(one: Order) -> list[int]:
        return [one.at(n)[1] for n in range(2 * one.size)]

    first = epochs(order())
    assert first == epochs(order())
    assert first[:10] != first[10:]
    assert first != epochs(order(seed=1)) and first != epochs(order(dataset="b"))
    one = order()
    assert [one.at(n)[1] for n in reversed(range(20))] == first[::-1]  # asked in any order


def test_a_window_bounds_what_is_held_in_memory() -> None:
    one = Order(0, "a", np.arange(100), np.arange(0, 101, 2), window=3)
    groups = [one.at(n)[1] // 2 for n in range(one.size)]
    last = {group: n for n, group in enumerate(groups)}
    first = {group: n for n, group in reversed(list(enumerate(groups)))}
    held = [sum(first[g] <= n <= last[g] for g in first) for n in range(one.size)]
    assert max(held) <= 3
    assert groups != sorted(groups)


def test_shares_are_exact_in_every_period_and_close_everywhere() -> None:
    mixture = Mixture([0.7, 0.3])
    got = [mixture.at(n) for n in range(1000)]
    for dataset, share in ((0, 0.7), (1, 0.3)):
        counts = [sum(which == dataset for which, _ in got[: n + 1]) for n in range(1000)]
        assert counts[-1] == share * 1000
        assert max(abs(count - share * (n + 1)) for n, count in enumerate(counts)) < 1
        assert [c for which, c in got if which == dataset] == list(range(counts[-1]))


def test_weights_are_relative() -> None:
    assert Mixture([7, 3]).sequence == Mixture([0.7, 0.3]).sequence
    thirds = Mixture([1, 1, 1])
    assert Counter(thirds.sequence) == {0: 1, 1: 1, 2: 1}
    assert Mixture([2.5]).sequence == [0]


def test_draws_depend_on_each_of_their_keys_and_on_nothing_else() -> None:
    base = draw(0, "a", 0, "clip")
    assert base == draw(0, "a", 0, "clip")
    others = [draw(1, "a", 0, "clip"), draw(0, "b", 0, "clip"), draw(0, "a", 1, "clip"),
              draw(0, "a", 0, "clip2")]  # fmt: skip
    for name in Draws.__dataclass_fields__:
        values = [getattr(each, name) for each in (base, *others)]
        assert len(set(values)) == len(values), name
    torch.manual_seed(5)
    noise = base.noise((3, 2))
    torch.manual_seed(6)
    assert torch.equal(noise, base.noise((3, 2)))


def test_draws_are_uniform_and_independent() -> None:
    draws = [draw(0, "a", 0, str(n)) for n in range(4000)]
    table = torch.tensor([[d.start, d.timestep, d.caption] for d in draws], dtype=torch.float64)
    assert table.min() >= 0 and table.max() < 1
    # Three standard errors of a mean of 4000 uniform numbers; of a correlation.
    assert (table.mean(0) - 0.5).abs().max() < 3 * (1 / 12) ** 0.5 / 4000**0.5
    assert (torch.corrcoef(table.T) - torch.eye(3)).abs().max() < 3.5 / 4000**0.5
