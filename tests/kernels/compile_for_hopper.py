"""Compiles the shipped Triton kernels for an H100 on a machine that has none, and prints what the compiler says.

`python compile_for_hopper.py [--parallel | --fp32] HEAD_SIZE...` prints one JSON object a line: kernel, head size,
registers, bytes of stack (spilled registers) and of shared memory; with `--parallel` those of the chunk-parallel form,
with `--fp32` those for fp32 inputs. Runs with whichever Triton comes first on the path.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from arwkv_kernels.triton import sparse_kl, topk_logsumexp, wkv7_step
from arwkv_kernels.triton.configs import PARALLEL, PARALLEL_FEW, PARALLEL_FP32, WKV7, ParallelConfig
from arwkv_kernels.triton.parallel.autograd import FP32, HALF, Precision
from arwkv_kernels.triton.parallel.solve import wkv7_solve_kernel
from arwkv_kernels.triton.parallel.tokens import wkv7_output_kernel, wkv7_span_gradients_kernel
from arwkv_kernels.triton.parallel.walks import wkv7_reverse_walk_kernel, wkv7_walk_kernel
from arwkv_kernels.triton.wkv7_backward import wkv7_state_gradient_kernel, wkv7_token_gradients_kernel
from arwkv_kernels.triton.wkv7_exact import wkv7_exact_backward_kernel, wkv7_exact_forward_kernel
from arwkv_kernels.triton.wkv7_forward import wkv7_forward_kernel

TYPES = dict.fromkeys(
    ["initial_ptr", "final_ptr", "d_initial_ptr", "d_final_ptr", "state_ptr", "new_state_ptr", "log_p_ptr",
     "values_ptr", "log_p_tail_ptr", "loss_ptr", "logsumexp_ptr", "entropy_ptr", "solve_ptr"], "*fp32",
) | {
    "unsafe_ptr": "*i32", "cu_seqlens_ptr": "*i64", "sequence_ptr": "*i64", "T": "i32", "V": "i32", "K": "i32",
    "stride": "i32", "scale": "fp32", "temperature": "fp32", "counts_ptr": "*i64",
}  # fmt: skip

FP32_DECAY = {"w_ptr": "*fp32", "dw_ptr": "*fp32"}
FP32_INPUTS = {f"{d}{n}_ptr": "*fp32" for n in "rwkvab" for d in ("", "d")} | dict.fromkeys(
    ["o_ptr", "d_o_ptr", "checkpoint_ptr"], "*fp32"
)


def report(
    kernel: Any, constants: dict[str, Any], warps: int, special: dict[str, str] | None = None, stages: int = 3
) -> None:
    """Compile `kernel` with pointers to bf16 where nothing else is said, aligned as torch aligns them."""
    types = TYPES | (special or {})
    signature = {n: "constexpr" if n in constants else types.get(n, "*bf16") for n in kernel.arg_names}
    aligned = [
        i for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*") or n in ("T", "V", "K", "stride")
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages}
    )
    registers, stack = resources(compiled.asm["cubin"], compiled.metadata.name)
    print(
        json.dumps(
            {
                "triton": triton.__version__,
                "kernel": compiled.metadata.name,
                "head_size": constants.get("D"),
                "warps": warps,
                "registers": registers,
                "stack_bytes": stack,
                "shared_bytes": compiled.metadata.shared,
                "tensor_core": bool(re.search(r"wgmma\.mma_async|mma\.sync", compiled.asm["ptx"])),
            }
        ),
        flush=True,
    )


def resources(cubin: bytes, name: str) -> tuple[int, int]:
    """Registers and bytes of stack a thread, from `cuobjdump -res-usage`."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"Function {name}:\s*REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def report_wkv7(head_size: int) -> None:
    """Signatures: what a time mixer passes (all in half, the decay in fp32), all in half, and all in fp32."""
    config = WKV7[head_size]
    shape = {"H": 64, "D": head_size, "CHUNK": config.chunk}
    chunks = shape | {"OVER_HEAD": "bf16", "OVER_TOKENS": "tf32"}
    values = {"VALUES": config.values}
    for decay in (FP32_DECAY, {}):
        report(wkv7_forward_kernel, chunks | values | {"KEEP": True}, config.forward_warps, decay)
        report(wkv7_state_gradient_kernel, chunks | values, config.state_warps, decay)
        report(wkv7_token_gradients_kernel, chunks | {"KEYS": config.keys}, config.token_warps, decay)
    report(wkv7_forward_kernel, chunks | values | {"KEEP": False}, config.forward_warps, FP32_DECAY)
    for types in (FP32_DECAY, FP32_INPUTS):
        report(wkv7_exact_forward_kernel, shape | {"KEEP": True}, config.exact_warps, types)
        report(wkv7_exact_backward_kernel, shape, config.exact_warps, types)
    for in_place in (False, True):
        columns = {"D": head_size, "VALUES": wkv7_step.VALUES, "IN_PLACE": in_place}
        slots = {"slots_ptr": "*i32", "heads": "i32"}
        report(wkv7_step.wkv7_step_kernel, columns, wkv7_step.WARPS, FP32_DECAY | slots)


def report_parallel(head_size: int) -> None:
    """The form for many sequences, and that for few where it is another one; the decay in fp32 and in half."""
    for config in dict.fromkeys((PARALLEL[head_size], PARALLEL_FEW[head_size])):
        for decay in (FP32_DECAY, {}):
            report_spans(head_size, config, HALF, decay)


def report_fp32(head_size: int) -> None:
    """What runs where v is fp32, of inputs that are all fp32."""
    kept = dict.fromkeys(["u_ptr", "state_ptr", "dy_ptr", "dZ_ptr"], "*fp32")
    report_spans(head_size, PARALLEL_FP32[head_size], FP32, FP32_INPUTS | kept)


def report_spans(head_size: int, config: ParallelConfig, precision: Precision, types: dict[str, str]) -> None:
    """Where walks write the output, those that keep it for a backward pass and those that do not."""
    shape = {"H": 64, "D": head_size, "SPAN": config.span, "OVER_HEAD": precision.head}
    chunks = shape | {"SOLVING": precision.solving, "CHUNK": config.chunk}
    walk = chunks | {"OVER_TOKENS": precision.tokens, "VALUES": config.values}
    tokens = shape | {"OVER_TOKENS": precision.tokens, "CHUNK": config.gradient_chunk}
    report(wkv7_solve_kernel, chunks, config.solve_warps, types)
    for keep in (True,) if config.split else (True, False):
        variant = {"KEEP": keep, "OUTPUT": not config.split}
        report(wkv7_walk_kernel, walk | variant, config.walk_warps, types, stages=1)
    report(wkv7_reverse_walk_kernel, walk, config.walk_warps, types, stages=1)
    if config.split:
        report(wkv7_output_kernel, tokens | {"KEYS": config.output_keys}, config.output_warps, types, stages=1)
    columns = {"KEYS": config.keys, "VALUES": config.gradient_values}
    report(wkv7_span_gradients_kernel, tokens | columns, config.gradient_warps, types, stages=1)


def report_head() -> None:
    logits = {"logits_ptr": "*fp32", "gradient_ptr": "*fp32", "ids_ptr": "*i64"}
    for candidates in (64, sparse_kl.MOST_CANDIDATES):
        rows = {"CANDIDATES": candidates, "BLOCK": sparse_kl.BLOCK, "BUCKET": True, "RENORMALIZE": False}
        report(sparse_kl.sparse_kl_rows_kernel, rows, sparse_kl.WARPS, logits)
    fp32 = dict.fromkeys(["logits_ptr", "highest_ptr", "mass_ptr", "moment_ptr", "tail_ptr"], "*fp32")
    types = fp32 | {
        "groups_ptr": "*i32",
        "ids_ptr": "*i32",
        "next_ids_ptr": "*i64",
        "next_ptr": "*fp32",
        "steps": "i32",
    }
    lanes = {"LANES": topk_logsumexp.LANES}
    reading = lanes | {"SPLITS": 4, "DEPTH": topk_logsumexp.DEPTH}
    report(topk_logsumexp.topk_groups_kernel, reading, topk_logsumexp.READ_WARPS, types)
    for kept, splits, steps in ((64, 4, 64), (128, 8, 32)):
        for logprobs in (False, True):
            choosing = lanes | {"G": splits * topk_logsumexp.LANES, "KEPT": kept, "STEPS": steps, "LOGPROBS": logprobs}
            ids = types if logprobs else types | {"ids_ptr": "*i64"}
            report(topk_logsumexp.topk_choose_kernel, choosing, topk_logsumexp.CHOOSE_WARPS, ids)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head_sizes", nargs="+", type=int, choices=WKV7, metavar="HEAD_SIZE")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--parallel", action="store_const", dest="report", const=report_parallel)
    which.add_argument("--fp32", action="store_const", dest="report", const=report_fp32)
    arguments = parser.parse_args()
    if arguments.report is None:
        report_head()
    for size in arguments.head_sizes:
        (arguments.report or report_wkv7)(size)
