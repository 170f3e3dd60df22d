"""Several runs add to one cache at the same time, and what is damaged is never read."""

import logging
import resource
import subprocess
import sys

import pytest
import torch

from alignkit.growing_row_cache import GrowingRowCache
from alignkit.row_cache import RowCacheWriter, row_key

MEANING = {"weights": "abc"}


def cache_in(root, *, meaning=None, dtype=torch.float32, width=1) -> GrowingRowCache:
    cache = GrowingRowCache(root, meaning=meaning or MEANING, dtype=dtype, width=width)
    cache.refresh()
    return cache


def some_rows(start: int, stop: int) -> dict[bytes, torch.Tensor]:
    return {row_key([i]): torch.arange(i % 5)[:, None] + 100.0 * i for i in range(start, stop)}


def flip_a_bit(path, fraction: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(fraction * len(content))] ^= 4
    path.write_bytes(content)


def test_what_is_added_is_found_by_this_run_and_by_later_ones(tmp_path):
    first, generations = cache_in(tmp_path), [some_rows(0, 4), some_rows(4, 9), some_rows(9, 10)]
    for number, rows in enumerate(generations):
        first.add(rows)
        assert len(first) == sum(map(len, generations[:number]))
        first.refresh()
    later = cache_in(tmp_path)
    for cache in (first, later):
        assert len(cache) == 10
        for key, values in some_rows(0, 10).items():
            assert key in cache and torch.equal(cache[key], values)
    assert len(list(first.folder.iterdir())) == 3


def test_nothing_to_add_makes_no_file(tmp_path):
    cache = cache_in(tmp_path / "new")
    cache.add({})
    assert not (tmp_path / "new").exists() and len(cache) == 0


def test_caches_of_another_meaning_live_beside_each_other(tmp_path):
    cache_in(tmp_path).add(some_rows(0, 3))
    others = [
        cache_in(tmp_path, meaning={"weights": "def"}),
        cache_in(tmp_path, meaning=MEANING | {"precision": "bf16"}),
        cache_in(tmp_path, dtype=torch.bfloat16),
        cache_in(tmp_path, width=2),
    ]
    others[0].add(some_rows(0, 5))
    assert len({cache.folder for cache in others}) == 4
    assert [len(cache_in(tmp_path)), len(cache_in(tmp_path, meaning={"weights": "def"}))] == [3, 5]
    assert not any(map(len, others[1:]))
    assert cache_in(tmp_path).folder == cache_in(tmp_path, meaning=dict(MEANING)).folder


def test_a_missing_row_is_named(tmp_path):
    key = row_key([1])
    with pytest.raises(KeyError, match=f"no row {key.hex()} among its 0"):
        cache_in(tmp_path)[key]


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.7, 0.95])
def test_a_damaged_file_is_deleted_with_one_warning_and_the_others_serve(tmp_path, caplog, fraction):
    caplog.set_level(logging.WARNING)
    writer = cache_in(tmp_path)
    writer.add(some_rows(0, 200))
    [damaged] = writer.folder.iterdir()
    writer.add(some_rows(150, 300))
    flip_a_bit(damaged, fraction)
    for _ in range(2):
        cache = cache_in(tmp_path)
        assert len(cache) == 150
        assert all(torch.equal(cache[key], values) for key, values in some_rows(150, 300).items())
    assert len(caplog.records) == 1
    assert f"{damaged} is deleted" in caplog.text
    assert not damaged.exists()
    cache.add(some_rows(0, 150))
    assert len(cache_in(tmp_path)) == 300


def test_a_bit_flipped_in_a_value_or_in_a_key_is_noticed(tmp_path, caplog):
    for wanted in (row_key([7]), torch.tensor([104.25]).numpy().tobytes()):
        cache = cache_in(tmp_path)
        cache.add({row_key([7]): torch.tensor([[104.25], [3.0]])})
        [path] = cache.folder.iterdir()
        content = path.read_bytes()
        assert content.count(wanted) == 1
        flip_a_bit(path, content.index(wanted) / len(content) + 1e-9)
        assert len(cache_in(tmp_path)) == 0
    assert "1 of its 1 rows are not as they were written" in caplog.text


def test_a_file_that_is_cut_off_or_of_another_meaning_or_no_cache_at_all_is_not_trusted(tmp_path, caplog):
    cache = cache_in(tmp_path)
    cache.add(some_rows(0, 50))
    [path] = cache.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    (cache.folder / "empty.arrow").touch()
    with RowCacheWriter(
        cache.folder, meaning={"weights": "def"}, dtype=torch.float32, width=1, name="moved.arrow"
    ) as writer:
        writer.write(row_key([1]), torch.ones(1, 1))
    assert len(cache_in(tmp_path)) == 0
    assert len(caplog.records) == 3 and "weights is 'def' in the cache and 'abc' now" in caplog.text
    assert list(cache.folder.iterdir()) == []


def test_a_file_that_vanishes_while_it_is_looked_for_is_no_error(tmp_path, monkeypatch):
    cache = cache_in(tmp_path)
    cache.add(some_rows(0, 3))
    listed = list(cache.folder.iterdir())
    listed[0].unlink()
    monkeypatch.setattr(type(cache.folder), "glob", lambda self, pattern: listed)
    cache.refresh()
    assert len(cache) == 0


ADD_FIFTY_FILES = """
import sys, torch
from alignkit.growing_row_cache import GrowingRowCache
from alignkit.row_cache import row_key
cache = GrowingRowCache(sys.argv[1], meaning={"weights": "abc"}, dtype=torch.float32, width=1)
for number in range(50):
    cache.add({row_key([i]): torch.full((3, 1), float(i)) for i in range(number, 2 * number + 2)})
    cache.refresh()
"""


def test_two_runs_that_add_at_the_same_time_lose_nothing(tmp_path, caplog):
    command = [sys.executable, "-c", ADD_FIFTY_FILES, str(tmp_path)]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 0 and not errors, errors
    cache = cache_in(tmp_path)
    assert len(cache) == 100 and len(list(cache.folder.iterdir())) == 100
    assert all(torch.equal(cache[row_key([i])], torch.full((3, 1), float(i))) for i in range(100))
    assert not caplog.records


@pytest.fixture
def limited_files():
    """No file may grow beyond 64 KiB, which the system answers as it answers a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("batch_bytes", [1000, 2**24])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(
    tmp_path, limited_files, monkeypatch, batch_bytes
):
    monkeypatch.setattr("alignkit.row_cache.BATCH_BYTES", batch_bytes)
    cache = cache_in(tmp_path)
    with pytest.raises(OSError, match=r"File too large: '.*\.arrow'") as caught:
        cache.add({row_key([i]): torch.ones(1000, 1) for i in range(20)})
    assert caught.value.filename.startswith(str(cache.folder))
    assert list(cache.folder.iterdir()) == []
    cache.add(some_rows(0, 3))
    cache.refresh()
    assert len(cache) == 3
