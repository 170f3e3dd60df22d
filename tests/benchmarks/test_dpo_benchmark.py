import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCE = Path(__file__).parents[2] / "src"


def run_quick(output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "dpo.py"), "--quick", "--output", str(output)],
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
@pytest.mark.timeout(300)
def test_the_quick_benchmark_records_every_claim_after_finding_the_same_loss_and_gradient(tmp_path):
    output = tmp_path / "result.json"
    output.write_text(json.dumps({"another benchmark": {"stays": True}}))
    result = run_quick(output)
    assert result.returncode == 0, result.stderr
    records = json.loads(output.read_text())
    assert records["another benchmark"] == {"stays": True}
    record = records["dpo"]

    assert record["quick"] is True
    assert record["recorder_check"]["by_hand_bytes"] == record["recorder_check"]["recorded_bytes"]
    # Two models with two kinds of lengths, and the head in two ways.
    assert len(record["relative_differences"]) == 2 * 2 + 2
    for difference in record["relative_differences"].values():
        assert difference["loss"] <= 1e-5 and difference["gradient"] <= 1e-5

    claims = {claim["claim"]: claim for claim in record["claims"]}
    # Those six and the slowest step of both models; peak memory of both; the sweep and the reward model in two ways.
    assert len(claims) == len(record["claims"]) == 6 + 2 + 2 + 2 + 2
    for name, claim in claims.items():
        relation, target = claim["target"].split()
        assert claim["met"] is (
            claim["median"] <= float(target) if relation == "<=" else claim["median"] >= float(target)
        )
        if "time of" in name:
            assert claim["limit"] > 1
            assert all(side["cpu_s"] for side in claim["raw"].values() if isinstance(side, dict))
    sweeps = [claim["also"]["reference_forwards"] for name, claim in claims.items() if "runs over beta" in name]
    assert [sum(forwards) for sweep in sweeps for side, forwards in sweep.items() if side != "TRL"] == [2, 2]
    # What has no noise can be asserted at any shape; at a toy's the head's buffer is all that counts.
    peaks = [claim for name, claim in claims.items() if "peak bytes" in name]
    assert all(claim["median"] < 1 and claim["also"]["with_head_at_every_position"] < 0.65 for claim in peaks)
    assert record["overhead"]["host_waits"]["alignkit"].keys() == {"trl"}
    shapes = record["small_shapes" if record["gpu"] is None else "gpu_shapes"]
    assert all(shape["limit"] > 1 for shape in shapes.values())


@pytest.mark.parametrize("how", ["causal", "boolean mask", "added mask"])
def test_attention_counts_the_pairs_under_its_mask_forward_and_backward(benchmark_modules, how):
    from flops import flop_counter

    query, key, value = (torch.randn(2, 3, 8, 4, requires_grad=True) for _ in range(3))
    allowed = torch.ones(8, 8, dtype=torch.bool).tril()
    mask = {"causal": None, "boolean mask": allowed, "added mask": torch.zeros(8, 8).masked_fill(~allowed, -torch.inf)}
    with flop_counter() as counter:
        scaled_dot_product_attention(
            query, key, value, attn_mask=mask[how], is_causal=how == "causal"
        ).sum().backward()
    pairs = 2 * 3 * (8 * 9 // 2)
    assert counter.get_total_flops() == (2 + 5) * 2 * pairs * 4


def test_a_product_added_in_place_counts_like_any_other(benchmark_modules):
    from flops import flop_counter

    with flop_counter() as counter:
        torch.zeros(3, 7).addmm_(torch.ones(3, 5), torch.ones(5, 7))
    assert counter.get_total_flops() == 2 * 3 * 5 * 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_step_runs_the_tokens_and_head_positions_that_its_sides_say(benchmark_modules, tmp_path, monkeypatch):
    from dpo_shapes import TOY, Lengths
    from dpo_workloads import Counted, head_at_completions, new_trainer, random_model

    monkeypatch.chdir(tmp_path)
    lengths = Lengths("fixed", (30, 30), (6, 6), pairs=2)
    head = 2 * TOY.hidden_size * TOY.vocab_size

    def flops(side):
        trainer = new_trainer(side, random_model(TOY), lengths.rows(), pairs=2, learning_rate=0.0)
        return Counted(trainer, 1).flops

    every = {side: flops(side) for side in ("TRL", "alignkit")}
    with head_at_completions():
        chosen = {side: flops(side) for side in ("TRL", "alignkit")}
    # TRL projects 2 x 2 rows x 35 positions, or those 6 that predict a completion's token; ours always the latter. Two
    # forwards, and two products of a backward.
    assert every["TRL"] - chosen["TRL"] == 4 * head * 4 * (35 - 6)
    assert every["alignkit"] == chosen["alignkit"]
