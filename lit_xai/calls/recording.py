"""CUDA graphs: work on a GPU that is recorded once and launched as a whole ever after."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

WARM = 3  # times that work is done before it is recorded: libraries choose their kernels and allocate in them


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The work as one launch. It reads and writes tensors where they lie now, and whatever Python it does is not done again.

    What it allocates is overwritten by other recorded work of the device: all share their memory.

    Raises:
        RuntimeError: it waits for the device, or copies from the host.
    """
    graph, (held, stream) = torch.cuda.CUDAGraph(), pool(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.clear_autocast_cache()  # weights are cast within the graph, and nobody else reads what it casts them to
    try:
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, held.pool(), stream, capture_error_mode="thread_local"),
        ):
            work()
    finally:
        torch.clear_autocast_cache()
    return graph.replay


@functools.cache
def pool(device: torch.device) -> tuple[torch.cuda.CUDAGraph, torch.cuda.Stream]:
    """What all recordings of a device share: memory, by a graph of next to nothing that holds it, and the stream they are made on.

    Without any graph in it, nothing could be recorded into that memory again.
    """
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            torch.zeros(1, device=device)
    return graph, stream
