"""`alignkit probe`: the scores of every head along one text, in the terminal, as JSON, or as a picture."""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from alignkit.reward_model.probing import ProbeResult


def add_probe_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of `run_probe`."""
    parser.add_argument("model", metavar="MODEL", help="folder of a saved reward model")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", help="the text; without --text and --file it is read from standard input")
    text.add_argument("--file", type=Path, help="UTF-8 file with the text; one line break at its end is left out")
    parser.add_argument("--points", type=int, default=20, help="rows of the table, evenly spaced (default: 20)")
    parser.add_argument("--sparkline", action="store_true", help="draw every head's scores as one line of blocks")
    parser.add_argument("--json", action="store_true", help="print all tokens, scores and the summary as JSON instead")
    parser.add_argument("--heatmap", type=Path, metavar="PNG", help="write a picture of all scores, tokens by heads")


def run_probe(args: Namespace) -> None:
    """Load the model, probe the text and print what was asked for.

    Raises:
        ValueError: no text, text that is not UTF-8, points < 1, or a folder that holds no reward model.
        OSError: a file that cannot be read or written.
    """
    if args.points < 1:
        raise ValueError(f"--points is {args.points}; ask for at least 1")
    text = _read_text(args)

    from alignkit.model_folder import check_config
    from alignkit.reward_model.export import load_reward_model
    from alignkit.reward_model.probing import probe

    check_config(args.model)
    try:
        reward_model = load_reward_model(args.model)
    except OSError as error:
        missing = "" if Path(args.model).is_dir() else ", which is no folder here and so was taken for a hub name"
        raise OSError(f"cannot load {args.model}{missing}: {error}") from error
    result = probe(reward_model.model, reward_model.tokenizer, text)
    if args.heatmap is not None:
        result.heatmap(args.heatmap)
    if args.json:
        json.dump(result.to_json(), sys.stdout, ensure_ascii=False)
        print()
    else:
        _print_tables(result, args.points, args.sparkline)


def _read_text(args: Namespace) -> str:
    if args.text is not None:
        source, text = "--text", args.text
    elif args.file is not None:
        source, text = str(args.file), args.file.read_text(encoding="utf-8")
    else:
        source, text = "standard input", sys.stdin.read()
    # Editors and `echo` end a text with a line break that is not part of it; it would change the score.
    text = text if source == "--text" else text.removesuffix("\n")
    if not text.strip():
        raise ValueError(f"{source} holds no text; give the text with --text, --file or standard input")
    return text


def _print_tables(result: "ProbeResult", points: int, sparkline: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    # Wider than any table: at the width of a narrow terminal, or of a pipe, rich would cut the numbers off.
    console = Console(width=10_000)
    console.print(result.table(points))
    console.print(_summary_table(result))
    if sparkline:
        widest = max(map(len, result.head_names))
        for name in result.head_names:
            console.print(Text(f"{name:>{widest}} {result.sparkline(name)}"))


def _summary_table(result: "ProbeResult") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("head")
    for column in ("first", "last", "change", "min", "max", "mean"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, values in result.summary().items():
        table.add_row(Text(name), *(f"{value:.3f}" for value in values.values()))
    return table
