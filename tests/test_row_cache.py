"""Rows come back as they were written, and a cache that is not exactly the wanted one is an error."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from alignkit.row_cache import RowCache, RowCacheWriter, StaleCacheError, row_key

MEANING = {"weights": "abc", "layout": "1"}


def random_rows(n: int, dtype: torch.dtype = torch.float32, width: int = 8) -> dict[bytes, torch.Tensor]:
    """Rows of 0 to 6 positions."""
    generator = torch.Generator().manual_seed(0)
    return {row_key([i]): torch.randn(i % 7, width, generator=generator).to(dtype) for i in range(n)}


def write(folder, rows, *, meaning=None, dtype=torch.float32, width=8, rank=0, world_size=1) -> None:
    part = {"rank": rank, "world_size": world_size}
    with RowCacheWriter(folder, meaning=meaning or MEANING, dtype=dtype, width=width, **part) as writer:
        for key, values in rows.items():
            writer.write(key, values)


def read(folder, *, meaning=None, dtype=torch.float32, width=8) -> RowCache:
    return RowCache.open(folder, meaning=meaning or MEANING, dtype=dtype, width=width)


def resident_bytes(path: Path) -> int:
    """How much of the maps of a file is loaded in this process."""
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    of_file = [entry for entry in entries if entry.partition("\n")[0].endswith(str(path))]
    return sum(1024 * int(kib) for entry in of_file for kib in re.findall(r"^Rss: +(\d+) kB", entry, re.MULTILINE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_every_dtype_and_length_come_back_bit_for_bit(tmp_path, dtype):
    rows = random_rows(20, dtype)
    write(tmp_path / "new" / "folder", rows, dtype=dtype)
    cache = read(tmp_path / "new" / "folder", dtype=dtype)
    assert len(cache) == 20
    for key, values in rows.items():
        assert key in cache
        assert cache[key].dtype == dtype and torch.equal(cache[key], values)


def test_values_that_are_not_finite_come_back_too(tmp_path):
    values = torch.tensor([[float("nan"), float("inf")], [-float("inf"), -0.0]])
    write(tmp_path, {row_key([1]): values}, width=2)
    assert read(tmp_path, width=2)[row_key([1])].view(torch.int32).equal(values.view(torch.int32))


def test_several_batches_and_several_parts_are_one_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("alignkit.row_cache.BATCH_BYTES", 300)
    rows = random_rows(50)
    keys = list(rows)
    write(tmp_path, {key: rows[key] for key in keys[:30]}, rank=0, world_size=2)
    write(tmp_path, {key: rows[key] for key in keys[20:]}, rank=1, world_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-00000-of-00002.arrow",
        "part-00001-of-00002.arrow",
    ]
    cache = read(tmp_path)
    assert len(cache) == 50
    assert all(torch.equal(cache[key], values) for key, values in rows.items())


def test_an_empty_part_is_a_part(tmp_path):
    write(tmp_path, {}, rank=0, world_size=2)
    write(tmp_path, random_rows(3), rank=1, world_size=2)
    assert len(read(tmp_path)) == 3


def test_a_repeated_key_is_written_once(tmp_path):
    with RowCacheWriter(tmp_path, meaning=MEANING, dtype=torch.float32, width=8) as writer:
        assert row_key([1]) not in writer
        writer.write(row_key([1]), torch.ones(2, 8))
        assert row_key([1]) in writer
        writer.write(row_key([1]), torch.zeros(2, 8))
    cache = read(tmp_path)
    assert len(cache) == 1 and torch.equal(cache[row_key([1])], torch.ones(2, 8))


def test_a_tensor_overwritten_after_write_does_not_change_the_row(tmp_path):
    buffer = torch.ones(1, 8)
    with RowCacheWriter(tmp_path, meaning=MEANING, dtype=torch.float32, width=8) as writer:
        writer.write(row_key([1]), buffer)
        buffer.zero_()
        writer.write(row_key([2]), buffer.expand(3, 8)[1:].t().contiguous().t())
    cache = read(tmp_path)
    assert torch.equal(cache[row_key([1])], torch.ones(1, 8)) and cache[row_key([2])].shape == (2, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_row_is_a_view_of_the_map_and_loads_little_of_the_file(tmp_path):
    rows = {row_key([i]): torch.full((1024, 64), float(i)) for i in range(64)}  # 16 MiB
    write(tmp_path, rows, width=64)
    [path] = tmp_path.iterdir()
    cache = read(tmp_path, width=64)
    one, two = cache[row_key([40])], cache[row_key([40])]
    assert one.data_ptr() == two.data_ptr()
    assert cache[row_key([41])].data_ptr() - one.data_ptr() == 1024 * 64 * 4
    assert one.sum() == 40 * 1024 * 64
    assert 0 < resident_bytes(path) < path.stat().st_size / 4


def test_a_write_into_a_row_never_reaches_the_file(tmp_path):
    write(tmp_path, {row_key([1]): torch.ones(2, 8)})
    read(tmp_path)[row_key([1])].zero_()
    assert torch.equal(read(tmp_path)[row_key([1])], torch.ones(2, 8))


def test_a_row_outlives_its_cache(tmp_path):
    write(tmp_path, {row_key([1]): torch.ones(2, 8)})
    row = read(tmp_path)[row_key([1])]
    assert torch.equal(row, torch.ones(2, 8))


def test_a_missing_row_is_named(tmp_path):
    write(tmp_path, random_rows(3))
    key = row_key([99])
    cache = read(tmp_path)
    assert key not in cache
    with pytest.raises(KeyError, match=f"no row {key.hex()} among its 3"):
        cache[key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meaning": {"weights": "def", "layout": "1"}}, "weights is 'abc' in the cache and 'def' now"),
        ({"meaning": {"weights": "abc"}}, "layout is '1' in the cache and None now"),
        ({"meaning": MEANING | {"more": "x"}}, "more is None in the cache and 'x' now"),
        ({"dtype": torch.float16}, "dtype is 'float32' in the cache and 'float16' now"),
        ({"width": 16}, "width is '8' in the cache and '16' now"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_what_differs(tmp_path, change, message):
    write(tmp_path, random_rows(3))
    with pytest.raises(StaleCacheError, match=message) as caught:
        read(tmp_path, **change)
    assert caught.value.args[0].count(" now") == 1


def test_a_stale_second_part_is_noticed(tmp_path):
    write(tmp_path, random_rows(3), rank=0, world_size=2)
    write(tmp_path, random_rows(3), rank=1, world_size=2, meaning={"weights": "old", "layout": "1"})
    with pytest.raises(StaleCacheError, match=r"part-00001-of-00002.arrow .*'old'"):
        read(tmp_path)


def test_a_missing_part_is_named(tmp_path):
    write(tmp_path, random_rows(3), rank=1, world_size=3)
    with pytest.raises(FileNotFoundError, match=r"lacks part-00000-of-00003.arrow, part-00002-of-00003.arrow"):
        read(tmp_path)


def test_a_folder_without_a_cache_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="holds no finished row cache"):
            read(folder)


def test_parts_of_two_caches_in_one_folder_are_refused(tmp_path):
    write(tmp_path, random_rows(3))
    write(tmp_path, random_rows(3), rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"caches of \[1, 2\] parts"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, share):
    write(tmp_path, random_rows(50))
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"part-00000-of-00001.arrow is cut off or damaged"):
        read(tmp_path)


def test_a_file_whose_directory_is_overwritten_is_named(tmp_path):
    write(tmp_path, random_rows(50))
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-200:-10] = bytes(190)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00000-of-00001.arrow is cut off or damaged"):
        read(tmp_path)


def test_a_row_whose_values_are_not_those_that_were_written_is_named_when_it_is_read(tmp_path):
    rows = random_rows(50)
    write(tmp_path, rows)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    damaged = list(rows)[20]
    content[content.index(rows[damaged].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    cache = read(tmp_path)
    for key, values in rows.items():
        if key == damaged:
            with pytest.raises(ValueError, match=rf"part-00000-of-00001.arrow .*\(row {key.hex()} is not as it was"):
                cache[key]
        else:
            assert torch.equal(cache[key], values)


def test_a_file_without_checksums_is_refused(tmp_path):
    columns = pa.schema([("key", pa.binary(16)), ("values", pa.large_binary())], metadata={"meaning": "{}"})
    with pa.ipc.new_file(tmp_path / "part-00000-of-00001.arrow", columns) as file:
        file.write_batch(pa.record_batch([[row_key([1])], [b"1234"]], schema=columns))
    with pytest.raises(ValueError, match="it has other columns than a row cache of this version"):
        read(tmp_path)


WRITE_AND_DIE = """
import os, signal, sys, torch
from alignkit.row_cache import RowCacheWriter, row_key
writer = RowCacheWriter(sys.argv[1], meaning={"weights": "abc", "layout": "1"}, dtype=torch.float32, width=8)
with writer:
    for i in range(100_000):
        writer.write(row_key([i]), torch.ones(32, 8))
        if i == 40_000:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_cache_and_the_next_one_succeeds(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    [unfinished] = tmp_path.iterdir()
    assert unfinished.stat().st_size > 16 * 2**20
    with pytest.raises(FileNotFoundError, match="no finished row cache"):
        read(tmp_path)
    write(tmp_path, random_rows(3))
    assert len(read(tmp_path)) == 3
    assert not unfinished.exists()


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError),
        RowCacheWriter(tmp_path, meaning=MEANING, dtype=torch.float32, width=8) as writer,
    ):
        writer.write(row_key([1]), torch.ones(1, 8))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values", [torch.ones(2, 9), torch.ones(8), torch.ones(2, 8, dtype=torch.float16), torch.ones(1, 2, 8)]
)
def test_values_of_another_shape_or_dtype_are_refused(tmp_path, values):
    with (
        pytest.raises(ValueError, match=r"do not fit a cache of rows \(n, 8\) in torch.float32"),
        RowCacheWriter(tmp_path, meaning=MEANING, dtype=torch.float32, width=8) as writer,
    ):
        writer.write(row_key([1]), values)


def test_a_key_of_another_length_and_a_dtype_that_cannot_be_stored_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="16 bytes, not 3"),
        RowCacheWriter(tmp_path, meaning=MEANING, dtype=torch.float32, width=8) as writer,
    ):
        writer.write(b"abc", torch.ones(1, 8))
    with pytest.raises(ValueError, match=r"torch.float64 cannot be stored; choose one of float32, bfloat16, float16"):
        RowCacheWriter(tmp_path, meaning=MEANING, dtype=torch.float64, width=8)


def test_a_key_depends_on_order_and_boundaries_and_kind():
    keys = [
        row_key([1, 2], [3]),
        row_key([1], [2, 3]),
        row_key([1, 2, 3]),
        row_key([3], [1, 2]),
        row_key([1, 2], [3], []),
        row_key([2, 1], [3]),
        row_key([]),
        row_key(),
        row_key(b""),
        row_key((1).to_bytes(8, "little")),
        row_key([1]),
        row_key([-1]),
        row_key([2**40]),
    ]
    assert len(set(keys)) == len(keys) and {len(key) for key in keys} == {16}


def test_a_key_is_the_same_for_the_same_numbers_in_any_container():
    expected = row_key([1, 0, 1])
    assert row_key((1, 0, 1)) == expected
    for dtype in (torch.int64, torch.int32, torch.bool):
        assert row_key(torch.tensor([1, 0, 1]).to(dtype)) == expected
    assert row_key(torch.tensor([], dtype=torch.int64)) == row_key([])


@pytest.mark.parametrize("part", ["text", [1.5], torch.ones(2), torch.ones(2, 2, dtype=torch.int64), [[1], [2]]])
def test_a_part_that_is_no_row_of_whole_numbers_is_refused(part):
    with pytest.raises(TypeError, match="bytes or a row of whole numbers"):
        row_key(part)
