"""DPO on TAT-QA: right answers against answers that are wrong in one respect, measured by the official score.

    python examples/dpo_tatqa.py  # or accelerate launch; Qwen/Qwen3-1.7B and TAT-QA from the hub, for one GPU
    python examples/dpo_tatqa.py --seed 1  # results.jsonl then has both; the same for --beta 0.05, --rank 32, ...
    alignkit report outputs/dpo_tatqa/results.jsonl -o outputs/dpo_tatqa/report.md
    ALIGNKIT_DATA=/path/to/data python examples/dpo_tatqa.py --model /path/to/data/models/stories260K --no_chat \\
        --max_length 512 --learning_rate 1e-3  # without network; a smoke run with --limit 4, pairs with --pairs_only

Seen on 2026-11-21 with the last command, alignkit 0.1.0, 2 CPU cores, no GPU, 3 minutes of CPU time (one thread; 12 on
the clock, since others used the machine): 1,316 pairs to learn from, 333 held-out pairs, 336 held-out questions

    score, percent   before   after   difference [95 %]
    exact match       0.0      0.0    +0.0 [+0.0, +0.0]
    F1                0.6      0.7    +0.1 [-0.1, +0.3]
    scale            52.7     52.7    +0.0 [+0.0, +0.0]

One run. stories260K, 260,000 parameters that write children's stories, cannot answer TAT-QA and did not learn to: what
this shows is that all of it runs. Its scale score is the share of questions without a scale, for it names none. It
learned to prefer the right answer of a pair (log-ratio accuracy 0.613; by length alone 0.506) and writes none, at a
KL(policy || base) of 1.66 nats per token. The hub's model has not been run.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from rich import print
from rich.table import Table
from transformers import AutoTokenizer, set_seed
from trl import TrlParser

from alignkit import ScheduledDPOConfig, ScheduledDPOTrainer
from alignkit.evaluation.results import Result, append_result, origin
from alignkit.evaluation.statistics import paired_comparison
from alignkit.evaluation.tatqa_generation import evaluate_tatqa
from alignkit.experiments.history import final_training_loss, trimmed
from alignkit.experiments.settings import identity, lora_fields
from alignkit.experiments.training import peak_memory_gib
from alignkit.tasks.tatqa import PairReport, PromptForm, load_tatqa, tatqa_pairs
from alignkit.tasks.tatqa_files import HUB_ID

METRICS = {"em": "exact_match", "f1": "f1", "scale": "scale"}


@dataclass
class ScriptArguments:
    model: str = "Qwen/Qwen3-1.7B"  # any causal language model
    data: str | None = None  # a file of TAT-QA or a hub id; None is $ALIGNKIT_DATA/tatqa, without it the hub
    chat: bool = True  # ask in the model's chat template; --no_chat for a model without one
    rank: int = 16  # of the LoRA, whose alpha is twice that
    max_new_tokens: int = 64  # of an answer
    generation_batch_size: int = 16
    limit: int | None = None  # contexts of each part, for a look at whether all runs
    pairs_only: bool = False  # count the pairs of all contexts, and stop
    threads: int = 1  # of the CPU


def read_contexts(source: str | None, limit: int | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Contexts to learn from and contexts to ask about: the hub's train and dev; of a file every fifth is asked."""
    if source is None and os.environ.get("ALIGNKIT_DATA"):
        source = str(Path(os.environ["ALIGNKIT_DATA"], "tatqa", "tatqa_dataset_dev.json"))
    if source is None or not Path(source).is_file():
        train, held_out = (load_tatqa(source or HUB_ID, split=split) for split in ("train", "dev"))
    else:
        contexts = load_tatqa(source)
        train, held_out = [context for place, context in enumerate(contexts) if place % 5], contexts[::5]
    return train[:limit], held_out[:limit]


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = TrlParser((ScriptArguments, ScheduledDPOConfig))
    parser.set_defaults(
        **{"output_dir": "outputs/dpo_tatqa", "beta": 0.02, "learning_rate": 5e-6, "num_train_epochs": 1},
        **{"max_length": 768, "max_prompt_length": 384, "disable_dropout": False, "low_memory": has_gpu},
        **{"eval_strategy": "epoch", "save_strategy": "no", "report_to": "none", "logging_steps": 10},
        **{"use_cpu": not has_gpu, "bf16": has_gpu, "gradient_checkpointing": has_gpu},
    )
    script, args = parser.parse_args_and_config()
    torch.set_num_threads(script.threads)
    start_s = time.perf_counter()

    # 1. Model: by name. The reference is the model with its adapter switched off.
    tokenizer = AutoTokenizer.from_pretrained(script.model)
    lora = {"r": script.rank, "lora_alpha": 2 * script.rank, "lora_dropout": 0.05, "target_modules": "all-linear"}

    # 2. Data: prompts that are made to fit, so that nothing is cut later; the same ones in training and evaluation
    kwargs = {"enable_thinking": False} if script.chat else {}
    form = PromptForm(args.max_prompt_length, chat=script.chat, chat_template_kwargs=kwargs)
    contexts, held_out = read_contexts(script.data, script.limit)
    if script.pairs_only:
        show_pairs(tatqa_pairs([*contexts, *held_out], tokenizer, form)[1])
        return
    train, _ = tatqa_pairs(contexts, tokenizer, form)
    test, test_report = tatqa_pairs(held_out, tokenizer, form)

    # 3. Config: `args`; 4. Trainer
    set_seed(args.seed)  # the adapter is drawn before the trainer seeds anything
    trainer = ScheduledDPOTrainer(
        script.model,
        args=args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
    )

    def ask() -> dict[str, Any]:
        """Answers to all questions of the held-out contexts, greedily, in the precision of the weights."""
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        sizes = {"max_new_tokens": script.max_new_tokens, "batch_size": script.generation_batch_size}
        return evaluate_tatqa(model, tokenizer, held_out, form, **sizes)

    before = ask()
    trainer.train()

    # 5. Evaluate: on pairs, and by what the model writes; one line for each metric into results.jsonl
    metrics = trainer.evaluate()
    after = ask()
    settings = {name: getattr(script, name) for name in ("model", "chat", "limit", "max_new_tokens")}
    config = {**json.loads(args.to_json_string()), **settings, **lora_fields(lora)}
    run = identity(config)
    if trainer.is_world_process_zero():
        show_scores(before, after)
        print(f"{len(train)} pairs to learn from, {len(test)} held out")
        print(f"held-out pairs, accuracy by length alone: {test_report.length_accuracy['tokens']:.3f}")
        for name in ("loss", "logratio/accuracy", "kl/reverse_on_data"):
            print(f"held-out pairs, {name}: {metrics[f'eval_{name}']:.3f}")
        log = trainer.state.log_history
        losses = {"train_loss": final_training_loss(log), "eval_loss": metrics["eval_loss"], "history": trimmed(log)}
        costs = {"wall_time_s": time.perf_counter() - start_s, "peak_memory_gib": peak_memory_gib(args.device)}
        common: dict[str, Any] = {"seed": args.seed, "decoding": {"do_sample": False}, **costs, **origin(args.device)}
        common |= {"item_set": "tatqa_held_out", "role": "task", "higher_is_better": True, "unit": "proportion"}
        start: dict[str, Any] = {"run": f"baseline-{run}", "kind": "baseline", **common}
        trained: dict[str, Any] = {"run": run, "config": config, **losses, **common}
        for score, metric in METRICS.items():
            for scores, result in ((before, start), (after, trained)):
                items = items_of(scores, score)
                append_result(Path(args.output_dir, "results.jsonl"), Result(metric=metric, items=items, **result))

    # 6. Save: the adapter, in a folder of the run
    trainer.save_model(str(Path(args.output_dir, run)))


def items_of(scores: dict[str, Any], score: str, names: Sequence[str] = ()) -> dict[str, float]:
    """A score of each question, of the answer types `names` or of all."""
    found = scores["per_question"].items()
    return {uid: own[score] for uid, own in found if not names or own["answer_type"] in names}


def show_scores(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print both evaluations in percent, with the paired difference wherever there are two questions."""
    table = Table("questions", "score", "n", "before", "after", "difference [95 %]", "p")
    groups: list[tuple[str, str, list[str]]] = [("all", score, []) for score in METRICS]
    groups += [(name, "em", [name]) for name, summary in before["by_type"].items() if summary["n"] > 1]
    for group, score, names in groups:
        first, last = (items_of(scores, score, names) for scores in (before, after))
        found = paired_comparison(first, last)
        means = [100 * sum(items.values()) / len(items) for items in (first, last)]
        difference = [100 * value for value in (found.mean_difference, *found.interval)]
        cells = [*(f"{mean:.1f}" for mean in means), "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference)]
        table.add_row(group, METRICS[score], str(found.n), *cells, f"{found.p:.2g}")
    print(table)


def show_pairs(report: PairReport) -> None:
    """Print what became of the questions."""
    table = Table("answer type", "questions", "pairs", "without a pair, and why")
    for name, n in report.n_questions.items():
        reasons = "; ".join(f"{count}: {reason}" for reason, count in report.n_dropped.get(name, {}).items())
        table.add_row(name, str(n), str(report.n_pairs[name]), reasons)
    table.add_row("all", str(sum(report.n_questions.values())), str(sum(report.n_pairs.values())))
    wrong = Table("corruption", "pairs", "longer one is right")
    for name, n in report.n_corrupted.items():
        wrong.add_row(name, str(n), f"{report.longer_is_chosen[name]:.3f}")
    print(table, wrong)
    for unit, accuracy in report.length_accuracy.items():
        print(f"accuracy of guessing by length alone, in {unit}: {accuracy:.3f}")


if __name__ == "__main__":
    main()
