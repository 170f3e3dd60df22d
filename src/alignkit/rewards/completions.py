"""The text of a completion, for reward functions that take strings and conversations alike."""

from typing import Any


def completion_text(completion: Any) -> str:
    """The text to judge: the completion itself, or the content of the last message of a conversational one.

    A content of `None`, which servers return for an empty answer, is the empty text.

    Args:
        completion (`str` or list of messages): as TRL hands it to reward functions, for example `"4"` or
            `[{"role": "assistant", "content": "4"}]`.

    Raises:
        TypeError: anything else; a conversation without messages is one.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        content = completion[-1].get("content", ...)
        if content is None or isinstance(content, str):
            return content or ""
    raise TypeError(
        f"a completion is {completion!r:.120}; give a string, or a list of messages with 'role' and 'content', the "
        "last of which holds the text"
    )


def whole_characters(text: Any) -> Any:
    """A text, or messages, with U+FFFD for halves of surrogate pairs: servers send them, no tokenizer takes them."""
    if isinstance(text, str):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(text, list):
        return [whole_characters(part) for part in text]
    return {key: whole_characters(value) for key, value in text.items()} if isinstance(text, dict) else text


def check_columns(completions: Any, **columns: Any) -> None:
    """Every dataset column has one value per completion, and the completions are a list.

    Raises:
        TypeError: `completions` is a single string.
        ValueError: a column of another length.
    """
    if isinstance(completions, str):
        raise TypeError(f"completions is the string {completions!r:.80}; wrap it in a list")
    for name, values in columns.items():
        if len(values) != len(completions):
            raise ValueError(f"{name} has {len(values)} values for {len(completions)} completions; give one for each")
