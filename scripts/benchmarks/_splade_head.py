"""Measures one SPLADE head in this process: `python _splade_head.py fused|plain cpu|cuda float32|bf16`.

Prints {"s", "MiB", "active"}: the fastest of four steps, forward and backward, the peak memory above what inputs and
libraries take, and the share of terms above 0. encoders.py runs it. Legend: B texts, L tokens, H hidden, V terms.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling

from ltrr.encoders.sparse_head import splade_max

B, L, H, V = 32, 256, 384, 30522


def peak(device: str) -> float:
    """Peak memory in MiB: resident on the CPU, allocated on the GPU."""
    if device == "cpu":
        with open("/proc/self/status") as status:  # ru_maxrss would begin at the parent's
            return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
    return torch.cuda.max_memory_allocated() / 2**20


def wait(device: str) -> None:
    """Returns when the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()


def measure(head: str, device: str, precision: str) -> dict[str, float]:
    """Figures of one head."""
    torch.manual_seed(0)
    hidden = torch.randn(B, L, H, device=device, requires_grad=True)
    decoder = torch.nn.Linear(H, V, device=device)
    with torch.no_grad():  # standard normal logits; the bias lets 1 % of the maxima over 256 positions through
        decoder.weight.normal_(std=H**-0.5)
        decoder.bias.fill_(-3.95)
    mask = torch.ones(B, L, dtype=torch.long, device=device)
    upstream = torch.rand(B, V, device=device)
    pooling = SpladePooling("max").train()

    def step() -> torch.Tensor:
        hidden.grad = decoder.weight.grad = decoder.bias.grad = None
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            if head == "fused":
                out = splade_max(hidden, decoder.weight, decoder.bias, mask)
            else:
                out = pooling({"token_embeddings": decoder(hidden), "attention_mask": mask})["sentence_embedding"]
        (out * upstream).sum().backward()
        wait(device)
        return out

    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):  # libraries' own buffers do not count
        torch.nn.functional.linear(hidden[0, :8].detach(), decoder.weight[:64].detach())
    if device == "cpu":
        with open("/proc/self/clear_refs", "w") as references:
            references.write("5")  # the peak begins anew, after imports
    wait(device)
    before, spent = peak(device), []
    for _ in range(4):
        start = time.perf_counter()
        out = step()
        spent.append(time.perf_counter() - start)
    return {"s": min(spent), "MiB": peak(device) - before, "active": out.gt(0).float().mean().item()}


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
