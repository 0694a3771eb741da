"""Runs Python with an ONNX Runtime that finds no AVX-512 and no VNNI, on a processor that has them, at full speed.

    python -m benchmarks.device.avx2 -m pytest tests/exporter/test_int8.py

ONNX Runtime chooses its kernels by the instruction CPUID. In a copy of its library every CPUID is made an instruction that
no processor knows, and a signal handler, loaded before everything else, answers in its place and leaves those features out.
Needs x86-64 Linux, a C compiler and objdump (binutils).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

WORK = Path("build/avx2").absolute()
_CPUID, _UNKNOWN = b"\x0f\xa2", b"\x0f\x0b"  # UD2
_HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>

typedef int (*sigaction_t)(int, const struct sigaction *, struct sigaction *);

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *reg = ((ucontext_t *)context)->uc_mcontext.gregs;
  unsigned a, b, c, d, leaf = reg[REG_RAX], part = reg[REG_RCX];
  if (*(unsigned short *)reg[REG_RIP] != 0x0b0f) { signal(SIGILL, SIG_DFL); return; }
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 7 && part == 0) {
    b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31); /* AVX-512 F to VL */
    c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14); /* VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
    d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25); /* 4VNNIW to FP16, AMX */
  }
  if (leaf == 7 && part == 1) { a &= ~(1u << 4 | 1u << 5 | 1u << 23); d = 0; } /* AVX-VNNI, BF16, IFMA, VNNI-INT8 */
  reg[REG_RAX] = a; reg[REG_RBX] = b; reg[REG_RCX] = c; reg[REG_RDX] = d;
  reg[REG_RIP] += 2;
}

/* Nobody else is told of this signal: pytest would take the handler away. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
  return ((sigaction_t)dlsym(RTLD_NEXT, "sigaction"))(number, number == SIGILL ? 0 : new, old);
}

__attribute__((constructor)) static void start(void) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
  ((sigaction_t)dlsym(RTLD_NEXT, "sigaction"))(SIGILL, &action, 0);
}
"""


def available() -> bool:
    """Whether what it needs is here."""
    return sys.platform == "linux" and os.uname().machine == "x86_64" and all(map(shutil.which, ("cc", "objdump")))


def environment() -> dict[str, str]:
    """For a process of this Python: its ONNX Runtime is the copy, made if it is not there."""
    packages, handler = WORK / ort.__version__, WORK / "handler.so"
    if not packages.exists():
        partial = packages.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(Path(ort.__file__).parent, partial / "onnxruntime")
        (library,) = partial.glob("onnxruntime/capi/onnxruntime_pybind11_state*.so")
        _hide_cpuid(library)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-xc", "-", "-o", handler], input=_HANDLER.encode(), check=True)
        partial.rename(packages)
    path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "LD_PRELOAD": str(handler), "PYTHONPATH": path}


def _hide_cpuid(library: Path) -> None:
    def objdump(*options: str) -> str:
        return subprocess.run(["objdump", *options, library], capture_output=True, text=True, check=True).stdout

    sections = re.findall(r"^\s*\d+ \S+\s+(\w+)\s+(\w+)\s+\w+\s+(\w+)", objdump("-h"), re.M)
    content = bytearray(library.read_bytes())
    for found in re.finditer(r"^\s*(\w+):\s+cpuid\s*$", objdump("-d", "--no-show-raw-insn"), re.M):
        address = int(found[1], 16)
        for size, start, offset in ((int(part, 16) for part in section) for section in sections):
            if start <= address < start + size:
                place = address - start + offset
                assert content[place : place + 2] == _CPUID
                content[place : place + 2] = _UNKNOWN
                break
    library.write_bytes(content)


def run(arguments: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS…`; `options` are those of `subprocess.run`."""
    return subprocess.run([sys.executable, *arguments], env=environment(), text=True, **options)  # type: ignore[call-overload, no-any-return]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]).returncode)
