#!/usr/bin/env bash
# Projector stage, then SFT, by the recipe named first; the sft_*.sh call this one. Further flags go to the SFT stage, those in
# PROJECTOR_FLAGS to the projector stage, --resolution, --feature-layer and --view crop to both. Tiles (--view anyres) and pictures at their
# own aspect ratio come behind a projector stage on whole squares, as in LLaVA-NeXT.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)  # relative paths are the caller's
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
[ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$here/.venv/bin/python" ] || PATH="$here/.venv/bin:$PATH"
for word in "$@"; do [ "$word" != --help ] || exec python -m train_mllm.train "$1" --help; done
case ${1:-} in "" | -*) echo "usage: bash train_mllm/projector_then_sft.sh RECIPE [--any.flag value]" >&2; exit 2 ;; esac
recipe=$1; shift
encoder=${ENCODER:-genlip-g16}
case $recipe in *1.5b*) llm=${LLM:-Qwen/Qwen2.5-1.5B-Instruct} ;; *) llm=${LLM:-Qwen/Qwen2.5-7B-Instruct} ;; esac
case $recipe in *-anyres) mix=data/llava-next-780k.yaml ;; *) mix=data/onevision-single-image.yaml ;; esac
out=${OUT:-runs/$recipe-${encoder//[\/=]/-}}
dry=() both=() before=
for flag in "$@"; do
  [ "$flag" != --dry-run ] || dry=(--dry-run)
  case $flag in --resolution=* | --feature-layer=* | --view=square | --view=crop) both+=("$flag") ;; esac
  case "$before $flag" in "--resolution "* | "--feature-layer "* | "--view square" | "--view crop") both+=("$before" "$flag") ;; esac
  before=$flag
done

# shellcheck disable=SC2086  # PROJECTOR_FLAGS are several words
[ -n "${PROJECTOR:-}" ] || ENCODER=$encoder LLM=$llm OUT=$out-projector bash "$here/train_mllm/pretrain_projector.sh" \
  ${both[@]+"${both[@]}"} ${PROJECTOR_FLAGS:-} ${dry[@]+"${dry[@]}"}
exec bash "$here/train_mllm/launch.sh" "$recipe" --encoder "$encoder" --llm "$llm" --init "${PROJECTOR:-$out-projector/export}" \
  --data "${SFT_DATA:-$mix}" --images "${SFT_IMAGES:-}" --out "$out" "$@"
