"""Two heads, helpful and harmless, on Anthropic's HH preference pairs: every pair trains one head.

    ALIGNKIT_DATA=/path/to/data python examples/reward_hh_two_heads.py  # or accelerate launch

Seen on 2026-11-21 with 2 CPU cores, no GPU, about 5 minutes (2 epochs, one thread):

    held-out accuracy [95 % Wilson]
    head      train  held out  own head              rule: longer reply    other head
    helpful   1272   349       0.625 [0.573, 0.674]  0.552 [0.498, 0.602]  0.355 [0.307, 0.407]
    harmless  1379   355       0.603 [0.551, 0.652]  0.482 [0.430, 0.534]  0.392 [0.342, 0.443]

Both heads beat chance. Harmless beats the rule "the longer reply is better"; for helpful the intervals overlap. The
heads pull in opposite directions: each is wrong on most pairs of the other, which a single head would have to average.
Only replies of up to 200 tokens; 1,969 of 3,355 prompts lost their oldest tokens to fit into 256.
"""

import gzip
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from rich import print
from rich.table import Table
from scipy.stats import binomtest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import TrlParser

from alignkit import MultiHeadRewardConfig, MultiHeadRewardTrainer

HEADS = ["helpful", "harmless"]
REPLY = "\n\nAssistant:"


@dataclass
class ScriptArguments:
    model: str | None = None  # any causal language model; None is $ALIGNKIT_DATA/models/stories260K
    longest_reply: int = 200  # tokens: a prompt can be shortened, a reply cannot
    n_rows: int | None = None  # per head; None is all
    threads: int = 1  # of the CPU; for a model this small one is enough


def data_folder() -> Path:
    if not os.environ.get("ALIGNKIT_DATA"):
        raise SystemExit("set ALIGNKIT_DATA to the folder with hh_rlhf and models/stories260K")
    return Path(os.environ["ALIGNKIT_DATA"])


def read_pairs(path: Path, head: str, tokenizer: PreTrainedTokenizerBase, longest_reply: int) -> list[dict]:
    """The pairs of a file with the dialogue up to the last `Assistant:` as prompt."""
    pairs = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            split = row["chosen"].rindex(REPLY) + len(REPLY)
            prompt = row["chosen"][:split]
            replies = {side: row[side][split:] for side in ("chosen", "rejected")}
            if not row["rejected"].startswith(prompt) or len({reply.strip() for reply in [*replies.values(), ""]}) < 3:
                continue  # two dialogues, an empty reply, or twice the same one
            if max(len(ids) for ids in tokenizer(list(replies.values()))["input_ids"]) <= longest_reply:
                pairs.append({"prompt": prompt, **replies, "head": head})
    return pairs


def is_held_out(pair: dict) -> bool:
    """One dialogue in five, by its first question, since several rows may continue the same dialogue."""
    return zlib.crc32(pair["prompt"].split(REPLY)[0].encode()) % 5 == 0


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = TrlParser((ScriptArguments, MultiHeadRewardConfig))
    parser.set_defaults(
        **{"output_dir": "outputs/reward_hh_two_heads", "max_length": 256, "overflow": "truncate_prompt"},
        **{"num_train_epochs": 2, "per_device_train_batch_size": 16, "head_names": HEADS, "logging_steps": 50},
        **{"learning_rate": 5e-4, "lr_scheduler_type": "cosine", "warmup_steps": 20, "save_strategy": "no"},
        **{"use_cpu": not has_gpu, "bf16": has_gpu, "gradient_checkpointing": has_gpu, "report_to": "none"},
    )
    script, args = parser.parse_args_and_config()
    torch.set_num_threads(script.threads)
    folder = data_folder()

    # 1. Model: the name of a backbone. The trainer gives it one row of `score` per head.
    model = script.model or str(folder / "models" / "stories260K")

    # 2. Data: `head` says which head a pair belongs to.
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = []
    for head in HEADS:
        file = folder / "hh_rlhf" / f"{head}-base_test.jsonl.gz"
        pairs += read_pairs(file, head, tokenizer, script.longest_reply)[: script.n_rows]
    train = Dataset.from_list([pair for pair in pairs if not is_held_out(pair)])
    held_out = Dataset.from_list([pair for pair in pairs if is_held_out(pair)])

    # 3. Config: `args`; 4. Trainer
    trainer = MultiHeadRewardTrainer(model, args, train_dataset=train, eval_dataset=held_out)
    trainer.train()

    # 5. Evaluate
    trainer.evaluate()
    if trainer.is_world_process_zero():
        report(trainer)

    # 6. Save
    trainer.save_model()
    trainer.create_model_card()


def report(trainer: MultiHeadRewardTrainer) -> None:
    """Print accuracy per head beside that of the rule "the longer reply is better" and of the other head's scores."""
    metrics = trainer.evaluation_report
    table = Table("head", "train pairs", "held-out pairs", "accuracy [95 % Wilson]", "longer reply", "other head")
    results = {}
    for k, head in enumerate(HEADS):
        n, own = metrics.counts[head]["comparisons"], metrics.heads[head]
        cells = []
        for accuracy in (own["accuracy"], own["length_accuracy"], metrics.leakage[k, 1 - k]):
            interval = binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
            cells.append(f"{accuracy:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
        table.add_row(head, f"{trainer.data_report['train']['comparisons'][head]:.0f}", str(n), *cells)
        results[head] = {"n": n, "accuracy": own["accuracy"], "length_accuracy": own["length_accuracy"]}
    print(table, "Prompts shortened:", {split: counts["trimmed"] for split, counts in trainer.data_report.items()})
    Path(trainer.args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(trainer.args.output_dir, "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
