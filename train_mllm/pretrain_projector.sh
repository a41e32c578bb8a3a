#!/usr/bin/env bash
# The projector stage alone: ENCODER=KEY LLM=ID_OR_FOLDER PROJECTOR_DATA=JSON PROJECTOR_IMAGES=DIR OUT=runs/NAME bash train_mllm/pretrain_projector.sh [--any.flag value]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)  # relative paths are the caller's
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
[ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$here/.venv/bin/python" ] || PATH="$here/.venv/bin:$PATH"
for word in "$@"; do [ "$word" != --help ] || exec python -m train_mllm.train projector --help; done
encoder=${ENCODER:-genlip-g16}
exec bash "$here/train_mllm/launch.sh" projector --encoder "$encoder" --llm "${LLM:-Qwen/Qwen2.5-7B-Instruct}" \
  --data "${PROJECTOR_DATA:-data/llava-pretrain-558k.yaml}" --images "${PROJECTOR_IMAGES:-}" \
  --out "${OUT:-runs/projector-${encoder//[\/=]/-}}" "$@"
