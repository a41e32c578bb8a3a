"""Running tasks: one process each, forked from a parent that has imported lmms-eval once, spread over the GPUs there are.

Why: tasks keep sums in their modules (OCRBench), leave memory behind, and fall over; what one of them does must not touch the next. An
import of lmms-eval takes 5-8 s, a fork 0.02 s. Forking is unsafe once CUDA or OpenMP has been used, so the parent
only imports; each worker loads the model, answers through the journal, scores by lmms-eval, and writes samples.jsonl, then result.json.
A task has succeeded when that file is there and has the right key; no exit code is asked. A worker dies with its parent.
"""

import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace

from eval_suites import tasks
from eval_suites.runner.preflight import Export, TaskJob, folder_of
from eval_suites.score import results
from eval_suites.suites import Suite
from genlip.common import digests
from genlip.common.files import read_json, write_file
from genlip.common.processes import die_with
from genlip.common.schema import SCHEMA, Result, write
from genlip.common.versions import package_versions

SAY_EVERY = 30.0  # seconds between lines of progress where there is no terminal
_FORK = multiprocessing.get_context("fork")


# --- in a worker ------------------------------------------------------------------------------------------------------------


def run_job(job: TaskJob, suite: Suite, export: Export, lm) -> None:
    """Evaluate one task by lmms-eval and write its samples.jsonl, then its result.json. `lm` is a fresh EvaluatedMllm."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager, get_task_dict

    from eval_suites.runner import journal

    name, start, left_out = tasks.local_name(job.task), time.monotonic(), {}
    # A limit asks the first questions of the same task: their answers are good for the full run as well.
    key = {part: value for part, value in job.key.items() if part != "limit"}
    journal.adopt(job.folder, key)
    lm.journal = journal.Journal(job.folder, key)
    with tempfile.TemporaryDirectory() as folder:
        tasks.write_definition(Path(folder), job.data, "undecoded")
        manager = TaskManager(include_path=folder, include_defaults=False)
        task = get_task_dict([name], manager, "chat")[name]
        lm.leave_out = lambda _, unreadable: left_out.update(_leave_out(task, job, unreadable))
        # Read by lmms-eval: where tasks may drop submission files, and that scoring needs no pictures decoded again.
        options = SimpleNamespace(output_path=folder, process_with_media=False, reasoning_tags=None)
        out = simple_evaluate(
            model=lm,
            tasks=[task],
            task_manager=manager,  # it would read all 3,000 packaged definitions otherwise
            limit=job.key["limit"],
            bootstrap_iters=0,
            log_samples=True,
            cli_args=options,
            process_docs_parallel=1,
        )
    metrics = {column.metric.split(",")[0] for column in suite.columns if column.task == job.task}
    asked = [lm.answers[name, sample["doc_id"]] for sample in out["samples"][name]]
    samples = [_record(sample, answer, metrics) for sample, answer in zip(out["samples"][name], asked)]
    wanted = (job.key["limit"] or job.data.rows) - len(left_out)
    if len(samples) != wanted:
        raise RuntimeError(f"lmms-eval scored {len(samples)} samples of {wanted}")
    lines = "".join(json.dumps(sample) + "\n" for sample in sorted(samples, key=lambda sample: sample["doc_id"])).encode()
    result = Result(
        schema=SCHEMA,
        suite=suite.name,
        task=job.task,
        encoder=export.encoder,
        llm=export.llm,
        n=len(samples),
        n_expected=job.n_expected,
        left_out=left_out,
        noted=dict(Counter(f"picture of mode {answer.modes}" for answer in asked if answer.modes)),
        empty=sum(not sample["answer"].strip() for sample in samples),
        cleaned=sum(sample["cleaned"] for sample in out["samples"][name] if "cleaned" in sample),
        results={metric: value for metric, value in out["results"][name].items() if "," in metric},
        generation=out["configs"][name]["generation_kwargs"] or {},
        key=job.key,
        fingerprint=export.fingerprint.parts,
        environment=environment(lm),
        provenance=export.provenance,
        seconds=round(time.monotonic() - start, 1),
        samples_digest=hashlib.sha256(lines).hexdigest(),
    )
    (job.folder / "result.json").unlink(missing_ok=True)  # from here to the last line the task is not done
    write_file(job.folder / "samples.jsonl", lines)
    write(job.folder / "result.json", result)


def environment(lm) -> dict:
    """What may differ from one evaluation to another without being another model."""
    return {**package_versions(("torch", "transformers")), "device": lm.mllm.device, "batch_size": lm.batch_size}


def _loaded(export: Export):
    """The export's MLLM, its weights hashed once. ValueError where it is no longer the one that this run was planned with."""
    from llava_plugin import mllm

    files = weight_files(export)
    seen = digests.stamp(files)
    model = mllm.load(export.folder, generation=export.generation)
    if changed := export.fingerprint.differing(model.fingerprint):
        raise ValueError(f"{export.folder} was replaced while it was evaluated ({', '.join(changed)}): run the same command again")
    digests.vouch(files, seen, model.digest)
    return model


def weight_files(export: Export) -> list[Path]:
    """With the index that names the shards, and shards that it names elsewhere in the folder."""
    index = export.folder / "model.safetensors.index.json"
    named = read_json(index, "export the model again", {"weight_map": dict})["weight_map"].values() if index.is_file() else ()
    shards = {export.folder / str(name) for name in named}
    return sorted({*export.folder.glob("*.safetensors"), *(file for file in shards if file.is_file()), *([index] if named else [])})


def _leave_out(task, job: TaskJob, unreadable: dict[int, str]) -> dict[int, str]:
    """Take questions that cannot be asked out of lmms-eval's task, which scores what is left; what was taken, and why.

    MME counts pairs: the other question about the picture goes too.
    """
    left_out = dict(unreadable)
    if tasks.packaged(job.task) == "mme":
        pair = [(doc["category"], doc["question_id"]) for doc in task.eval_docs_no_media]
        broken = {pair[doc_id]: doc_id for doc_id in unreadable}
        asked = {instance.doc_id for instance in task.instances}
        others = {i: broken[key] for i, key in enumerate(pair) if key in broken and i in asked and i not in unreadable}
        left_out |= {i: f"the other question of its pair, doc {doc_id}, cannot be asked" for i, doc_id in others.items()}
    task.instances[:] = [instance for instance in task.instances if instance.doc_id not in left_out]
    if not task.instances:
        raise ValueError(f"none of {len(left_out)} questions can be asked; of the first: {next(iter(left_out.values()))}")
    return left_out


def _record(sample: dict, answer, metrics: set[str]) -> dict:
    """What is kept of one of lmms-eval's samples: the question as the model saw it, its answer, its scores."""
    return {
        "doc_id": sample["doc_id"],
        "image": answer.image,
        "prompt": answer.prompt,
        "tokens": answer.tokens,
        "target": sample["target"],
        "answer": sample["resps"][0][0],
        "filtered": sample["filtered_resps"][0],
        "scores": {metric: _score(sample[metric]) for metric in metrics if metric in sample},
        "doc": {name: value for name, value in sample["doc"].items() if isinstance(value, int | float | str) and len(str(value)) <= 200},
    }


def _score(score):
    """A sample's score as a number, or as what MME needs to form pairs."""
    if not isinstance(score, dict):
        return float(score)
    if "score" in score:
        return {name: score[name] for name in ("question_id", "category", "score") if name in score}
    # SEED-Bench-2-Plus leaves the comparison to its aggregation: the same one here, and results.py holds the mean against lmms-eval's.
    return float(score["pred"].lower().strip() == score["answer"].lower().strip())


def _work(job: TaskJob, suite: Suite, export: Export, batch_size: int, device: str | None, parent: int, pipe: Connection) -> None:
    """A worker's life. What lmms-eval, Java and the model say goes to <task>/log.txt, which a failure keeps as failed.txt."""
    die_with(parent)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / "log.txt"
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        try:
            from eval_suites.runner.lmms_model import EvaluatedMllm

            lm = EvaluatedMllm(mllm=_loaded(export), batch_size=batch_size)
            lm.report = lambda done, total: pipe.send((done, total))
            lm.note = lambda text: pipe.send(f"note: {job.task}: {text}")
            run_job(job, suite, export, lm)
            if lm.batch_size < batch_size:
                pipe.send(f"note: {job.task}: memory ran out, the batch was halved to {lm.batch_size} questions")
        except Exception as error:  # whatever a task's code raises, the other tasks' columns are still worth having
            cause = getattr(error, "last_attempt", None)  # lmms-eval retries, and wraps what it gave up on
            pipe.send(f"error: {job.task} failed: {cause.exception() if cause else error}")
            traceback.print_exc(file=stream)
            stream.flush()
            log.replace(job.folder / "failed.txt")
        else:
            (job.folder / "failed.txt").unlink(missing_ok=True)
            log.unlink()


def _of_folder(export: Export, encoder: str, wanted: str, files: list[Path]) -> None:
    """ValueError where the named encoder has not the `wanted` digest, in whatever dtype; `files` are those of its folder."""
    from llava_plugin.tower import digests_as_trained

    seen = digests.stamp(files)
    if wanted not in digests_as_trained(encoder, export.provenance.resolution, export.provenance.recipe.get("feature_layer", -1)):
        raise ValueError(
            f"{export.folder} was not trained from the encoder in {folder_of(encoder)}: its provenance says digest {wanted[:8]}, and the "
            f"folder holds another. Give --encoder {export.encoder} for this MLLM, or --mllm with one that was trained from the folder"
        )
    digests.vouch(files, seen, wanted)


def _check(check: Callable[..., object], arguments: tuple, parent: int, pipe: Connection) -> None:
    die_with(parent)
    try:
        check(*arguments)
        pipe.send("")
    except (ValueError, OSError) as error:
        pipe.send(str(error))


# --- in the parent ----------------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    job: TaskJob
    process: multiprocessing.Process
    pipe: Connection
    device: int
    start: float
    said: list[str] = field(default_factory=list)


def prepare(gpus: int) -> list[str | None]:
    """Import what the workers need, once. The devices to spread tasks over, as CUDA_VISIBLE_DEVICES names them; None: whatever is there.

    ValueError where there are fewer GPUs than asked for.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # data and weights are local by now: nothing may be fetched behind the user's back
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import lmms_eval.evaluator  # noqa: F401
    import torch

    import llava_plugin.mllm  # noqa: F401

    assert not torch.cuda.is_initialized(), "an import has started CUDA: no worker could use it"
    if gpus == 1:
        return [None]
    there = torch.cuda.device_count()
    if there < gpus:
        raise ValueError(f"--gpus {gpus}, and there are {there} here")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(i) for i in range(there)])[:gpus]


def verify(export: Export, rehash: bool) -> None:
    """ValueError where the export's weights are not those that its provenance names.

    Files that any load has found to hold them are not read again, unless `rehash` asks for it.
    """
    if not rehash and digests.vouched(weight_files(export)) == export.provenance.weights_digest:
        return
    _checked_apart(export.folder, _loaded, export)


def verify_encoder(export: Export, encoder: str, rehash: bool) -> None:
    """ValueError where `encoder` names a folder, FOLDER or NAME=FOLDER, that the export was not trained from. What was checked is not
    read again, unless `rehash` asks for it."""
    folder, said = folder_of(encoder), export.provenance
    wanted = said.encoder_digest_before or (said.encoder_digest if said.frozen else None)
    if folder is None:
        return
    if wanted is None:
        print(f"note: {export.folder} does not record which encoder it began with: it is not held against {folder}", file=sys.stderr)
        return
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    if rehash or digests.vouched(files) != wanted:
        _checked_apart(folder, _of_folder, export, encoder, wanted, files)


def _checked_apart(folder: Path, check: Callable[..., object], *arguments: object) -> None:
    """Call what raises ValueError where something in the folder is not right, in a process of its own."""
    prepare(1)
    here, there = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_check, args=(check, arguments, os.getpid(), there), daemon=True)
    process.start()
    there.close()
    try:
        problem = here.recv()
    except EOFError:
        process.join()
        problem = f"{folder} could not be loaded: the process that tried ended with code {process.exitcode} (memory?)"
    if problem:
        raise ValueError(problem)
    process.join()


def run_jobs(jobs: list[TaskJob], suite: Suite, export: Export, batch_size: int, devices: list[str | None]) -> list[str]:
    """Run the jobs, one process each, as many at a time as there are devices; the tasks that failed."""
    from eval_suites.runner.progress import ProgressBoard

    # The longest first where several run at once: the last to start should be short.
    waiting = deque(jobs if len(devices) == 1 else sorted(jobs, key=lambda job: -(job.key["limit"] or job.data.rows)))
    free, running, failed = list(range(len(devices))), [], []
    with ProgressBoard({job.task: job.key["limit"] or job.data.rows for job in jobs}, SAY_EVERY) as board:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.popleft(), suite, export, batch_size, devices, free.pop(0)))
            wait([worker.process.sentinel for worker in running] + [worker.pipe for worker in running], timeout=1.0)
            for worker in list(running):
                ended = not worker.process.is_alive()  # asked before the pipe is emptied: nothing is said after that
                _listen(worker, board)
                if ended:
                    running.remove(worker)
                    free.append(worker.device)
                    failed += [] if _succeeded(worker, board) else [worker.job.task]
            board.tick()
    return failed


def _start(job: TaskJob, suite: Suite, export: Export, batch_size: int, devices: list[str | None], device: int) -> _Running:
    here, there = _FORK.Pipe(duplex=False)
    arguments = (job, suite, export, batch_size, devices[device], os.getpid(), there)
    process = _FORK.Process(target=_work, args=arguments, name=job.task, daemon=True)
    process.start()
    there.close()
    return _Running(job, process, here, device, time.monotonic())


def _listen(worker: _Running, board) -> None:
    """Pass on what the worker has to say: progress, notes, and why it failed."""
    try:
        while worker.pipe.poll():
            message = worker.pipe.recv()
            if isinstance(message, str):
                worker.said.append(message)
                board.say(message)
            else:
                board.update(worker.job.task, *message)
    except (EOFError, OSError):  # ended, or killed in the middle of a word
        pass


def _succeeded(worker: _Running, board) -> bool:
    """Whether the task's result is there and is that of this run; says so."""
    worker.process.join()
    worker.pipe.close()
    result, job = results.read_result(worker.job.folder), worker.job
    if result is not None and result.key == job.key:
        board.done(job.task)
        board.say(f"{job.task}: done in {time.monotonic() - worker.start:.0f} s")
        if result.left_out:
            named = "; ".join(f"doc {doc_id} ({why})" for doc_id, why in list(result.left_out.items())[:5])
            board.say(f"note: {job.task}: {len(result.left_out)} questions left out, which cannot be asked: {named}")
        for note, n in result.noted.items():
            board.say(f"note: {job.task}: {n} times a {note}")
        return True
    if not any(message.startswith("error: ") for message in worker.said):
        code = worker.process.exitcode
        why = f"was killed by signal {-code} (9: mostly by a system out of memory)" if code < 0 else f"ended with code {code}"
        board.say(f"error: {job.task} failed: its process {why}; the same command goes on where it stopped")
    board.say(f"  ({job.folder / 'failed.txt' if (job.folder / 'failed.txt').exists() else job.folder / 'log.txt'})")
    return False
