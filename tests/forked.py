"""Commands in processes of their own, without an import each: a process that has imported everything and computed nothing forks for each.

Why: a hundred commands one after another would spend ten minutes importing torch; and a process that has computed may not be forked
(runner/worker.py), so a test's own process cannot be the one.

    with Commands() as run:
        code, said = run(folder, "eval_suites.run", "--encoder", "genlip-tiny")
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

MODULES = (
    "torch",
    "lmms_eval.evaluator",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "llava_plugin.mllm",
    "train_mllm.train",
    "eval_suites.run",
)
ROOT = Path(__file__).parents[1]


class Commands:
    """`run(folder, module, *arguments)`: the exit code of a command in that folder, and what it printed."""

    def __init__(self, **environment: str):
        self.environment = environment

    def __enter__(self):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **self.environment}
        self.process = subprocess.Popen([sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def __call__(self, folder: Path, module: str, *arguments: object, **environment: str) -> tuple[int, str]:
        self.process.stdin.write(json.dumps([str(folder), module, [str(each) for each in arguments], environment]) + "\n")
        self.process.stdin.flush()
        code, said = json.loads(self.process.stdout.readline())
        return code, said


def _serve() -> None:
    for module in MODULES:
        importlib.import_module(module)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        folder, module, arguments, environment = json.loads(line)
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.close(read)
            os.dup2(write, 1)
            os.dup2(write, 2)
            os.chdir(folder)
            os.environ.update(environment)
            code = 70
            with contextlib.suppress(BaseException):
                code = _run(module, arguments)
            sys.stdout.flush()
            os._exit(code)
        os.close(write)
        with open(read, encoding="utf-8", errors="replace") as said:
            text = said.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, (json.dumps([code, text]) + "\n").encode())


def _run(module: str, arguments: list[str]) -> int:
    try:
        return importlib.import_module(module).main(arguments)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70


if __name__ == "__main__":
    _serve()
