"""Which pictures a report has, and what is in them."""

from alignkit.evaluation import wording
from alignkit.evaluation.comparison import Analysis, Measure
from alignkit.evaluation.document import Picture
from alignkit.evaluation.overfitting import LOSS, curve, held_out_loss
from alignkit.evaluation.pareto import pareto_points
from alignkit.evaluation.results import PROPORTION

# The first that a run has logged is drawn; the last three are those of other methods than DPO.
PROGRESS = {
    "eval_logratio/margin": "held-out margin (nats)",
    "logratio/margin": "margin (nats)",
    "eval_rewards/margins": "held-out margin × beta",
    "rewards/margins": "margin × beta",
    "kl/divergence": "divergence D (nats)",
    "reward": "reward",
}


def pareto_pictures(analysis: Analysis) -> list[Picture]:
    """The first task measure against each general one, as far as settings have baselines on both."""
    from alignkit.evaluation.plots import pareto

    pictures: list[Picture] = []
    task, task_changes = analysis.measures[0], analysis.changes[0]
    for general, general_changes in zip(analysis.measures, analysis.changes, strict=True):
        points = pareto_points(task, task_changes, general, general_changes)
        if task.role == "task" and general.role == "general" and points:
            png = pareto(points, f"gain in {_label(general)}", f"gain in {_label(task)}")
            caption = f"Gain over the baseline: {wording.name(task)} against {wording.name(general)}."
            pictures.append(Picture(f"pareto_{len(pictures) + 1}", caption, png))
    return pictures


def _label(measure: Measure) -> str:
    unit = "pp" if measure.unit == PROPORTION else measure.unit
    return f"{wording.name(measure)} ({', '.join(filter(None, [unit, 'more is better']))})"


def curves_picture(analysis: Analysis) -> list[Picture]:
    """Training loss, held-out loss and margin over steps, as far as the runs recorded them."""
    from alignkit.evaluation.plots import Chart, curves

    settings = analysis.experiment.settings
    progress = next((key for key in PROGRESS if any(curve(setting, key) for setting in settings)), None)

    def chart(label: str, key: str) -> Chart:
        return Chart(label, [(s.number, found) for s in settings if (found := curve(s, key))])

    charts = [chart("training loss", LOSS)]
    held_out = [(setting.number, found) for setting in settings if (found := held_out_loss(setting))]
    charts.append(Chart("held-out loss", held_out))
    if progress:
        charts.append(chart(PROGRESS[progress], progress))
    drawn = [one for one in charts if one.lines]
    if not drawn:
        return []
    what = ", ".join(one.label for one in drawn)
    return [Picture("curves", f"{what[:1].upper()}{what[1:]} over steps, mean over seeds.", curves(drawn))]
