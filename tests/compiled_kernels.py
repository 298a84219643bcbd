"""Compiles the kernels in Triton for GPUs that need not be there: ``python -m tests.compiled_kernels 80 90``.

Prints registers of a thread, and bytes that it spills, of each kernel, at the sizes of the challenge.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fuxictr_mm.layers.triton_kernels import LARGEST_QUERY, activation_unit, target_attention

FLOAT32 = {"norms", "of_target", "of_items", "of_target_part", "of_items_part", "of_weight"}
NUMBERS = {"index": "*i64", "rows": "*i64", "offsets": "*i64", "dropout": "fp32", "scale": "fp32", "seed": "i32"}
NUMBERS |= dict.fromkeys(("count", "dim", "units", "heads"), "i32")
#: Types of the other tensors, and how their products are computed.
TYPES = [("*bf16", "tf32"), ("*fp32", "tf32"), ("*fp32", "tf32x3")]


def kernels(precision):
    block = {"BLOCK_H": 4, "BLOCK_D": 256, "BLOCK_N": LARGEST_QUERY // (4 * 256), "SPARSE": False, "num_warps": 1}
    for kernel in (target_attention._attend, target_attention._differentiate):
        yield kernel, block
    for name in ("forward", "of_inputs", "of_weight"):
        blocks = getattr(activation_unit, name.upper())
        yield getattr(activation_unit, f"_{name}"), {**blocks, "PRECISION": precision, "DROPS": True}


def compiled(kernel, capability, tensors, sizes):
    names = kernel.arg_names
    types = {n: "constexpr" if n in sizes else "*fp32" if n in FLOAT32 else NUMBERS.get(n, tensors) for n in names}
    aligned = {i for i, n in enumerate(names) if types[n].startswith("*") or n in ("dim", "units")}
    source = ASTSource(
        kernel,
        types,
        {(names.index(n),): value for n, value in sizes.items() if n in names},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {n: value for n, value in sizes.items() if n.startswith("num_")}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(binary):
    """Return registers of a thread and bytes of its stack, where spilled registers are."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return [int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr).groups()]


if __name__ == "__main__":
    found = {}
    for capability in map(int, sys.argv[1:]):
        for tensors, precision in TYPES:
            for kernel, sizes in kernels(precision):
                name = f"{capability} {tensors} {precision} {kernel.__name__}"
                found[name] = resources(compiled(kernel, capability, tensors, sizes).asm["cubin"])
    print(json.dumps(found))
