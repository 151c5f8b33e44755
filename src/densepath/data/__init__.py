"""Any TRL-format data set becomes validated examples, and tokenisation happens in exactly one place."""

from densepath.data.encode import (
    EncodeCounts,
    Encoded,
    encode_demonstration,
    encode_demonstrations,
    encode_pair,
    encode_pairs,
    encode_prompt,
    encode_row_prompt,
)
from densepath.data.formats import dataset_fingerprint, load_dataset_rows, validate_rows
from densepath.data.rows import DataFormat, Row, detect_format, prompt_of, split_turns, template_arguments
from densepath.data.spans import decode_spans, read_tokens, token_offsets
from densepath.data.splits import check_disjoint, content_hash, split_by_content
from densepath.data.tasks import TaskFamily, check_answer, generate_tasks, normalise_answer

__all__ = [
    "DataFormat",
    "EncodeCounts",
    "Encoded",
    "Row",
    "TaskFamily",
    "check_answer",
    "check_disjoint",
    "content_hash",
    "dataset_fingerprint",
    "decode_spans",
    "detect_format",
    "encode_demonstration",
    "encode_demonstrations",
    "encode_pair",
    "encode_pairs",
    "encode_prompt",
    "encode_row_prompt",
    "generate_tasks",
    "load_dataset_rows",
    "normalise_answer",
    "prompt_of",
    "read_tokens",
    "split_by_content",
    "split_turns",
    "template_arguments",
    "token_offsets",
    "validate_rows",
]
