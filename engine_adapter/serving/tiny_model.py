"""Creates a folder with a tiny random Llama and a small tokenizer, offline.

vLLM serves it on a CPU with ``--load-format dummy``: all parts are real, only the generated text is meaningless.
"""

from __future__ import annotations

import json
from pathlib import Path

END_OF_SEQUENCE = "</s>"
END_OF_SEQUENCE_ID = 1
VOCABULARY_TOKENS = 1024
_START_OF_SEQUENCE = "<s>"
_CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "How many requests wait, and how long will each answer be?",
    "0123456789 ten twenty thirty forty fifty sixty seventy eighty ninety hundred",
)


def make_tiny_model(
    folder: Path, *, max_model_len_tokens: int = 2048, vocabulary_tokens: int = VOCABULARY_TOKENS
) -> Path:
    """Write configuration and tokenizer of a two-layer Llama with random weights; return the folder.

    A vocabulary larger than the tokenizer learns is filled with generated words, so any id below it decodes to text.
    Needs ``tokenizers``, which vLLM installs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary_tokens = _train_tokenizer(folder / "tokenizer.json", vocabulary_tokens)
    _write(folder / "config.json", _model_config(vocabulary_tokens, max_model_len_tokens))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _START_OF_SEQUENCE,
            "eos_token": END_OF_SEQUENCE,
            "model_max_length": max_model_len_tokens,
            "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        },
    )
    return folder


def _train_tokenizer(path: Path, vocabulary_tokens: int) -> int:
    """Train byte-level pairs on a few lines; the vocabulary holds every byte, so any text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=[_START_OF_SEQUENCE, END_OF_SEQUENCE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer=trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = content["model"]["vocab"]
    for token_id in range(len(vocabulary), vocabulary_tokens if vocabulary_tokens > VOCABULARY_TOKENS else 0):
        vocabulary[f"w{token_id}"] = token_id
    path.write_text(json.dumps(content), encoding="utf-8")
    return len(vocabulary)


def _model_config(vocabulary_tokens: int, max_model_len_tokens: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": max(vocabulary_tokens, VOCABULARY_TOKENS),
        "max_position_embeddings": max_model_len_tokens,
        "bos_token_id": 0,
        "eos_token_id": END_OF_SEQUENCE_ID,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
