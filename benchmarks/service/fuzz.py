"""schemathesis over the whole OpenAPI document against a running service: what breaks it, what is not documented."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.service.load import bench_bundle
from benchmarks.service.running import running

SETTINGS = Path(__file__).parent / "schemathesis.toml"
FINDINGS = Path(__file__).parent / "results" / "fuzz-findings.txt"
CASES, EXAMPLES = 10_000, 400
"""At least so many cases in all; examples per path and run. After the first run, which also goes through what the schema
itself suggests, runs go on with other seeds and made-up cases alone."""

NOTES = {
    "schemathesis_cases": "requests made up from /openapi.json, in runs of other seeds: all methods and paths, bodies and "
    "parameters that fit the schema and that do not",
    "schemathesis_failures": "unique ones: a 5xx, an answer, media type, header or schema that is not documented, bad data "
    "accepted, a method that is not refused",
}


def measure(
    cases: int = CASES, *, bundle: Path | None = None, options: Sequence[str] = (), headers: Sequence[str] = ()
) -> dict[str, float]:
    """`options` of `sortednet serve`; `headers` of every request, such as `Authorization: Bearer …`. What fails is written
    to `results/fuzz-findings.txt` with the request that repeats it."""
    tried = failures = seed = 0
    findings = ""
    with running("sortednet", "serve", bundle or bench_bundle(), *options) as service:
        while tried < cases:
            seed += 1
            found, output = run(f"{service.url}/openapi.json", seed, headers)
            if found["test_cases"]["generated"] == 0 or found["errors"]:
                raise SystemExit(f"schemathesis did not run to its end:\n{output}")
            tried += found["test_cases"]["generated"]
            failures += found["test_cases"]["unique_failures"]
            findings += output if found["test_cases"]["unique_failures"] else ""
            print(f"{tried} of {cases} cases, {failures} failures", flush=True)
            if service.process.poll() is not None:
                raise SystemExit("the service has ended")
    FINDINGS.unlink(missing_ok=True)
    if findings:
        FINDINGS.parent.mkdir(exist_ok=True)
        FINDINGS.write_text(findings, encoding="utf-8")
    return {"schemathesis_cases": tried, "schemathesis_failures": failures}


def run(url: str, seed: int, headers: Sequence[str] = (), examples: int = EXAMPLES) -> tuple[dict[str, dict[str, int]], str]:
    """One run: its report, and what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(SETTINGS), "run", url, "--no-color"]
        phases = "examples,coverage,fuzzing" if seed == 1 else "fuzzing"
        command += ["--phases", phases, "--continue-on-failure", "--max-examples", str(examples)]
        command += ["--seed", str(seed), "--report", "json", "--report-json-path", str(report)]
        for header in headers:
            command += ["--header", header]
        output = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if not report.exists():
            raise SystemExit(f"schemathesis did not start:\n{output.stdout}{output.stderr}")
        return json.loads(report.read_text(encoding="utf-8")), output.stdout


if __name__ == "__main__":
    print(measure(int(sys.argv[1]) if len(sys.argv) > 1 else CASES))
