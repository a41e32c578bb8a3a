#!/usr/bin/env bash
# Fine-tune Qwen2.5-7B around an encoder, unfrozen, with LLaVA-NeXT's tiles (anyres): the projector stage first (or PROJECTOR=its export), then SFT.
# ENCODER=KEY LLM=ID_OR_FOLDER PROJECTOR_DATA=JSON PROJECTOR_IMAGES=DIR SFT_DATA=JSON SFT_IMAGES=DIR OUT=runs/NAME bash train_mllm/sft_qwen7b_unfrozen_anyres.sh [--any.flag value]
exec bash "$(dirname "$0")/projector_then_sft.sh" sft-qwen7b-unfrozen-anyres "$@"
