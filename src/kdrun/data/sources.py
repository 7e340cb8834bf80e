"""Where samples lie, and how a batch of them comes to the device.

Tables are rows (N, F); pictures are kept and handed on as (N, H, W, C), so that what a batch needs lies together.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdrun.errors import DataError
from kdrun.machine import end_with_parent, raise_lack

WORKERS = min(8, os.cpu_count() or 1)
"""Processes that decode pictures for a set that fits nowhere."""
READERS = 2
"""Threads that read from a memory map: one batch may wait for the disk while another is copied."""
AHEAD = 4
"""Batches that they read before they are wanted."""


class Pictures(Protocol):
    """Pictures that are decoded one at a time, when they are wanted."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> np.ndarray:
        """A picture, uint8 (C, H, W)."""
        ...

    def stamp(self, position: int) -> str:
        """What tells a picture from another in its place, without decoding it."""
        ...


Inputs = np.ndarray | Pictures


class Source(Protocol):
    """Samples that can be asked for by the batch."""

    def __len__(self) -> int: ...

    def gather(self, rows: Tensor, size: int | list[int]) -> Iterator[Tensor]:
        """The samples at some positions (N,), ``size`` at a time, on the device."""
        ...


class Stored:
    """Samples as one tensor on the device."""

    def __init__(self, samples: np.ndarray, device: torch.device) -> None:
        self._samples = torch.from_numpy(np.require(samples, requirements=["C", "W"])).to(device)

    @property
    def numbers(self) -> int:
        """How many numbers all samples are together."""
        return self._samples.numel()

    def __len__(self) -> int:
        return len(self._samples)

    def change(self, how: Callable[[Tensor], Tensor], size: int) -> None:
        """Keep the samples as ``how`` makes them, ``size`` at a time: float32 of the same shapes."""
        changed = torch.empty_like(self._samples, dtype=torch.float32)
        for part, samples in zip(changed.split(size), self._samples.split(size), strict=True):
            part.copy_(how(samples))
        self._samples = changed

    def gather(self, rows: Tensor, size: int | list[int]) -> Iterator[Tensor]:
        """The samples at some positions (N,), ``size`` at a time."""
        return (self._samples.index_select(0, some) for some in rows.to(self._samples.device).split(size))


class Mapped:
    """Samples in a file that is mapped into memory, read by threads before they are wanted."""

    def __init__(self, samples: np.memmap, device: torch.device) -> None:
        self._file, self._samples, self._device = samples.filename, np.asarray(samples), device

    def __len__(self) -> int:
        return len(self._samples)

    def gather(self, rows: Tensor, size: int | list[int]) -> Iterator[Tensor]:
        """The samples at some positions (N,), ``size`` at a time.

        Raises ``DataError`` where the file can no longer be read. The threads end with the iterator.
        """
        batches = iter(rows.split(size))
        pool = ThreadPoolExecutor(READERS)
        try:
            coming = deque(pool.submit(self._read, some) for some in islice(batches, AHEAD))
            while coming:
                samples = coming.popleft().result()
                coming.extend(pool.submit(self._read, some) for some in islice(batches, 1))
                yield samples.to(self._device, non_blocking=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, rows: Tensor) -> Tensor:
        kind = torch.from_numpy(np.empty(0, self._samples.dtype)).dtype
        pinned = self._device.type == "cuda"
        samples = torch.empty(len(rows), *self._samples.shape[1:], dtype=kind, pin_memory=pinned)
        view = samples.numpy()
        try:
            for place, row in enumerate(rows.tolist()):
                view[place] = self._samples[row]
        except Exception as error:
            raise_lack(error)
            raise DataError(f"{self._file} can no longer be read: {error}") from error
        return samples


class Streamed:
    """Samples that are decoded by worker processes while they are used."""

    def __init__(self, pictures: Pictures, device: torch.device) -> None:
        self._files, self._pictures, self._device = pictures, _ChannelsLast(pictures), device

    def __len__(self) -> int:
        return len(self._files)

    def stamp(self, rows: Tensor) -> str:
        """What tells the samples at some positions (N,) from others, without decoding them."""
        return "\n".join(self._files.stamp(row) for row in rows.tolist())

    def gather(self, rows: Tensor, size: int | list[int]) -> Iterator[Tensor]:
        """The samples at some positions (N,), ``size`` at a time.

        Raises ``DataError`` where a file has vanished or changed since it was checked. The workers end with the
        iterator.
        """
        loader: DataLoader[Tensor] = DataLoader(
            self._pictures,  # type: ignore[arg-type]  # anything with these two methods will do
            batch_sampler=[some.tolist() for some in rows.split(size)],
            num_workers=WORKERS,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # its own, or it draws from the global one
            worker_init_fn=_belong_to_the_parent,
        )
        try:
            for pictures in _begun(loader):
                yield pictures.to(self._device, non_blocking=True)
        except DataError as error:  # its text ends with the worker's own error
            error.__traceback__ = None  # it would keep the workers alive until they are killed, seconds later
            raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from None
        except (RuntimeError, OSError, EOFError) as error:  # that one is gone is all that torch knows
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise DataError(
                "a process that decodes pictures was ended from outside, perhaps for want of memory or of room in "
                "/dev/shm; the same command goes on from the last checkpoint"
            ) from error


def _begun(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    """Start the workers, without what torch does at the end of one: raise in whatever runs just then.

    That one is gone is found, seconds later, where its pictures are waited for. Raises ``DataError``.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        batches = iter(loader)
    except OSError as error:  # no room in /dev/shm, or one process too many
        raise DataError(f"the processes that decode pictures cannot be started: {error}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return batches


def _belong_to_the_parent(_worker: int) -> None:
    """A Ctrl-C reaches workers, too; who saves and says so is the process that trains, and they end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    warnings.simplefilter("ignore")  # of what is odd in a picture, and can be read nevertheless


class _ChannelsLast:
    """Pictures as they are kept; what worker processes are given."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, position: int) -> np.ndarray:
        return self._pictures[position].transpose(1, 2, 0)


class Joined:
    """Samples of several sources, one after the other."""

    def __init__(self, *sources: Source) -> None:
        self.sources = sources
        self._ends = torch.tensor([len(one) for one in sources]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def of(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The number of the source (N,) of each of the samples at some positions (N,), and of each source its own."""
        number = torch.bucketize(rows, self._ends, right=True)
        begins = [0, *self._ends.tolist()]
        return number, [rows[number == place] - begins[place] for place in range(len(self.sources))]

    def gather(self, rows: Tensor, size: int | list[int]) -> Iterator[Tensor]:
        """The samples at some positions (N,), ``size`` at a time."""
        number, own = self.of(rows)
        batches = number.split(size)
        streams = [
            one.gather(of, [count for batch in batches if (count := int((batch == place).sum()))])
            for place, (one, of) in enumerate(zip(self.sources, own, strict=True))
        ]
        for batch in batches:
            samples = torch.cat([next(streams[place]) for place in batch.unique().tolist()])
            yield samples[batch.argsort(stable=True).argsort().to(samples.device)]


def contents(samples: Source, rows: Tensor, size: int) -> Iterator[bytes]:
    """What tells the samples at some positions (N,) from others: the samples, ``size`` at a time, or their stamps."""
    if isinstance(samples, Streamed):
        yield samples.stamp(rows).encode()
    elif isinstance(samples, Joined):
        for one, own in zip(samples.sources, samples.of(rows)[1], strict=True):
            yield from contents(one, own, size)
    else:
        yield from (some.cpu().numpy().tobytes() for some in samples.gather(rows, size))


def source(inputs: Inputs, device: torch.device) -> Source:
    """Arrays are kept on the device, memory maps are read while they are used, anything else is streamed.

    Tables are (N, F), pictures (N, C, H, W).
    """
    if not isinstance(inputs, np.ndarray):
        return Streamed(inputs, device)
    samples = inputs.transpose(0, 2, 3, 1) if inputs.ndim == 4 else inputs
    return Mapped(samples, device) if isinstance(samples, np.memmap) else Stored(samples, device)
