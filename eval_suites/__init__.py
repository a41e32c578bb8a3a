"""Evaluate an encoder's MLLM through lmms-eval's own task code, aggregate, report: `python eval_suites/run.py --encoder KEY`."""
