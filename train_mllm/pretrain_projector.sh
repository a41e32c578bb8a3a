#!/usr/bin/env bash
# The projector stage alone: ENCODER=KEY LLM=ID_OR_FOLDER PROJECTOR_DATA=JSON PROJECTOR_IMAGES=DIR OUT=runs/NAME bash train_mllm/pretrain_projector.sh [--any.flag value]
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${VIRTUAL_ENV:-}" ] || [ ! -x .venv/bin/python ] || PATH="$PWD/.venv/bin:$PATH"
encoder=${ENCODER:-genlip-g16}
exec python -m train_mllm.train projector --encoder "$encoder" --llm "${LLM:-Qwen/Qwen2.5-7B-Instruct}" \
  --data "${PROJECTOR_DATA:-data/llava-pretrain/blip_laion_cc_sbu_558k.json}" --images "${PROJECTOR_IMAGES:-data/llava-pretrain/images}" \
  --out "${OUT:-runs/projector-${encoder//[\/=]/-}}" "$@"
