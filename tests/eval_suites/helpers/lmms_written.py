"""Result files as the installed lmms-eval writes them, of four questions a task: makes tests/eval_suites/data/lmms_eval/ again.

    python tests/eval_suites/helpers/lmms_written.py FOLDER [CASE ...]

Each case is a run of lmms-eval's own evaluator and its own EvaluationTracker on four rows in the hub's columns, answered by the fixed
answerer: 2 minutes on one core. Without a network; needs Java for the captions.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
WHOLE = "chartqa,ocrbench,docvqa_val,textvqa_val,seedbench_2_plus,mme"
# Case -> (tasks, arguments of simple_evaluate, what a changed definition says otherwise).
CASES = {
    "whole": (WHOLE, {}, {}),
    "other": (WHOLE, {}, {}),  # another model: every second answer differs
    "captions": ("coco2017_cap_val", {}, {}),
    "limit": ("chartqa", {"limit": 2}, {}),
    "offset": ("chartqa", {"offset": 3}, {}),
    "sampling": ("chartqa", {"gen_kwargs": "do_sample=True,temperature=0.7"}, {}),
    "beams": ("chartqa", {"gen_kwargs": "num_beams=4"}, {}),
    "prompt": ("chartqa", {}, {"lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": "\nExplain."}}}),
    "ocr": ("textvqa_val", {}, {"lmms_eval_specific_kwargs": {"default": {
        "pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase.", "ocr": True}}}),
    "split": ("docvqa_val", {}, {"test_split": "test"}),
    "data": ("docvqa_val", {}, {"dataset_name": "InfographicVQA"}),
    "shots": ("chartqa", {"num_fewshot": 2}, {"fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}}),
}  # fmt: skip


def make(out: Path, cases: list[str]) -> None:
    import shutil
    import tempfile
    import types

    sys.path.insert(0, str(ROOT))
    sys.modules["tests"] = types.ModuleType("tests")  # an installed package of that name would come first
    sys.modules["tests"].__path__ = [str(ROOT / "tests")]
    from tests.eval_suites.test_tasks import write_hub

    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"HF_HOME": f"{place}/hf", "HF_HUB_OFFLINE": "1"}
        os.environ["GIT_DIR"] = f"{place}/none"  # lmms-eval states the commit of whatever repository lies around it
        import datasets

        hub = Path(place, "hub")
        write_hub(hub)
        shutil.copytree(hub / "lmms-lab", hub / "lmms-lab-encoder", dirs_exist_ok=True)
        shutil.rmtree(hub / "lmms-lab")
        for source in list(hub.rglob("DocVQA/DocVQA/validation-*.parquet")):
            shutil.copy(source, source.with_name(source.name.replace("validation", "test")))
        card = ""
        for name, splits in (("DocVQA", ("validation", "test")), ("InfographicVQA", ("validation",))):
            card += f"- config_name: {name}\n  data_files:\n"
            card += "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in splits)
        (hub / "lmms-lab-encoder/DocVQA/README.md").write_text(f"---\nconfigs:\n{card}---\n")
        for file in hub.rglob("*.parquet"):
            rows = datasets.Dataset.from_parquet(str(file), cache_dir=f"{place}/hf")
            if "image" in rows.column_names:
                rows.cast_column("image", datasets.Image()).to_parquet(str(file))
        os.chdir(hub)
        from tests.eval_suites.helpers import fixed_answerer

        reply = fixed_answerer.replies(hub)
        for case in cases or CASES:
            names, arguments, changes = CASES[case]
            run(case, names.split(","), arguments, changes, reply, Path(place, "out"))
            shutil.copytree(Path(place, "out"), out, dirs_exist_ok=True)


def run(case: str, names: list[str], arguments: dict, changes: dict, reply, out: Path) -> None:
    from types import SimpleNamespace

    from lmms_eval import evaluator, models
    from lmms_eval.loggers import EvaluationTracker
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import get_datetime_str

    from eval_suites import tasks
    from tests.eval_suites.helpers import fixed_answerer

    asked = [0]

    def answer(prompt: str, pictures: list) -> str:
        asked[0] += 1
        return "Yes" if case == "other" and asked[0] % 2 else reply(prompt, pictures)

    models.get_model = lambda *_: fixed_answerer.lmms_model(answer, simple=case == "shots")
    manager = TaskManager("ERROR", model_name="fixed")
    if changes:
        own = out.parent / f"definitions_{case}"
        own.mkdir()
        for name in names:
            # JSON is YAML
            (own / f"{name}.yaml").write_text(json.dumps({"include": str(tasks.definition_path(name)), "task": name, **changes}))
        manager = TaskManager("ERROR", model_name="fixed", include_path=str(own), include_defaults=False)
    tracker = EvaluationTracker(output_path=str(out / case))
    date = get_datetime_str()
    results = evaluator.simple_evaluate(
        model="fixed", model_args=f"pretrained={'other' if case == 'other' else 'tiny'}", batch_size=1, task_manager=manager,
        tasks=names, datetime_str=date, evaluation_tracker=tracker,
        cli_args=SimpleNamespace(process_with_media=False, output_path=str(out / case), reasoning_tags=None), bootstrap_iters=0,
        **arguments,
    )  # fmt: skip
    samples = results.pop("samples")
    results["config"]["resolved_cli_args"].pop("output_path")  # a path of the machine that made the file
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str=date)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute(), sys.argv[2:])
