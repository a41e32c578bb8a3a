#!/usr/bin/env bash
# All that is worth measuring on one GPU, within eight minutes: bash benchmarks/gpu.sh [OUT]      (--dry-run: the plan alone)
# Writes OUT/STEP.txt (or $OUT; default gpu-results), OUT/steps.jsonl and OUT/results.jsonl, and prints a table at the end. Each step has
# a limit of its own; one that hangs or fails is left out with its reason, and the next goes on. Exit code: 0 all steps done, 1 some left
# out, 2 no GPU here. GPU_SECONDS=N (default 480) is what all may take; the steps' limits grow and shrink with it.
set -uo pipefail
dry=
for word in "$@"; do
  case $word in
    --dry-run) dry=yes ;;
    -*) sed -n '2,5s/^# //p' "$0" >&2; [ "$word" = --help ]; exit $(($? * 2)) ;;
    *) OUT=$word ;;
  esac
done
out=$(realpath -m -- "${OUT:-gpu-results}") all=${GPU_SECONDS:-480}
case $all in *[!0-9]* | "") echo "error: GPU_SECONDS is $all, not a whole number of seconds" >&2; exit 2 ;; esac
cd "$(dirname "$0")/.." || exit 2
[ -n "${VIRTUAL_ENV:-}" ] || [ ! -x .venv/bin/python ] || PATH="$PWD/.venv/bin:$PATH"

# step | seconds of 480 | command: the most telling first. All of a 7B model takes 143 GB by its plan: a smaller GPU says so, and goes on.
steps="environment|10|python -m benchmarks.summary --environment
gpu-tests|50|python -m pytest tests/genlip/test_gpu.py tests/benchmarks/test_finetuning.py -k gpu
pretraining-g16-s1-compiled|70|python -m benchmarks.pretraining recipe g16-s1 --attention flex_attention --compile
pretraining-g16-s1|45|python -m benchmarks.pretraining recipe g16-s1 --attention sdpa
pretraining-so16-s1|35|python -m benchmarks.pretraining recipe so16-s1
pretraining-g16-s2|70|python -m benchmarks.pretraining recipe g16-s2 --attention flex_attention --compile
finetuning-1.5b|50|python -m benchmarks.finetuning sft-qwen1.5b-frozen --global-batch 32
finetuning-7b-lora|50|python -m benchmarks.finetuning sft-qwen7b-frozen --lora-rank 128 --global-batch 32 --steps 3
finetuning-7b|60|python -m benchmarks.finetuning sft-qwen7b-frozen --global-batch 32 --steps 3
encoder|35|python -m benchmarks.encoder --width 1536 --depth 40 --heads 16 --batch 64 --rounds 5"

if [ -n "$dry" ]; then
  while IFS='|' read -r step limit command; do printf '%-28s %3s s  %s\n' "$step" "$limit" "$command"; done <<<"$steps"
  exit 0
fi
if ! nvidia-smi -L 2>/dev/null | grep -q .; then
  echo "error: no GPU here (nvidia-smi lists none): bash benchmarks/gpu.sh --dry-run prints what would be measured" >&2
  exit 2
fi

mkdir -p "$out" && : >"$out/steps.jsonl" || exit 2
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
while IFS='|' read -r step limit command; do
  limit=$((limit * all / 480)) left=$((all - SECONDS - 6)) began=$SECONDS code=-1  # 6: to be killed, and the table
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -ge 1 ]; then
    echo "$step: at most $limit s" >&2
    # shellcheck disable=SC2086  # a command is several words
    timeout -k 5 "$limit" $command </dev/null >"$out/$step.txt" 2>&1
    code=$?
  fi
  printf '{"step": "%s", "command": "%s", "limit": %d, "seconds": %d, "code": %d}\n' \
    "$step" "$command" "$limit" $((SECONDS - began)) "$code" >>"$out/steps.jsonl"
done <<<"$steps"
python -m benchmarks.summary "$out"
