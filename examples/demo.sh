#!/usr/bin/env bash
# The whole product on two cores, all under demo/: a mini world is drawn; genlip-tiny is pretrained on its captions (stages 1 and 2); one
# small MLLM is made around each of three frozen encoders (pretrained GenLIP, the same untrained, DINOv2-S/14): a stage on captions, then
# SFT; each answers the fourteen benchmarks of the mini world through lmms-eval's own task code; one table, one report.
# Two things run at a time, a core each, since matrices this small do not fill two: the encoders that need no pretraining are fine-tuned
# and evaluated beside it, into demo/beside.log; no core is left for processes that read ahead (--workers 0). Stopped anywhere, it goes
# on when run again. Usually called by `make demo`.
# SEED draws another world and other weights; OUT is another folder; SCENES, ROWS (test questions per benchmark), S1, S2, CAPTIONS and SFT
# (steps) set the size.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-demo} seed=${SEED:-0} scenes=${SCENES:-6400} rows=${ROWS:-130} s1=${S1:-2600} s2=${S2:-60} captions=${CAPTIONS:-1000} sft=${SFT:-1600}
export HF_HUB_OFFLINE=1 GENLIP_WEIGHTS=$out/weights PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
mini=$out/data/mini
. examples/demo_steps.sh

# What stands in the folder is gone on with only where these very scripts, at this size, began it.
this="$(cat examples/demo.sh examples/demo_steps.sh | cksum) seed $seed scenes $scenes rows $rows steps $s1 $s2 $captions $sft"
if [ -d "$out/runs" ] && [ "$(cat "$out/begun" 2> /dev/null)" != "$this" ]; then
  printf '%s/ was begun by another version of the demo, or at another size: move it away (mv %s %s-old), then the same command again\n' \
    "$out" "$out" "$out" >&2
  exit 2
fi
mkdir -p "$out/runs"
printf '%s\n' "$this" > "$out/begun"

# 16 visual tokens for all three: 64 x 64 pixels at patch 16, 56 x 56 at patch 14. The language model starts from random weights, so it
# learns in the captions' stage too.
fine_tune() { # name, encoder, resolution
  done_before "$out/captions/$1" || step python -m train_mllm.train tiny-sft --encoder "$2" --resolution "$3" --workers 0 --batch 8 \
    --lr 2e-3 --max-steps "$captions" --seed "$seed" --data "$mini/sft/captions.json" --images "$mini/sft/images" --out "$out/captions/$1"
  done_before "$out/runs/sft-$1" || step python -m train_mllm.train tiny-sft --encoder "$2" --resolution "$3" --workers 0 --max-steps "$sft" \
    --init "$out/captions/$1/export" --seed "$seed" --data "$mini/sft/conversations.json" --images "$mini/sft/images" \
    --out "$out/runs/sft-$1"
}
evaluate() { # name, options
  step python eval_suites/run.py --encoder "$1" --mllm "$out/runs/sft-$1/export" --suite mini14 --data-root "$out/data" \
    --batch-size 64 --out "$out" "${@:2}"
}

step python -m small_data.mini --out "$out/data" --train "$scenes" --eval "$rows" --seed "$seed"
{ [ -d "$out/weights/llama-tiny" ] && [ -d "$out/weights/dinov2-s14" ]; } ||
  step python -m llava_plugin.fetch dinov2-s14 llama-tiny --text "$mini/text.txt" --phrase "Describe the image in detail." \
    --phrase "Answer the question using a single word or phrase." --phrase "Answer the question with a single word." \
    --phrase "Answer with the option's letter from the given choices directly." --phrase "Answer the question with a full sentence." \
    --phrase "Answer this question using the text in the image directly." --phrase "What shape is on the stamp?" \
    --phrase "Provide a one-sentence caption for the provided image."

beside() { fine_tune random-tiny random-tiny 64 && evaluate random-tiny && fine_tune dinov2-s14 dinov2-s14 56 && evaluate dinov2-s14; }
printf '\nbeside what follows, in %s/beside.log: random-tiny and dinov2-s14 are fine-tuned and evaluated\n' "$out"
start_beside beside "$out/beside.log"

# Weights of width 128 start at 1 / sqrt(128), not at the paper's 0.02 for widths of 1,024 and more. 25 tokens are a picture's 16, the
# question's one and the first eight of a caption: more pictures per step teach more than whole captions do (after the same time a linear
# probe on held-out pictures reads 74 % of the stamps' shapes, not 63 %). Fewer words name the stamp alone, and captions get worse.
done_before "$out/runs/tiny-s1" || step python -m genlip.train tiny-s1 --data "$mini/captions/stage1" --tokenizer "$out/weights/llama-tiny" \
  --model initializer_range=0.088 --workers 0 --row-tokens 768 --max-length 25 --lr 2e-3 --max-steps "$s1" --seed "$seed" \
  --out "$out/runs/tiny-s1"
done_before "$out/runs/tiny-s2" || {
  step python -m genlip.train tiny-s2 --init "$out/runs/tiny-s1/export" --data "$mini/captions/stage2" \
    --tokenizer "$out/weights/llama-tiny" --workers 0 --row-tokens 1024 --lr 5e-4 --max-steps "$s2" --seed "$seed" --out "$out/runs/tiny-s2"
  step python -m genlip.speak "$out/runs/tiny-s1/export" "$mini"/sft/images/000000/mini_000000{0..5}.jpg --max-new-tokens 8
}
fine_tune genlip-tiny "genlip-tiny=$out/runs/tiny-s2/export" 64
evaluate genlip-tiny
finish_beside

# All three are evaluated: what follows only reads their results and compares.
evaluate genlip-tiny --compare dinov2-s14,random-tiny
