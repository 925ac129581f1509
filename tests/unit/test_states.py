"""What of an object is its state, and how it is compared."""

from types import SimpleNamespace

import pytest
import torch

from ppo_lab.states import check_fits, gather, put_back

CPU = torch.device("cpu")


def test_tensors_numbers_generators_and_what_holds_them_are_state_and_nothing_else_is() -> None:
    owner = SimpleNamespace(
        tensor=torch.ones(2),
        count=3,
        flag=True,
        generator=torch.Generator().manual_seed(5),
        nested={"inner": [torch.zeros(1), 2.5]},
        name="go2",
        nothing=None,
        options=("a", "b"),
        labels={"a": "b"},
    )
    assert set(gather(owner)) == {"tensor", "count", "flag", "generator", "nested"}


def test_what_was_gathered_is_put_back_identically() -> None:
    owner = SimpleNamespace(tensor=torch.ones(2), count=3, generator=torch.Generator().manual_seed(5), lists=[1.0, 2.0])
    state = gather(owner)
    drawn = torch.rand(3, generator=owner.generator)
    owner.tensor += 1
    owner.count, owner.lists = 9, [1.0]
    put_back(owner, state, CPU)
    assert owner.tensor.tolist() == [1.0, 1.0]
    assert (owner.count, owner.lists) == (3, [1.0, 2.0])
    assert torch.equal(torch.rand(3, generator=owner.generator), drawn)


def test_a_generator_of_another_kind_of_device_begins_anew_and_alike_each_time() -> None:
    state = gather(SimpleNamespace(generator=torch.Generator().manual_seed(5)))
    state["generator"] = {"generator_of": "cuda", "bytes": torch.tensor([7, 7], dtype=torch.uint8)}
    owners = [SimpleNamespace(generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for owner in owners:
        put_back(owner, state, CPU)
    one, other = (torch.rand(3, generator=owner.generator) for owner in owners)
    assert torch.equal(one, other)


def test_of_many_differences_a_few_are_named() -> None:
    with pytest.raises(ValueError, match=r"^the saved state has no a, which X has; (.*; ){3}and 2 more$"):
        check_fits("X", {}, dict.fromkeys("abcdef"))


def test_a_tensor_in_a_list_is_compared_and_a_list_of_numbers_may_have_any_length() -> None:
    check_fits("X", {"rewards": [1.0]}, {"rewards": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"^layers\.1 of X is \(2,\) float32, and \(3,\) float32 in the saved state$"):
        check_fits("X", {"layers": [1, torch.zeros(3)]}, {"layers": [1, torch.zeros(2)]})
