#!/usr/bin/env bash
# The demo's chain with a real language model, SmolLM2-135M-Instruct, all under demo-real/: genlip-tiny is pretrained on the mini world's
# captions; around it and around DINOv2-S/14 the language model is fine-tuned by LoRA on the mini world's and easy-VQA's conversations,
# 16 visual tokens per picture; both answer the first samples of every column of mini14 and of easy-VQA. Rows are of so few samples that
# they are marked partial and have no average: run.py ends with exit code 3, which is taken for what it is.
# STEPS and SAMPLES (an even number: MME asks in pairs) set the size. Stopped anywhere, it goes on when run again. Usually called by
# `make demo-real`.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 GENLIP_WEIGHTS=demo-real/weights PYTHONUNBUFFERED=1
steps=${STEPS:-100} samples=${SAMPLES:-10} scenes=${SCENES:-2000} pretraining=${PRETRAINING:-2200}
. examples/demo_steps.sh

fine_tune() { # name, encoder, resolution: the projector and LoRA adapters together; mini first, easy-VQA from there
  done_before "demo-real/runs/mini-$1" || step python -m train_mllm.train tiny-sft --encoder "$2" --resolution "$3" --llm smollm2-135m \
    --lora-rank 16 --lr 2e-4 --batch 2 --max-steps "$steps" --data demo-real/data/mini/sft/conversations.json \
    --images demo-real/data/mini/sft/images --out "demo-real/runs/mini-$1"
  done_before "demo-real/runs/sft-$1" || step python -m train_mllm.train tiny-sft --encoder "$2" --resolution "$3" --llm smollm2-135m \
    --init "demo-real/runs/mini-$1/export" --lora-rank 16 --lr 2e-4 --batch 2 --max-steps "$steps" \
    --data demo-real/data/easy-vqa/sft/conversations.json --out "demo-real/runs/sft-$1"
}
evaluate() { # name, run, suite, options
  local code=0
  step python eval_suites/run.py --encoder "$1" --mllm "demo-real/runs/$2-$1/export" --suite "$3" --data-root demo-real/data \
    --limit "$samples" --batch-size 8 --out demo-real "${@:4}" || code=$?
  [ "$code" = 3 ] || [ "$code" = 0 ] || exit "$code"
}

[ -f demo-real/data/genlip-eval/mini/manifest.json ] || step python -m small_data.mini --out demo-real/data --train "$scenes" --eval 50
[ -f demo-real/data/genlip-eval/easy-vqa/manifest.json ] || step python -m small_data.easyvqa --out demo-real/data --copies 1
step python -m llava_plugin.fetch smollm2-135m dinov2-s14
done_before demo-real/runs/tiny-s1 || step python -m genlip.train tiny-s1 --data demo-real/data/mini/captions/stage1 \
  --tokenizer demo-real/weights/smollm2-135m --max-steps "$pretraining" --out demo-real/runs/tiny-s1

# 4 x 4 visual tokens for both: 64 x 64 pixels at patch 16, 56 x 56 at patch 14.
fine_tune dinov2-s14 dinov2-s14 56
evaluate dinov2-s14 mini mini14
evaluate dinov2-s14 sft easyvqa
fine_tune genlip-tiny genlip-tiny=demo-real/runs/tiny-s1/export 64
evaluate genlip-tiny mini mini14 --compare dinov2-s14
evaluate genlip-tiny sft easyvqa --compare dinov2-s14
printf '\n%s\n' "demo-real/tables/{mini14,easyvqa}.{md,csv,html}: of the first $samples samples per task; partial, so without averages"
