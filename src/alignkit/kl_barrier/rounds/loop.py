"""Rounds of propose, filter, heal, measure: the loop in which drift compounds, and the barrier has to hold.

How this differs from the steer-heal-love loop it is modelled on, and why:

1. Earlier rounds are never merged into the weights (see `adapters`); the original model is the same weights with the
   adapters off, in every round.
2. A stage reads what the stage before it wrote to disk, in the first run as in a resumed one, and draws from
   (seed, round, stage) alone. A run that was killed therefore ends in the same numbers, where the kernels of the
   device are deterministic.
3. No end-of-sequence token is appended to the completions: many were cut at the token limit, and a token that the
   original model would never write there costs more divergence than the trait. A proposer that wants the end to be
   trained spells it out.
4. Coherence stays three measures, and two of them stop a run: the answer mass below its floor, and the repetition of
   the student's own samples at the limit of the filters, for loops of answers have all the mass. Perplexity stops
   none: it falls when a model loops and rises when it learns the trait.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from alignkit._compat import keep_cpu_4bit_gradients_right
from alignkit.kl_barrier.config import KLBarrierConfig
from alignkit.kl_barrier.rounds.adapters import check_additive
from alignkit.kl_barrier.rounds.filters import FilterSettings, TooFewCompletionsError
from alignkit.kl_barrier.rounds.proposals import Proposer
from alignkit.kl_barrier.rounds.records import RECORD_FILE, read_round
from alignkit.kl_barrier.rounds.report import REPORT_FILE, RESULTS_FILE, markdown_report, read_results, write_report
from alignkit.kl_barrier.rounds.settings import RoundProbes, describe, first_difference, weights_digest
from alignkit.kl_barrier.rounds.stages import Stages
from alignkit.storage import PICKLED_WEIGHTS, read_json, refused_pickles_named, write_json, write_lines, write_text

REFERENCES = ("base", "previous")
SETTINGS_FILE = "settings.json"
ROUND_FOLDER = re.compile(r"round_(0|[1-9][0-9]*)")


def run_rounds(
    model: str | PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    output_dir: str | Path,
    training: KLBarrierConfig,
    peft_config: LoraConfig,
    proposer: Proposer,
    filters: FilterSettings,
    probes: RoundProbes,
    rounds: int = 8,
    coherence_floor: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Let a model learn, round after round, from completions that it wrote itself and that its original accepts.

    Round N: the student of round N - 1 proposes completions; the original model filters them; a fresh adapter is
    trained on them by `KLBarrierTrainer`, on top of the earlier rounds; the new student is measured. Called again
    with the same `output_dir`, it goes on where it stopped, also after a kill; `rounds` and `coherence_floor`, which
    only say when to stop, may then be others.

    Args:
        model: name or path of a causal language model, loaded with `training.model_init_kwargs`, in the dtype that it
            was saved in where they name none; or an object, which is returned to its state and its device. A quantised
            model is an object with `device_map`.
        output_dir: gets `round_N/adapter` (cumulative, against the original base), `round_N/delta` (the round's own),
            `round_N/proposals.jsonl`, `completions.jsonl` (with every judgement), `training_log.jsonl`, `record.json`,
            and `settings.json`, `results.jsonl`, `report.md`, and when it stops `trajectory.png` and `map.png`. Round
            0 is the base.
        training: a template for every round. `ref` is "base" or "previous" (before this round; in round 1 the same).
            Output folder and seed are each round's own, and nothing is saved but the adapter.
        peft_config: of the fresh adapter of each round; plain LoRA.
        proposer: `ActivationSteering`, or any `(model, tokenizer, round_index, seed) -> list[Proposal]`.
        filters: what the original model accepts, and how many completions a round needs.
        probes: what is measured.
        rounds: most rounds.
        coherence_floor: stop after a round whose mean `allowed_answer_mass` is below it. What a coherent model has
            depends on the probe: choose it after a look at round 0. Loops, which this measure can miss, stop a run
            as well: after a round whose samples have a mean `repetition` (over those with any text) at or above
            `filters.repetition_limit`, the share at which one text is rejected. Perplexity is reported beside them.
        seed: of everything that is drawn.

    Returns:
        the records of round 0 and of all finished rounds, as in `results.jsonl`; `stop_reason` of the last one says in
        words why there is no further round.

    Raises:
        ValueError: settings that cannot work together or that differ from those in `output_dir`; a base that is below
            the floor or loops; a damaged file of an earlier run; a model that diverged.
        TooFewCompletionsError: the completions run out in the first round; later that is a reason to stop. In both
            cases `completions.jsonl` of that round has every judgement.
        FileNotFoundError: a file of an earlier round is missing.
    """
    _check(model, training, peft_config, rounds, coherence_floor)
    loaded = _load(model, training) if isinstance(model, str) else model
    keep_cpu_4bit_gradients_right(loaded)  # before the first forward, which would repack the weights for good
    folder = Path(output_dir)
    with _on_device(loaded, training.device):
        settings = {
            "seed": seed,
            "model": {"name": loaded.config._name_or_path, "weights_sha256": weights_digest(loaded)},
            "training": describe(training),
            "peft_config": describe(peft_config),
            "proposer": describe(proposer),
            "filters": describe(filters),
            "probes": describe(probes),
        }
        _settle_settings(folder, settings)
        stages = Stages(
            loaded, processing_class, folder, training, peft_config, proposer, filters, probes, seed, settings
        )
        return _run(stages, rounds, coherence_floor)


def _check(
    model: str | PreTrainedModel, training: KLBarrierConfig, peft_config: LoraConfig, rounds: int, floor: float
) -> None:
    if isinstance(model, PeftModel):
        raise ValueError("the model has an adapter already; rounds start from a plain model: merge or unload it first")
    if training.ref not in REFERENCES:
        raise ValueError(f"training.ref is {training.ref!r}; rounds need one of {list(REFERENCES)}")
    if training.ref_cache_dir is not None:
        raise ValueError(
            f"ref_cache_dir is {training.ref_cache_dir!r}; leave it out: each round has a cache of its own"
        )
    if training.world_size > 1:
        raise ValueError(f"rounds run in one process and {training.world_size} were started; start the script itself")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; ask for at least 1")
    if not 0 <= floor <= 1:
        raise ValueError(f"coherence_floor is {floor}; it is a probability mass, from 0 to 1")
    check_additive(peft_config)


def _load(name: str, training: KLBarrierConfig) -> PreTrainedModel:
    settings: Any = training.model_init_kwargs or {}  # a string only before the config has parsed it
    with refused_pickles_named(name, *PICKLED_WEIGHTS):
        return AutoModelForCausalLM.from_pretrained(name, **settings)


@contextmanager
def _on_device(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """The model on `device`, and where it was on exit. One that is quantised or spread out has its place already."""
    if getattr(model, "is_quantized", False) or hasattr(model, "hf_device_map"):
        yield
        return
    before = model.device
    model.to(device)  # type: ignore[arg-type]  # a torch.device is what it takes
    try:
        yield
    finally:
        model.to(before)  # type: ignore[arg-type]


def _settle_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or hold them against those that the folder was made with."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    difference = first_difference(read_json(path), settings)
    if difference is not None:
        raise ValueError(
            f"{folder} holds rounds made with other settings: {difference}; change it back, or start in another "
            "output_dir"
        )


def _run(stages: Stages, rounds: int, floor: float) -> list[dict[str, Any]]:
    """All rounds that are missing, one after the other, until there is a reason to stop."""
    records = _finished_rounds(stages.folder) or [stages.record(0, {})]
    while (stop := _stop_reason(records, rounds, floor, stages.filters.repetition_limit)) is None:
        _write_results(stages.folder, records, None)
        number = len(records)
        try:
            records.append(stages.run(number))
        except TooFewCompletionsError as error:
            if number == 1:
                raise
            stop = f"the completions ran out in round {number}: {error}"
            break
    _write_results(stages.folder, records, stop)
    return read_results(stages.folder)


def _finished_rounds(folder: Path) -> list[dict[str, Any]]:
    """Records of the rounds that are whole, from round 0 up to the first that is not. Other folders are not looked at.

    Raises:
        FileNotFoundError, ValueError: a file of one of them is missing or damaged, or a round between two is missing.
    """
    records: list[dict[str, Any]] = []
    while (folder / f"round_{len(records)}" / RECORD_FILE).exists():
        records.append(read_round(folder / f"round_{len(records)}"))
    names = [match for path in folder.iterdir() if (match := ROUND_FOLDER.fullmatch(path.name)) and path.is_dir()]
    later = [number for name in names if (number := int(name[1])) > len(records)]
    if later:
        raise FileNotFoundError(
            f"{folder / f'round_{len(records)}' / RECORD_FILE} is missing but round_{min(later)} is there; restore it "
            "from a copy, or remove the later rounds, which are then made again"
        )
    return records


def _stop_reason(records: Sequence[dict[str, Any]], rounds: int, floor: float, repetition_limit: float) -> str | None:
    """Why no further round follows; None if one does.

    Raises:
        ValueError: the base is incoherent by the measures that stop a run.
    """
    number, means = len(records) - 1, records[-1]["means"]
    mass, repetition = means["allowed_answer_mass"], means["repetition"]
    if mass < floor:
        measured, bound = f"mean allowed_answer_mass is {mass:.4f}", f"below coherence_floor={floor}"
        way_out = "lower the floor, or give prefixes after which the model does answer"
    elif repetition is not None and repetition >= repetition_limit:  # of empty samples alone there is none
        measured = f"mean repetition of samples is {repetition:.4f}"
        bound = f"at or above filters.repetition_limit={repetition_limit}"
        way_out = "raise the limit, or sample shorter texts (sample_tokens) at a higher sample_temperature"
    else:
        return f"all {rounds} rounds that were asked for are done" if number >= rounds else None
    if number == 0:
        raise ValueError(f"the base model's {measured}, {bound} before any round; {way_out}")
    return f"{measured} after round {number}, {bound}"


def _write_results(folder: Path, records: Sequence[dict[str, Any]], stop: str | None) -> None:
    rows = [{**record, "stop_reason": None} for record in records]
    rows[-1]["stop_reason"] = stop
    write_lines(folder / RESULTS_FILE, [{key: row[key] for key in row if key != "files"} for row in rows])
    if stop is None:
        write_text(folder / REPORT_FILE, markdown_report(rows))  # pictures take seconds, and are drawn at the end
    else:
        write_report(folder)
