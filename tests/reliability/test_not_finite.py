"""What counts as finite, and what an error names."""

import pytest
import torch
from torch import nn

from alignkit.reliability.not_finite import are_finite, describe, first_not_finite

CPU = torch.device("cpu")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_value_among_tensors_of_several_kinds_is_found(bad, dtype):
    tensors = [torch.ones(3), torch.zeros(2, 2, dtype=dtype), torch.ones(1, dtype=torch.float64)]
    assert are_finite(tensors, CPU)
    tensors[1][1, 0] = bad
    assert not are_finite(tensors, CPU)


def test_a_spike_whose_square_overflows_is_finite():
    assert are_finite([torch.full((1000,), torch.finfo(torch.float32).max)], CPU)


def test_nothing_is_finite():
    assert are_finite([], CPU) and are_finite([torch.empty(0)], CPU)


def test_the_answer_lies_on_the_device_that_is_asked_for():
    assert are_finite([torch.ones(3), torch.ones(2, 2)], torch.device("meta")).device.type == "meta"


def test_a_weight_that_deepspeed_has_emptied_is_looked_at_where_its_part_is():
    weight = nn.Parameter(torch.empty(0))
    weight.ds_tensor = torch.tensor([1.0, torch.nan])
    assert not are_finite([weight], CPU)
    assert first_not_finite([("a", weight)]) == "a (1 of 2 values)"


def test_the_first_bad_tensor_is_named_with_its_number_of_bad_values():
    named = [("a", torch.ones(3)), ("b", torch.tensor([1.0, torch.nan, torch.inf])), ("c", torch.tensor([torch.nan]))]
    assert first_not_finite(named) == "b (2 of 3 values)"
    assert first_not_finite(named[:1]) is None


def test_a_bad_weight_is_the_cause_and_hides_the_gradients():
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.tensor([[torch.nan, 1.0]])
    assert describe(layer, 0.5) == (
        "the loss is finite, every weight is finite, the first gradient that is not finite is that of weight "
        "(1 of 2 values)"
    )
    layer.bias.data[0] = torch.inf
    assert describe(layer, torch.nan) == "the loss is nan, the first weight that is not finite is bias (1 of 1 values)"
