#!/usr/bin/env bash
# easy-VQA end to end, all under demo/: pretrain genlip-tiny on captions, fine-tune one small MLLM around each of three frozen
# encoders (pretrained GenLIP, the same untrained, DINOv2-S/14), captions first, then questions; evaluate all 9,673 test questions
# each, one table. Stopped anywhere, it goes on when run again. Usually called by `make demo`.
set -euo pipefail
cd "$(dirname "$0")"
export HF_HUB_OFFLINE=1 GENLIP_WEIGHTS=demo/weights PYTHONUNBUFFERED=1
step() { printf '\n$ %s\n' "$*"; "$@"; }
done_before() { [ -d "$1/export" ] && printf '\n%s/export is there\n' "$1"; }

[ -f demo/data/genlip-eval/easy-vqa/manifest.json ] || step python -m eval_suites.easyvqa --out demo/data
{ [ -d demo/weights/llama-tiny ] && [ -d demo/weights/dinov2-s14 ]; } ||
  step python -m llava_plugin.fetch dinov2-s14 llama-tiny --text demo/data/easy-vqa/text.txt
done_before demo/runs/tiny-s1 || {
  step python -m genlip.train tiny-s1 --data demo/data/easy-vqa/captions --tokenizer demo/weights/llama-tiny --out demo/runs/tiny-s1
  step python -m genlip.speak demo/runs/tiny-s1/export demo/data/easy-vqa/captions-held-out/test-000000.tar --max-new-tokens 16 --quiet
}

# 16 visual tokens for all three: 64 x 64 pixels at patch 16, 56 x 56 at patch 14.
compare=
for encoder in dinov2-s14 random-tiny genlip-tiny=demo/runs/tiny-s1/export; do
  name=${encoder%%=*}
  resolution=64; [ "$name" != dinov2-s14 ] || resolution=56
  done_before "demo/runs/captions-$name" || step python -m train_mllm.train tiny-captions --encoder "$encoder" --resolution $resolution \
    --data demo/data/easy-vqa/sft/captions.json --out "demo/runs/captions-$name"
  done_before "demo/runs/sft-$name" || step python -m train_mllm.train tiny-sft --encoder "$encoder" --resolution $resolution \
    --init "demo/runs/captions-$name/export" --data demo/data/easy-vqa/sft/conversations.json --out "demo/runs/sft-$name"
  step python eval_suites/run.py --encoder "$name" --mllm "demo/runs/sft-$name/export" --suite easyvqa --data-root demo/data \
    --batch-size 64 --out demo ${compare:+--compare "$compare"}
  compare=${compare:+$compare,}$name
done
