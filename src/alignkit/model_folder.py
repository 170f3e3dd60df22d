"""The configuration in a model's folder, looked at before transformers reads it."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from alignkit.storage import read_json

CONFIG_FILE = "config.json"


def check_config(model: str | Path) -> None:
    """Check the `config.json` of a folder; what is no folder, or has none, is for transformers to find.

    Raises:
        ValueError: no JSON object, or a value that the architecture does not take; names the file.
    """
    path = Path(model) / CONFIG_FILE
    if not path.is_file() or "auto_map" in read_json(path):  # whose code is not run here
        return
    try:
        AutoConfig.from_pretrained(model)
    except StrictDataclassError as error:
        raise ValueError(f"{path} is no configuration: {error}") from error
