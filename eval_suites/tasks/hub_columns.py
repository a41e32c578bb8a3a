"""The columns of the fourteen benchmarks, as their data sets on the hub have them (names, types, order), and of LLaVA-OneVision.

Columns that say where a real picture came from (URLs, licences) are kept, and empty, so that a reader of the real sets reads these.
One is left out: GQA's `annotations`, which points at a scene graph that is not published with the set.
"""

from functools import cache

from genlip.common.files import file_aside

HUB = {
    "chartqa": "type:s question:s answer:s image:i",
    "ocrbench": "dataset:s question:s question_type:s answer:[s] image:i",
    "docvqa_val": (
        "questionId:s question:s question_types:[s] image:i docId:l ucsf_document_id:s ucsf_document_page_no:s answers:[s] data_split:s"
    ),
    "infovqa_val": ("questionId:s question:s answers:[s] answer_type:[s] image:i image_url:s operation/reasoning:[s] ocr:s data_split:s"),
    "textvqa_val": (
        "image_id:s question_id:d question:s question_tokens:[s] image:i image_width:d image_height:d "
        "flickr_original_url:s flickr_300k_url:s answers:[s] image_classes:[s] set_name:s ocr_tokens:[s]"
    ),
    "ai2d": "question:s options:[s] answer:s image:i",
    "seedbench_2_plus": (
        "data_id:s question_id:s question_image_type:s question_image_subtype:s question:s choice_A:s choice_B:s "
        "choice_C:s choice_D:s answer:s data_source:s data_type:s level:s subpart:s version:s image:i"
    ),
    "mme": "question_id:s image:i question:s answer:s category:s",
    "gqa": (
        "id:s imageId:s question:s answer:s fullAnswer:s isBalanced:b groups:g entailed:s equivalent:s types:y semantic:m semanticStr:s"
    ),
    "gqa_images": "id:s image:i",
    "vqav2_val": "question_type:s multiple_choice_answer:s answers:a image_id:l answer_type:s question_id:l question:s image:i",
    "scienceqa_img": (
        "image:i question:s choices:[s] answer:c hint:s task:s grade:s subject:s topic:s category:s skill:s lecture:s solution:s"
    ),
    "nocaps_val": (
        "image:i image_coco_url:s image_date_captured:s image_file_name:s image_height:d image_width:d image_id:d "
        "image_license:c image_open_images_id:s annotations_ids:[d] annotations_captions:[s]"
    ),
    "coco2017_cap_val": (
        "question_id:s image:i question:s answer:[s] id:l license:c file_name:s coco_url:s height:d width:d date_captured:s"
    ),
    "textcaps_val": (
        "question_id:s question:s image:i image_id:s image_classes:[s] flickr_original_url:s flickr_300k_url:s "
        "image_width:l image_height:l set_name:s image_name:s image_path:s caption_id:[l] caption_str:[s] "
        "reference_strs:[s]"
    ),
    "onevision": "id:s image:i conversations:t data_source:s",
}
HUB["scienceqa"] = HUB["scienceqa_img"]


@cache
def schema(name: str):
    """The pyarrow schema of a set, with the metadata by which `datasets` reads `image` as a picture."""
    import json

    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {
        "s": pa.string(), "d": pa.int32(), "l": pa.int64(), "c": pa.int8(), "b": pa.bool_(), "i": image,
        "[s]": pa.list_(pa.string()), "[d]": pa.list_(pa.int32()), "[l]": pa.list_(pa.int64()),
        "a": pa.list_(pa.struct([("answer", pa.string()), ("answer_confidence", pa.string()), ("answer_id", pa.int64())])),
        "g": pa.struct([("global", pa.string()), ("local", pa.string())]),
        "y": pa.struct([("structural", pa.string()), ("semantic", pa.string()), ("detailed", pa.string())]),
        "m": pa.list_(pa.struct([("operation", pa.string()), ("argument", pa.string()), ("dependencies", pa.list_(pa.int32()))])),
        "t": pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())])),
    }  # fmt: skip
    fields = [(column, kind) for column, kind in (item.rsplit(":", 1) for item in HUB[name].split())]
    features = {column: _feature(types[kind]) for column, kind in fields}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(column, types[kind]) for column, kind in fields], metadata)


def _feature(kind):
    """A pyarrow type as `datasets` names it in a file's metadata."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if names == ["bytes", "path"]:
            return {"_type": "Image"}
        return {name: _feature(kind.field(name).type) for name in names}
    return {"dtype": str(kind), "_type": "Value"}


def write_rows(path, name: str, rows: list[dict]) -> None:
    """Writes rows as parquet, aside and renamed. Columns that a row lacks are null: a wrong name is refused."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = schema(name)
    for row in rows:
        if strange := set(row) - set(known.names):
            raise KeyError(f"{name} has no column {sorted(strange)}")
    table = pa.Table.from_pylist(rows, schema=known)
    with file_aside(path) as aside:
        pq.write_table(table, aside, compression="none", row_group_size=256)  # pictures are compressed already
