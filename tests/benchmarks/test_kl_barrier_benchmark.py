import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from alignkit import aggregate_positions
from alignkit.kl_barrier import AGGREGATES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCE = Path(__file__).parents[2] / "src"


def run_quick(output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "kl_barrier.py"), "--quick", "--output", str(output)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
@pytest.mark.timeout(300)  # four more processes import TRL
def test_the_quick_benchmark_records_every_claim_after_finding_the_same_loss_and_gradient(tmp_path):
    output = tmp_path / "result.json"
    output.write_text(json.dumps({"another benchmark": {"stays": True}}))
    result = run_quick(output)
    assert result.returncode == 0, result.stderr
    records = json.loads(output.read_text())
    assert records["another benchmark"] == {"stays": True}
    record = records["kl_barrier"]

    assert record["quick"] is True
    assert {"torch", "transformers", "trl", "peft", "alignkit"} <= set(record["versions"])
    assert record["recorder_check"]["by_hand_bytes"] == record["recorder_check"]["recorded_bytes"]
    (differences,) = record["relative_differences"].values()
    assert len(differences) == 10  # five aggregates with the gate open and closed
    for difference in differences.values():
        assert difference["loss"] < 1e-4 and difference["gradient"] < 1e-4

    claims = {claim["claim"]: claim for claim in record["claims"]}
    # Against SFTTrainer, against the composition, of the cache, of memory.
    assert len(claims) == len(record["claims"]) == 10 + 10 + 2 + 3
    for name, claim in claims.items():
        relation, target = claim["target"].split()
        assert claim["min"] <= claim["median"] <= claim["max"]
        assert claim["met"] is (
            claim["median"] <= float(target) if relation == "<=" else claim["median"] >= float(target)
        )
        if "time of a step" in name:
            assert claim["limit"] > 1
            assert claim["median_over_limit"] == pytest.approx(claim["median"] / claim["limit"])
            assert all(side["wall_s"] and side["cpu_s"] for side in claim["raw"].values() if isinstance(side, dict))
        else:
            assert claim["raw"].values()


def test_the_limits_of_gemma_270m_are_those_worked_out_by_hand(benchmark_modules):
    from kl_barrier_shapes import Side, gemma_270m

    shape = gemma_270m(262_144, rows=128, tokens=65)  # 8192 positions, in rows so short that attention hardly counts
    sft, composition = Side("sft").flops(shape), Side("composition").flops(shape)
    closed, opened = (Side("barrier", is_open).flops(shape) for is_open in (False, True))
    assert closed / sft == pytest.approx(4 / 3)
    # With b = 1.6e12 and u = 2.75e12.
    assert composition / closed == pytest.approx(1.63, abs=0.02)
    assert composition / opened == pytest.approx(1.41, abs=0.02)
    assert opened / sft == pytest.approx(1.54, abs=0.02)


@pytest.mark.parametrize("aggregate, rows", [("mean", 64), ("rmse", 64), ("p95", 2), ("max", 1), ("cvar95", 4)])
def test_an_open_gate_projects_the_reference_again_where_the_aggregate_has_a_gradient(
    benchmark_modules, aggregate, rows
):
    from kl_barrier_shapes import Side, gemma_270m

    kl = torch.rand(64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    aggregate_positions(kl, aggregate).backward()
    assert kl.grad.count_nonzero() == rows
    shape = gemma_270m(512, rows=2, tokens=65)
    more = Side("barrier", True, aggregate).flops(shape) - Side("barrier", False, aggregate).flops(shape)
    assert more == pytest.approx(rows / 64 * shape.projection_flops)


def test_a_backbone_forward_is_counted_as_torch_counts_it(benchmark_modules):
    from kl_barrier_shapes import gemma_270m
    from transformers import AutoModelForCausalLM

    shape = gemma_270m(512, rows=2, tokens=33)
    model = AutoModelForCausalLM.from_config(shape.config(), attn_implementation="eager").base_model
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(shape.rows, shape.tokens, dtype=torch.long), use_cache=False)
    # Beside the layers it counts the products in the rotary embedding's table.
    assert counter.get_total_flops() == pytest.approx(shape.backbone_flops, rel=1e-4)


def count_step(side: Any, shape: Any) -> int:
    """Floating-point operations of one optimiser step of a real trainer."""
    from kl_barrier_workloads import new_trainer, random_model

    def in_place(total: Any, left: Any, right: Any, **kwargs: Any) -> int:
        return mm_flop(left, right)

    trainer = new_trainer(shape, side, random_model(shape))
    trainer.args.max_steps = 1
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        trainer.train()
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_real_steps_differ_by_the_products_that_the_limits_count(benchmark_modules, tmp_path, monkeypatch):
    from kl_barrier_shapes import QUICK, Side

    monkeypatch.chdir(tmp_path)
    shape = dataclasses.replace(QUICK.shapes[0], vocab_size=16_384)
    sft = Side("sft")
    least = count_step(sft, shape)
    # LoRA's own products come on top of 3 b + 3 u, and torch has no count for attention on a CPU.
    assert least == pytest.approx(sft.flops(shape), rel=0.03)
    sides = [Side("composition")] + [Side("barrier", is_open, how) for is_open in (False, True) for how in AGGREGATES]
    for side in sides:
        assert count_step(side, shape) - least == pytest.approx(side.flops(shape) - sft.flops(shape), rel=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_gpu_measures_runs_in_bfloat16(benchmark_modules, tmp_path, monkeypatch):
    from kl_barrier_shapes import GPU, QUICK

    import kl_barrier

    monkeypatch.chdir(tmp_path)
    shape = dataclasses.replace(QUICK.shapes[0], dtype=torch.bfloat16, is_headline=False)
    model = kl_barrier.random_model(shape)
    differences = kl_barrier.measure_equality(shape, model, AGGREGATES, GPU.tolerance)
    assert len(differences) == 10
    work = dataclasses.replace(GPU, shapes=(shape,), turns=1, warm_up=1)
    claims = [
        *kl_barrier.measure_gate(shape, model, work, is_open=True),
        *kl_barrier.measure_cache(shape, model, work),
    ]
    assert len(claims) == 5 + 5 + 2
    assert {claim.setting["dtype"] for claim in claims} == {"bfloat16"}
    # Elsewhere than at the headline shape, the target against the composition is a share of the limit.
    assert all(claim.target == pytest.approx(0.92 * claim.limit, abs=1e-4) for claim in claims[5:10])
