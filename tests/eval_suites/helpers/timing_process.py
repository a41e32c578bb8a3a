"""What is timed in test_speed.py, each a process of its own that appends its times (a JSON line) to TIMES.

    python tests/eval_suites/helpers/timing_process.py ours TIMES --encoder ...        (arguments of run.py)
    python tests/eval_suites/helpers/timing_process.py plain TIMES --model ...         (arguments of lmms-eval)

A line: `total`, seconds from where a task (plain: all tasks) is taken up by the loaded model to where its results are on disk, and
`model`, those of them spent in the language model's `generate` and in the encoder. Start-up (imports, loading) and Java are in neither.
Seconds are this process's own, of CPU: how much of the machine others take is no matter of ours.
"""

import json
import os
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
SPENT = {"model": 0.0, "depth": 0}


def timed(function):
    """The function, its time added to SPENT where it is not called by another that is timed."""

    def call(*args, **kwargs):
        SPENT["depth"] += 1
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            SPENT["depth"] -= 1
            if not SPENT["depth"]:
                SPENT["model"] += time.process_time() - start

    return call


def say(times: Path, start: float, **more) -> None:
    with times.open("a") as stream:
        stream.write(json.dumps({"total": time.process_time() - start, "model": SPENT["model"], **more}) + "\n")


def ours(times: Path, arguments: list[str]) -> int:
    from eval_suites import run
    from eval_suites.runner import worker

    run_job = worker.run_job

    def timed_job(job, *args):
        from transformers import LlavaForConditionalGeneration

        from llava_plugin.tower import VisionTower

        LlavaForConditionalGeneration.generate = timed(LlavaForConditionalGeneration.generate)
        VisionTower.forward = timed(VisionTower.forward)
        start = time.process_time()
        run_job(job, *args)
        say(times, start, task=job.task)

    worker.run_job = timed_job
    return run.main(arguments)


def plain(times: Path, arguments: list[str]) -> None:
    # llava_hf imports decord for videos, of which there are none here; it need not be installed.
    sys.modules["decord"] = types.SimpleNamespace(VideoReader=None, cpu=None)
    from lmms_eval import __main__ as command
    from lmms_eval import evaluator
    from transformers import LlavaForConditionalGeneration

    LlavaForConditionalGeneration.generate = timed(LlavaForConditionalGeneration.generate)
    evaluate, began = evaluator.evaluate, []

    def started(*args, **kwargs):
        began.append(time.process_time())
        return evaluate(*args, **kwargs)

    evaluator.evaluate = started
    sys.argv = ["lmms-eval", *arguments]
    command.cli_evaluate()
    say(times, began[0])


# As TURNS of llama-tiny, for messages whose content is a list of parts, as lmms-eval's llava_hf hands them to a processor.
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' -}}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<image>\n' -}}{%- else -%}{{- part.text -}}{%- endif -%}{%- endfor -%}{{- '\n' -}}"
    "{%- endfor -%}"
)


def to_llava_hf(export: Path, folder: Path) -> None:
    """An export with a CLIP encoder -> the checkpoint of transformers' LLaVA that lmms-eval's llava_hf reads: the same weights."""
    import torch
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from llava_plugin import mllm

    ours = mllm.load(export, device="cpu")
    native, spec = ours.model, ours.tower.spec
    config = LlavaConfig(
        vision_config=native.model.vision_tower.encoder.config, text_config=native.config.text_config, vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_token_index=native.config.image_token_id, image_seq_length=spec.tokens,
        projector_hidden_act="gelu", tie_word_embeddings=native.config.tie_word_embeddings,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    theirs = model.model
    theirs.vision_tower.load_state_dict(native.model.vision_tower.encoder.state_dict())
    theirs.multi_modal_projector.load_state_dict(native.model.multi_modal_projector.state_dict())
    theirs.language_model.load_state_dict(native.model.language_model.state_dict())
    model.lm_head.load_state_dict(native.lm_head.state_dict())
    model.generation_config = native.generation_config
    model.save_pretrained(folder)
    square = {"height": spec.resolution, "width": spec.resolution}
    pictures = CLIPImageProcessor(size=square, do_center_crop=False, image_mean=spec.mean, image_std=spec.std)
    LlavaProcessor(
        pictures, ours.tokenizer, patch_size=spec.patch_size, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>", chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    assert torch.equal(model.lm_head.weight, native.lm_head.weight)


if __name__ == "__main__":
    kind, first, *rest = sys.argv[1:]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if kind == "convert":
        to_llava_hf(Path(first), Path(rest[0]))
    elif kind == "plain":
        plain(Path(first), rest)
    else:
        sys.exit(ours(Path(first), rest))
