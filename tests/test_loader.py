"""`gpt2/data/loader.py`: which token goes into which batch, whatever the processes, micro-batches and interruptions."""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from gpt2.data.loader import Sequences, TokenLoader, shuffled
from gpt2.data.shards import find_shards, write_shard
from gpt2.system.errors import UserError


def line_of(folder) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob("train_*.npy"))])


def tokens_of(loaders, steps: int) -> list[np.ndarray]:
    """Every step's sequences (input and last target) over all ranks, in order."""
    result = []
    for _ in range(steps):
        rows = [torch.cat([x, y[:, -1:]], 1) for loader in loaders for x, y in loader.next_step()]
        result.append(torch.cat(rows).numpy())
    return result


def test_sequences_are_the_line_of_all_shards_cut_every_t_tokens(shards):
    """No shard's tail is lost, and sequences reach across shard ends."""
    line, T = line_of(shards), 16
    [*steps] = tokens_of([TokenLoader(find_shards(shards, "train"), 4 * T, T, micro_batch=2)], 50)
    assert len(Sequences(find_shards(shards, "train"), T)) == (len(line) - 1) // T
    for i, row in enumerate(np.concatenate(steps)):
        np.testing.assert_array_equal(row, line[i * T : i * T + T + 1])


def test_targets_are_the_inputs_moved_on_by_one(shards):
    for x, y in TokenLoader(find_shards(shards, "train"), 64, 16, micro_batch=4).next_step():
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (4, 16)
        torch.testing.assert_close(x[:, 1:], y[:, :-1])


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 8), (2, 4), (4, 1)])
def test_a_step_has_the_same_tokens_for_any_processes_and_micro_batch(shards, seed, world, micro):
    found = find_shards(shards, "train")
    expected = tokens_of([TokenLoader(found, 128, 16, micro_batch=2, seed=seed)], 70)  # more than two epochs
    loaders = [
        TokenLoader(found, 128, 16, rank=rank, world_size=world, micro_batch=micro, seed=seed) for rank in range(world)
    ]
    np.testing.assert_array_equal(tokens_of(loaders, 70), expected)


@pytest.mark.parametrize("seed", [None, 3])
def test_every_epoch_reads_every_sequence_once(shards, seed):
    sequences = Sequences(find_shards(shards, "train"), 16, seed)
    file_order = Sequences(find_shards(shards, "train"), 16).read(np.arange(len(sequences)))
    epochs = [sequences.read(np.arange(len(sequences)) + e * len(sequences)) for e in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch.view("S34").ravel()), np.sort(file_order.view("S34").ravel()))
    assert np.array_equal(*epochs) == (seed is None)
    assert np.array_equal(epochs[0], file_order) == (seed is None)


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1000, 4096, 4097])
def test_the_shuffle_is_a_bijection_that_mixes(size):
    order = shuffled(np.arange(size), size, "0 0")
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    np.testing.assert_array_equal(order[size // 2 :], shuffled(np.arange(size // 2, size), size, "0 0"))
    if size >= 100:
        distance = np.abs(np.diff(order)).mean() / size
        assert 0.25 < distance < 0.42  # a third, if uniform
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.3
        assert not np.array_equal(order, shuffled(np.arange(size), size, "0 1"))


def test_a_resumed_loader_goes_on_where_the_first_stopped_with_other_processes(shards):
    found = find_shards(shards, "train")
    first = TokenLoader(found, 128, 16, micro_batch=8, seed=5)
    tokens_of([first], 31)
    state, expected = first.state_dict(), tokens_of([first], 10)
    assert state == {"position": 31 * 8, "seed": 5}
    resumed = [TokenLoader(found, 128, 16, rank=rank, world_size=2, micro_batch=2) for rank in range(2)]
    for loader in resumed:
        loader.next_step()  # something is prepared already, and must not be used
        loader.load_state_dict(state)
    np.testing.assert_array_equal(tokens_of(resumed, 10), expected)


def test_a_batch_that_does_not_divide_names_the_nearest_that_does(shards):
    with pytest.raises(UserError, match=r"100 tokens.*3 × 16.*2 processes.*--data.batch-tokens 96"):
        TokenLoader(find_shards(shards, "train"), 100, 16, world_size=2, micro_batch=3)


def test_fewer_tokens_than_one_batch_are_refused(shards):
    with pytest.raises(UserError, match=r"3,525 tokens, fewer than one batch of 4,096"):
        TokenLoader(find_shards(shards, "train"), 4096, 16, micro_batch=1)
    exactly = 3525 // 16 * 16
    assert len(TokenLoader(find_shards(shards, "train"), exactly, 16, micro_batch=1).next_step()) == 220


def test_memory_does_not_grow_with_the_shards(tmp_path):
    """A quarter of a gigabyte is read; resident memory grows by less than a tenth of that."""
    tokens = np.zeros(2**25, dtype=np.uint16)  # 64 MB
    for i in range(4):
        write_shard(tmp_path / f"train_{i:06d}.bin", tokens)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(growth_of_memory, tmp_path).result() < 25_000  # kB


def growth_of_memory(folder) -> int:
    """Read all shards of a folder; return by how many kB the peak of memory has grown after the first steps."""
    loader, peaks = TokenLoader(find_shards(folder, "train"), 2**17, 1024, micro_batch=16), []
    for _ in range(2**27 // 2**17 - 1):
        loader.next_step()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peaks[-1] - peaks[8]


def test_the_next_step_is_prepared_while_this_one_is_used(shards, monkeypatch):
    loader = TokenLoader(find_shards(shards, "train"), 128, 16, micro_batch=8)
    prepare = loader._prepare
    monkeypatch.setattr(loader, "_prepare", lambda position: (time.sleep(0.1), prepare(position))[1])
    loader.next_step()
    waits = []
    for _ in range(3):
        time.sleep(0.2)  # the computation
        started = time.perf_counter()
        loader.next_step()
        waits.append(time.perf_counter() - started)
    assert max(waits) < 0.05


@pytest.mark.gpu
def test_batches_arrive_on_the_gpu(shards):
    cpu = TokenLoader(find_shards(shards, "train"), 128, 16, micro_batch=4)
    gpu = TokenLoader(find_shards(shards, "train"), 128, 16, micro_batch=4, device="cuda")
    for (x, y), (gx, gy) in zip(cpu.next_step(), gpu.next_step(), strict=True):
        assert gx.device.type == "cuda"
        torch.testing.assert_close((gx.cpu(), gy.cpu()), (x, y))
