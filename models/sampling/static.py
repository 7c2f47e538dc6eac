"""Decoding steps of few fixed shapes for Llama and its like, which a GPU records once and replays: CUDA graphs.

A step is some hundred small operations, each about 5 µs to launch, while a GPU is done with many of them in less
(`python -m benchmarks.launches`). A graph launches them all at once, but only for the shapes and the memory that it was
recorded with. So rows and cached positions are rounded up to few sizes, everything a step reads lies in tensors that
stay, and a step neither waits for the GPU nor asks it for a number. On a CPU the same steps run as they are, which
tests/models/sampling/test_static.py holds against `LlamaDecoder.decode`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.sampling.draws import drawn_plainly
from models.sampling.llama import LlamaDecoder

Step = Callable[[], None]

# Widths have four sizes between a power of two and the next, so that at most a fifth of the positions that are read is
# not wanted; below the first one all are the same.
_FIRST_WIDTH = 64

# One recording at a time in a process: it begins by waiting for the whole device.
_RECORDING = threading.Lock()

# Graphs whose recording ended in an error. PyTorch's allocator goes on asking them which memory is theirs, so that they
# must live, and whether another recording would work after one is not defined.
_FAILED: list[torch.cuda.CUDAGraph] = []


def padded_rows(count: int, most: int) -> int:
    """Up to which number of rows a step of `count` rows is filled: 1, 2, 4, 8, 16, 24, 32 ... and `most`."""
    rows = 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8
    return min(rows, most)


def padded_width(width: int) -> int:
    """Up to which number of positions a step looks at its cache: 64, 128, 192, 256, 320, 384, 448, 512, 640 ..."""
    unit = max(_FIRST_WIDTH, 1 << max(0, (width - 1).bit_length() - 3))
    return -(-width // unit) * unit


class CudaGraphs:
    """Records steps on one GPU; the graphs share what memory they need between their first and last operation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, step: Step) -> Step:
        """Run the step, record it, and give what replays it.

        Raises:
            RuntimeError: something in it cannot be recorded, memory is short, or that was so before in this process.
        """
        with _RECORDING, torch.cuda.device(self.device):
            if _FAILED:
                raise RuntimeError("an earlier recording in this process ended in an error")
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                # Kernels are loaded, and their libraries' workspaces made, when first used: nothing to be recorded.
                step()
                step()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may go on allocating: another snapshot's engine, for one. The outer block brings the
                # thread back to its own stream; the inner one leaves it on the other where recording ends in an error.
                with (
                    torch.cuda.stream(current),
                    torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
                ):
                    step()
            except RuntimeError:
                _FAILED.append(graph)
                raise
        return graph.replay


def as_it_is(step: Step) -> Step:
    """What stands for recording where there is nothing to record with."""
    return step


class StaticDecoder:
    """`LlamaDecoder` whose decoding steps have one of few shapes each, recorded when first met.

    Rows that only fill a step up are free rows of the cache: each writes its own position 0, which the next prompt in
    that row overwrites. What is recorded is forgotten when the cache moves or weights do; copies of weights are
    refreshed in their place and don't.
    """

    def __init__(self, inner: LlamaDecoder, slots: int, record: Callable[[Step], Step] | None = None) -> None:
        """Decode up to `slots` rows at once.

        Args:
            record: gives what a step is replayed by; by default a CUDA graph on a GPU, and the step itself on a CPU.
        """
        device = inner.device
        self.inner, self.slots = inner, slots
        self._record = record or (CudaGraphs(device) if device.type == "cuda" else as_it_is)
        self._steps: dict[tuple[int, int], Step] = {}
        self._draws: dict[int, Step] = {}
        self._layout = inner.layout
        self._ids, self._positions = torch.zeros((2, slots), dtype=torch.long, device=device)
        self._uniform = torch.zeros(slots, device=device)
        self._logits = torch.zeros((slots, inner.vocabulary), device=device)
        self._drawn = torch.zeros((2, slots), dtype=torch.float64, device=device)  # ids and log-probs
        self.works = True  # until something could not be recorded

    def sync(self) -> None:
        """Read the model's weights again after they changed."""
        self.inner.sync(in_place=True)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` requests of up to `length` tokens; what is cached is kept."""
        self.inner.reserve(rows, length)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows for these prompts; gives the logits after each prompt's last token, (b, V)."""
        return self.inner.prefill(prompts)

    def drop(self, ended: set[int]) -> list[int]:
        """Remove rows; gives for every row that now stands which row it was before."""
        return self.inner.drop(ended)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Append one token to every row, ids (n,), and give the logits that follow it, (n, V), valid until the next."""
        if not self.works:
            return self.inner.decode(ids)
        inner, count = self.inner, len(ids)
        rows, width = padded_rows(count, self.slots), padded_width(int(inner.lengths.max()) + 1)
        inner.reserve(rows, width)
        if self._layout != inner.layout:
            self._steps.clear()
            self._layout = inner.layout
        positions = torch.zeros(rows, dtype=torch.long)
        positions[:count] = inner.lengths
        self._positions[:rows].copy_(positions)
        self._ids[:count].copy_(ids)
        if (rows, width) not in self._steps:
            step = self._recorded(self._step(rows, width))
            if step is None:
                return inner.decode(ids)
            self._steps[rows, width] = step
        self._steps[rows, width]()
        inner.lengths += 1
        return self._logits[:count]

    @torch.no_grad()
    def draw(self, uniform: Tensor) -> tuple[list[int], list[float]]:
        """Ids and log-probs drawn from the logits of the last `decode` at temperature 1 without top-p.

        Args:
            uniform: (n,) numbers in [0, 1), n the rows of that `decode`.
        """
        count = len(uniform)
        rows = padded_rows(count, self.slots)
        self._uniform[:count].copy_(uniform)
        if rows not in self._draws:
            self._draws[rows] = self._recorded(self._draw(rows)) or self._draw(rows)
        self._draws[rows]()
        ids, logps = self._drawn[:, :count].tolist()
        return [int(token) for token in ids], logps

    def _step(self, rows: int, width: int) -> Step:
        inner = self.inner
        sizes = inner.cache.sizes(width, whole=False)
        views = inner.cache.views(rows, sizes)
        ids, positions, logits = self._ids[:rows], self._positions[:rows], self._logits[:rows]

        def step() -> None:
            logits.copy_(inner.step(ids, positions, views, sizes, masked=0))

        return step

    def _draw(self, rows: int) -> Step:
        logits, uniform, drawn = self._logits[:rows], self._uniform[:rows], self._drawn[:, :rows]

        def draw() -> None:
            for target, numbers in zip(drawn, drawn_plainly(logits, uniform), strict=True):
                target.copy_(numbers)

        return draw

    def _recorded(self, step: Step) -> Step | None:
        """What replays the step, or None where it could not be recorded: nothing will be recorded any more."""
        try:
            return self._record(step)
        except RuntimeError as error:
            print(
                f"note: a decoding step could not be recorded as a CUDA graph ({type(error).__name__}: {error}). "
                "Decoding goes on without graphs, more slowly.",
                file=sys.stderr,
            )
        self.works = False
        self._steps.clear()
        self._draws.clear()
        return None
