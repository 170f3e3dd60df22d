"""The scaling curves as Markdown: a table of the points, the exponents, the sizes that break."""

from collections.abc import Iterator
from typing import Any

GIB = 1 << 30


def curve_lines(curve: dict[str, Any], limits: dict[str, float]) -> Iterator[str]:
    """A curve's part of the page.

    Args:
        curve: a record of `scaling.py`.
        limits: `memory_bytes` and `time_s`, past which a size is broken.
    """
    names = list(curve["sides"])
    first = names[0]
    yield f"#### {curve['curve'].capitalize()}"
    yield ""
    about = curve["about"][0].upper() + curve["about"][1:]
    yield f"{about}. Seconds of {curve['measured_in']}; *ms each* is for each of what grows."
    yield ""
    others = "".join(f" {name} / {first} |" for name in names[1:])
    yield f"| size | {' | '.join(f'{name} | ms each' for name in names)} |{others}"
    yield "|---" * (1 + 2 * len(names) + len(names) - 1) + "|"
    for row in zip(*(curve["sides"][name]["points"] for name in names), strict=True):
        cells = [f"{row[0]['size']:,}"]
        for point in row:
            cells += [_seconds(point), f"{1000 * point['median_s'] / point['size']:.3g}"]
        cells += [f"{point['median_s'] / row[0]['median_s']:.2f}" for point in row[1:]]
        yield f"| {' | '.join(cells)} |"
    yield ""
    broken = f"above {limits['time_s']:.0f} s | above {limits['memory_bytes'] / GIB:.0f} GiB"
    yield f"| side | time by size | time by operations | {broken} |"
    yield "|---|---|---|---|---|"
    for name in names:
        side = curve["sides"][name]
        memory = side["memory"]
        yield (
            f"| {name} | {_exponent(side['time_by_size'])} | {_exponent(side['time_by_work'])} | "
            f"{_break(side['time_break'])} | {_break(memory['break'])} |"
        )
    yield ""
    settings = {side["memory"]["setting"]: side["memory"]["how"] for side in curve["sides"].values()}
    for setting, how in settings.items():
        of = [name for name in names if curve["sides"][name]["memory"]["setting"] == setting]
        yield f"Memory of {' and of '.join(of)}: {how}, {setting}."
    yield ""


def _seconds(point: dict[str, Any]) -> str:
    return f"{point['median_s']:.3g} ({point['min_s']:.3g} to {point['max_s']:.3g}, n {point['runs']})"


def _exponent(law: dict[str, float] | None) -> str:
    return "operations hardly grow" if law is None else f"{law['exponent']:.2f} ± {law['standard_error']:.2f}"


def _break(found: dict[str, Any]) -> str:
    if found["size"] is None:
        return f"not up to {found['up_to']:,}, {found['how']}"
    return f"{found['size']:,}, {found['how']}"
