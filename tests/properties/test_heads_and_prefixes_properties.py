"""The fused head against its plain twin on any small shape, and the layout of rows that share a prefix."""

import torch
from hypothesis import strategies as st

from alignkit.fused_head import fused_nll_kl, plain_nll_kl, token_statistics
from alignkit.shared_prefix.layout import RowCost, common_prefix_length, pack_rows
from tests.properties.given import given
from tests.properties.strategies import ORDERS, shuffled

# ---- Head ----


@st.composite
def heads(draw):
    """Arguments of the head: any sizes, one head or two, with or without bias, scale and softcap."""
    n, width, vocabulary = draw(st.integers(0, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(*shape, generator=generator, dtype=torch.float64)

    is_shared, has_bias = draw(st.booleans()), draw(st.booleans())
    bias = normal(vocabulary) if has_bias else None
    arguments = {
        "policy_hidden": normal(n, width),
        "ref_hidden": normal(n, width),
        "policy_weight": normal(vocabulary, width),
        "ref_weight": None if is_shared else normal(vocabulary, width),
        "labels": torch.randint(vocabulary, (n,), generator=generator),
    }
    options = {"bias": bias, "scale": draw(st.sampled_from([1.0, 0.5])), "softcap": draw(st.sampled_from([None, 2.0]))}
    if has_bias and not is_shared:
        options["ref_bias"] = normal(vocabulary)
    return arguments, options


def value_and_gradients(function, arguments, options, weights):
    names = ["policy_hidden", "policy_weight"]
    leaves = {name: arguments[name].clone().requires_grad_() for name in names}
    found = function(**{**arguments, **leaves}, **options)
    total = (weights[0] * found.nll + weights[1] * found.kl).sum()
    return found, torch.autograd.grad(total, leaves.values())


@given(heads(), st.sampled_from(["reverse", "forward"]), st.tuples(st.floats(0, 2), st.floats(0, 2)))
def test_fused_and_plain_agree_in_values_and_gradients(head, direction, weights):
    arguments, options = head
    options = {**options, "kl_direction": direction}
    fused, fused_gradients = value_and_gradients(fused_nll_kl, arguments, options, weights)
    plain, plain_gradients = value_and_gradients(plain_nll_kl, arguments, options, weights)
    for name in ("nll", "kl", "entropy"):
        assert torch.allclose(getattr(fused, name), getattr(plain, name), atol=1e-9)
    assert torch.equal(fused.is_top1, plain.is_top1)
    for ours, theirs in zip(fused_gradients, plain_gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


@given(heads(), ORDERS)
def test_positions_do_not_see_each_other_and_both_directions_are_those_of_the_two_models_exchanged(head, order):
    arguments, options = head
    found = token_statistics(**arguments, **options)
    rows = shuffled(list(range(len(arguments["labels"]))), order)
    by_row = {name: arguments[name][rows] for name in ("policy_hidden", "ref_hidden", "labels")}
    moved = token_statistics(**{**arguments, **by_row}, **options)
    for name in ("nll", "reverse_kl", "forward_kl", "entropy"):
        assert torch.allclose(getattr(moved, name), getattr(found, name)[rows], atol=1e-9)
        assert (getattr(found, name) >= -1e-12).all()
    exchanged = (
        token_statistics(
            arguments["ref_hidden"],
            arguments["policy_hidden"],
            arguments["policy_weight"] if arguments["ref_weight"] is None else arguments["ref_weight"],
            None if arguments["ref_weight"] is None else arguments["policy_weight"],
            arguments["labels"],
            **{**options, "bias": options.get("ref_bias", options["bias"])},
            **({"ref_bias": options["bias"]} if "ref_bias" in options else {}),
        )
        if "ref_bias" not in options
        else None
    )
    if exchanged is not None:
        assert torch.allclose(exchanged.reverse_kl, found.forward_kl, atol=1e-9)
        assert torch.allclose(exchanged.forward_kl, found.reverse_kl, atol=1e-9)


@given(heads())
def test_a_model_compared_with_itself_has_no_divergence_and_certainty_costs_nothing(head):
    arguments, options = head
    arguments = {**arguments, "ref_hidden": arguments["policy_hidden"], "ref_weight": None}
    options.pop("ref_bias", None)
    found = token_statistics(**arguments, **options)
    assert (found.reverse_kl == 0).all() and (found.forward_kl == 0).all()
    vocabulary = len(arguments["policy_weight"])
    assert (found.entropy <= torch.tensor(float(vocabulary)).log() + 1e-9).all()
    if vocabulary == 1:
        assert (found.nll.abs() < 1e-12).all() and found.is_top1.all()


# ---- Layout ----

TOKENS = st.integers(1, 3)
BATCHES = st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=1, max_size=6)


@st.composite
def batches(draw):
    rows = draw(BATCHES)
    starts = [draw(st.integers(0, len(row) - 1)) for row in rows]
    limit = draw(st.none() | st.integers(1, 12))
    cost = draw(st.sampled_from([RowCost(), RowCost(0.01, 1.0), RowCost(1.0, 0.1)]))
    return rows, starts, limit, cost


@given(batches(), st.integers(1, 5))
def test_every_row_is_read_back_from_its_path_and_from_the_positions_asked_for(batch, width):
    rows, starts, limit, cost = batch
    packed = pack_rows(rows, starts, width=width, max_packed_tokens=limit, cost=cost)
    if packed is None:
        return
    ids, positions = packed.input_ids.flatten(), packed.position_ids.flatten()
    paths = [path[:length] for path, length in zip(packed.paths, packed.lengths, strict=True)]
    assert sorted(ids[path].tolist() for path in paths) == sorted(map(list, {tuple(row) for row in rows}))
    assert all(positions[path].tolist() == list(range(len(path))) for path in paths)
    for row, start, index in zip(rows, starts, packed.index, strict=True):
        expected = [row[min(start + column, len(row) - 1)] for column in range(width)]
        assert ids[index].tolist() == expected


@given(batches())
def test_what_is_computed_is_at_least_the_distinct_prefixes_and_less_than_all_tokens(batch):
    rows, starts, limit, cost = batch
    packed = pack_rows(rows, starts, width=1, max_packed_tokens=limit, cost=cost)
    if packed is None:
        return
    prefixes = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    computed = sum(packed.own)
    assert len(prefixes) <= computed < sum(map(len, rows))
    assert (packed.owner >= 0).sum() == computed
    of_row = (packed.owner >= 0).sum(1).tolist()
    assert limit is None or max(of_row) <= max(limit, max(map(len, rows)))


@given(batches(), ORDERS)
def test_a_token_attends_to_what_precedes_it_in_its_own_row_and_to_nothing_else(batch, order):
    rows, starts, limit, cost = batch
    packed = pack_rows(rows, starts, width=1, max_packed_tokens=limit, cost=cost)
    moved = shuffled(list(zip(rows, starts, strict=True)), order)
    again = pack_rows(*map(list, zip(*moved, strict=True)), width=1, max_packed_tokens=limit, cost=cost)
    assert (packed is None) == (again is None)
    if packed is None:
        return
    assert torch.equal(packed.input_ids, again.input_ids) and torch.equal(packed.paths, again.paths)
    ids, positions, owner = (t.flatten() for t in (packed.input_ids, packed.position_ids, packed.owner))
    for place in (owner >= 0).nonzero().flatten().tolist():
        path = packed.paths[owner[place]]
        seen = path[: positions[place] + 1]
        assert seen[-1] == place
        assert any(row[: len(seen)] == ids[seen].tolist() for row in rows)


@given(st.lists(TOKENS, max_size=6), st.lists(TOKENS, max_size=6))
def test_the_common_prefix_is_the_longest_beginning_of_both(first, second):
    length = common_prefix_length(first, second)
    assert length == common_prefix_length(second, first)
    assert first[:length] == second[:length]
    assert first[: length + 1] != second[: length + 1] or length == min(len(first), len(second))
