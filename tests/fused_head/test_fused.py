"""The fused head equals its plain twin, in value and in every gradient, and does no more work than it must."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alignkit.fused_head import fused_nll_kl, passes, plain_nll_kl, tiles, token_statistics

DIRECTIONS = ["reverse", "forward"]
HEADS = {
    "bare": {},
    "bias": {"has_bias": True},
    "reference's own head": {"ref_h": 4, "has_bias": True},
    "trained head": {"has_bias": True, "trains_head": True},
}


def gradients(head: Any, arguments: dict[str, Any], grad_nll: Any, grad_kl: Any, **options: Any) -> list[torch.Tensor]:
    """nll, kl and entropy, and the gradients of everything that requires one."""
    result = head(**arguments, **options)
    trained = [
        arguments[name] for name in ("policy_hidden", "policy_weight", "bias") if requires_grad(arguments[name])
    ]
    objective = (grad_nll * result.nll + grad_kl * result.kl).sum()
    return [result.nll, result.kl, result.entropy, *torch.autograd.grad(objective, trained)]


def requires_grad(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def weights(n: int, *non_zero: int) -> torch.Tensor:
    """A vector (n,) that is zero but at the given places."""
    vector = torch.zeros(n, dtype=torch.float64)
    vector[list(non_zero)] = torch.arange(1.0, len(non_zero) + 1, dtype=torch.float64)
    return vector


# ---- Equality ----


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_gradient_is_that_of_the_value(inputs, direction, head, softcap):
    arguments = inputs(n=4, v=6, **HEADS[head])
    trained = [name for name in ("policy_hidden", "policy_weight", "bias") if requires_grad(arguments[name])]
    if "policy_weight" in trained:
        # The reference's part of a shared head is a constant: here a copy, which a finite difference does not move.
        arguments |= {"ref_weight": arguments["policy_weight"].detach().clone()}
        arguments |= {"ref_bias": arguments["bias"].detach().clone()}

    def nll_and_kl(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        replaced = {**arguments, **dict(zip(trained, values, strict=True))}
        result = fused_nll_kl(**replaced, kl_direction=direction, softcap=softcap, scale=0.7)
        return result.nll, result.kl

    assert torch.autograd.gradcheck(nll_and_kl, [arguments[name] for name in trained])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}, {"softcap": 2.0}, {"scale": -0.7, "softcap": 2.0}])
def test_values_and_gradients_equal_those_of_the_plain_twin(inputs, direction, head, options):
    arguments = inputs(n=7, v=14, **HEADS[head])
    grads = torch.linspace(-1.0, 1.0, 7).double(), torch.linspace(2.0, -1.0, 7).double()
    fused = gradients(fused_nll_kl, arguments, *grads, kl_direction=direction, **options)
    plain = gradients(plain_nll_kl, arguments, *grads, kl_direction=direction, **options)
    torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10)


SPARSE = {
    "all": (range(600), range(600)),
    "no KL": (range(600), []),
    "one KL row": (range(600), [417]),
    "two KL rows": (range(600), [3, 599]),
    "worst twentieth, and masked rows": (range(0, 600, 2), range(5, 600, 20)),
    "KL alone": ([], range(300)),
    "one row alone": ([], [300]),
    "none": ([], []),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pattern", SPARSE)
@pytest.mark.parametrize("head", ["bare", "reference's own head", "trained head"])
def test_every_pattern_of_rows_with_a_gradient_gives_the_plain_gradients_in_float32(inputs, direction, pattern, head):
    arguments = inputs(n=600, v=1100, h=8, dtype=torch.float32, **(HEADS[head] | {"has_bias": False}))
    nll_rows, kl_rows = SPARSE[pattern]
    grads = (weights(600, *nll_rows) > 0).float() / 600, (weights(600, *kl_rows) > 0).float() / 600
    fused = gradients(fused_nll_kl, arguments, *grads, kl_direction=direction)
    exact = {
        name: value.detach().double().requires_grad_(requires_grad(value))
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in arguments.items()
    }
    expected = gradients(plain_nll_kl, exact, *grads, kl_direction=direction)
    for ours, theirs in zip(fused[3:], expected[3:], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0.0, atol=1e-6)
    for ours, theirs in zip(fused[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=3e-6)


def test_gradients_of_nll_and_kl_can_be_taken_one_after_the_other(inputs):
    arguments = inputs()
    hidden = arguments["policy_hidden"]
    result, plain = fused_nll_kl(**arguments), plain_nll_kl(**arguments)
    for ours, theirs in ((result.nll, plain.nll), (result.kl, plain.kl)):
        (gradient,) = torch.autograd.grad(ours.sum(), hidden, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs.sum(), hidden, retain_graph=True)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("head", HEADS)
def test_token_statistics_are_both_directions_at_once(inputs, head):
    arguments = inputs(**HEADS[head])
    both = token_statistics(**arguments, softcap=3.0, scale=1.1)
    reverse = plain_nll_kl(**arguments, softcap=3.0, scale=1.1)
    forward = plain_nll_kl(**arguments, softcap=3.0, scale=1.1, kl_direction="forward")
    torch.testing.assert_close(
        [both.nll, both.reverse_kl, both.forward_kl, both.entropy],
        [reverse.nll, reverse.kl, forward.kl, reverse.entropy],
    )
    assert torch.equal(both.is_top1, reverse.is_top1)
    assert not both.nll.requires_grad


@pytest.mark.usefixtures("small_tiles")
def test_ties_within_a_tile_and_across_tiles_go_to_the_first():
    weight = torch.zeros(9, 2)
    weight[[2, 3, 6]] = 1.0  # the first tile has two of the largest logits, the second has one
    hidden = torch.ones(9, 2)
    arguments = (hidden, hidden, weight, None, torch.arange(9))
    expected = [label == 2 for label in range(9)]
    assert fused_nll_kl(*arguments).is_top1.tolist() == plain_nll_kl(*arguments).is_top1.tolist() == expected


def test_no_position_gives_empty_numbers_and_a_gradient_of_zero(inputs):
    arguments = inputs(n=0, has_bias=True, trains_head=True)
    result = fused_nll_kl(**arguments)
    (result.nll.sum() + result.kl.sum()).backward()
    assert result.nll.shape == result.is_top1.shape == (0,)
    assert arguments["policy_hidden"].grad.shape == (0, 3)
    assert arguments["policy_weight"].grad.count_nonzero() == arguments["bias"].grad.count_nonzero() == 0
    assert token_statistics(**arguments).forward_kl.shape == (0,)


def test_under_autocast_the_inputs_are_rounded_and_the_sums_are_not(inputs):
    arguments = inputs(n=5, v=50, h=16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = fused_nll_kl(**arguments)
    rounded = {
        name: value.detach().bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    expected = plain_nll_kl(**rounded)
    torch.testing.assert_close([result.nll.detach(), result.kl.detach()], [expected.nll, expected.kl])
    result.nll.sum().backward()
    assert arguments["policy_hidden"].grad.dtype == torch.float32


# ---- Work ----


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every projection of a tile, in order."""
    rows: list[int] = []
    project = passes.project

    def counted(out: torch.Tensor, hidden: torch.Tensor, *rest: Any) -> None:
        rows.append(len(hidden))
        project(out, hidden, *rest)

    monkeypatch.setattr(passes, "project", counted)
    return rows


@pytest.mark.parametrize("ref_h", [None, 4])
@pytest.mark.parametrize(
    ("nll_rows", "kl_rows", "expected"),
    [
        (range(20), [], 20),
        (range(20), [7], 20 + 1),
        (range(20), [7, 8], 20 + 2),
        (range(20), range(20), 20 + 20),
        (range(5), [], 5),
        (range(5), [4, 5], 6 + 2),
        ([], [4], 1 + 1),
        ([], [], 0),
    ],
)
def test_the_backward_projects_only_rows_with_a_gradient(projected, inputs, ref_h, nll_rows, kl_rows, expected):
    result = fused_nll_kl(**inputs(n=20, ref_h=ref_h))
    assert sum(projected) == 20 + 20
    assert len(projected) == (1 if ref_h is None else 2)
    projected.clear()
    (weights(20, *nll_rows) * result.nll + weights(20, *kl_rows) * result.kl).sum().backward()
    assert sum(projected) == expected


def test_a_kl_that_is_not_used_costs_no_projection_of_the_reference(projected, inputs):
    result = fused_nll_kl(**inputs(n=20))
    projected.clear()
    result.nll.sum().backward()
    assert projected == [20]


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation returned with memory of its own."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ref_h", [None, 300])
def test_no_tensor_is_larger_than_one_tile_of_both_models(inputs, dtype, ref_h):
    arguments = inputs(n=700, v=6000, h=256, ref_h=ref_h, dtype=dtype)
    one_tile = 2 * tiles.CACHE_TILE.rows * tiles.CACHE_TILE.columns
    assert one_tile < 700 * 6000 / 10
    assert one_tile < 6000 * 256 / 4  # a converted copy of the head would show
    with LargestTensor() as largest:
        result = fused_nll_kl(**arguments)
        (result.nll.sum() + result.kl.sum()).backward()
    assert one_tile <= largest.elements <= max(one_tile, 700 * 300)


def test_nothing_is_kept_for_a_backward_that_cannot_come(inputs):
    arguments = inputs()
    arguments["policy_hidden"].requires_grad_(False)
    result = fused_nll_kl(**arguments)
    assert result.nll.grad_fn is None
    assert result.kl.grad_fn is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning:torch")  # torch.compile imports torch.utils.mkldnn
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_compiled_tiles_give_what_the_tiles_as_written_give(monkeypatch, inputs, direction, softcap):
    arguments = inputs(n=70, v=900, h=8, dtype=torch.float32, trains_head=True)
    grads = weights(70, *range(70)) / 70, weights(70, *range(10, 30)) / 20
    as_written = gradients(fused_nll_kl, arguments, *grads, kl_direction=direction, softcap=softcap)
    top_1 = fused_nll_kl(**arguments, softcap=softcap).is_top1
    monkeypatch.setattr(tiles, "COMPILED_DEVICES", {"cpu"})
    monkeypatch.setattr(tiles, "COMPILED_TILE", tiles.TileShape(48, 400))
    compiled = gradients(fused_nll_kl, arguments, *grads, kl_direction=direction, softcap=softcap)
    torch.testing.assert_close(compiled, as_written, rtol=1e-5, atol=1e-5)
    assert torch.equal(fused_nll_kl(**arguments, softcap=softcap).is_top1, top_1)
