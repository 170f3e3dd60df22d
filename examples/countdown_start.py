"""Where the countdown examples start: problems, and a Llama of 200,000 parameters that was taught the format.

The lesson ends as soon as it writes the format reliably and solves a few problems, so that something is left to learn.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from alignkit.reliability import check_process_count
from alignkit.tasks.countdown import CountdownReward, countdown_trace, generate_countdown

Rows = list[dict[str, Any]]
MAX_NEW_TOKENS = 32


def small_tokenizer(rows: Rows) -> PreTrainedTokenizerFast:
    """Byte-level BPE to which a number below 100, and the instruction, is about one token each. Decoding is exact."""
    tokenizer = Tokenizer(models.BPE())
    parts = Regex(r"\.\nUse [^\n]*\n|\d+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(parts, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for row in rows for text in (row["prompt"], trace(row))]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *map(str, range(100))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        pad_token="<pad>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def small_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def problems(numbers: list[int], *sizes: int) -> list[Rows]:
    """Sets of these sizes. No problem is in two of them, also not with its numbers in another order."""
    rows = generate_countdown(sum(sizes), seed=0, numbers=numbers, number_range=(1, 50))
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [rows[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def trace(row: dict[str, Any]) -> str:
    return countdown_trace(row, seed=0, max_failures=0)


class StopEarly(TrainerCallback):
    """Ends the lesson when greedy completions of training prompts have the format and a share `solved` is right."""

    def __init__(self, tokenizer: Any, rows: Rows, *, solved: float, every: int):
        self._tokenizer = tokenizer
        self._rows = rows
        self._solved = solved
        self._every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every:
            return
        model, prompts = kwargs["model"].eval(), [row["prompt"] for row in self._rows]
        encoded = self._tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
        tokens = model.generate(**encoded, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        model.train()
        texts = self._tokenizer.batch_decode(tokens[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        numbers, target = ([row[name] for row in self._rows] for name in ("numbers", "target"))
        rewards = CountdownReward()(prompts, texts, numbers, target)
        formatted, right = (sum(reward >= least for reward in rewards) / len(rewards) for least in (0.1, 1.0))
        print(f"SFT step {state.global_step}: {formatted:.0%} have the format, {right:.0%} solve the problem")
        control.should_training_stop = formatted >= 0.95 and right >= self._solved


def taught_model(rows: Rows, folder: Path, *, seed: int, steps: int, use_cpu: bool, solved: float = 0.3) -> str:
    """A folder with the small model, after SFT on traces of `rows`: made once for a seed, then reused.

    Args:
        steps (`int`): of SFT, at most.
        solved (`float`): share of training problems at which SFT ends, if also the format is there.
    """
    if (folder / "tokenizer.json").exists():
        return str(folder)
    tokenizer = small_tokenizer(rows)
    args = SFTConfig(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=48,
        learning_rate=4e-3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=50,
        seed=seed,
        gradient_checkpointing=False,
        use_cpu=use_cpu,
        bf16=False,
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    check_process_count(args.device, args.world_size)
    trainer = SFTTrainer(
        small_model(tokenizer, seed),
        args,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": trace(row)} for row in rows]),
        processing_class=tokenizer,
        callbacks=[StopEarly(tokenizer, rows[:100], solved=solved, every=10)],
    )
    trainer.train()
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
