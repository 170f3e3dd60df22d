"""The stages of a round: propose, filter, heal, measure. Each writes a file that the next one reads.

A stage whose file is there is not run again, and every stage draws from (seed, round, stage) alone. Going through the
disk in the first run as in a resumed one is what makes the two equal.
"""

import copy
import gc
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from alignkit.kl_barrier.config import KLBarrierConfig
from alignkit.kl_barrier.rounds.adapters import join_rounds, read_adapter, save_adapter, student, trainee
from alignkit.kl_barrier.rounds.directions import steer
from alignkit.kl_barrier.rounds.filters import (
    FilterSettings,
    TooFewCompletionsError,
    choose_kept,
    judge_proposals,
    shortage,
)
from alignkit.kl_barrier.rounds.proposals import Proposal, Proposer
from alignkit.kl_barrier.rounds.records import (
    RECORD_FILE,
    Scores,
    check_finite,
    file_digests,
    measure_samples,
    measure_student,
    origin_of,
    student_samples,
    summarize,
    summarize_proposals,
)
from alignkit.kl_barrier.rounds.scoring import encode_continuations
from alignkit.kl_barrier.rounds.settings import RoundProbes, stage_seed
from alignkit.kl_barrier.rounds.steering import ActivationSteering
from alignkit.kl_barrier.trainer import KLBarrierTrainer
from alignkit.storage import PARTIAL, read_json, read_lines, write_json, write_lines

logger = logging.getLogger(__name__)
DOSE_FILE = "dose.json"  # the search for the steering dose, where there was one
SCRATCH = "trainer" + PARTIAL  # the trainer's own folder
TIMED = ("runtime", "per_second", "flos")  # in the names of logged values that differ between equal runs


@dataclass(frozen=True)
class Stages:
    """What every stage needs. The arguments are those of `run_rounds`; `settings` is their description."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    training: KLBarrierConfig
    peft_config: LoraConfig
    proposer: Proposer
    filters: FilterSettings
    probes: RoundProbes
    seed: int
    settings: dict[str, Any]

    def run(self, number: int) -> dict[str, Any]:
        """Whatever of round `number` is missing; its record.

        Raises:
            TooFewCompletionsError: the filters leave fewer completions than a round needs.
            ValueError: the training diverged, or a file of an earlier attempt is damaged.
        """
        self.at(number).mkdir(exist_ok=True)
        logger.info("round %d: propose", number)
        proposals = self._propose(number)
        logger.info("round %d: filter %d proposals", number, len(proposals))
        completions = self._filter(number, proposals)
        logger.info("round %d: train", number)
        self._heal(number, [row for row in completions if row["kept"]])
        shutil.rmtree(self.at(number, SCRATCH), ignore_errors=True)
        if not self.at(number, "adapter").exists():
            save_adapter(join_rounds(self._history(number), self.at(number, "delta")), self.at(number, "adapter"))
        logger.info("round %d: measure", number)
        log = read_lines(self.at(number, "training_log.jsonl"))
        last_values = {name: value for entry in log for name, value in entry.items()}
        dose = self.at(number, DOSE_FILE)
        about_round = {
            "dose": read_json(dose) if dose.exists() else None,
            "proposals": summarize_proposals(completions),
            "steered": self._measure_steered(number, proposals),
            "training": last_values,
        }
        return self.record(number, about_round)

    def at(self, number: int, name: str = "") -> Path:
        return self.folder / f"round_{number}" / name

    def _history(self, number: int) -> Path | None:
        """The cumulative adapter that round `number` builds upon."""
        return self.at(number - 1, "adapter") if number > 1 else None

    def _propose(self, number: int) -> list[Proposal]:
        path = self.at(number, "proposals.jsonl")
        if not path.exists():
            seed = stage_seed(self.seed, number, "propose")
            set_seed(seed)  # for a proposer that draws from the global state
            search = None
            with student(self.model, self._history(number)) as current:
                if isinstance(self.proposer, ActivationSteering):
                    proposals, search = self.proposer.propose(current, self.tokenizer, number, seed)
                else:
                    proposals = self.proposer(current, self.tokenizer, number, seed)
            if search is not None:
                write_json(self.at(number, DOSE_FILE), asdict(search))
            if not proposals:
                raise TooFewCompletionsError(f"the proposer offered no completions in round {number}")
            write_lines(path, map(asdict, proposals))
        return [_read(path, Proposal, row) for row in read_lines(path)]

    def _filter(self, number: int, proposals: Sequence[Proposal]) -> list[dict[str, Any]]:
        """Every proposal with its judgement and whether it is `kept`.

        Raises:
            TooFewCompletionsError: in every attempt, and once the judgements are on disk for the user to read.
        """
        path = self.at(number, "completions.jsonl")
        if not path.exists():
            seed = stage_seed(self.seed, number, "filter")
            with student(self.model, None) as original:
                judgements = judge_proposals(original, self.tokenizer, proposals, self.filters)
            result = choose_kept(judgements, self.filters, seed=seed)
            kept = {id(proposal) for proposal in result.kept}
            write_lines(
                path,
                (
                    {
                        **asdict(judgement.proposal),
                        "perplexity": judgement.perplexity,
                        "repetition": judgement.repetition,
                        "reason": judgement.reason,
                        "kept": id(judgement.proposal) in kept,
                    }
                    for judgement in result.judgements
                ),
            )
        rows = read_lines(path)
        lack = shortage([row["reason"] for row in rows], self.filters)
        if lack is not None:
            raise TooFewCompletionsError(f"{lack}; round_{number}/{path.name} has every judgement")
        return rows

    def _heal(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Train the round's own adapter on the completions, on top of the earlier rounds."""
        folder = self.at(number, "delta")
        if folder.exists():
            return
        args = copy.copy(self.training)
        args.output_dir, args.model_init_kwargs = str(self.at(number, SCRATCH)), None
        args.seed = args.data_seed = stage_seed(self.seed, number, "heal")
        args.save_strategy = args.eval_strategy = "no"
        args.push_to_hub = args.eval_on_start = args.load_best_model_at_end = False
        history = self._history(number)
        if history is None:
            args.ref = "base"  # before the first round the previous model is the base
        kept = [Proposal(row["prompt"], row["completion"]) for row in rows]
        set_seed(args.seed)
        with trainee(self.model, history, self.peft_config) as peft_model:
            trainer = KLBarrierTrainer(
                peft_model,
                args,
                train_dataset=training_rows(self.tokenizer, kept),
                processing_class=copy.deepcopy(self.tokenizer),  # the trainer gives it a pad token
            )
            trainer.train()
            delta = read_adapter(peft_model)
            broken = next((name for name, tensor in delta.weights.items() if not tensor.isfinite().all()), None)
            if broken is not None:
                raise ValueError(f"round {number} diverged: {broken} is not finite; lower training.learning_rate")
            write_lines(
                self.at(number, "training_log.jsonl"),
                map(_loggable, trainer.state.log_history),
            )
            save_adapter(delta, folder)
        del trainer, peft_model, delta
        gc.collect()  # trainer and model refer to each other, and a GPU needs the memory for the next stage

    def _measure_steered(self, number: int, proposals: Sequence[Proposal]) -> dict[str, Any] | None:
        """The student that proposed, steered at its largest strength; None for other proposers."""
        if not isinstance(self.proposer, ActivationSteering):
            return None
        strength = max((proposal.strength or 0.0 for proposal in proposals), key=abs)
        with student(self.model, self._history(number)) as current:
            direction = self.proposer.direction(current, self.tokenizer)
            with steer(current, direction, strength):
                scores = measure_student(current, self.tokenizer, self.probes)
        check_finite(scores)
        return {"strength": strength, "scores": scores, **summarize(scores)}

    def record(self, number: int, about_round: dict[str, Any]) -> dict[str, Any]:
        """Measure the student after round `number` and write the record that makes the round finished."""
        history = self._history(number + 1)
        with student(self.model, history) as current:
            scores: Scores = measure_student(current, self.tokenizer, self.probes)
            # The same draws in every round, so that two rounds differ by their students alone.
            samples = student_samples(current, self.tokenizer, self.probes, seed=stage_seed(self.seed, 0, "samples"))
        with student(self.model, None) as original:
            scores |= measure_samples(original, self.tokenizer, samples, self.probes)
        check_finite(scores)
        self.at(number).mkdir(exist_ok=True)
        record = {
            "round": number,
            **summarize(scores),
            "scores": scores,
            "samples": [{"prompt": sample.prompt, "completion": sample.completion} for sample in samples],
            **about_round,
            **origin_of(self.model),
            "seed": self.seed,
            "settings": self.settings,
            "files": file_digests(self.at(number)),
        }
        write_json(self.at(number, RECORD_FILE), record)
        return record


def training_rows(tokenizer: PreTrainedTokenizerBase, proposals: Sequence[Proposal]) -> Dataset:
    """What a round trains on: `input_ids`, and `labels` with -100 for the prompt.

    They are the tokens whose perplexity is judged; no end-of-sequence token is appended.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for proposal in proposals:
        context, (completion,) = encode_continuations(tokenizer, proposal.prompt, [proposal.completion])
        columns["input_ids"].append(context + completion)
        columns["labels"].append([-100] * len(context) + completion)
    return Dataset.from_dict(columns)


def _loggable(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry without what differs between equal runs; NaN and infinity, which JSON has not, as words."""
    kept = {name: value for name, value in entry.items() if not any(part in name for part in TIMED)}
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in kept.items()
    }


def _read(path: Path, kind: type[Proposal], row: dict[str, Any]) -> Proposal:
    try:
        return kind(**row)
    except TypeError as error:
        raise ValueError(f"{path} is damaged: {error}; remove {path.parent}, which is then made again") from error
