"""python benchmarks/window_attention.py [--device cuda --dtype bfloat16] [--json]

Attention in 3D windows at 344x192, 16 frames: what padding costs, against other ways to do the
same, per window size, and growth with the number of frames. The two sides of each comparison
take turns and medians are reported. Projections, norms and FFN are left out on both sides.
Bars: padding at most 1.15, global attention at least 15 times slower.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from model.attention import (
    attend,
    count_windows,
    fit_window,
    key_mask,
    partition,
    unpartition,
    window_attention,
)

Size = tuple[int, int, int]
WINDOW = (8, 6, 11)
LEVELS = [((16, 24, 43), 320), ((16, 12, 22), 640), ((16, 6, 11), 1280), ((16, 3, 6), 1280)]
WINDOWS = [(2, 8, 8), (4, 6, 11), (8, 6, 11), (8, 8, 8), (16, 6, 11), (8, 12, 22)]
HEAD = 64
FORWARD, BOTH = "forward", "forward+backward"


def masked_everywhere(q: Tensor, k: Tensor, v: Tensor, window: Size, heads: int) -> Tensor:
    """Video-Swin's way: roll by half a window, pad, an N x N mask for every window, roll back."""
    size: Size = (q.shape[1], q.shape[2], q.shape[3])
    shift = [w // 2 for w in window]
    axes = (1, 2, 3)
    q, k, v = (partition(x.roll([-s for s in shift], axes), window) for x in (q, k, v))
    region = torch.ones(1, *size, 1, device=q.device)  # 0 in the padding: a region of its own
    for axis, (n, s) in enumerate(zip(size, shift, strict=True)):
        wrapped = torch.arange(n, device=q.device) >= n - s  # rolled in from the other side
        region += 2**axis * wrapped.reshape([-1 if d == axis + 1 else 1 for d in range(5)])
    region = partition(region, window).squeeze(-1)
    mask = region[:, None, :, None] == region[:, None, None, :]
    out = unpartition(attend(q, k, v, heads, mask), size, window)
    return out.roll(shift, axes)


def explicit_softmax(q: Tensor, k: Tensor, v: Tensor, window: Size, heads: int) -> Tensor:
    """The same windows, with the attention matrix written out."""
    size: Size = (q.shape[1], q.shape[2], q.shape[3])
    mask = key_mask(size, window, q.device)
    q, k, v = (partition(x, window) for x in (q, k, v))
    S, N, C = q.shape
    q, k, v = (x.reshape(S, N, heads, C // heads).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (C // heads) ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.repeat(S // len(mask), 1, 1, 1), float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(S, N, C)
    return unpartition(out, size, window)


def global_attention(q: Tensor, k: Tensor, v: Tensor, window: Size, heads: int) -> Tensor:
    """All tokens of the clip against all, one call of SDPA."""
    return attend(*(x.flatten(1, 3) for x in (q, k, v)), heads, None).reshape(q.shape)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Size, int], Tensor]] = {
    "windows": window_attention,
    "explicit softmax": explicit_softmax,
    "roll and mask": masked_everywhere,
    "global": global_attention,
}


def run_of(
    form: str, size: Size, channels: int, window: Size, mode: str, device: str, dtype: torch.dtype
) -> Callable[[], None]:
    """A function that runs one form once on fixed random inputs, balanced windows."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, *size, channels, device=device, dtype=dtype, requires_grad=mode == BOTH)
        for _ in range(3)
    )
    window, attention = fit_window(size, window), FORMS[form]

    def run() -> None:
        with torch.set_grad_enabled(mode == BOTH):
            out = attention(q, k, v, window, channels // HEAD)
            if mode == BOTH:
                torch.autograd.grad(out, (q, k, v), out.detach())
        if q.is_cuda:
            torch.cuda.synchronize()

    return run


def medians(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each; they take turns.

    What is quick runs once untimed before each timing: while a slow side has its turn, the
    memory of the others goes cold or is even reclaimed, which is not what is compared here.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if not times[name] or times[name][-1] < 1000:
                run()
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def peak_mib(
    form: str, size: Size, channels: int, window: Size, device: str, dtype: torch.dtype
) -> float:
    """Peak memory of forward and backward above that of the inputs."""
    run = run_of(form, size, channels, window, BOTH, device, dtype)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_mib("VmRSS")
    run()
    return resident_mib("VmHWM") - before


def resident_mib(key: str) -> float:
    """VmRSS or VmHWM of this process, Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise AssertionError(key)


def measured_peak(*job: object) -> float:
    """`peak_mib`, on a CPU in a fresh process, where nothing freed earlier can hide it."""
    if str(job[4]).startswith("cuda"):
        return peak_mib(*job)  # type: ignore[arg-type]
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_mib, job)


def padding_cost(args: argparse.Namespace) -> list[dict[str, object]]:
    """Each level with padding and mask against the size it is padded to, which needs neither.

    Both sides have the same windows and as many tokens in them. `per_real_token` charges the
    padded side for its padding as well.
    """
    rows: list[dict[str, object]] = []
    for size, channels in LEVELS:
        window = fit_window(size, WINDOW)
        even = tuple(n * w for n, w in zip(count_windows(size, window), window, strict=True))
        share = torch.Size(even).numel() / torch.Size(size).numel()
        if even == size:
            print(
                f"{x(size):>10} C={channels:<5} window {x(window):8} divides: no padding, no mask"
            )
            continue
        for mode in (FORWARD, BOTH):
            runs = {
                name: run_of("windows", s, channels, window, mode, args.device, args.torch_dtype)
                for name, s in (("padded", size), ("even", even))
            }
            found = medians(runs, args.repeats)
            ratio = found["padded"] / found["even"]
            rows.append({"size": size, "channels": channels, "window": window, "against": even,
                         "mode": mode, **found, "ratio": ratio,
                         "per_real_token": ratio * share})  # fmt: skip
            print(
                f"{x(size):>10} C={channels:<5} window {x(window):8} against {x(even):9} {mode:17}"
                f"{found['padded']:9.1f} ms {found['even']:9.1f} ms  x{ratio:.3f}  per real "
                f"token x{ratio * share:.3f}"
            )
    return rows


def forms_cost(args: argparse.Namespace) -> list[dict[str, object]]:
    """Every form at every level, forward+backward and forward, and its peak memory."""
    rows: list[dict[str, object]] = []
    for size, channels in LEVELS:
        common = (args.device, args.torch_dtype)
        found = {
            mode: medians(
                {form: run_of(form, size, channels, WINDOW, mode, *common) for form in FORMS},
                args.slow_repeats,
            )
            for mode in (FORWARD, BOTH)
        }
        for form in FORMS:
            peak = measured_peak(form, size, channels, WINDOW, *common)
            ratio = found[BOTH][form] / found[BOTH]["windows"]
            rows.append({"size": size, "channels": channels, "form": form, "peak_mib": peak,
                         FORWARD: found[FORWARD][form], BOTH: found[BOTH][form],
                         "ratio": ratio})  # fmt: skip
            print(
                f"{x(size):>10} C={channels:<5} {form:17} forward {found[FORWARD][form]:9.1f} ms "
                f" +backward {found[BOTH][form]:9.1f} ms  x{ratio:6.2f}  peak {peak:7.0f} MiB"
            )
    return rows


def window_sizes(args: argparse.Namespace) -> list[dict[str, object]]:
    size, channels = LEVELS[0]
    runs = {
        window: run_of("windows", size, channels, window, BOTH, args.device, args.torch_dtype)
        for window in WINDOWS
    }
    found = medians({x(window): run for window, run in runs.items()}, args.repeats)
    rows: list[dict[str, object]] = []
    for window in WINDOWS:
        fitted = fit_window(size, window)
        tokens = torch.Size(fitted).numel() * torch.Size(count_windows(size, fitted)).numel()
        padded = tokens / torch.Size(size).numel() - 1
        rows.append({"window": window, "fitted": fitted, "padded": padded, BOTH: found[x(window)]})
        print(f"{x(window):>10} balanced {x(fitted):8} padding {padded:6.1%}  {BOTH} "
              f"{found[x(window)]:9.1f} ms")  # fmt: skip
    return rows


def growth(args: argparse.Namespace) -> list[dict[str, object]]:
    """Frames 8..64 at 24x43, one head of 64, forward: windows grow linearly, global as T^2."""
    rows: list[dict[str, object]] = []
    for frames in (8, 16, 32, 64):
        size = (frames, 24, 43)
        runs = {
            form: run_of(form, size, HEAD, WINDOW, FORWARD, args.device, args.torch_dtype)
            for form in ("windows", "global")
        }
        found = medians(runs, repeats=1)
        rows.append({"frames": frames, **found})
        each = {form: f"{ms:9.1f} ms ({ms / frames:7.2f} a frame)" for form, ms in found.items()}
        print(f"{frames:>4} frames  windows {each['windows']}  global {each['global']}")
    return rows


def x(size: Size) -> str:
    return "x".join(map(str, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--slow-repeats", type=int, default=3, help="where global takes part")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.torch_dtype = getattr(torch, args.dtype)
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"{where}, {args.dtype}, {args.threads} threads, heads of {HEAD}, window {x(WINDOW)}")
    print("\nPadding and mask against a size that divides")
    padding = padding_cost(args)
    print("\nWindow sizes at 16x24x43, C=320")
    windows = window_sizes(args)
    print("\nWays to attend, balanced windows")
    forms = forms_cost(args)
    print("\nGrowth with frames at 24x43, one head, forward")
    frames = growth(args)
    if args.json:
        top = [row for row in forms if row["size"] == LEVELS[0][0]]
        result = {
            "ratio_padding": padding[1]["ratio"],
            "speedup_over_global": next(r["ratio"] for r in top if r["form"] == "global"),
            "device": where,
            "dtype": args.dtype,
            "padding": padding,
            "windows": windows,
            "forms": forms,
            "frames": frames,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
