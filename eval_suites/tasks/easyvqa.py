"""What easyvqa.yaml names: picture, prompt and score of one question. Rows: small_data/easyvqa.py."""


def doc_to_visual(doc: dict) -> list:
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict) -> str:
    return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """Exact match, lower-cased; white space around an answer does not count."""
    return {"exact_match": float(results[0].strip().lower() == doc["answer"].strip().lower())}
