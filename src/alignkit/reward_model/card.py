"""The model card: what was trained on what, how it did, and a quick start that prints the raw scores."""

from collections.abc import Mapping
from importlib import resources
from importlib.metadata import version
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

PACKAGES = ("alignkit", "trl", "transformers", "torch", "datasets", "peft")
COLUMNS = ("accuracy", "auroc", "d_prime", "ece", "margin", "dynamic_range", "length_accuracy")
SETTINGS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "overflow",
    "reduction",
    "pairing",
    "tier_weights",
    "negatives_per_tier",
    "regularizer",
    "regularizer_weight",
    "center_rewards_coefficient",
    "head_weights",
    "score_softcap",
    "seed",
)


def reward_model_card(
    *,
    path: str,
    model_name: str,
    base_model: str | None,
    dataset_name: str | None,
    tags: list[str],
    head_names: list[str],
    data_report: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Mapping[str, float]]],
    step: int,
    score_softcap: float | None,
    args: Any,
) -> ModelCard:
    """A card from facts alone.

    Args:
        path: what the quick start loads: a hub name or a folder.
        data_report: per split, the counts of [`alignkit.reward_model.report`].
        evaluations: metrics per head of the last evaluation of each set; one that is missing is shown as missing.
        step: optimiser step the card is written at.
        score_softcap: the model's cap.
        args ([`MultiHeadRewardConfig`]): where the settings are read from.
    """
    metrics = [
        [evaluation, head, *(f"{values[name]:.3f}" if name in values else "—" for name in COLUMNS)]
        for evaluation, heads in evaluations.items()
        for head, values in heads.items()
    ]
    card_data = ModelCardData(
        base_model=base_model,
        datasets=dataset_name,
        library_name="transformers",
        pipeline_tag="text-classification",
        model_name=model_name,
        tags=["generated_from_trainer", "reward-model", *tags],
    )
    with resources.as_file(resources.files("alignkit") / "templates" / "reward_model_card.md") as template:
        return ModelCard.from_template(
            card_data,
            template_path=str(template),
            path=path,
            model_name=model_name,
            base_model=base_model,
            dataset_name=dataset_name,
            head_names=head_names,
            score_softcap=score_softcap,
            data_report=data_report,
            columns=COLUMNS,
            metrics=metrics,
            step=step,
            settings={name: getattr(args, name) for name in SETTINGS},
            versions={name: version(name) for name in PACKAGES},
        )
