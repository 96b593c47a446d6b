"""A folder with a tiny random Llama and a small tokenizer, made on the spot and offline.

vLLM serves it on a CPU with ``--load-format dummy``: real everything, only the words make no sense.
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


def make_tiny_model(folder: Path, *, max_model_len_tokens: int = 2048) -> Path:
    """Write configuration and tokenizer of a two-layer Llama with random weights; returns the folder.

    Needs ``tokenizers``, which vLLM brings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary_tokens = _train_tokenizer(folder / "tokenizer.json")
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


def _train_tokenizer(path: Path) -> int:
    """Train byte-level pairs on a few lines; the vocabulary then holds every byte, so any text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - comes with vLLM

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
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


def _model_config(vocabulary_tokens: int, max_model_len_tokens: int) -> dict[str, object]:
    assert vocabulary_tokens <= VOCABULARY_TOKENS
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": VOCABULARY_TOKENS,
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
