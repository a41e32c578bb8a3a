"""An encoder's MLLM -> answers -> result files: pre-flight, one process per task, a journal of every answer."""
