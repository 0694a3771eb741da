#!/usr/bin/env bash
# Everything that is trained on a GPU, in one go, without a network. What it leaves lies under $OUT: results/*.json, logs/*.log,
# pack/change.NN. A part that fails does not stop the next one.
#   GENERATE, NESTED, ALONE, PACK: seconds of each part; 0 leaves it out. NESTED_OPTIONS: of the nested training (--lr …).
#   SMOLLM2_GGUF: the model's file; without it, the pieces in build/llm-training-gguf* are joined. NAME: of this run. BITS: of the pack.
set -u
cd "$(dirname "$0")/../.."
: "${OUT:=build/llm-out}" "${NAME:=}" "${GENERATE:=60}" "${NESTED:=260}" "${ALONE:=150}" "${PACK:=60}" "${BITS:=6}"
: "${NESTED_OPTIONS:=}" "${PYTHON:=python}"
export LLM_WORK="${LLM_WORK:-build/llm-training}" HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}" PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
export PYTHONUNBUFFERED=1
results="$OUT/results$NAME" logs="$OUT/logs$NAME"
mkdir -p "$results" "$logs"
begun=$(date +%s)

part() {  # NAME SECONDS COMMAND…
  local name=$1 limit=$2
  shift 2
  [ "$limit" = 0 ] && return 0
  echo "$(($(date +%s) - begun)) s: $name, $limit s"
  timeout --signal=INT --kill-after=10 "$((limit + 25))" "$PYTHON" -m benchmarks.llm.training "$@" >"$logs/$name.log" 2>&1
  local status=$?
  echo "$(($(date +%s) - begun)) s: $name ended with $status"
  tail -n 3 "$logs/$name.log" | cut -c1-600
}

if [ -z "${SMOLLM2_GGUF:-}" ] && ls "$LLM_WORK"-gguf*/piece.* >/dev/null 2>&1; then
  "$PYTHON" -m benchmarks.llm.training join >"$logs/join.log" 2>&1 && export SMOLLM2_GGUF="$LLM_WORK/model.gguf"
fi
part generate "$GENERATE" generate-data --seconds "$GENERATE" --target "$results/generated.json" ${GENERATE_OPTIONS:-}
# shellcheck disable=SC2086
part nested "$NESTED" nested --seconds "$NESTED" --target "$results/nested.json" $NESTED_OPTIONS
part pack "$PACK" pack --out "$OUT/pack$NAME" --bits "$BITS" --share-of "$results/nested.json" --target "$results/packed.json"
part alone "$ALONE" alone all --seconds "$ALONE" --share-of "$results/nested.json" --target "$results/alone.json"
ls -l "$results" "$OUT/pack$NAME" 2>/dev/null
