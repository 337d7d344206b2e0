"""Every kernel compiles for the GPUs it is meant for, here, without one.

Triton's interpreter, which the other tests run kernels in, accepts what the compiler refuses. A child
process without the interpreter calls the same functions as users do, with a driver that names an H100/H200
as its GPU; each launch then ends in machine code in place of a run.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HOPPER = 90  # compute capability 9.0: H100, H200
# Bytes of shared memory that a block may have there (CUDA C Programming Guide, technical specifications).
ROOT = Path(__file__).parents[2]
MOST_SHARED = 227 * 1024
# Of what `ptxas -v` prints
REPORTED = {
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spilled": r"(\d+) bytes spill stores",
}


# --- In the child -------------------------------------------------------------------------------


class Hopper:
    """As much of a Triton driver as compiling asks for."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", HOPPER, 32)


def compile_launches() -> list[dict[str, Any]]:
    """Calls every kernel's wrapper as its package does; one entry a launch."""
    import triton

    compiled: list[dict[str, Any]] = []
    run = triton.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        resources = resources_of(kernel.asm["ptx"])
        name = f"{self.fn.__module__}.{self.fn.__name__}"
        compiled.append({"kernel": name, "shared": kernel.metadata.shared, **resources})
        return kernel

    triton.runtime.driver.set_active(Hopper())
    triton.JITFunction.run = compile_only
    for call in calls():
        call()
    return compiled


def resources_of(ptx: str) -> dict[str, int]:
    """What the assembler says of one kernel: registers a thread, bytes of stack, bytes spilled to memory."""
    import tempfile

    import triton.backends.nvidia

    assembler = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"
    if not assembler.is_file():
        return {}
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [assembler, "-v", f"--gpu-name={architecture[1]}", "kernel.ptx", "-o", "kernel.cubin"]
        report = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stderr
    found = {}
    for name, pattern in REPORTED.items():
        [value] = re.findall(pattern, report)
        found[name] = int(value)
    return found


def calls() -> Iterator[Callable[[], Any]]:
    """Each launch in the dtypes, and with the options, that change its code."""
    import torch

    from cuda_kernels.add_norm.kernel import add_norm
    from cuda_kernels.attention import GatedBias
    from cuda_kernels.attention.kernel import attend_packed
    from cuda_kernels.backend import accumulated
    from cuda_kernels.norm_gelu.kernel import group_norm_gelu
    from cuda_kernels.packing import pack
    from cuda_kernels.pool import STATISTICS
    from cuda_kernels.pool.kernel import pool_rows
    from cuda_kernels.positional_conv.kernel import positional_conv
    from cuda_kernels.resample import filter_bank
    from cuda_kernels.resample.kernel import resample
    from cuda_kernels.spectral import NUM_BINS, SpectralEdit
    from cuda_kernels.spectral.kernel import edit_spectrogram
    from cuda_kernels.waveform import WaveformEdit
    from cuda_kernels.waveform.kernel import edit_waveforms

    frames = torch.zeros(10, NUM_BINS, dtype=torch.complex64)
    edit = SpectralEdit(8, (1.25, 1.25), bands=((3, 9),), spans=((1, 2),))
    yield lambda: edit_spectrogram(frames, [10], [edit])

    x, edits = torch.zeros(5000), {"gain": WaveformEdit(2.0), "noise": WaveformEdit(1.0, 10.0, noise_key=1)}
    for edit_name in edits:
        for normalise in (False, True):
            yield lambda e=edits[edit_name], n=normalise: edit_waveforms(x, [5000], [e], None, n)

    for dtype in (torch.float32, torch.float64):
        bank = filter_bank(1, 3).t().to(dtype).contiguous()
        yield lambda b=bank: resample(torch.zeros(4800, dtype=b.dtype), [4800], [1600], b, 3)

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        rows, weight = torch.zeros(100, 512, dtype=dtype), torch.zeros(512, dtype=dtype)
        yield lambda r=rows, w=weight: group_norm_gelu(r, [0], [90], w, w, 1e-5)
        starts = torch.tensor([0, 60, 100])
        outs = [torch.zeros(2, 512, dtype=accumulated(dtype)) for _ in STATISTICS]
        yield lambda r=rows, s=starts, o=outs: pool_rows(r, s, o[0], *[None] * 5)
        yield lambda r=rows, s=starts, o=outs: pool_rows(r, s, *o)

    # Groups and heads of 48, 64 and 80 channels: base models have such groups, large and xlarge ones both.
    packing, num_heads = pack([200, 100], torch.device("cpu")), 16
    vector, const = torch.zeros(num_heads, 399), torch.zeros(num_heads)
    for dtype in (torch.float32, torch.bfloat16):
        for width in (768, 1024, 1280):
            rows, weight = torch.zeros(300, 3 * width + 32, dtype=dtype), torch.zeros(width, dtype=dtype)
            qkv, x = rows[:, : 3 * width], rows[:, :width]
            bias = GatedBias(vector.to(dtype), rows[:, 3 * width :], const.to(dtype))
            yield lambda q=qkv: attend_packed(q, packing, num_heads, None)
            yield lambda q=qkv, b=bias: attend_packed(q, packing, num_heads, b)
            taps = torch.zeros(16, 128, width // 16, width // 16, dtype=dtype)
            yield lambda x=x, t=taps, w=weight: positional_conv(x, packing, t, w, x)
            yield lambda x=x, w=weight: add_norm(x, x, w, w, 1e-5, False, x.contiguous(), x.contiguous())
            yield lambda x=x, w=weight: add_norm(x, None, w, w, 1e-5, True, None, x.contiguous())


# --- The tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    pytest.importorskip("triton.backends.nvidia", reason="triton, or its compiler for CUDA, is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # An empty cache: what compiled once may not compile now.
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def launched() -> set[str]:
    """Kernels that the sources launch, ``name[grid](...)``, with their modules."""
    found = set()
    for path in sorted((ROOT / "cuda_kernels").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        jitted = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                name = ast.unparse(node.func.value)
                found |= {f"{module}.{name}"} if name in jitted else set()
    return found


def test_every_kernel_that_is_launched_compiles(compiled: list[dict[str, Any]]) -> None:
    assert {launch["kernel"] for launch in compiled} == launched()
    assert len(launched()) >= 6  # as many as there were when this was written: the search finds them


def test_blocks_fit_the_shared_memory(compiled: list[dict[str, Any]]) -> None:
    for launch in compiled:
        assert launch["shared"] <= MOST_SHARED, launch


def test_no_kernel_spills_its_registers(compiled: list[dict[str, Any]]) -> None:
    """A spill goes through memory, many times as far away as a register."""
    if not all("spilled" in launch for launch in compiled):
        pytest.skip("triton came without ptxas, which counts them")
    for launch in compiled:
        assert launch["spilled"] == 0, launch


if __name__ == "__main__":
    print(json.dumps(compile_launches()))
