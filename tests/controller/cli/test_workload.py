"""`sagesched workload` on the command line."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from controller.cli.main import run
from engine_adapter.workloads.formats import load_workload
from engine_adapter.workloads.parquet import about_parquet

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.95,396,109\n"
MOONCAKE = '{"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}\n'
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
)
SERVEGEN = '{"timestamp": 0.5, "input_tokens": 12, "output_tokens": 7}\n'
VLLM = '{"prompt": "What is a cache?", "output_tokens": 7}\n'
SHAREGPT = '[{"conversations": [{"from": "human", "value": "Hello there"}, {"from": "gpt", "value": "Hello"}]}]'


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("a.csv", AZURE, "CC-BY-4.0"),
        ("m.jsonl", MOONCAKE, "Apache-2.0"),
        ("s.jsonl", SERVEGEN, "Apache-2.0"),
        ("b.csv", BURSTGPT, "CC-BY-4.0"),
        ("v.jsonl", VLLM, None),
        ("s.json", SHAREGPT, None),
    ],
)
def test_a_converted_file_says_where_it_comes_from(name: str, text: str, licence: str | None, tmp_path: Path) -> None:
    """Source, licence and hash; the rows are those that the original gives."""
    file, converted = tmp_path / name, tmp_path / "out.parquet"
    file.write_text(text)
    given = [] if licence else ["--source", "https://example.org", "--licence", "CC0-1.0"]
    assert run(["workload", "convert", str(file), "-o", str(converted), *given]) == 0
    about = about_parquet(converted)
    assert about["sha256"] == sha256(text.encode()).hexdigest()
    assert about["licence"] == (licence or "CC0-1.0")
    assert str(about["source"]).startswith("https://")
    assert load_workload(converted).rows == load_workload(file).rows


def test_a_file_of_unknown_source_is_not_converted_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody could say later whose it is."""
    file = tmp_path / "v.jsonl"
    file.write_text(VLLM)
    assert run(["workload", "convert", str(file), "--source", "a friend"]) == 2
    assert "give --licence" in capsys.readouterr().err
    assert not (tmp_path / "v.parquet").exists()


def test_make_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The seed and the statistics' source are in the file; kinds are listed; a wrong name is refused."""
    file = tmp_path / "a.parquet"
    assert run(["workload", "make", "azure-conv", "--requests", "50", "--seed", "4", "-o", str(file)]) == 0
    about = about_parquet(file)
    assert (about["made"], about["requests"], about["seed"]) == ("azure-conv", 50, 4)
    assert "AzurePublicDataset" in str(about["statistics"])
    assert run(["workload", "kinds"]) == 0
    assert "servegen" in capsys.readouterr().out
    assert run(["workload", "make", "azure", "-o", str(file)]) == 2
    assert run(["workload", "make", "azure-conv", "-o", str(tmp_path / "a.csv")]) == 2
