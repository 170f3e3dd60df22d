"""Signs of overfitting: in the history of a run, and between runs that differ in the length of the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from alignkit.evaluation.comparison import Analysis, FieldTable, Measure
from alignkit.evaluation.settings import Setting
from alignkit.evaluation.verdicts import Verdict

LENGTH_FIELDS = {"num_train_epochs", "max_steps"}
# Keys of `log_history`, the first that a run has counts. Those of TRL's rewards are left out: they contain beta.
LOSS = "loss"
CHOSEN = ("eval_logratio/chosen", "logratio/chosen", "eval_logps/chosen")
LAST_SHARE = 0.1  # of the logged values, over which the end of a noisy curve is averaged
RISE = 0.1  # of how far the losses fell: a held-out loss that rises by more has turned
GAP = 0.1  # held-out loss above the training loss, as a share of it
DROP_NATS = 1.0  # by which the chosen completions became less likely


class OverfittingVerdict(StrEnum):
    """Held-out results got worse; only a hint of it; nothing to see; nothing known."""

    OVERFITTING = "overfitting"
    WATCH = "watch"
    NONE_SEEN = "none seen"
    NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Curve:
    """A logged value over steps, averaged over the seeds that logged it at that step."""

    steps: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def end(self) -> float:
        """Mean of the last tenth, at least of the last value."""
        return fmean(self.values[-max(1, round(LAST_SHARE * len(self.values))) :])


@dataclass(frozen=True)
class Overfitting:
    """What the training curves and the lengths of training say of a setting.

    Attributes:
        train_loss, eval_loss: at the end; None if not recorded.
        chosen_change_nats: of the log-probability of chosen completions, from the start to the end.
        not_numbers: logged values that were NaN or infinite.
        signs: in words, the strongest first.
    """

    setting: Setting
    train_loss: float | None
    eval_loss: float | None
    chosen_change_nats: float | None
    not_numbers: int
    verdict: OverfittingVerdict
    signs: tuple[str, ...]


def curve(setting: Setting, key: str) -> Curve | None:
    """The values of `key` in the histories of a setting's runs; None if none has any."""
    by_step: dict[float, list[float]] = {}
    for run in setting.runs:
        for row in run.first("history") or []:
            if isinstance(row.get(key), int | float) and isinstance(row.get("step"), int | float):
                by_step.setdefault(row["step"], []).append(row[key])
    steps = sorted(by_step)
    return Curve(tuple(steps), tuple(fmean(by_step[step]) for step in steps)) if steps else None


def held_out_loss(setting: Setting) -> Curve | None:
    """The curve of `eval_loss`, or of the first named evaluation set, `eval_<name>_loss`."""
    keys = [key for run in setting.runs for row in run.first("history") or [] for key in row]
    named = [key for key in dict.fromkeys(keys) if key.startswith("eval_") and key.endswith("_loss")]
    return next((found for key in ["eval_loss", *named] if (found := curve(setting, key))), None)


def signs_of_overfitting(analysis: Analysis) -> tuple[Overfitting, ...]:
    """A verdict for each setting, in their order."""
    longer = _worse_when_longer(analysis)
    return tuple(_judge(setting, longer.get(setting.number, [])) for setting in analysis.experiment.settings)


def _judge(setting: Setting, worse_when_longer: Sequence[str]) -> Overfitting:
    train, held_out = curve(setting, LOSS), held_out_loss(setting)
    train_loss = _train_loss(setting)
    eval_loss = held_out.values[-1] if held_out else _mean_of(setting, "eval_loss")
    strong = [*worse_when_longer, *_turn(train, held_out)]
    weak = []
    if train_loss is not None and eval_loss is not None and eval_loss - train_loss > GAP * abs(train_loss):
        weak.append(f"the held-out loss ends {eval_loss - train_loss:.3g} above the training loss")
    chosen, start = _chosen(setting)
    change = chosen.end - start if chosen else None
    if chosen and change is not None and change < -DROP_NATS:
        step = next(step for step, value in zip(chosen.steps, chosen.values, strict=True) if value < start - DROP_NATS)
        weak.append(
            f"chosen completions are {-change:.3g} nats less likely (over {DROP_NATS:g} from step {step:g} on)"
        )
    rows = [row for run in setting.runs for row in run.first("history") or []]
    not_numbers = sum(value is None for row in rows for value in row.values())
    if strong:
        verdict = OverfittingVerdict.OVERFITTING
    elif weak:
        verdict = OverfittingVerdict.WATCH
    elif held_out is None and eval_loss is None:
        verdict = OverfittingVerdict.NOT_KNOWN
    else:
        verdict = OverfittingVerdict.NONE_SEEN
    return Overfitting(setting, train_loss, eval_loss, change, not_numbers, verdict, (*strong, *weak))


def _turn(train: Curve | None, held_out: Curve | None) -> list[str]:
    """The held-out loss rose from its lowest point while the training loss fell."""
    if not train or not held_out or len(held_out.values) < 2:
        return []
    place = held_out.values.index(min(held_out.values))
    lowest, last = held_out.values[place], held_out.values[-1]
    turned = last - lowest > RISE * (held_out.values[0] - lowest) and last > lowest
    until_then = [
        value for step, value in zip(train.steps, train.values, strict=True) if step <= held_out.steps[place]
    ]
    if not turned or not until_then or train.end >= Curve((), tuple(until_then)).end:
        return []
    return [
        f"the held-out loss rose from {lowest:.3g} at step {held_out.steps[place]:g} to {last:.3g}, "
        "while the training loss fell"
    ]


def _chosen(setting: Setting) -> tuple[Curve | None, float]:
    """The curve of the chosen completions, and where it starts: a log-ratio to the reference starts at 0."""
    for key in CHOSEN:
        found = curve(setting, key)
        if found:
            return found, 0.0 if "logratio" in key else found.values[0]
    return None, 0.0


def _worse_when_longer(analysis: Analysis) -> dict[int, list[str]]:
    """By number of the setting: held-out scores below those of a shorter training, at a lower training loss."""
    found: dict[int, list[str]] = {}
    for table in analysis.tables:
        if set(table.fields) <= LENGTH_FIELDS:
            for place, measure in enumerate(analysis.measures):
                if measure.role == "task":
                    for number, sign in _worse_rows(table, place, measure).items():
                        found.setdefault(number, []).append(sign)
    return found


def _worse_rows(table: FieldTable, place: int, measure: Measure) -> Mapping[int, str]:
    found = {}
    for _, (first, *longer) in table.blocks:
        for row in longer:
            contrast = row.contrasts[place]
            before, after = _train_loss(first.setting), _train_loss(row.setting)
            if contrast is None or contrast.verdict is not Verdict.HARM or before is None or after is None:
                continue
            if after < before:
                found[row.setting.number] = (
                    f"{measure.item_set} is worse than in #{first.setting.number}, which trained less, while the "
                    f"training loss fell from {before:.3g} to {after:.3g}"
                )
    return found


def _train_loss(setting: Setting) -> float | None:
    train = curve(setting, LOSS)
    return train.end if train else _mean_of(setting, "train_loss")


def _mean_of(setting: Setting, field: str) -> float | None:
    values = [value for run in setting.runs if (value := run.first(field)) is not None]
    return fmean(values) if values else None
