"""The reference's log-probabilities are those of its forward, are found once, and never stand for something else."""

import logging
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from alignkit._compat import keep_cpu_4bit_gradients_right
from alignkit.dpo.collator import PairCollator, cut_to_completions
from alignkit.dpo.reference_logps import ReferenceLogps, reference_folder, sum_completions
from alignkit.fused_head.modeling import causal_lm_of
from alignkit.reference import ReferenceManager
from alignkit.shared_prefix import share_prefix
from alignkit.tasks.toy import byte_tokenizer
from tests.dpo.conftest import pairs
from tests.tiny_models import lively_lm

PAD = 256
LIMITS = {"max_length": 48, "max_prompt_length": 32}


def tokenised(n: int, seed: int = 0) -> Dataset:
    rows = [
        {
            "prompt_ids": list(row["prompt"].encode()),
            "chosen_ids": list(row["chosen"].encode()),
            "rejected_ids": list(row["rejected"].encode()),
        }
        for row in pairs(n, seed)
    ]
    return Dataset.from_list(rows)


def with_lora(seed: int, rank: int, model_seed: int = 1):
    base = lively_lm(model_seed)
    add_fused_lm_head(base)
    torch.manual_seed(seed)
    return get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear", lora_dropout=0.1))


class Run:
    """One run's reference, and the number of its forwards."""

    def __init__(self, folder, *, model=None, ref=None, collator=None):
        self.model = with_lora(0, 4) if model is None else model
        self.logps = ReferenceLogps(ReferenceManager(self.model, ref), Accelerator(cpu=True), folder=folder)
        self.collator = collator or PairCollator(PAD, with_keys=True, **LIMITS)
        self.n_forwards = 0
        causal_lm_of(self.model).model.register_forward_pre_hook(self._count)

    def _count(self, module, arguments) -> None:
        self.n_forwards += 1

    def find(self, dataset: Dataset, batch_size: int = 4) -> int:
        """Number of forwards that it took."""
        before = self.n_forwards
        n_batches = self.logps.find(
            self.model, dataset, self.collator, name="train dataset", batch_size=batch_size, computing=nullcontext()
        )
        assert self.n_forwards - before == n_batches
        return n_batches

    def check(self, dataset: Dataset) -> None:
        """The files hold what a forward of each batch gives."""
        rows = dataset.to_list()
        for start in range(0, len(rows), 3):
            batch = self.collator(rows[start : start + 3])
            keys = batch.pop("row_keys")
            assert self.logps.has(keys)
            found = self.logps.of_rows(keys, batch["completion_mask"])
            expected = self.logps.of_batch(self.model, batch)
            assert found.shape == expected.shape and found.dtype == torch.float32
            assert not found[batch["completion_mask"][:, 1:] == 0].any() and found.min() < -1
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ld_alpha", [None, 0.0, 0.3])
def test_forward_and_sums_are_bit_equal_to_those_of_trl(tmp_path, ld_alpha):
    args = DPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        ld_alpha=ld_alpha,
        max_length=60,
    )
    trainer = DPOTrainer(lively_lm(1), lively_lm(2), args, train_dataset=pairs(6), processing_class=byte_tokenizer())
    batch = trainer.data_collator(list(trainer.train_dataset))
    expected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    reference = ReferenceManager(trainer.model, None, ref_model=trainer.ref_model)
    per_token = ReferenceLogps(reference, trainer.accelerator, folder=None).of_batch(trainer.model, batch)
    found = sum_completions(per_token, batch["completion_mask"], ld_alpha)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_sums_weigh_the_tokens_beyond_the_shorter_completion():
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
    per_token = torch.tensor([[1.0, 2, 4, 8], [0, 16, 0, 0], [0, 32, 64, 0], [128, 256, 0, 0]])
    chosen, rejected = sum_completions(per_token, mask, None)
    assert (chosen.tolist(), rejected.tolist()) == ([15, 16], [96, 384])
    chosen, rejected = sum_completions(per_token, mask, 0.5)
    assert (chosen.tolist(), rejected.tolist()) == ([1 + 2 + 0.5 * 12, 16], [96, 128 + 0.5 * 256])


@pytest.mark.parametrize("n_pairs", [1, 7, 8, 9])
def test_forwards_are_the_missing_pairs_by_the_batch_rounded_up_and_a_second_run_needs_none(tmp_path, n_pairs):
    dataset = tokenised(n_pairs)
    first = Run(tmp_path)
    assert first.find(dataset) == -(-n_pairs // 4)
    assert first.find(dataset) == 0
    first.check(dataset)
    second = Run(tmp_path)
    assert second.find(dataset.shuffle(seed=1)) == 0
    second.check(dataset)


def test_the_files_serve_any_adapter_seed_and_sum_on_the_same_base(tmp_path):
    dataset = tokenised(6)
    Run(tmp_path).find(dataset)
    other = Run(tmp_path, model=with_lora(seed=5, rank=8))
    assert other.find(dataset) == 0
    other.check(dataset)


def test_shared_and_cut_rows_give_the_same_values_and_keys(tmp_path):
    dataset = tokenised(6)
    model = with_lora(0, 4)
    share_prefix(model)
    sharing = PairCollator(PAD, share_prefix=True, with_keys=True, **LIMITS)
    run = Run(tmp_path, model=model, collator=sharing)
    assert sharing(dataset.to_list())["packed"] is not None
    assert run.find(dataset, batch_size=6) == 1
    unshared = Run(tmp_path)
    assert unshared.find(dataset) == 0
    unshared.check(dataset)
    cut = cut_to_completions(sharing(dataset.to_list()))
    keys = cut.pop("row_keys")
    found = run.logps.of_rows(keys, cut["completion_mask"])
    torch.testing.assert_close(found, run.logps.of_batch(model, cut), rtol=0, atol=1e-5)


def test_new_rows_and_new_limits_cost_the_pairs_whose_tokens_changed(tmp_path):
    dataset = tokenised(8)
    Run(tmp_path).find(dataset)
    rows = dataset.to_list()
    rows[2]["chosen_ids"] = [*rows[2]["chosen_ids"], 33]
    rows[5]["prompt_ids"] = [33, *rows[5]["prompt_ids"]]  # of its 36 tokens the last 32 stay
    changed = Dataset.from_list(rows)
    assert len(dataset[5]["prompt_ids"]) >= 32
    run = Run(tmp_path)
    assert run.find(changed, batch_size=1) == 1
    run.check(changed)
    longer = Run(tmp_path, collator=PairCollator(PAD, max_length=60, max_prompt_length=36, with_keys=True))
    n_changed = int(PairCollator(PAD, **LIMITS)(dataset.to_list())["n_cut"].any(dim=1).sum())
    assert 0 < n_changed < 8
    assert longer.find(dataset, batch_size=1) == n_changed
    longer.check(dataset)


def test_rows_that_occur_twice_are_run_once_and_a_pair_of_known_rows_is_known(tmp_path):
    one, two, three = tokenised(3).to_list()
    swapped = one | {"chosen_ids": one["rejected_ids"], "rejected_ids": one["chosen_ids"]}
    dataset = Dataset.from_list([one, two, one, swapped, three])
    run = Run(tmp_path)
    assert run.find(dataset, batch_size=1) == 3
    run.check(dataset)


def test_a_reference_of_other_weights_adapters_quantisation_or_precision_shares_nothing(tmp_path, monkeypatch):
    dataset = tokenised(3)
    lively_lm(1).save_pretrained(tmp_path / "model")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    four_bit = AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=nf4, dtype=torch.float32)
    keep_cpu_4bit_gradients_right(four_bit)
    half = lively_lm(1).to(torch.bfloat16)
    for base in (four_bit, half):
        add_fused_lm_head(base)
    trained = with_lora(0, 4)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    four_bit, half = (get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")) for base in (four_bit, half))
    runs = [
        Run(tmp_path / "cache"),
        Run(tmp_path / "cache", model=with_lora(0, 4, model_seed=2)),
        Run(tmp_path / "cache", model=trained, ref="adapter"),
        Run(tmp_path / "cache", model=four_bit),
        Run(tmp_path / "cache", model=half),
    ]
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "bf16")
    runs.append(Run(tmp_path / "cache"))
    for run in runs:
        assert run.find(dataset) == 1
    assert len(list((tmp_path / "cache").iterdir())) == len(runs)
    for run in runs[:4]:
        assert run.find(dataset) == 0
        run.check(dataset)


def test_a_damaged_file_is_run_again_with_one_warning_and_never_trusted(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    dataset = tokenised(8)
    Run(tmp_path).find(dataset)
    [path] = tmp_path.rglob("*.arrow")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    again = Run(tmp_path)
    assert again.find(dataset) == 2
    again.check(dataset)
    assert Run(tmp_path).find(dataset) == 0
    assert [record for record in caplog.records if str(path) in record.getMessage()] == caplog.records
    assert len(caplog.records) == 1


def test_a_run_that_breaks_off_has_kept_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr("alignkit.dpo.reference_logps.SECONDS_PER_FILE", 0)
    dataset = tokenised(8)
    broken = Run(tmp_path)

    def stop_at_the_third(module, arguments):
        if broken.n_forwards == 3:
            raise KeyboardInterrupt

    causal_lm_of(broken.model).model.register_forward_pre_hook(stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        broken.find(dataset, batch_size=2)
    run = Run(tmp_path)
    assert run.find(dataset, batch_size=2) == 2
    run.check(dataset)


def test_finding_draws_no_random_number_and_leaves_the_model_as_it_was(tmp_path):
    run = Run(tmp_path)
    run.model.train()
    state = torch.get_rng_state()
    run.find(tokenised(5))
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in run.model.modules())
    assert all(parameter.requires_grad == ("lora" in name) for name, parameter in run.model.named_parameters())


def test_the_longest_pairs_run_first_so_that_memory_ends_at_once_or_never(tmp_path):
    run, widths = Run(tmp_path), []
    record = lambda module, arguments, keywords: widths.append(keywords["input_ids"].shape[1])  # noqa: E731
    causal_lm_of(run.model).model.register_forward_pre_hook(record, with_kwargs=True)
    run.find(tokenised(12), batch_size=3)
    assert len(widths) == 4 and widths == sorted(widths, reverse=True) and widths[0] > widths[-1]


def test_rows_that_were_not_looked_for_are_not_there(tmp_path):
    run = Run(tmp_path)
    run.find(tokenised(3))
    batch = run.collator(tokenised(3, seed=4).to_list())
    assert not run.logps.has(batch["row_keys"])
    with pytest.raises(KeyError, match="has no row"):
        run.logps.of_rows(batch["row_keys"], batch["completion_mask"])
    assert not ReferenceLogps(ReferenceManager(with_lora(0, 4), None), Accelerator(cpu=True), folder=None).has([b""])


def test_a_reference_that_moves_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match='ref="ema" moves with the policy'):
        Run(tmp_path, ref="ema")


def test_the_folder_is_the_users_unless_it_is_given(tmp_path, monkeypatch):
    assert str(reference_folder("given")) == "given"
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    assert reference_folder(None) == tmp_path / "ref_logps"
    monkeypatch.delenv("ALIGNKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reference_folder(None) == tmp_path / ".cache" / "alignkit" / "ref_logps"
