"""Hand-made answers of an annotator, and an annotator that asks a scripted server."""

import json

from pact_lightning.teacher.annotator import AnnotatorConfig, LLMAnnotator

CALL = {"name": "get_time", "arguments": {"city": "Oslo"}}


def answer(*chunks, **fields):
    return json.dumps({"chunks": list(chunks), **fields})


def chunk(kind, *ids, split=None, before=None):
    cut = {} if split is None else {"split_paragraph_id": split, "cut_before_text": before}
    return {"type": kind, "paragraph_ids": list(ids), **cut}


def annotator_at(server, tmp_path, **changes):
    return LLMAnnotator(AnnotatorConfig(server.config(retries=0), str(tmp_path / "cache.jsonl"), **changes))
