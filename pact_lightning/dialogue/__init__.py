"""Dialogues as tokens, in ChatML with Qwen's tool format.

Messages, tool schemas, tool responses and an expert's turns enter; token ids and their components leave. The other way,
the token ids of a sampled turn become reasoning, tool calls and an answer.

Read ``text_codec`` (text and token ids), ``tool_text`` (the tool format), ``turn_text`` (the one reader of a turn's
text), ``rendering``; ``template_check`` compares it with the tokenizer's own ``chat_template``.
"""
