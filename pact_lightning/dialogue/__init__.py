"""Dialogues as tokens, in the format of a model's family.

Messages, tool schemas, tool responses and an expert's turns enter; token ids and their components leave. The other way,
the token ids of a sampled turn become reasoning, tool calls and an answer.

Read ``renderer`` (what the others ask), ``text_codec`` (text and token ids), and for ChatML ``tool_text`` (the tool
format), ``turn_text`` (the reader of a turn's text), ``rendering``. The other families are those of the library
``renderers``: ``characters``, ``family_library``, ``family_reading``, ``family``. ``families`` chooses, by
``template_check``, which compares a renderer with the tokenizer's own ``chat_template``.
"""
