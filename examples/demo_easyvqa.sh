#!/usr/bin/env bash
# easy-VQA end to end, all under demo-easyvqa/: pretrain genlip-tiny on captions, fine-tune one small MLLM around each of three frozen
# encoders (pretrained GenLIP, the same untrained, DINOv2-S/14), evaluate all 9,673 test questions each, one table.
# Two things run at a time, a core each, since matrices this small do not fill two: the encoders that need no pretraining are
# fine-tuned beside it, into demo-easyvqa/beside.log. Stopped anywhere, it goes on when run again. Usually called by `make demo-easyvqa`.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 GENLIP_WEIGHTS=demo-easyvqa/weights PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
. examples/demo_steps.sh

# 16 visual tokens for all three: 64 x 64 pixels at patch 16, 56 x 56 at patch 14.
fine_tune() { # name, encoder, resolution
  done_before "demo-easyvqa/runs/sft-$1" || step python -m train_mllm.train tiny-sft --encoder "$2" --resolution "$3" \
    --data demo-easyvqa/data/easy-vqa/sft/conversations.json --out "demo-easyvqa/runs/sft-$1"
}
evaluate() { # name, options
  step python eval_suites/run.py --encoder "$1" --mllm "demo-easyvqa/runs/sft-$1/export" --suite easyvqa --data-root demo-easyvqa/data \
    --batch-size 64 --out demo-easyvqa "${@:2}"
}

[ -f demo-easyvqa/data/genlip-eval/easy-vqa/manifest.json ] || step python -m small_data.easyvqa --out demo-easyvqa/data
{ [ -d demo-easyvqa/weights/llama-tiny ] && [ -d demo-easyvqa/weights/dinov2-s14 ]; } ||
  step python -m llava_plugin.fetch dinov2-s14 llama-tiny --text demo-easyvqa/data/easy-vqa/text.txt \
    --phrase "Describe the image in detail." --phrase "Answer the question using a single word or phrase."

beside() { fine_tune random-tiny random-tiny 64 && evaluate random-tiny && fine_tune dinov2-s14 dinov2-s14 56 && evaluate dinov2-s14; }
printf '\nbeside what follows, in demo-easyvqa/beside.log: random-tiny and dinov2-s14 are fine-tuned and evaluated\n'
start_beside beside demo-easyvqa/beside.log

done_before demo-easyvqa/runs/tiny-s1 || {
  step python -m genlip.train tiny-s1 --data demo-easyvqa/data/easy-vqa/captions --tokenizer demo-easyvqa/weights/llama-tiny \
    --out demo-easyvqa/runs/tiny-s1
  step python -m genlip.speak demo-easyvqa/runs/tiny-s1/export demo-easyvqa/data/easy-vqa/captions-held-out/test-000000.tar \
    --max-new-tokens 16 --quiet
}
fine_tune genlip-tiny genlip-tiny=demo-easyvqa/runs/tiny-s1/export 64
evaluate genlip-tiny
finish_beside

# All three are evaluated: what follows only reads their results and compares.
evaluate genlip-tiny --compare dinov2-s14,random-tiny
