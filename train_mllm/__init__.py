"""Fine-tune an MLLM around a vision encoder, frozen or unfrozen, and prove which: `bash train_mllm/sft_qwen7b_frozen.sh`."""
