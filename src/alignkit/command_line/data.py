"""The datasets of a training command, by name or path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
SAVED_BY_DATASETS = ("dataset_dict.json", "dataset_info.json")


def train_and_test(arguments: Any) -> tuple[Any, Any]:
    """The sets to train and to evaluate on; the second is None where there is none.

    Args:
        arguments: the `DataArguments`.

    Raises:
        ValueError: no dataset_name, no such split or column, no rows, a file that cannot be read.
        OSError: no such file, or no such name on the hub.
    """
    if arguments.dataset_name is None:
        raise ValueError("dataset_name is missing; give a file, a folder or a name on the hub")
    splits = load_splits(arguments.dataset_name, arguments.dataset_config, streaming=arguments.dataset_streaming)
    train = split_of(splits, arguments.dataset_train_split, arguments.dataset_name)
    if arguments.dataset_test_name is not None:
        others = load_splits(arguments.dataset_test_name, arguments.dataset_config)
        test = split_of(others, arguments.dataset_test_split or next(iter(others)), arguments.dataset_test_name)
    elif arguments.dataset_test_split is not None:
        test = split_of(splits, arguments.dataset_test_split, arguments.dataset_name)
    else:
        test = splits.get("test")
    columns = arguments.columns or {}
    return renamed(train, columns), None if test is None else renamed(test, columns)


def load_splits(name: str, config: str | None = None, *, streaming: bool = False) -> Mapping[str, Any]:
    """All splits of a dataset; those of a file, and of a folder that holds no splits, are `train` alone.

    Raises:
        ValueError, OSError: as [`train_and_test`] says.
    """
    path = Path(name)
    if path.suffix in BUILDERS and not path.is_file():
        raise FileNotFoundError(f"there is no file {name} in {Path.cwd()}")
    if path.suffix in BUILDERS and not path.stat().st_size:
        raise ValueError(f"{name} has no rows; give at least one")
    is_saved = any((path / file).is_file() for file in SAVED_BY_DATASETS)
    if is_saved and streaming:
        raise ValueError(f"{name} was saved by datasets and lies on disk; leave dataset_streaming out")
    try:
        if path.suffix in BUILDERS:
            return load_dataset(BUILDERS[path.suffix], data_files=name, streaming=streaming)
        if is_saved:
            saved = load_from_disk(name)
            return saved if isinstance(saved, Mapping) else {"train": saved}
        return load_dataset(name, config, streaming=streaming)
    except (DatasetGenerationError, ValueError, OSError) as error:
        if isinstance(error, OSError) and not is_saved:  # which says itself what there is not
            raise
        if "corresponds to no data" in str(error):  # datasets' words for a file with nothing but a head or blank lines
            raise ValueError(f"{name} has no rows; give at least one") from error
        raise ValueError(f"{name} cannot be read: {error.__cause__ or error}") from error


def only_split(name: str) -> Any:
    """The dataset of a name that has one split.

    Raises:
        ValueError: several splits, and what [`load_splits`] raises.
    """
    splits = load_splits(name)
    if len(splits) > 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}; give a dataset with one")
    return next(iter(splits.values()))


def split_of(splits: Mapping[str, Any], split: str, name: str) -> Any:
    """One of the splits.

    Raises:
        ValueError: there is no such one, or it has no rows.
    """
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    dataset = splits[split]
    if hasattr(dataset, "__len__") and not len(dataset):
        raise ValueError(f"the split {split!r} of {name} has no rows; give at least one")
    return dataset


def renamed(dataset: Any, columns: Mapping[str, str]) -> Any:
    """The dataset with columns of other names.

    Args:
        columns: new name -> name that the column has.

    Raises:
        ValueError: no such column, or one that has the new name already.
    """
    if not columns:
        return dataset
    present = dataset.column_names or list(next(iter(dataset)))  # a stream may not know before its first row
    for name, column in columns.items():
        if column not in present:
            raise ValueError(f"columns.{name} is {column!r}, which is no column of the data; it has {present}")
        if name in present and name not in columns.values():
            raise ValueError(f"columns.{name} is {column!r}, but the data has a column {name!r}; it has {present}")
    return dataset.rename_columns({column: name for name, column in columns.items() if name != column})
