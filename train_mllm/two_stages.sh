#!/usr/bin/env bash
# Projector stage, then SFT, by the recipe named first; the other scripts call this one. Further flags go to the SFT stage.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${VIRTUAL_ENV:-}" ] || [ ! -x .venv/bin/python ] || PATH="$PWD/.venv/bin:$PATH"
recipe=$1; shift
encoder=${ENCODER:-genlip-g16}
case $recipe in *1.5b*) llm=${LLM:-Qwen/Qwen2.5-1.5B-Instruct} ;; *) llm=${LLM:-Qwen/Qwen2.5-7B-Instruct} ;; esac
out=${OUT:-runs/$recipe-${encoder//[\/=]/-}}
projector=${PROJECTOR:-$out-projector/export}
common=(--encoder "$encoder" --llm "$llm")
dry=(); for flag in "$@"; do [ "$flag" != --dry-run ] || dry=(--dry-run); done

if [ -z "${PROJECTOR:-}" ]; then
  python -m train_mllm.train projector "${common[@]}" --data "${PROJECTOR_DATA:-data/llava-pretrain/blip_laion_cc_sbu_558k.json}" \
    --images "${PROJECTOR_IMAGES:-data/llava-pretrain/images}" --out "$out-projector" "${dry[@]}"
fi
python -m train_mllm.train "$recipe" "${common[@]}" --init "$projector" --data "${SFT_DATA:-data/llava-onevision}" \
  --images "${SFT_IMAGES:-}" --out "$out" "$@"
