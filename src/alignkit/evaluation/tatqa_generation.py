"""A model asked all questions of TAT-QA contexts, and its answers scored."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.evaluation.generation import generate_completions
from alignkit.evaluation.tatqa import score_tatqa
from alignkit.evaluation.tatqa_text import extract_answer
from alignkit.tasks.tatqa_prompts import STOP_STRINGS, PromptForm, tatqa_prompts


def evaluate_tatqa(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[Mapping[str, Any]],
    form: PromptForm | None = None,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    stop_strings: Sequence[str] = STOP_STRINGS,
    **decoding: Any,
) -> dict[str, Any]:
    """Scores of a model on all questions of the contexts, each asked in the prompt that it would be trained on.

    A question whose prompt does not fit is an error, since leaving it out would change what the mean is about.

    Args:
        model, tokenizer, max_new_tokens, batch_size, stop_strings: as for
            [`alignkit.evaluation.generation.generate_completions`].
        contexts: from [`alignkit.tasks.tatqa.load_tatqa`].
        form: as for [`alignkit.tasks.tatqa.tatqa_prompts`]; the limits of the training.
        decoding: `do_sample`, `temperature`, `top_p` and `seed`; greedy without.

    Returns:
        What [`alignkit.evaluation.tatqa.score_tatqa`] does, with `text`, `answer` and `predicted_scale` added for each
        question of `per_question`.

    Raises:
        PromptTooLongError, ValueError: as those functions do.
    """
    form = form or PromptForm()
    prompts = tatqa_prompts(contexts, tokenizer, form)
    texts = generate_completions(
        model,
        tokenizer,
        list(prompts.values()),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        stop_strings=stop_strings,
        chat_template_kwargs=form.chat_template_kwargs,
        **decoding,
    )
    predictions = {uid: extract_answer(text) for uid, text in zip(prompts, texts, strict=True)}
    scores = score_tatqa(contexts, predictions)
    for (uid, (answer, scale)), text in zip(predictions.items(), texts, strict=True):
        scores["per_question"][uid] |= {"text": text, "answer": answer, "predicted_scale": scale}
    return scores
